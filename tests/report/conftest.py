"""Run folders made up for the page, and the browser that looks at it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus._records import Claim, MetricTable, RunFolder

PAYLOADS = (
    "</script><script>window.__pwned=1</script>",
    '"><img src=x onerror="window.__pwned=1">',
    "'-window.__pwned=1-'",
    "{{7*7}}{% for x in [1] %}x{% endfor %}",
    "<!--<script>",
    "datum['a.b'][0].c",
    "javascript:window.__pwned=1",
    "line\u2028break\u2029and \ud7ff\x00 nul",
    "a.b[0]\\\"c'd",
)
CHROMIUM_ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def _common(path: Path, *, title: str, depth: int, effective_depth: float, extra: dict[str, Any]) -> RunFolder:
    leaky = {
        "width": 30, "depth": depth, "effective_depth": effective_depth, "steps": "adaptive", "gamma0": 1e-3,
        "ridge": 1e-3, "in_features": 30, "out_features": 30, "activation": "relu",
    }  # fmt: skip
    task = {
        "name": "teacher 30 → 3 → 30", "kind": "regression", "n_train": 1000, "n_test": 1000,
        "feature_names": [f"x{i}" for i in range(30)], "class_names": [],
    }  # fmt: skip
    configuration = {"model": leaky, "training": {"epochs": 3000, "optimiser": "adam", "learning_rate": 0.03}}
    return RunFolder.create(
        path, command="isthmus train --depth 20 --effective-depth 7", configuration=configuration, seed=0,
        device="cpu", dtype="float64",
        extra={"title": title, "leaky": leaky, "task": task, "warnings": [], **extra},
    )  # fmt: skip


def _training(table: MetricTable, epochs: int) -> None:
    for epoch in np.unique(np.linspace(0, 3000, epochs).astype(int)).tolist():
        decay = np.exp(-epoch / 260)
        for split, floor in (("train", 0.0046), ("test", 0.0071)):
            table.add("loss", floor + 0.9 * decay, step=epoch, split=split, n=1000)
            table.add("r_squared", 0.995 - floor - 0.9 * decay, step=epoch, split=split, n=1000)
        table.add("ridge_term", 0.0021 * (1 - 0.7 * decay), step=epoch, split="train")
        table.add("learning_rate", 0.03 * 0.5 * (1 + np.cos(np.pi * epoch / 3000)) + 1e-6, step=epoch, split="train")
        table.add("gradient_norm", 0.0004 + 1.3 * decay, step=epoch, split="train")


def _spectra(p: np.ndarray, rank: int, count: int) -> np.ndarray:
    index = np.arange(count)
    strong = (0.9 - 0.08 * index) * (0.85 + 0.3 * (2 * p[:, None] - 1) ** 2)
    weak = 0.75 * 0.93**index * (np.exp(-14 * p[:, None]) + 0.9 * np.exp(-16 * (1 - p[:, None])))
    return np.sort(np.where(index < rank, strong, weak + 1e-4), axis=1)[:, ::-1]


def fill(
    run: RunFolder, depth: int, *, rank: int = 3, suffix: str = "", note: str = "", epochs: int = 160
) -> RunFolder:
    """A run that looks like a trained Leaky ResNet with a bottleneck of `rank` dimensions."""
    rng = np.random.default_rng(depth)
    rho = 1 / (0.3 + 4 * (2 * (np.arange(depth) + 0.5) / depth - 1) ** 4)
    rho /= rho.sum()
    p = np.concatenate([[0.0], np.cumsum(rho)])
    p[-1] = 1.0
    middle = (p[1:] + p[:-1]) / 2
    effective_depth = 7.0
    table = MetricTable()
    _training(table, epochs)
    ends, ends_mid = (2 * p - 1) ** 6, (2 * middle - 1) ** 6

    def nodes(metric: str, values: np.ndarray, tag: str = "") -> list[int]:
        return table.extend(
            values.tolist(), metric, layer=f"representation{suffix}", positions=p.tolist(), first=0, note=tag + note
        )

    def steps(metric: str, values: np.ndarray, layer: str = "step", tag: str = "") -> list[int]:
        return table.extend(
            values.tolist(), metric, layer=f"{layer}{suffix}", positions=middle.tolist(), first=1, note=tag + note
        )

    nodes("numerical_rank", np.where(ends > 0.05, 30.0, 12.0))
    for metric, scale in (("stable_rank", 0.55), ("nuclear_rank", 1.05), ("participation_ratio", 0.8),
                          ("participation_ratio_centred", 0.75), ("effective_rank", 1.2)):  # fmt: skip
        nodes(metric, scale * rank * (1 + 3.0 * ends) + 0.05)
        if metric != "participation_ratio_centred":
            steps(metric, scale * rank * (1 + 1.5 * ends_mid), layer="weight")
    steps("numerical_rank", np.where(ends_mid > 0.05, 25.0, 10.0), layer="weight")
    costs = nodes("cost_of_identity", rank * (1.12 + 2.6 * ends), "gamma0=0.001; ")
    nodes("cost_of_identity", rank * (1.22 + 3.1 * ends), "gamma0=0.0001; ")
    nodes("cost_of_identity", rank * (0.93 + 1.5 * ends), "gamma0=0.01; ")
    nodes("identity_residual", 0.1 + 0.2 * ends)
    table.skip("cost_of_identity_exact", "identity_residual is not 0, so the exact cost is infinite",
               layer=f"representation{suffix}.0", index=0, position=0.0)  # fmt: skip
    nodes("negative_fraction", 0.4 * ends)
    nodes("momentum_norm", 0.03 + 0.01 * p)
    wobble = rng.normal(scale=0.04, size=depth)
    pair = steps("hamiltonian_rank", 2.55 + 0.5 * ends_mid + wobble)
    symmetric = steps("hamiltonian_rank_symmetric", 2.6 + 0.15 * ends_mid + wobble / 3)
    steps("hamiltonian_rank_stable", 2.75 + 0.2 * ends_mid + wobble / 2)
    for metric, base, amplitude in (("hamiltonian", 2.55, 0.5), ("hamiltonian_symmetric", 2.6, 0.15),
                                    ("hamiltonian_stable", 2.75, 0.2)):  # fmt: skip
        steps(metric, -(effective_depth / 2) * (base + amplitude * ends_mid + wobble / 3))
    steps("kinetic_energy", 0.6 + 24 * ends_mid, tag="gamma0=0.001; ")
    stationarity = steps("stationarity", 0.12 + 0.35 * ends_mid)
    steps("layer_step", rho)
    steps("relative_move", 0.11 + 0.01 * wobble)
    speed = steps("path_speed", 0.8 + 6.4 * ends_mid)
    steps("balance", 0.03 + 0.02 * ends_mid)
    steps("momentum_weight_norm", 1.7 + 0.1 * ends_mid)
    steps("weight_norm_sq", 160 + 40 * ends_mid, layer="weight")
    steps("bias_norm_sq", 0.4 + ends_mid, layer="weight")
    for metric, value in (("path_length", 9.2), ("path_length_euclidean", 5.1), ("bound_lower", 1.1),
                          ("bound_upper", 4.9), ("bound_slack", 1.5)):  # fmt: skip
        table.add(metric, value, layer="path", note="gamma0=0.001" + note)
    kept = table.add("bottleneck_rank", float(rank), layer="path", note=note)
    for i in range(12):
        table.add("jacobian_log_singular_value", 1.8 - 0.35 * i, index=i + 1, stderr=0.06 + 0.02 * i, n=64, note=note)
    run.write_metrics(table)
    claims = [
        Claim("bottleneck", f"Keeps {rank} of 30 dimensions from p = 0.2 to 0.8; slowest there, by a factor 9."
              + note, "finding", (kept, *pair, *costs),
              {"k": rank, "from": 0.2, "to": 0.8, "label" + note: note or "none"}),
        Claim("speed", "Moves nine times faster at its ends than in its middle." + note, "finding", tuple(speed),
              {"ratio": 9.0}),
        Claim("stationarity", "The residual reaches 0.47 at the output, so the Hamiltonian of the last two layers is "
              "a rough number." + note, "caution", tuple(stationarity), {"largest": 0.47}),
        Claim("conservation", "No conserved momentum was found along the path." + note, "none", tuple(symmetric), {}),
    ]  # fmt: skip
    run.write_verdict(claims)
    turn = 2.4 * np.pi * p
    projection = np.stack([2.6 * np.cos(turn / 2) * (0.4 + ends), 1.3 * np.sin(turn) + 0.4 * p], axis=1)
    run.write_arrays({
        "position": p, "spectra/representation": _spectra(p, rank, 30),
        "spectra/weight": 6.8 * _spectra(middle, rank, 30),
        "layer_steps": rho, "path/projection": projection, "path/projection_explained": np.array([0.62, 0.21]),
    })  # fmt: skip
    return run


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Makes a normal run of its own, in a new folder."""

    def make(title: str = "Teacher 30 → 3 → 30 at L̃ = 7", depth: int = 20, rank: int = 3) -> RunFolder:
        path = tmp_path_factory.mktemp("normal") / "run"
        run = _common(path, title=title, depth=depth, effective_depth=7.0, extra={})
        fill(run, depth, rank=rank)
        run.finish(warnings=["Constant column x7 was left as it is."])
        return run

    return make


