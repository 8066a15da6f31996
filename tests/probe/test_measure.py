from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from isthmus import InputError, LeakyResNet
from isthmus._metrics._pairs import PAIRS
from isthmus._records import METRICS, MetricTable
from isthmus.probe import PathMeasurement, measure_path, path_verdict
from isthmus.probe._certified import CERTIFICATE, STABILITY
from isthmus.probe._propagated import SIGNALS
from isthmus.theory import LinearGeodesic, linear_geodesic
from isthmus.train import data_term

LT, RIDGE, DEPTH = 4.0, 0.01, 8


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return data_term("square", outputs, targets)


def exact_net() -> tuple[LeakyResNet, LinearGeodesic]:
    """A Leaky ResNet set to the stationary solution of docs/theory 1.10."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=g))
    log_map = q @ torch.diag(torch.tensor([0.8, 0.3, -0.2, -0.5, 1.1])) @ q.T
    geo = linear_geodesic(
        torch.randn(5, 30, generator=g), 0.5 * (log_map + log_map.T), depth=DEPTH, effective_depth=LT, ridge=RIDGE
    )
    net = LeakyResNet(5, 5, width=5, depth=DEPTH, effective_depth=LT, activation="identity", bias=False)
    with torch.no_grad():
        net.weight.copy_(geo.weight)
        net.input_weight.copy_(torch.eye(5))
        net.output_weight.copy_(torch.eye(5))
    return net, geo


def values(table: MetricTable, metric: str, note: str = "") -> list[float | None]:
    frame = table.frame()
    return frame.filter((frame["metric"] == metric) & frame["note"].str.starts_with(note))["value"].to_list()


def test_a_network_at_the_closed_form_measures_as_the_closed_form() -> None:
    net, geo = exact_net()
    measured = measure_path(net, geo.path[0].T, geo.target.T, loss=square, ridge=RIDGE)
    table = MetricTable()
    rows = measured.record(table)
    assert values(table, "hamiltonian") == pytest.approx([geo.hamiltonian] * DEPTH, abs=1e-10)
    assert values(table, "hamiltonian_rank") == pytest.approx([geo.hamiltonian_rank] * DEPTH, abs=1e-10)
    assert values(table, "stationarity") == pytest.approx([0] * DEPTH, abs=1e-10)
    assert values(table, "cost_of_identity_exact") == pytest.approx([5] * (DEPTH + 1), abs=1e-9)
    logs = torch.linalg.eigvalsh(torch.linalg.matrix_power(geo.weight / DEPTH + (1 - LT / DEPTH) * torch.eye(5), DEPTH))
    expected = sorted(logs.log().tolist(), reverse=True)
    assert values(table, "jacobian_log_singular_value") == pytest.approx(expected, abs=1e-10)
    claims = {c.name: c for c in path_verdict(measured, rows, why_no_momenta="")}
    assert claims["stationarity"].level == "finding"
    assert claims["conservation"].level == "finding"
    assert claims["bottleneck"].level == "none"  # a full-rank linear map has no bottleneck
    assert "keeps all 5 dimensions" in claims["bottleneck"].text


def test_bounds_of_theorem_4_are_a_finding_at_a_critical_point_alone() -> None:
    net, geo = exact_net()  # W = μBSᵀ at one ridge alone; at twice that −2H/L̃ is 3.9, and the bounds are 4.7 and 5
    for ridge, level, words in ((RIDGE, "finding", "places −2H/L̃"), (2 * RIDGE, "caution", "would place −2H/L̃")):
        measured = measure_path(net, geo.path[0].T, geo.target.T, loss=square, ridge=ridge)
        assert measured.geometry.stationarity is not None
        assert (float(measured.geometry.stationarity.median()) < 0.1) == (level == "finding")
        claims = {c.name: c for c in path_verdict(measured, measured.record(MetricTable()), why_no_momenta="")}
        assert claims["bounds"].level == level
        assert words in claims["bounds"].text


def test_every_metric_is_recorded_or_explained() -> None:
    net, geo = exact_net()
    per_layer = set(METRICS) - {
        "loss",
        "rank_estimate",
        "ridge_term",
        "learning_rate",
        "gradient_norm",
        "accuracy",
        "r_squared",
        "jacobian_rank",  # of any model, by isthmus.measure
        "jacobian_log_pseudodet",
        "backward_norm",
        "backward_participation_ratio",
        "observations",
        "alignment",
        "alignment_traced",
        "tangent_trace",
        "tangent_top_eigenvalue",
        *CERTIFICATE,
        *STABILITY,
        *SIGNALS,
        "signal_slope",  # of a prediction
        *(name for name, m in METRICS.items() if m.of in ("network of a depth", "fit over depths")),
        *(metric.name for metric in PAIRS),
    }
    cases: dict[str, Callable[[], PathMeasurement]] = {
        "all": lambda: measure_path(net, geo.path[0].T, geo.target.T, loss=square, ridge=RIDGE),
        "no ridge": lambda: measure_path(net, geo.path[0].T, geo.target.T, loss=square, ridge=0.0),
        "no leak": lambda: measure_path(
            LeakyResNet(5, 5, width=5, depth=4, effective_depth=0.0), torch.randn(9, 5), torch.randn(9, 5),
            loss=square, ridge=RIDGE,
        ),
    }  # fmt: skip
    for name, measure in cases.items():
        table = MetricTable()
        measure().record(table)
        frame = table.frame()
        assert set(frame["metric"]) == per_layer, name
        silent = frame.filter((frame["status"] != "ok") & (frame["note"] == ""))
        assert silent.is_empty(), name
    frame = table.frame()  # the plain ResNet
    for metric in ("hamiltonian", "kinetic_energy", "path_length", "bound_upper"):
        (row,) = frame.filter(frame["metric"] == metric).iter_rows(named=True)
        assert row["status"] == "skipped"
        assert "no leak" in row["note"]


def test_only_metrics_asked_for() -> None:
    net, geo = exact_net()
    measured = measure_path(net, geo.path[0].T, metrics=["path_speed", "cost_of_identity"])
    table = MetricTable()
    measured.record(table)
    assert set(table.frame()["metric"]) == {"path_speed", "cost_of_identity"}
    assert len(values(table, "cost_of_identity", "gamma0=0.001")) == DEPTH + 1
    assert len(values(table, "cost_of_identity")) == 3 * (DEPTH + 1)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    net = LeakyResNet(4, 3, width=6, depth=5, effective_depth=2.0, dtype=torch.float32).train()
    net.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.random.get_rng_state()
    measure_path(net, torch.randn(20, 4), torch.randn(20, 3), loss=square, ridge=RIDGE)
    torch.random.set_rng_state(rng)
    x, y = torch.randn(20, 4), torch.randn(20, 3)
    rng = torch.random.get_rng_state()
    measure_path(net, x, y, loss=square, ridge=RIDGE)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert net.training
    assert not net.weight.requires_grad
    assert net.weight.grad is None
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert net.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("metrics", "ridge", "effective_depth", "needle"),
    [
        (["hamiltonain"], 0.1, 2.0, "did you mean 'hamiltonian'"),
        (["hamiltonian"], 0.0, 2.0, "ridge: got 0.0"),
        (["stationarity"], None, 2.0, "ridge: got None"),
        (["hamiltonian"], 0.1, 0.0, "effective_depth: got 0.0"),
    ],
)
def test_bad_input(metrics: list[str], ridge: float | None, effective_depth: float, needle: str) -> None:
    net = LeakyResNet(4, 3, width=6, depth=5, effective_depth=effective_depth)
    with pytest.raises(InputError, match=needle):
        measure_path(net, torch.randn(9, 4), torch.randn(9, 3), loss=square, ridge=ridge, metrics=metrics)


def test_arrays_fit_the_table() -> None:
    net, geo = exact_net()
    arrays = measure_path(net, geo.path[0].T, jacobian_samples=0).arrays()
    assert arrays["position"] == pytest.approx([i / DEPTH for i in range(DEPTH + 1)])
    expected = torch.linalg.svdvals(geo.path[3]) / math.sqrt(30)
    assert arrays["spectra/representation"][3] == pytest.approx(expected.numpy(), abs=1e-7)
    assert arrays["spectra/weight"][0] == pytest.approx(torch.linalg.svdvals(geo.weight).numpy())
    assert arrays["path/projection"].shape == (DEPTH + 1, 2)
