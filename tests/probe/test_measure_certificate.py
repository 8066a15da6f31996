"""The bottleneck certificate inside `measure`: which chains are found, what is said of them, and why there is none."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus import measure
from isthmus._records import RunFolder
from isthmus.geometry import bottleneck_certificate, neuron_balance, weight_spectra
from isthmus.probe import Measurement, align, plan_measure, tangent_eigenpairs, tangent_trace
from isthmus.probe._certified import CERTIFICATE, LEVELS, NO_CHAIN, OF_LAYERS, STABILITY
from isthmus.report import build_page
from isthmus.report._figures import Budget
from isthmus.report._read import RunView
from isthmus.report._sections import build_sections

LAYERED = {"layers": "*", "progress": False}


def chain_of(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        modules += [nn.Linear(a, b, bias), activation()]
    return nn.Sequential(*modules[:-1])


def linear(net: nn.Module) -> tuple[list[Tensor], list[Tensor | None]]:
    found = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return [m.weight.detach() for m in found], [None if m.bias is None else m.bias.detach() for m in found]


def carrying(depth: int, width: int, k: int, noise: float = 0.0) -> nn.Sequential:
    """Carries `k` dimensions of positive inputs unchanged through `k` neurons of each layer, and drops the rest."""
    net = chain_of(*[width] * (depth + 1))
    with torch.no_grad():
        for m in net:
            if isinstance(m, nn.Linear):
                m.weight.copy_(torch.diag((torch.arange(width) < k).double()) + noise * torch.randn(width, width))
                m.bias.zero_() if noise == 0 else m.bias.normal_(0, noise)
    return net


def values(found: Measurement, metric: str, layer: str | None = None) -> list[Any]:
    rows = found.table.filter((pl.col("metric") == metric) & (pl.col("status") == "ok"))
    return (rows if layer is None else rows.filter(pl.col("layer") == layer))["value"].to_list()


def notes(found: Measurement, metric: str = "bottleneck_bound") -> dict[str, str]:
    """Reasons for values that do not exist, by layer."""
    rows = found.table.filter((pl.col("metric") == metric) & (pl.col("status") != "ok"))
    return dict(rows.select("layer", "note").rows())


def chains(found: Measurement) -> list[str]:
    return [chain["name"] for chain in found.record["measured"]["chains"]]


def claim(found: Measurement, name: str = "certificate") -> Any:
    return next((c for c in found.verdict if c.name == name), None)


def test_numbers_of_a_chain_are_those_of_the_pure_functions() -> None:
    torch.manual_seed(1)
    net, x = chain_of(6, 12, 9, 4), torch.randn(40, 6)
    found = measure(net, x, progress=False, jacobian_samples=7)
    weights, biases = linear(net)
    certificate = bottleneck_certificate(weights, biases, x[:7])
    best = int(certificate.bound.argmin())
    assert chains(found) == ["0 to 4"]
    assert values(found, "bottleneck_bound") == pytest.approx([float(certificate.bound.min())], rel=1e-12)
    assert values(found, "bottleneck_bound_median") == pytest.approx([float(certificate.bound.median())], rel=1e-12)
    assert values(found, "certified_rank") == [int(certificate.rank[best])]
    gaps = certificate.gap[best].tolist()
    assert values(found, "bottleneck_gap") == pytest.approx([*gaps, sum(gaps)], rel=1e-12)
    assert values(found, "bottleneck_tightness") == pytest.approx([float(certificate.tightness[best])], rel=1e-12)
    assert values(found, "norm_excess") == pytest.approx([float(certificate.excess[best])], rel=1e-12)
    (excess,), (bound,) = values(found, "norm_excess"), values(found, "bottleneck_bound")
    assert values(found, "regularity_bound") == pytest.approx([excess - bound], abs=1e-9)
    for metric, shares in (
        ("bottleneck_share_within", certificate.share_within(LEVELS)),
        ("bottleneck_share_certified", certificate.share_certified(LEVELS)),
    ):
        assert values(found, metric) == shares[best].tolist()
    spectra = weight_spectra(weights, biases, x[:7])
    assert values(found, "singular_values_near_one") == spectra.near_one().tolist()
    assert values(found, "singular_values_near_one_centred") == spectra.near_one(mean=False).tolist()
    balances = [float(b.abs().sum() / (w.square().sum() + c.square().sum() + after.square().sum()))
                for b, w, c, after in zip(neuron_balance(weights, biases), weights, biases, weights[1:], strict=False)
                if c is not None]  # fmt: skip
    assert values(found, "neuron_balance") == pytest.approx(balances, rel=1e-12)
    rows = found.table.filter(pl.col("metric") == "bottleneck_bound")
    assert rows["n"].to_list() == [7]
    assert "best of 7 samples" in rows["note"][0]


@pytest.mark.parametrize("bias", [True, False])
def test_the_tangent_kernel_in_closed_form_is_the_measured_one(bias: bool) -> None:
    torch.manual_seed(2)
    net, x, y = chain_of(5, 11, 7, 3, bias=bias), torch.randn(9, 5), torch.randn(9, 3)
    closed = measure(net, x, progress=False, jacobian_samples=9)
    exact = tangent_trace(net, x)
    per_layer = [exact.layers[name] / 9 for name in ("0", "2", "4")]
    assert values(closed, "tangent_trace") == pytest.approx([*per_layer, exact.total / 9], rel=1e-10)
    top = float(tangent_eigenpairs(net, x, 1).values[0])
    assert values(closed, "tangent_top_eigenvalue") == pytest.approx([top / 9], rel=1e-9)
    assert values(closed, "sharpness") == pytest.approx([2 * top / 9], rel=1e-9)
    assert values(closed, "largest_stable_rate") == pytest.approx([9 / top], rel=1e-9)
    assert f"{2 * top / 9:.3g}" in claim(closed, "sharpness").text
    assert "summed over outputs" in claim(closed, "sharpness").text, "with nn.MSELoss the rate is 3 times as large"
    aligned = measure(net, x, targets=y, loss="square", progress=False, alignment_samples=9)
    assert values(aligned, "sharpness") == pytest.approx([2 * top / 9], rel=1e-6)
    assert len(values(aligned, "tangent_trace")) == 4, "by alignment, and not in closed form once more"
    assert [layer.trace for layer in align(net, x, targets=y).layers] == pytest.approx(per_layer, rel=1e-6)


def test_gradient_descent_is_stable_below_the_largest_rate_and_not_above() -> None:
    torch.manual_seed(3)
    x = torch.randn(8, 4)
    net = chain_of(4, 30, 2)
    found = measure(net, x, progress=False, jacobian_samples=8)
    (rate,) = values(found, "largest_stable_rate")
    y = net(x).detach()  # at a perfect fit the Hessian is (2/N) JᵀJ
    for factor, grows in ((0.9, False), (1.1, True)):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for p in moved.parameters():
                p.add_(1e-7 * torch.randn(p.shape))
        losses: list[float] = []
        for _ in range(200):
            loss = (moved(x) - y).square().sum(1).mean()
            moved.zero_grad()
            loss.backward()
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for p in moved.parameters():
                    assert p.grad is not None
                    p.sub_(factor * rate * p.grad)
        assert (losses[-1] > losses[0]) == grows


def test_a_network_that_carries_two_dimensions_is_certified_and_an_untrained_one_is_not() -> None:
    x = torch.rand(20, 8) + 0.5
    found = measure(carrying(10, 8, 2, noise=1e-3), x, progress=False)
    said = claim(found)
    assert said.level == "finding"
    assert said.text.startswith("Layers 0 to 18 carry k = 2 dimensions: 10 of 10 layers lie within 0.5")
    assert "the bound alone certifies 10" in said.text
    assert said.values["rank"] == 2
    behind = found.table[list(said.rows)]
    assert {"bottleneck_bound", "norm_excess", "bottleneck_gap", "certified_rank"} <= set(behind["metric"])
    assert set(behind["layer"]) == {"0 to 18", *(str(2 * i) for i in range(10))}
    torch.manual_seed(4)
    fresh = claim(measure(chain_of(8, 30, 30, 30, 8), x, progress=False))
    assert fresh.level == "none"
    assert "k = 0: no singular value of the Jacobian is above e^(−L/2)" in fresh.text
    wide = chain_of(8, 8, 8)
    with torch.no_grad():
        for m in wide:
            if isinstance(m, nn.Linear):
                m.weight.copy_(4 * torch.linalg.qr(torch.randn(8, 8)).Q)
    large = claim(measure(wide, x, progress=False))
    assert large.level == "none"
    assert "no bottleneck structure" in large.text
    assert "it certifies no layer" in large.text


@pytest.mark.slow
def test_training_with_weight_decay_ends_in_a_certified_bottleneck() -> None:
    torch.manual_seed(0)
    net = chain_of(6, *[24] * 7, 6)
    with torch.no_grad():
        for m in net:
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight)
                m.bias.zero_()
    x = torch.randn(150, 6)
    y = torch.relu(x @ torch.randn(6, 1)) @ torch.randn(1, 6)
    steps = 5000
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps)) + 1e-5
        loss = (net(x) - y).square().mean() + 1e-3 * sum(p.square().sum() for p in net.parameters())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = measure(net, x, progress=False)
    assert claim(found).level == "finding"
    assert values(found, "certified_rank") == [1]
    assert statistics.median(values(found, "neuron_balance")) < 0.02  # balanced, as at a critical point with a ridge
    assert values(found, "singular_values_near_one")[1:-1] == [1] * 6


class Functional(nn.Module):
    """Activations that are no modules, dropout, an identity, and layers in an order of their own."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(7, 3), nn.Linear(5, 8), nn.Linear(8, 7)
        self.passing, self.dropout, self.activation = nn.Identity(), nn.Dropout(0.3), activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.activation(self.first(x)))
        return self.last(self.activation(self.passing(self.middle(h))))


