"""Kernels and alignments of every kind of layer, against dense Jacobians."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from isthmus.probe import align, tangent_kernel, tangent_trace

# Two ways of summing the same products in float64 differ by eps (2e-16) times their number (some 10⁴) and depth.
ROUNDING = 1e-10
N, C = 7, 3


class Sequences(nn.Module):
    """A linear layer on sequences, called by name, and an activation that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(4, 5)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(5, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.each(input=x)).mean(1))


class Twice(nn.Module):
    """One module called twice, and one that is never called."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Scale(nn.Module):
    """A root-mean-square norm with a bare parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale / x.square().mean(-1, keepdim=True).add(1e-3).sqrt()


class Tokens(nn.Module):
    """Embeddings of tokens and of positions (as many as samples), shared with the last layer."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.places = nn.Embedding(N, 4)
        self.words = nn.Embedding(6, 4, padding_idx=1)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.out = nn.Linear(6, C)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        return self.out(torch.tanh(self.head(self.norm(h).mean(1))))


class Odd(nn.Module):
    """Embeddings with gradients of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = nn.Embedding(6, 4, sparse=True)
        self.counted = nn.Embedding(6, 4, max_norm=50.0)
        self.bag = nn.EmbeddingBag(6, 4)
        self.out = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.sparse(x) * self.counted(x)).mean(1) + self.bag(x))


class Attentive(nn.Module):
    """Attention, whose parameters its parts do not use themselves, and a bare parameter beside parts."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        return self.out(self.attend(h, h, h, need_weights=False)[0][:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells = kind(4, 3, batch_first=True)
        self.out = nn.Linear(3, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x)[0][:, -1])


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).square().mean(2)


class Normed(nn.Module):
    """A weight that is computed from other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
        self.out = nn.Linear(5, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(x)))


def chain(*parts: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*parts, Mean(), nn.Linear(width, C))


def batch_norm(kind: type[nn.BatchNorm1d] | type[nn.BatchNorm2d], width: int) -> nn.Module:
    norm = kind(width)
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(width))  # pyright: ignore
        norm.running_var.copy_(torch.rand(width) + 0.5)  # pyright: ignore
        norm.weight.copy_(torch.randn(width))
    return norm


def vectors() -> Tensor:
    return torch.randn(N, 4)


def sequences() -> Tensor:
    return torch.randn(N, 5, 4)


def tokens() -> Tensor:
    return torch.randint(0, 6, (N, N))


def lines() -> Tensor:
    return torch.randn(N, 4, 9)


def images() -> Tensor:
    return torch.randn(N, 4, 5, 6)