@pytest.fixture(scope="session")
def normal_run(make_run: Callable[..., RunFolder]) -> RunFolder:
    return make_run()


@pytest.fixture(scope="session")
def skipped_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A ResNet without leak: everything of the Hamiltonian has a reason instead of a value, and no arrays exist."""
    path = tmp_path_factory.mktemp("skipped") / "run"
    run = _common(path, title="ResNet without leak", depth=8, effective_depth=0.0, extra={})
    table = MetricTable()
    reason = "L̃ = 0: without a leak there is no bottleneck to measure"
    from isthmus._records import METRICS

    for metric in METRICS:
        layer = {"representation": "representation.0", "step": "step.1"}.get(
            METRICS[metric].of.split(",")[0].split()[0]
        )
        table.skip(metric, reason, layer=layer or "")
    run.write_metrics(table)
    run.write_verdict([Claim("bottleneck", "No bottleneck: the network has no leak.", "none")])
    run.finish()
    return run


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Every text that a user or a file can choose holds something that would run, if it were run."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    poison = " ".join(PAYLOADS)
    run = _common(path, title=poison, depth=6, effective_depth=7.0, extra={
        "task": {"name": poison, "kind": poison, "n_train": 10, "n_test": 10, "feature_names": list(PAYLOADS),
                 "class_names": list(PAYLOADS)},
    })  # fmt: skip
    fill(run, 6, suffix="." + poison, note=" " + poison)
    leaky = {**run.run["leaky"], "steps": poison, "activation": poison}
    run.finish(
        status=poison, warnings=list(PAYLOADS), leaky=leaky, command=poison, device=poison, dtype=poison,
        configuration={poison: {"datum.x[0]": poison}}, versions={poison: poison}, git_commit=poison,
    )  # fmt: skip
    return run


@pytest.fixture(scope="session")
def huge_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """6000 layers: more than 200 000 rows."""
    path = tmp_path_factory.mktemp("huge") / "run"
    run = _common(path, title="Six thousand layers", depth=6000, effective_depth=7.0, extra={})
    fill(run, 6000, epochs=3000)
    run.finish()
    return run


GAMMAS = (1e-3, 1e-2, 1e-4)
RANKS = ("numerical_rank", "stable_rank", "nuclear_rank", "participation_ratio", "effective_rank")


def _measure_sites(table: MetricTable, sites: list[dict[str, Any]], baseline: str) -> np.ndarray:
    """Rows of the representations, and their spectra: a dip in the middle, and none in the baseline."""
    dip = np.array([1 - (0.0 if baseline else 0.85) * np.exp(-((4 * s["position"] - 2.2) ** 2)) for s in sites])
    for site, d in zip(sites, dip.tolist(), strict=True):
        where = {"layer": site["name"], "index": site["index"], "position": site["position"], "baseline": baseline}
        for metric, scale in zip(RANKS, (400, 6, 80, 20, 90), strict=True):
            table.add(metric, 1 + scale * d, note="tol=1e-05", **where)
        table.add("participation_ratio_centred", 1 + 30 * d, **where)
        for gamma in GAMMAS:
            table.add("cost_of_identity", d * 20 / gamma**0.25, note=f"gamma0={gamma:g}; 1000 samples", **where)
        table.skip("cost_of_identity_exact", "identity_residual is not 0", **where)
        table.add("identity_residual", 0.1 * d, **where)
        table.add("negative_fraction", 0.5 - 0.1 * d, **where)
        if site["index"]:
            table.add("relative_move", 0.04 + 0.6 * (1.01 - d), **where)
        else:
            table.skip("relative_move", "the first representation has none before it", **where)
        if not baseline:
            table.add("backward_norm", 1e-3 * 10 ** (3 * site["position"]), **where)
            table.add("backward_participation_ratio", 9 - 4 * site["position"], **where)
            table.add("observations", 1000.0 * (1 + site["index"] % 2), **where)
    count = 96
    spectra = np.exp(-np.arange(count) / (1 + 30 * dip[:, None])) * (3 + dip[:, None])
    for row, site in enumerate(sites):
        spectra[row, site["width"] :] = np.nan
    return spectra


def _measure_weights(table: MetricTable, weights: list[dict[str, Any]], baseline: str) -> np.ndarray:
    for k, weight in enumerate(weights):
        where = {"layer": weight["name"], "index": k, "position": weight["position"], "baseline": baseline}
        for metric, scale in zip(RANKS, (760, 40, 600, 400, 700), strict=True):
            table.add(metric, scale * (1 - (0.0 if baseline else 0.03 * (k % 7))), **where)
        table.add("weight_norm_sq", 60.0 + k, **where)
        table.add("bias_norm_sq", 0.5, **where)
    return np.linspace(3, 0.2, 120) ** (2 if not baseline else 1) * np.ones((len(weights), 1))


def _places(names: list[str], typed: str, **entry: Any) -> list[dict[str, Any]]:
    last = max(len(names) - 1, 1)
    return [{"name": n, "type": typed, "index": i, "position": i / last, **entry} for i, n in enumerate(names)]


def measured(
    path: Path,
    sites: list[str],
    weights: list[str],
    *,
    title: str = "GPT-2 on 1000 lines",
    kind: str = "GPT2Block",
    baseline: str = "init",
    skipped: list[dict[str, str]] | None = None,
) -> RunFolder:
    """A run folder as `measure` writes it."""
    skipped = [] if skipped is None else skipped
    rows = _places(sites, kind, kind="block", width=768)
    matrices = _places(weights, "Linear", shape=[2304, 768])
    run = RunFolder.create(
        path, command="measure", configuration={"model": "gpt2", "layers": "blocks"}, seed=0, device="cpu",
        dtype="float32", extra={"title": title, "warnings": [], "measured": {
            "model": "GPT2Model", "parameters": 124439808, "samples": 1000, "layers": "blocks",
            "loss": "cross_entropy" if sites else None, "baseline": baseline, "sites": rows, "weights": matrices,
            "skipped": skipped,
        }},
    )  # fmt: skip
    table, arrays = MetricTable(), {}
    for name in ["", baseline] if baseline else [""]:
        prefix = "baseline/" if name else ""
        if sites:
            found = _measure_sites(table, rows, name)
            arrays[f"{prefix}spectra/representation"] = np.concatenate([8 * found[:, :1], found[:, :-1]], axis=1)
            arrays[f"{prefix}spectra/representation_centred"] = found
        if weights:
            arrays[f"{prefix}spectra/weight"] = _measure_weights(table, matrices, name)
        if sites:
            for i in range(20):
                table.add("jacobian_log_singular_value", 1.5 - (0.1 if name else 0.3) * i, layer="model", index=i + 1,
                          stderr=0.05, n=16, baseline=name)  # fmt: skip
    for entry in skipped:
        table.skip("observations", entry["reason"], layer=entry["name"])
    if sites:
        table.add("loss", 3.21, layer="model")
        table.add("jacobian_rank", 14.0, layer="model", note="tol=1e-05")
        table.add("jacobian_log_pseudodet", -12.5, layer="model")
    else:
        for metric in ("numerical_rank", "cost_of_identity", "relative_move", "backward_norm", "loss"):
            table.skip(metric, "no layer was selected", layer="model")
    run.write_metrics(table)
    run.write_verdict(
        [Claim("bottleneck", "The data take up 5 dimensions in h.6 and 30 at both ends.", "finding", (0, 1), {"k": 5})]
        if sites
        else [Claim("bottleneck", "Nothing was measured.", "none")]
    )
    run.write_arrays(arrays or {"nothing": np.zeros(0)})
    run.finish()
    return run


@pytest.fixture(scope="session")
def make_measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Makes a measured run with 13 blocks and 52 weight matrices, or with the layers given."""

    def make(sites: list[str] | None = None, weights: list[str] | None = None, **how: Any) -> RunFolder:
        blocks = ["wte", *(f"h.{i}" for i in range(12))] if sites is None else sites
        parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        matrices = [f"h.{i}.{p}.weight" for i in range(12) for p in parts] if weights is None else weights
        skipped = [{"name": f"h.{i}.drop", "type": "Dropout", "reason": "not selected by layers='blocks'"}
                   for i in range(12)]  # fmt: skip
        skipped.append({"name": "ln_f", "type": "LayerNorm", "reason": "its output is a tuple"})
        return measured(tmp_path_factory.mktemp("measured") / "run", blocks, matrices, **({"skipped": skipped} | how))

    return make