@pytest.mark.parametrize("activation", [functional.relu, torch.relu_, lambda z: z.clamp(min=0), nn.ReLU(inplace=True)])
def test_what_computes_a_relu_is_one_however_it_is_written(activation: Callable[[Tensor], Tensor]) -> None:
    found = measure(Functional(activation).train(), torch.randn(30, 5), progress=False)
    assert chains(found) == ["first to last"]
    assert [layer["name"] for layer in found.record["measured"]["chained"]] == ["first", "middle", "last"]


class Encoder(nn.Module):
    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation=activation, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def test_blocks_of_a_transformer_are_chains_whose_positions_are_inputs() -> None:
    torch.manual_seed(5)
    net, x = Encoder().eval(), torch.randn(12, 4, 6)
    found = measure(net, x, progress=False, jacobian_samples=6)
    first = "encoder.layers.0.linear1 to encoder.layers.0.linear2"
    assert chains(found) == [first, first.replace("layers.0", "layers.1")]
    block: Any = net.encoder.layers[0]
    taken: list[Tensor] = []
    handle = block.linear1.register_forward_pre_hook(lambda _m, args: taken.append(args[0].detach()))
    net(x[:6])
    handle.remove()
    rows = taken[0].reshape(24, 8)[torch.linspace(0, 23, 6).round().long()]
    weights = [block.linear1.weight.detach(), block.linear2.weight.detach()]
    expected = bottleneck_certificate(weights, [block.linear1.bias.detach(), block.linear2.bias.detach()], rows)
    assert values(found, "bottleneck_bound", first) == pytest.approx([float(expected.bound.min())], rel=1e-9)
    rows_of = found.table.filter((pl.col("metric") == "bottleneck_bound") & (pl.col("layer") == first))
    assert "best of 6 positions, evenly spaced among 24" in rows_of["note"][0]
    assert "Of 2 chains" in claim(found).text
    assert claim(found, "sharpness") is None


