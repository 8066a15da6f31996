"""The zoo: networks are what their settings say, by hand and in numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from isthmus._errors import InputError
from isthmus.models import ZOO, ZooEnsemble, ZooNetwork, ZooSetting, zoo_network

SMALL = ZooSetting("small", gain=0.8, width=7, hidden_layers=4, watched=2)
POINTS = torch.tensor([[-1.0], [0.4]], dtype=torch.float32)

FORMULAS = {
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "relu": lambda z: np.where(z > 0, z, 0 * z),
    "elu": lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1),
    "tanh": lambda z: (np.exp(2 * z) - 1) / (np.exp(2 * z) + 1),
    "swish": lambda z: z / (1 + np.exp(-z)),
    "none": lambda z: z,
}  # fmt: skip


def with_biases(network: ZooNetwork) -> ZooNetwork:
    """Biases that are not 0, so that one that is left out is seen."""
    with torch.no_grad():
        for i, bias in enumerate(network.biases):
            bias += 0.1 * torch.arange(1 + i, 1 + i + len(bias), dtype=torch.float32).sin()
    return network.eval()


def parameters(network: ZooNetwork) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [w.detach().double().numpy() for w in network.weights], [b.detach().double().numpy() for b in network.biases]


@pytest.mark.parametrize("activation", FORMULAS)
@pytest.mark.parametrize("kind", ["mlp", "residual", "dropout"])
def test_dense_networks_are_what_they_are_called(kind: str, activation: str) -> None:
    network = with_biases(zoo_network(dataclasses.replace(SMALL, kind=kind, activation=activation, gain=2.0), 1, 2, 3))
    weights, biases = parameters(network)
    phi, a, by_hand = FORMULAS[activation], POINTS.double().numpy(), []
    for layer, (w, b) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        a = phi(a @ w.T + b)
        if kind == "residual" and layer >= 2:
            a = a + by_hand[layer - 2]
        by_hand.append(a)
    hidden, outputs = network.states(POINTS)
    assert len(hidden) == len(by_hand) == SMALL.hidden_layers
    for mine, theirs in zip(hidden, by_hand, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(outputs.detach().numpy(), a @ weights[-1].T + biases[-1], rtol=2e-5, atol=2e-6)
    assert torch.equal(network(POINTS), outputs)


def test_convolutions_by_hand() -> None:
    setting = ZooSetting("c", "convolutional", width=36, hidden_layers=2, watched=1)
    network = with_biases(zoo_network(setting, 1, 2, 1))
    weights, biases = parameters(network)
    assert [w.shape for w in weights] == [(36, 1), (20, 1, 11), (20, 20, 11), (1, 20, 11), (2, 6)]
    a = FORMULAS["leaky_relu"](POINTS.double().numpy() @ weights[0].T + biases[0])[:, None]
    by_hand = [a]
    for w, b in zip(weights[1:-1], biases[1:-1], strict=True):
        places = range(a.shape[2] - 10)
        z = np.stack([np.einsum("ncq,ocq->no", a[:, :, p : p + 11], w) + b for p in places], 2)
        a = FORMULAS["leaky_relu"](z)
        by_hand.append(a)
    hidden, outputs = network.states(POINTS)
    assert len(hidden) == setting.layers == 4
    for mine, theirs in zip(hidden, by_hand, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs.reshape(2, -1), rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(outputs.detach().numpy(), a[:, 0] @ weights[-1].T + biases[-1], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", ZOO)
def test_every_setting_of_the_table_is_a_network(name: str) -> None:
    setting = ZOO[name]
    network = zoo_network(name, 1, 1, seed=2)
    with torch.no_grad():
        hidden, outputs = network.states(POINTS)
    assert len(hidden) == setting.layers
    watched = hidden[setting.watched]
    assert watched.shape == (2, 20 * 450 if name == "cnn" else setting.width)
    assert outputs.shape == (2, 1)
    assert bool((watched[0] != watched[1]).any())
    assert all(float(b.detach().abs().max()) == 0 for b in network.biases)
    w = network.weights[1 if setting.hidden_layers > 1 else 0].detach().double()
    fans = (w.shape[0] + w.shape[1]) * math.prod(w.shape[2:])
    wanted = setting.gain**2 * 2 / fans
    assert abs(float(w.square().mean()) / wanted - 1) < 5 * math.sqrt(2 / w.numel())
    assert abs(float(w.mean())) < 5 * math.sqrt(wanted / w.numel())


def test_the_table_is_the_published_one() -> None:
    assert len(ZOO) == 19
    assert (ZOO["adam"].optimiser, ZOO["adam"].learning_rate) == ("adam", 1e-6)
    assert ZOO["tanh"].activation == "tanh"
    assert ZOO["dropout"].watched == 5 < ZOO["dropout"].layers == 10
    assert (ZOO["gain_1.6"].gain, ZOO["gain_1.6"].learning_rate) == (1.6, 3e-6)
    assert ZOO["two_layer"].layers == 1


def test_weights_are_new_for_each_seed_and_the_same_for_one() -> None:
    first, again, other = (zoo_network(SMALL, 1, 1, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])
    assert all(w.dtype == torch.float32 for w in first.weights)


def test_dropout_is_of_training_only_and_of_a_tenth() -> None:
    setting = ZooSetting("d", "dropout", activation="none", width=4000, hidden_layers=1, watched=0)
    network = zoo_network(setting, 1, 1, 0)
    with torch.no_grad():
        network.weights[1].fill_(1.0)
        network.biases[0].fill_(1.0)
        network.weights[0].zero_()
        kept = torch.cat([network(POINTS).flatten() for _ in range(20)])
        again = zoo_network(setting, 1, 1, 0)
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(POINTS).flatten(), kept[:2])
        network.eval()
        assert network(POINTS).tolist() == [[4000.0], [4000.0]]
    count = kept * 0.9
    assert torch.allclose(count, count.round(), atol=1e-2)
    # 40 sums of 4000 units, each kept with 0.9: the mean is 4000 up to 4000 · √(0.1/(0.9 · 160000)).
    assert abs(float(kept.double().mean()) - 4000) < 5 * 4000 * math.sqrt(0.1 / 0.9 / 160000)
    assert len(set(kept.tolist())) > 10


def test_an_ensemble_computes_what_its_members_compute_with_their_gradients() -> None:
    members = [with_biases(zoo_network(dataclasses.replace(SMALL, gain=gain), 1, 1, seed))
               for seed, gain in enumerate((0.7, 1.2, 1.6))]  # fmt: skip
    x = torch.stack([POINTS, 2 * POINTS, -POINTS])
    ensemble = ZooEnsemble(members)
    hidden, outputs = ensemble.states(x)
    (outputs.square().sum()).backward()
    for i, member in enumerate(members):
        mine, out = member.states(x[i])
        out.square().sum().backward()
        for a, b in zip(mine, hidden, strict=True):
            assert torch.allclose(a, b[i], rtol=1e-5, atol=1e-7)
        assert torch.allclose(out, outputs[i], rtol=1e-5, atol=1e-7)
        for a, b in zip(member.weights, ensemble.weights, strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert torch.allclose(a.grad, b.grad[i], rtol=1e-4, atol=1e-7)
    assert torch.equal(ensemble(x), outputs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "gelu"}, "activation: got gelu, expected one of leaky_relu"),
        ({"gain": 0.0}, "gain: got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate: got nan"),
        ({"watched": 4}, "one of the hidden layers 0 to 3"),
        ({"width": 0}, "width: got 0"),
        ({"kind": "convolutional", "width": 50}, "at least 51 positions"),
    ],
)
def test_settings_that_are_no_network_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALL, **changes)


def test_unknown_names_and_members_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match=r"defualt.*default"):
        zoo_network("defualt", 1, 1)
    with pytest.raises(InputError, match="inputs: got 0"):
        zoo_network("two_layer", 0, 1)
    plain = zoo_network(SMALL, 1, 1)
    with pytest.raises(InputError, match=r"networks\[1\]"):
        ZooEnsemble([plain, zoo_network(dataclasses.replace(SMALL, width=8), 1, 1)])
    with pytest.raises(InputError, match=r"networks\[0\]: got small"):
        ZooEnsemble([zoo_network(dataclasses.replace(SMALL, kind="residual"), 1, 1)])
    with pytest.raises(InputError, match="at least one network"):
        ZooEnsemble([])
