"""Run folders made up for the page, and the browser that looks at it."""

from __future__ import annotations

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