def test_padding_is_no_input_of_a_chain() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(9, 6), nn.Linear(6, 10), nn.Linear(10, 6)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(self.embed(input_ids) * attention_mask[..., None])))

    mask = torch.ones(8, 5, dtype=torch.long)
    mask[:, 3:] = 0
    data = [{"input_ids": torch.randint(0, 9, (4, 5)), "attention_mask": mask[:4]},
            {"input_ids": torch.randint(0, 9, (4, 5)), "attention_mask": mask[4:]}]  # fmt: skip
    found = measure(Masked(), data, progress=False, jacobian_samples=8, layers="*")
    note = found.table.filter(pl.col("metric") == "bottleneck_bound")["note"][0]
    assert "best of 8 positions, evenly spaced among 24" in note  # 8 samples of 3 tokens that count


def test_the_head_of_a_convolutional_network_is_a_chain_and_a_norm_or_a_residual_cuts_one() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 3, 3), nn.Linear(12, 9), nn.Linear(9, 8)
            self.norm, self.fc3, self.fc4 = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.conv(x)).flatten(1)
            h = self.fc2(torch.relu(self.fc1(h)))
            h = self.relu(self.norm(h))
            return self.fc4(torch.relu(h + self.fc3(h)))

    net = Net()
    net(torch.randn(9, 1, 4, 4))
    found = measure(net, torch.randn(9, 1, 4, 4), **LAYERED)
    assert chains(found) == ["fc1 to fc2"]
    assert list(notes(found)) == ["fc2 to fc3"]
    assert notes(found)["fc2 to fc3"].startswith("joined by BatchNorm1d, ReLU, not by ReLU alone")


