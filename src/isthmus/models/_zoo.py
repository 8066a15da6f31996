"""Networks of many kinds that learn to tell two points apart, from one table of settings (docs/theory 2.5)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, elu, leaky_relu, linear, silu

from isthmus._errors import InputError, near_name_hint
from isthmus._random import check_seed, torch_generator
from isthmus.models._activations import identity
from isthmus.models._checks import real_number, whole_number

ZooKind = Literal["mlp", "residual", "convolutional", "dropout"]
ZooOptimiser = Literal["sgd", "adam"]

KERNEL, CHANNELS = 11, 20
"""Of the convolutions."""

DROPOUT = 0.1
"""Share of what a layer reads that is set to 0 while training."""

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": leaky_relu, "relu": torch.relu, "elu": elu, "tanh": torch.tanh, "swish": silu, "none": identity,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ZooSetting:
    """A network and how it is trained (arXiv 2402.09142, docs/theory 2.5).

    Attributes:
        name: of the setting.
        kind: `mlp`, `residual`, `convolutional` or `dropout`.
        activation: `leaky_relu` (slope 0.01), `relu`, `elu`, `tanh`, `swish` or `none`.
        gain: of the weights, which are normal with standard deviation `gain · √(2 / (fan-in + fan-out))`.
        learning_rate: of full-batch steps.
        optimiser: `sgd`, plain, or `adam`.
        width: neurons of a hidden layer; positions of the first one of a convolutional network.
        hidden_layers: how many; a convolutional network has one convolution more than that behind its first layer.
        watched: which of the hidden layers is the representation, from 0.

    Raises:
        InputError: an unknown kind, activation or optimiser, sizes that are no network, or a layer that is not there.
    """

    name: str
    kind: ZooKind = "mlp"
    activation: str = "leaky_relu"
    gain: float | int = 1.0
    learning_rate: float | int = 0.01
    optimiser: ZooOptimiser = "sgd"
    width: int = 500
    hidden_layers: int = 20
    watched: int = 10

    def __post_init__(self) -> None:
        known = {"kind": ("mlp", "residual", "convolutional", "dropout"), "activation": tuple(_ACTIVATIONS),
                 "optimiser": ("sgd", "adam")}  # fmt: skip
        for argument, names in known.items():
            value = getattr(self, argument)
            if value not in names:
                raise InputError(argument, value, f"one of {', '.join(names)}", near_name_hint(str(value), names))
        for argument in ("gain", "learning_rate"):
            real_number(argument, getattr(self, argument), "a finite number above 0", low=0.0, low_open=True)
        whole_number("width", self.width)
        whole_number("hidden_layers", self.hidden_layers)
        if self.kind == "convolutional" and self.positions < 1:
            raise InputError("width", self.width, f"at least {self.width + 1 - self.positions} positions, of which "
                             f"{self.hidden_layers + 1} convolutions of {KERNEL} leave one")  # fmt: skip
        if not 0 <= self.watched < self.layers:
            raise InputError("watched", self.watched, f"one of the hidden layers 0 to {self.layers - 1}")

    @property
    def layers(self) -> int:
        """Number of hidden layers."""
        return self.hidden_layers + (2 if self.kind == "convolutional" else 0)

    @property
    def positions(self) -> int:
        """Neurons of the last hidden layer."""
        lost = (KERNEL - 1) * (self.hidden_layers + 1) if self.kind == "convolutional" else 0
        return self.width - lost


def _table() -> dict[str, ZooSetting]:
    gains = ((0.9, 0.03), (1.1, 0.005), (1.2, 0.0025), (1.3, 0.0015), (1.4, 0.0005), (1.6, 3e-6))
    made = (
        ZooSetting("default"),
        ZooSetting("shallow", gain=0.35, learning_rate=0.02, hidden_layers=2, watched=1),
        ZooSetting("narrow", gain=1.05, width=50),
        ZooSetting("linear", activation="none", gain=0.85, learning_rate=0.0025),
        ZooSetting("elu", activation="elu", gain=0.95, learning_rate=0.0009),
        ZooSetting("tanh", activation="tanh", gain=0.85, learning_rate=0.0025),
        ZooSetting("relu", activation="relu"),
        ZooSetting("swish", activation="swish", gain=1.7, learning_rate=0.005),
        ZooSetting("skip", "residual", gain=0.1, learning_rate=0.02),
        ZooSetting("cnn", "convolutional", gain=0.95, learning_rate=0.004, hidden_layers=10, watched=5),
        ZooSetting("dropout", "dropout", hidden_layers=10, watched=5),
        ZooSetting("two_layer", activation="none", gain=0.1, hidden_layers=1, watched=0),
        *(ZooSetting(f"gain_{gain}", gain=gain, learning_rate=rate) for gain, rate in gains),
        ZooSetting("adam", learning_rate=1e-6, optimiser="adam"),
    )
    return {setting.name: setting for setting in made}


ZOO: Mapping[str, ZooSetting] = _table()
"""The settings of arXiv 2402.09142 by name (docs/theory 2.5)."""


def _normal(shape: tuple[int, ...], gain: float | int, generator: torch.Generator) -> nn.Parameter:
    """Xavier-normal weights `(out, in)` or `(out, in, kernel)`, drawn in float32 on the CPU."""
    fans = (shape[0] + shape[1]) * math.prod(shape[2:])
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float32) * (gain * math.sqrt(2 / fans)))


@final
class ZooNetwork(nn.Module):
    """A network of the zoo (arXiv 2402.09142, docs/theory 2.5); made by `zoo_network`.

    With `α_{−1} = x`, hidden layers from 0, and outputs `W α_{H−1} + b` that are linear in the last one:

    - `mlp`: `α_ℓ = φ(W_ℓ α_{ℓ−1} + b_ℓ)`.
    - `residual`: the same `+ α_{ℓ−2}` from `ℓ = 2` on, as in the published code: a connection skips two layers.
    - `dropout`: an `mlp` each of whose layers, the output too, reads `α` with a tenth of its entries set to 0 and the
      others divided by 0.9; in training mode only. Masks come from a generator of the network's own.
    - `convolutional`: a dense layer to `width` positions, then convolutions of kernel 11 without padding, of 20
      channels but for the last one, which has one; `φ` after each. Hidden layers are flattened.

    Attributes:
        setting: what it is.
        weights: of each layer, the output's last.
        biases: the same.
    """

    def __init__(self, setting: ZooSetting, inputs: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        self.setting = setting
        width, count = setting.width, setting.hidden_layers
        shapes: list[tuple[int, ...]] = [(width, whole_number("inputs", inputs))]
        if setting.kind == "convolutional":
            channels = [1, *[CHANNELS] * count, 1]
            shapes += [(after, before, KERNEL) for before, after in itertools.pairwise(channels)]
        else:
            shapes += [(width, width)] * (count - 1)
        shapes.append((whole_number("outputs", outputs), setting.positions))
        generator = torch_generator(check_seed(seed), "zoo weights")
        self.weights = nn.ParameterList(_normal(shape, setting.gain, generator) for shape in shapes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(shape[0], dtype=torch.float32)) for shape in shapes)
        self._masks = torch_generator(seed, "zoo dropout")

    def _read(self, a: Tensor) -> Tensor:
        """What a layer reads."""
        if self.setting.kind != "dropout" or not self.training:
            return a
        kept = torch.rand(a.shape, generator=self._masks, dtype=torch.float32) >= DROPOUT
        return a * kept.to(a.device) / (1 - DROPOUT)

    def states(self, x: Float[Tensor, "n inputs"]) -> tuple[list[Tensor], Tensor]:
        """The hidden layers, each `(n, neurons)`, and the outputs `(n, outputs)`."""
        activation = _ACTIVATIONS[self.setting.activation]
        *inner, last = zip(self.weights, self.biases, strict=True)
        hidden: list[Tensor] = []
        a = x
        for layer, (weight, bias) in enumerate(inner):
            if weight.ndim == 3:
                a = activation(conv1d(a.unsqueeze(1) if layer == 1 else a, weight, bias))
            else:
                a = activation(linear(self._read(a), weight, bias))
            if self.setting.kind == "residual" and layer > 1:
                a = a + hidden[-2]
            hidden.append(a)
        hidden = [a.flatten(1) for a in hidden]
        return hidden, linear(self._read(hidden[-1]), *last)

    def forward(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """The outputs."""
        return self.states(x)[1]


def zoo_network(setting: ZooSetting | str, inputs: int, outputs: int, seed: int = 0) -> ZooNetwork:
    """A network of a setting: Xavier-normal weights times the gain, biases 0 (arXiv 2402.09142, docs/theory 2.5).

    Args:
        setting: one of `ZOO` by name, or one of your own.
        inputs: number of inputs.
        outputs: number of outputs.
        seed: of weights and dropout; weights are the same on every device.

    Raises:
        InputError: an unknown name, or sizes or a seed that cannot be used.

    Example:
        >>> network = zoo_network("two_layer", 1, 1)
        >>> hidden, outputs = network.states(torch.ones(2, 1))
        >>> len(hidden), tuple(hidden[0].shape), tuple(outputs.shape)
        (1, (2, 500), (2, 1))
    """
    if isinstance(setting, str):
        if setting not in ZOO:
            raise InputError("setting", setting, f"one of {', '.join(ZOO)}", near_name_hint(setting, tuple(ZOO)))
        setting = ZOO[setting]
    return ZooNetwork(setting, inputs, outputs, seed)


@final
class ZooEnsemble(nn.Module):
    """Multi-layer perceptrons of one shape side by side: one batched product a layer instead of many small ones.

    Nothing couples the members: the sum of their losses has each member's gradient. Pays for narrow networks, whose
    time goes into calls (`benchmarks/zoo.py`).

    Args:
        networks: of kind `mlp`, with the same activation, sizes and number of layers; copied, not changed.

    Attributes:
        weights: of each layer, `(members, out, in)`.
        biases: of each layer, `(members, 1, out)`.

    Raises:
        InputError: no networks, networks of another kind, or networks that differ.
    """

    def __init__(self, networks: Sequence[ZooNetwork]) -> None:
        super().__init__()
        if not networks:
            raise InputError("networks", networks, "at least one network")
        first = networks[0]
        shapes = [w.shape for w in first.weights]
        for i, one in enumerate(networks):
            same = one.setting.activation == first.setting.activation and [w.shape for w in one.weights] == shapes
            if one.setting.kind != "mlp" or not same:
                raise InputError(f"networks[{i}]", one.setting.name, "the kind mlp, and the activation and sizes of "
                                 f"networks[0], {first.setting.name}")  # fmt: skip
        self._activation = _ACTIVATIONS[first.setting.activation]
        stacked = zip(*(one.weights for one in networks), strict=True)
        self.weights = nn.ParameterList(nn.Parameter(torch.stack(list(w)).detach()) for w in stacked)
        stacked = zip(*(one.biases for one in networks), strict=True)
        self.biases = nn.ParameterList(nn.Parameter(torch.stack(list(b)).detach()[:, None]) for b in stacked)

    def states(self, x: Float[Tensor, "members n inputs"]) -> tuple[list[Tensor], Tensor]:
        """The hidden layers, each `(members, n, neurons)`, and the outputs `(members, n, outputs)`."""
        *inner, (weight, bias) = zip(self.weights, self.biases, strict=True)
        hidden: list[Tensor] = []
        a = x
        for w, b in inner:
            a = self._activation(torch.baddbmm(b, a, w.mT))
            hidden.append(a)
        return hidden, torch.baddbmm(bias, a, weight.mT)

    def forward(self, x: Float[Tensor, "members n inputs"]) -> Float[Tensor, "members n outputs"]:
        """The outputs."""
        return self.states(x)[1]