@pytest.fixture(scope="session")
def measured_run(make_measured: Callable[..., RunFolder]) -> RunFolder:
    return make_measured()


@pytest.fixture(scope="session")
def deep_run(make_measured: Callable[..., RunFolder]) -> RunFolder:
    """200 layers whose names are long, alike in their first half, and hostile."""
    hostile = [*PAYLOADS, "<script>alert(1)</script>", "datum.n + signal('width')", '{"signal": "width"}']
    names = [f"transformer.encoder.very_long_module_name.layers.{i}.attention.output.dense"
             + (f".{hostile[i // 10 % len(hostile)]}" if i % 10 == 5 else "") for i in range(200)]  # fmt: skip
    skipped = [{"name": text, "type": text, "reason": text} for text in hostile]
    return make_measured(names, [f"{n}.weight" for n in names], kind="<img src=x onerror=alert(1)>", skipped=skipped,
                         title="Two hundred layers")  # fmt: skip


@pytest.fixture(scope="session")
def unmeasured_run(make_measured: Callable[..., RunFolder]) -> RunFolder:
    """A run in which every layer was skipped."""
    return make_measured([], [], baseline="", title="Nothing selected")


@pytest.fixture(scope="session")
def single_run(make_measured: Callable[..., RunFolder]) -> RunFolder:
    """A run with one representation and no weights."""
    return make_measured(["only"], [], baseline="", title="One site")


_VALID: set[str] = set()


@pytest.fixture(autouse=True)
def _charts_follow_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package does not validate charts against Vega-Lite's schema; here each one is, the first time it is met."""
    import altair as alt

    to_dict = alt.LayerChart.to_dict

    def validated(chart: alt.LayerChart, *, validate: bool = True, **options: Any) -> dict[str, Any]:
        spec = to_dict(chart, validate=False, **options)
        if (key := json.dumps(spec, sort_keys=True)) not in _VALID:
            chart.validate(spec)
            _VALID.add(key)
        return spec

    monkeypatch.setattr(alt.LayerChart, "to_dict", validated)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A Chromium: the one named by ISTHMUS_CHROMIUM, else the system's, else playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        asked = os.environ.get("ISTHMUS_CHROMIUM")
        candidates = (asked,) if asked else ("/usr/bin/chromium", own)
        found = next((path for path in candidates if shutil.which(path)), None)
        if found is None:
            where = f"ISTHMUS_CHROMIUM={asked} is no program" if asked else "no Chromium"
            pytest.fail(f"{where}: run `apt-get install chromium` or `python -m playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_ARGS)
        yield browser
        browser.close()