@pytest.mark.parametrize(
    ("activation", "word"),
    [(nn.Tanh, "Tanh"), (nn.GELU, "GELU"), (lambda: nn.LeakyReLU(0.2), "LeakyReLU"), (nn.Identity, "no activation")],
)
def test_other_activations_are_said_and_what_still_holds(activation: Callable[[], nn.Module], word: str) -> None:
    found = measure(chain_of(5, 8, 8, 3, activation=activation), torch.randn(30, 5), progress=False)
    assert chains(found) == []
    assert notes(found)["0 to 4"].startswith(f"joined by {word}, not by ReLU")
    assert "docs/theory 3.3" in notes(found)["0 to 4"]
    for metric in CERTIFICATE:
        assert "model" in notes(found, metric), metric
    assert claim(found) is None


@pytest.mark.parametrize(
    ("function", "word"), [(torch.tanh, "tanh"), (functional.gelu, "GELU"), (functional.silu, "SiLU")]
)
def test_an_activation_that_is_no_module_is_recognised(function: Callable[[Tensor], Tensor], word: str) -> None:
    assert (
        f"joined by {word}" in notes(measure(Functional(function), torch.randn(30, 5), progress=False))["first to last"]
    )


def test_models_without_a_chain_say_so() -> None:
    found = measure(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)), torch.randn(20, 2, 5),
                    progress=False)  # fmt: skip
    for metric in CERTIFICATE:
        assert notes(found, metric) == {"model": NO_CHAIN}
    assert "give targets" in notes(found, "sharpness")["model"]


def test_layers_that_are_called_twice_or_read_twice_end_a_chain() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.again, self.left, self.right = (nn.Linear(6, 6) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(torch.relu(self.a(x)))
            h = self.again(torch.relu(self.again(torch.relu(h))))
            h = torch.relu(h)
            return self.left(h) + self.right(h)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.left, self.right = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.b(torch.relu(self.a(x))))
            return self.left(h) + self.right(h)

    assert chains(measure(Net(), torch.randn(20, 6), progress=False)) == ["a to b"]
    found = measure(Heads(), torch.randn(20, 6), progress=False)
    assert chains(found) == ["a to b"]
    assert any("2 linear layers read b" in why for why in notes(found).values())


