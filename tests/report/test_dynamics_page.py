"""The page of a run's dynamics, from exact curves; with hostile names, and with files that hold anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus import InputError
from isthmus._records import RunFolder
from isthmus.experiments import run_dynamics
from isthmus.report import build_page, save_charts
from pair_runs_support import PlantedRun
from report.conftest import PAYLOADS
from report.looking import MARKS, OVERFLOW, Page, opened

SHOWN = """
[...document.querySelectorAll(".chart[data-name=curves]")].map((chart) =>
  chart.querySelector(".role-title text").textContent)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("dynamics-page")
    source = PlantedRun({"first": 1.0, "second": 3.0}).save(folder / "run")
    return run_dynamics(source, folder / "out")


@pytest.fixture(scope="module")
def text(run: RunFolder) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


def _specs(text: str) -> list[dict[str, Any]]:
    scripts = [content for attributes, content in Page(text).scripts if attributes.get("type") == "application/json"]
    return [spec for spec in map(json.loads, scripts) if "datasets" in spec]


def test_every_question_has_its_chart_and_its_table(text: str) -> None:
    page = Page(text)
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures == ["described", "fit-map", "curves", "rates", "laziness", "structure", "matrices"]
    assert page.text.count("Data and files") == len(figures)
    assert len(text.encode()) < 5_000_000


def test_curves_hold_every_layer_and_pair_and_begin_at_the_choice(run: RunFolder, text: str) -> None:
    chosen = [spec for spec in _specs(text) if {"layer", "pair"} <= {param["name"] for param in spec["params"]}]
    assert len(chosen) == 3
    arrays = run.arrays()
    for c, spec in enumerate(chosen):
        rows = spec["datasets"]["rows"]
        assert [(row["l"], row["p"]) for row in rows] == [(k, j) for k in range(2) for j in range(4)]
        for row in rows:
            measured = arrays["dynamics/measured"][row["l"], row["p"], c]
            assert row["m"][0] == pytest.approx(measured[0], rel=1e-4)
            assert row["m"][-1] == pytest.approx(measured[-1], rel=1e-4, abs=1e-6)
            np.testing.assert_allclose(row["m"], row["f"], rtol=1e-3, atol=1e-5)
            assert row["q"][0] is None
            assert row["q"][-1] is not None


def test_matrices_to_be_compared_share_their_colours(text: str) -> None:
    matrices = [spec for spec in _specs(text) if "tops" in {param["name"] for param in spec["params"]}]
    tops = [next(p["value"] for p in spec["params"] if p["name"] == "tops") for spec in matrices]
    assert len(tops) == 3
    assert tops[0] == tops[1] == tops[2]
    first = [max(row["v"]) for spec in matrices for row in spec["datasets"]["rows"] if row["l"] == 0]
    assert max(first) == tops[0][0]


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    names = {name: 1.0 + k for k, name in enumerate(PAYLOADS[:6])}
    source = PlantedRun(names, times=12).save(tmp_path / "run")
    run = run_dynamics(source, tmp_path / "out")
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<script>window.__pwned" not in text
    assert "<img src=x" not in text
    options = [attributes for tag, attributes in Page(text).elements if tag == "option"]
    assert len(options) == 2 * len(names) + 4
    assert "window.__pwned=1" in Page(text).text


@pytest.mark.parametrize(
    "wrong",
    [None, [], {"layers": "first", "pairs": 3}, {"layers": [1, None], "pairs": [{"pair": {}}], "first": "x"}],
)
def test_a_record_that_holds_anything_makes_a_page_that_says_so(tmp_path: Path, run: RunFolder, wrong: Any) -> None:
    for name in ("run.json", "metrics.parquet", "arrays.safetensors", "verdict.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    folder = RunFolder.open(tmp_path)
    folder.write_run(dynamics=wrong)
    folder.write_arrays({"dynamics/times": np.array([np.nan]), "structure/samples": np.zeros((2, 2))})
    assert "Nothing to draw here" in build_page(RunFolder.open(tmp_path))


def test_it_stands_alone(run: RunFolder) -> None:
    with pytest.raises(InputError, match="a page of their own"):
        build_page([run, run])


def test_charts_are_saved_as_files(run: RunFolder, tmp_path: Path) -> None:
    names = [path.name for path in save_charts(run, tmp_path, ("svg",))]
    assert "curves-1.svg" in names
    assert "matrices-3.svg" in names
    assert "first, pair" in (tmp_path / "curves-1.svg").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), pytest.param(1280, "light", marks=pytest.mark.slow)])
def test_the_lists_choose_by_keyboard_and_nothing_overflows(
    chromium: Any, run: RunFolder, width: int, theme: str
) -> None:
    with opened(chromium, run.path / "report.html", width=width, theme=theme) as page:
        assert page.evaluate(OVERFLOW) == 0
        assert all(mark["drawn"] == theme and mark["clipped"] == [] for mark in page.evaluate(MARKS))
        before = page.evaluate(SHOWN)
        page.focus("#curves-at-layer")
        page.keyboard.press("ArrowDown" if before[0].startswith("first") else "ArrowUp")
        page.wait_for_selector("#curves-section .chosen[data-shown]")
        after = page.evaluate(SHOWN)
        assert {title.split(",")[0] for title in (before[0], after[0])} == {"first", "second"}
        assert len(set(after)) == 1