def volumes() -> Tensor:
    return torch.randn(N, 2, 3, 4, 3)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, C)), vectors),
    "sequences": (Sequences, sequences),
    "twice linear": (lambda: Twice(nn.Linear(4, 4)), vectors),
    "twice norm": (lambda: Twice(nn.LayerNorm(4)), vectors),
    "conv1d": (lambda: chain(nn.Conv1d(4, 3, 3, padding=2, padding_mode="circular", dilation=2), width=3), lines),
    "conv2d": (lambda: chain(nn.Conv2d(4, 3, (2, 3), stride=(1, 2), padding=(1, 0)), width=3), images),
    "conv2d same": (lambda: chain(nn.Conv2d(4, 3, 3, padding="same", dilation=2, bias=False), width=3), images),
    "conv2d groups": (lambda: chain(nn.Conv2d(4, 6, 3, groups=2), width=6), images),
    "conv3d": (lambda: chain(nn.Conv3d(2, 3, 2), width=3), volumes),
    "transposed": (lambda: chain(nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), width=3), lines),
    "transposed 2d": (lambda: chain(nn.ConvTranspose2d(4, 6, 2, groups=2), width=6), images),
    "tokens": (lambda: Tokens(False), tokens),
    "tied": (lambda: Tokens(True), tokens),
    "odd embeddings": (Odd, tokens),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, C)), vectors),
    "batch norm": (lambda: nn.Sequential(batch_norm(nn.BatchNorm1d, 4), nn.Tanh(), nn.Linear(4, C)), vectors),
    "batch norm 2d": (lambda: chain(batch_norm(nn.BatchNorm2d, 4), width=4), images),
    "group norm": (lambda: chain(nn.GroupNorm(2, 4), width=4), images),
    "scale": (lambda: nn.Sequential(nn.Linear(4, 5), Scale(5), nn.Tanh(), nn.Linear(5, C)), vectors),
    "attention": (Attentive, sequences),
    "lstm": (lambda: Recurrent(nn.LSTM), sequences),
    "gru": (lambda: Recurrent(nn.GRU), sequences),
    "weight norm": (Normed, vectors),
}


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """`(C, n, |θ|)` of every module with parameters of its own, by torch.func; tied ones under their first name."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # the same gradients, which these ways of differentiating can read
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    try:
        found: Any = jacrev(lambda p: functional_call(model, p, (x,)))(parameters)
    except (RuntimeError, UserWarning):  # recurrent layers and attention know no vmap
        names = list(parameters)
        function: Any = lambda *values: functional_call(model, dict(zip(names, values, strict=True)), (x,))  # noqa: E731
        columns = torch.autograd.functional.jacobian(function, tuple(parameters.values()))
        found = dict(zip(names, columns, strict=True))
    layers: dict[str, list[Tensor]] = {}
    for key, j in found.items():
        layers.setdefault(key.rpartition(".")[0] or "(model)", []).append(j.detach().flatten(2).transpose(0, 1))
    return {key: torch.cat(pieces, 2) for key, pieces in layers.items()}


def definition(j: Tensor, y: Tensor) -> tuple[float, float]:
    """`A_ℓ` and the traced one: CKA from centred HSIC, block by block."""
    outputs, n, _ = j.shape
    h = torch.eye(n) - torch.ones(n, n) / n
    rows = (h @ j).flatten(0, 1)
    kernel = rows @ rows.mT
    target = (h @ y).mT.flatten()
    outer = torch.outer(target, target)
    blocks = kernel.view(outputs, n, outputs, n)
    traced = torch.stack([blocks[c, :, c] for c in range(outputs)]).sum(0)
    gram = (h @ y) @ (h @ y).mT
    return (
        float((kernel * outer).sum() / kernel.norm() / outer.norm()),
        float((traced * gram).sum() / traced.norm() / gram.norm()),
    )


def close(found: Tensor, right: Tensor) -> bool:
    return float((found - right).abs().max()) <= ROUNDING * max(1.0, float(right.abs().max()))


ONE_BY_ONE = {
    "twice linear": {"unused"},
    "twice norm": {"unused"},
    "tokens": {"places"},
    "tied": {"words", "places"},
    "odd embeddings": {"sparse", "counted"},
    "attention": {"(model)", "attend", "attend.out_proj"},
    "lstm": {"cells"},
    "gru": {"cells"},
    "weight norm": {"layer", "layer.parametrizations.weight"},
}
"""Layers whose gradients cannot be told apart at their own output; all others take the quick way."""


@pytest.mark.parametrize("name", MODELS)
def test_kernels_and_alignments_are_those_of_dense_jacobians(name: str) -> None:
    make, draw = MODELS[name]
    model, x = make(), draw()
    y = torch.randn(N, C)
    right = jacobians(model, x)
    kernels = tangent_kernel(model, x, kind="full", batch_size=3)
    traced = tangent_kernel(model, x, batch_size=4)
    traces = tangent_trace(model, x, batch_size=4)
    found = align(model, x, targets=y, batch_size=5, bootstrap=0, progress=False)
    assert {one.name for one in found.layers if "one sample at a time" in one.why} == ONE_BY_ONE.get(name, set())
    assert set(kernels.layers) == set(right) == {layer.name for layer in found.layers}
    total = torch.zeros(N * C, N * C)
    for layer, j in right.items():
        rows = j.flatten(0, 1)
        assert close(kernels.layers[layer], rows @ rows.mT), layer
        assert close(traced.layers[layer], torch.einsum("cip,cjp->ij", j, j)), layer
        assert torch.equal(kernels.layers[layer], kernels.layers[layer].mT)
        assert abs(traces.layers[layer] - float(j.square().sum())) <= ROUNDING * max(1.0, float(j.square().sum()))
        total += rows @ rows.mT
        one = found[layer]
        assert one.parameters == j.shape[2]
        assert one.trace == pytest.approx(float(j.square().sum()) / N, abs=ROUNDING)
        if float(j.abs().max()) == 0:
            assert one.alignment is None
            assert "zero" in one.note
            continue
        # norms of kernels that are nearly zero lose digits: ‖K‖ of some 1e-3 here
        expected, expected_traced = definition(j, y)
        assert one.alignment == pytest.approx(expected, rel=1e-8)
        assert one.alignment_traced == pytest.approx(expected_traced, rel=1e-8)
    assert close(kernels.total, total)
    assert float(torch.linalg.eigvalsh(kernels.total)[0]) >= -ROUNDING * float(kernels.total.diagonal().max())


def test_what_is_one_sample_at_a_time_and_what_is_not() -> None:
    methods = {name: align(MODELS[name][0](), MODELS[name][1](), targets=torch.randn(N, C), bootstrap=0, progress=False)
               for name in ("mlp", "conv2d", "tied", "attention", "group norm")}  # fmt: skip
    said = {(name, one.name): (one.method, one.why) for name, found in methods.items() for one in found.layers}
    assert said["mlp", "0"][0] == "exact: Grams"
    assert said["conv2d", "0"][0] == "exact: per-sample gradients"
    assert "one sample at a time" not in said["conv2d", "0"][1] + said["group norm", "0"][1]
    assert "used elsewhere" in said["tied", "words"][1]
    assert "directly" in said["attention", "attend.out_proj"][1]
    assert [one.name for one in methods["tied"].layers] == ["words", "places", "norm", "out"]
    assert "shared with head" in methods["tied"]["words"].note


def test_positions_by_grams_and_by_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus.tangent import _features as features

    x = sequences()
    model = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 100), Last(), nn.Linear(100, C))
    monkeypatch.setattr(features, "_CHUNK_BYTES", 8 * 2 * 25 * N * 2)  # two samples at a time
    found = tangent_kernel(model, x, kind="full")
    assert found.methods["0"] == "exact: per-sample gradients"
    assert found.methods["2"] == "exact: Grams"  # 5 positions twice, times 40 + 100, are fewer than 41 · 100
    for name, j in jacobians(model, x).items():
        rows = j.flatten(0, 1)
        assert close(found.layers[name], rows @ rows.mT), name


def test_every_form_of_a_convolution_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus.probe import _tangent_plan as plan

    model, x = MODELS["conv2d"][0](), MODELS["conv2d"][1]()
    right = jacobians(model, x)
    forms = plan._forms
    for form in (plan.GRADIENTS, plan.PIECES, plan.GRAMS, plan.HELD):
        monkeypatch.setattr(plan, "_forms", lambda *given, form=form: [f for f in forms(*given) if f.name == form]
                            or forms(*given))  # fmt: skip
        found = tangent_kernel(model, x, kind="full")
        assert plan._WORDS[form] in found.methods.values()
        for name, j in right.items():
            rows = j.flatten(0, 1)
            assert close(found.layers[name], rows @ rows.mT), (form, name)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1] + x.square().mean(1)


def test_finite_differences_give_the_same_kernel() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    found = tangent_kernel(model, x, kind="full", layers="0").total
    step, columns = 1e-5, list[Tensor]()
    with torch.no_grad():
        for parameter in model[0].parameters():
            for i in range(parameter.numel()):
                place = parameter.view(-1)
                place[i] += step
                above = model(x)
                place[i] -= 2 * step
                below = model(x)
                place[i] += step
                columns.append(((above - below) / (2 * step)).mT.flatten())
    j = torch.stack(columns, 1)
    # central differences: step² = 1e-10 times third derivatives, and eps/step = 2e-11
    assert float((found - j @ j.mT).abs().max()) < 1e-7


def test_padded_batches_of_different_lengths() -> None:
    model = Sequences()
    short, long = torch.randn(3, 2, 4), torch.randn(4, 6, 4)
    found = tangent_kernel(model, [short, long], kind="full").layers["each"]
    j = torch.cat([jacobians(model, x)["each"] for x in (short, long)], 1).flatten(0, 1)
    assert close(found, j @ j.mT)


def test_packed_sequences_have_kernels() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.GRU(4, 3)
            self.out = nn.Linear(3, C)

        def forward(self, x: nn.utils.rnn.PackedSequence) -> Tensor:
            return self.out(self.cells(x)[1][0])

    model = Packed()
    parts = [torch.randn(length, 4) for length in (5, 3, 2)]
    packed = nn.utils.rnn.pack_sequence(parts)
    found = tangent_kernel(model, [packed], kind="full").layers["cells"]
    rows = list[Tensor]()
    for c in range(C):
        for part in parts:
            out = model(nn.utils.rnn.pack_sequence([part]))[0, c]
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(out, list(model.cells.parameters()))]))
    j = torch.stack(rows)
    assert close(found, j @ j.mT)