def test_tied_weights_count_at_each_use_and_have_no_kernel_in_closed_form() -> None:
    net = chain_of(5, 5, 5, 5)
    net[2].weight = net[0].weight  # type: ignore[assignment]
    found = measure(net, torch.randn(20, 5), progress=False)
    weights, biases = linear(net)
    total = sum(float(w.square().sum()) for w in (*weights, *biases) if w is not None)
    assert values(found, "norm_excess")[0] + 3 * values(found, "certified_rank")[0] == pytest.approx(total, rel=1e-12)
    row = found.table.filter(pl.col("metric") == "bottleneck_bound")["note"][0]
    assert "weights shared with another module count at each use: 0, 2" in row
    assert values(found, "tangent_trace") == []


class Adapted(nn.Linear):
    """Computes more than its weights say."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0.1 * input.sum(-1, keepdim=True)


def test_what_is_not_exactly_a_chain_is_refused_with_the_reason() -> None:
    x = torch.randn(30, 5)
    adapted = measure(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Adapted(6, 3)), x, progress=False)
    assert "2 computes something else than W x + b" in notes(adapted)["0 to 2"]
    sigmoid = measure(Functional(torch.sigmoid_), x, progress=False)  # in place, so that the survey saw its result only
    assert "not exactly the ReLU" in notes(sigmoid)["first to last"]
    for found in (adapted, sigmoid):
        assert chains(found) == []


def test_equal_numbers_are_no_link_where_nothing_was_computed_from_the_other_layer() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead, self.other = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dead(x) - 100 + self.other(torch.zeros_like(x))

    net = Apart()
    with torch.no_grad():
        net.dead.bias.fill_(-100.0)  # its ReLU is 0, as is what the other layer reads
    assert chains(measure(net, torch.randn(20, 5), progress=False)) == []


def test_samples_on_a_kink_are_left_out_and_counted() -> None:
    net = chain_of(4, 6, 3, bias=False)
    x = torch.randn(10, 4)
    x[[1, 4, 5]] = 0.0
    found = measure(net, x, progress=False, jacobian_samples=8)
    row = found.table.filter(pl.col("metric") == "bottleneck_bound")
    assert row["n"].to_list() == [5]
    assert "best of 5 samples, evenly spaced among 10" not in row["note"][0]
    assert "3 on a kink of a ReLU left out" in row["note"][0]
    expected = bottleneck_certificate(*linear(net), x[[0, 2, 3, 6, 7]])
    assert values(found, "bottleneck_bound") == pytest.approx([float(expected.bound.min())], rel=1e-12)
    whole = measure(net, torch.zeros(10, 4), progress=False)
    assert all("lie on the kink of a ReLU" in why for why in notes(whole).values())
    assert len(values(whole, "singular_values_near_one")) == 2


def test_dead_networks_one_sample_and_weights_that_are_not_finite_are_stated() -> None:
    x = torch.randn(20, 4)
    dead = chain_of(4, 6, 3)
    with torch.no_grad():
        dead[0].bias.fill_(-100.0)  # type: ignore[union-attr,operator]
    found = measure(dead, x, progress=False)
    assert "the network is dead there" in claim(found).text
    assert values(found, "certified_rank") == [0]
    assert values(found, "bottleneck_tightness") == [1.0]
    one = measure(chain_of(4, 6, 3), x[:1], progress=False)
    assert len(values(one, "bottleneck_bound")) == 1
    assert "no mean" in notes(one, "singular_values_near_one_centred")["0"]
    broken = chain_of(4, 6, 3)
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.inf  # type: ignore[index,operator]
    found = measure(broken, x, layers=["0"], progress=False)
    assert "not finite" in notes(found)["0 to 2"]
    zero = chain_of(4, 6, 3, bias=False)
    with torch.no_grad():
        for p in zero.parameters():
            p.zero_()
    found = measure(zero, x, progress=False)
    assert values(found, "bottleneck_bound") == [0.0]
    assert "all weights of its neurons are 0" in notes(found, "neuron_balance")["0"]
    assert "every rate is stable" in notes(found, "largest_stable_rate")["model"]


def test_the_certificate_can_be_chosen_left_out_and_costs_no_row_where_it_was_not_asked_for() -> None:
    net, x = chain_of(4, 6, 3), torch.randn(20, 4)
    only = measure(net, x, progress=False, metrics=["bottleneck_bound", "sharpness"])
    assert set(only.table["metric"]) == {"observations", "bottleneck_bound", "sharpness"}
    assert len(values(only, "bottleneck_bound")) == len(values(only, "sharpness")) == 1
    other = measure(net, x, progress=False, metrics=["effective_rank"])
    assert not set(other.table["metric"]) & {*CERTIFICATE, *STABILITY}
    none = measure(net, x, progress=False, jacobian_samples=0)
    assert all(notes(none, metric) == {"model": "jacobian_samples=0"} for metric in CERTIFICATE)
    path = measure(net, x, progress=False, path=lambda x: [x, net[0](x)])
    assert all("path=False" in notes(path, metric)["model"] for metric in OF_LAYERS)
    assert plan_measure(net, x).measured == 3


def test_the_work_is_bounded_and_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus.probe import _certified

    net = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), chain_of(8, 16, 8)) for _ in range(4)))
    x = torch.randn(30, 8)
    weights, _ = linear(net[0])
    cost = _certified._operations(weights)
    monkeypatch.setattr(_certified, "_spectra", lambda _weights: 0.0)
    monkeypatch.setattr(_certified, "_BUDGET", 12.5 * cost)
    few = measure(net, x, layers="0", metrics=CERTIFICATE, progress=False)
    assert [c["width"] for c in few.record["measured"]["chains"]] == [2] * 4
    assert set(few.table.filter(pl.col("metric") == "certified_rank")["n"]) == {3}
    monkeypatch.setattr(_certified, "_BUDGET", 2.5 * cost)
    half = measure(net, x, layers="0", metrics=CERTIFICATE, progress=False)
    assert chains(half) == ["1.1.0 to 1.1.2", "3.1.0 to 3.1.2"]
    assert "there is time for 2 of 4 chains" in notes(half)["0.1.0 to 0.1.2"]
    monkeypatch.setattr(_certified, "_BUDGET", 0.5 * cost)
    none = measure(net, x, layers="0", metrics=CERTIFICATE, progress=False)
    assert chains(none) == []
    assert "bottleneck_certificate takes the weights of any chain" in notes(none, "bottleneck_gap")["model"]


def test_the_model_comes_back_as_it_was_and_low_precision_is_a_chain_too() -> None:
    torch.manual_seed(6)
    net = Functional().train()
    net.first.weight.requires_grad_(False)
    before, seed = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    measure(net, torch.randn(30, 5), progress=False)
    torch.set_rng_state(seed)
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert [p.requires_grad for p in net.parameters()].count(False) == 1
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    for dtype in (torch.float32, torch.bfloat16):
        low = measure(chain_of(5, 30, 30, 3).to(dtype), torch.randn(30, 5), progress=False)
        assert chains(low) == ["0 to 4"]


@pytest.mark.parametrize("kind", ["tanh", "leaky_relu"])
def test_the_bound_holds_for_the_weights_as_a_sample_meets_them(kind: str) -> None:
    """docs/theory 3.3: for |σ′| ≤ 1 with `D_ℓ W_ℓ` in place of `W_ℓ`; the left side is computed from frames here."""
    generator = torch.Generator().manual_seed(7)
    slopes: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": lambda z: 1 - torch.tanh(z) ** 2,
        "leaky_relu": lambda z: torch.where(z > 0, 1.0, 0.2),
    }
    function: dict[str, Callable[[Tensor], Tensor]] = {
        "tanh": torch.tanh,
        "leaky_relu": lambda z: functional.leaky_relu(z, 0.2),
    }
    tight = 0.0
    for trial in range(60):
        widths = torch.randint(
            2, 9, (int(torch.randint(3, 8, (1,), generator=generator)) + 1,), generator=generator
        ).tolist()
        scale = 0.5 + trial % 5 / 2
        weights = [scale * torch.randn(b, a, generator=generator) / a**0.5 for a, b in itertools.pairwise(widths)]
        biases = [0.1 * torch.randn(w.shape[0], generator=generator) for w in weights]
        a, met = torch.randn(widths[0], generator=generator), list[Tensor]()
        for ell, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = w @ a + b
            last = ell == len(weights) - 1
            met.append(w if last else slopes[kind](z)[:, None] * w)
            a = z if last else function[kind](z)
        gap, bound = _sides(met, weights, biases)
        assert (gap <= bound + 1e-9 * (1 + bound.abs())).all()
        tight = max(tight, float((gap / bound).max()))
    assert tight > 0.5  # a bound that is never near would pass with a mistake in it


def _sides(met: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`Σ ‖D W − V Vᵀ‖² + ‖b‖²` and `‖θ‖² − kL − 2 Σ log s_i(Jf)` for every `k` up to the rank of `Jf`."""
    jacobian = torch.linalg.multi_dot([*reversed(met)])
    s = torch.linalg.svdvals(jacobian)
    norm = sum(float(t.square().sum()) for t in (*weights, *biases))
    gaps, bounds = list[float](), list[float]()
    for k in range(1, int((s > 1e-8 * s[0]).sum()) + 1):
        v = torch.linalg.svd(jacobian).Vh[:k].T
        gap = sum(float(b.square().sum()) for b in biases)
        for m in met:
            u, _, vh = torch.linalg.svd(m @ v, full_matrices=False)
            gap += float((m - u @ vh @ v.T).square().sum())
            v = u @ vh
        gaps.append(gap)
        bounds.append(norm - k * len(met) - 2 * float(s[:k].log().sum()))
    return torch.tensor(gaps), torch.tensor(bounds)


def test_the_page_has_the_section_where_there_is_something_to_say(tmp_path: Any) -> None:
    hostile = "</script><script>alert(1)</script>"

    def sections(net: nn.Module, x: Tensor, name: str) -> tuple[dict[str, Any], RunFolder]:
        found = measure(net, x, **LAYERED)
        run = RunFolder.create(tmp_path / name, command="measure", configuration={}, seed=0, device="", dtype="",
                               extra={"measured": found.record["measured"]})  # fmt: skip
        run.write_metrics(found.table)
        run.write_arrays(found.arrays)
        run.write_verdict(found.verdict)
        run.finish()
        return {s.key: s for s in build_sections([RunView(run)], Budget())}, run

    named = chain_of(4, 6, 3)
    wrapped = nn.Module()
    wrapped.add_module(hostile, named)
    wrapped.forward = named.forward  # type: ignore[method-assign]
    found, run = sections(wrapped, torch.randn(20, 4), "named")
    assert [f.key for f in found["certificate"].figures] == ["bottleneck-gap", "near-one"]
    chain, layers = found["certificate"].layers
    assert chain.rows[0].name == f"{hostile}.0 to {hostile}.2"
    assert [row.name for row in layers.rows] == [f"{hostile}.0", f"{hostile}.2"]
    assert {"bottleneck share within, ε\u00a0=\u00a00.5", "bottleneck bound"} <= set(chain.metrics)
    page = build_page(run)
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    gelu, _ = sections(chain_of(4, 6, 3, activation=nn.GELU), torch.randn(20, 4), "gelu")
    assert not gelu["certificate"].figures[0].panels
    assert "joined by GELU" in gelu["certificate"].figures[0].reasons[0][1]
    without, _ = sections(nn.Sequential(nn.Linear(4, 3)), torch.randn(20, 4), "none")
    assert "certificate" not in without
