"""The page of a compression, of a run folder made up for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus import InputError
from isthmus._records import Claim, MetricTable, RunFolder
from isthmus.report import build_page, save_charts
from isthmus.report._compressed import depth_lines, read_compression
from report.conftest import PAYLOADS
from report.looking import LOOKS, MARKS, OVERFLOW, Page, opened

BEFORE, DEPTH = 12, 5
METHODS = ("merge", "refit", "equidistant", "drop", "refit, tuned")
LEAST = {"merge": 4, "refit": 4, "equidistant": 3, "drop": 1, "refit, tuned": 4}


def loss(method: str, depth: int, split: str) -> float:
    return (1.0 if split == "choosing" else 1.1) * (1 + (1 + METHODS.index(method)) * (BEFORE - depth) ** 2 / 500)


def made(path: Path, *, poison: str = "") -> RunFolder:
    """A run folder as `isthmus compress` writes it; `poison` stands in every text that data or files can choose."""
    part = {split: {"n": 100 + k, "what": f"one half of the samples{poison}", "full": loss("merge", BEFORE, split),
                    "loss": loss("refit, tuned", DEPTH, split), "bound": 1.5 + k}
            for k, split in enumerate(("choosing", "judging"))}  # fmt: skip
    run = RunFolder.create(
        path, command="compress" + poison, configuration={"depth": DEPTH, "compress": {"run": poison}}, seed=0,
        device="cpu", dtype="float64", extra={
            "title": "Leaky ResNet on houses" + poison, "loss": "square", "warnings": [poison] if poison else [],
            "task": {"name": "houses" + poison, "kind": "regression", "feature_names": [poison], "class_names": []},
            "leaky": {"depth": DEPTH, "width": 8, "gamma0": 1e-3},
            "compression": {"source": "run" + poison, "depth_before": BEFORE, "depth": DEPTH, "method": "refit",
                            "series": "refit, tuned" + poison, "tolerance": 0.5, "relative": True,
                            "score": "r_squared", **part},
        },
    )  # fmt: skip
    table, rows = MetricTable(), []
    for split in ("choosing", "judging"):
        for name, depths in [("full", [BEFORE]), *((method, range(BEFORE, 0, -1)) for method in METHODS)]:
            for depth in depths:
                where: dict[str, Any] = {"layer": name if name == "full" else name + poison, "index": depth,
                                         "split": split, "n": 100}  # fmt: skip
                if depth < LEAST.get(name, 0):
                    for metric in ("loss", "r_squared"):
                        table.skip(metric, "needs at least four" + poison, **where)
                    continue
                value = loss("merge" if name == "full" else name, depth, split)
                rows.append(table.add("loss", value, **where))
                table.add("r_squared", 1 - value / 2, **where)
    run.write_metrics(table)
    run.write_arrays({"position": np.linspace(0, 1, DEPTH + 1),
                      "compression/position_before": np.linspace(0, 1, BEFORE + 1)})  # fmt: skip
    run.write_verdict([
        Claim("depth", "12 → 5 layers." + poison, "finding", tuple(rows[:2]), {"depth": 5, "x" + poison: poison}),
        Claim("judged", "It rose by more." + poison, "caution"),
    ])  # fmt: skip
    run.finish()
    return run


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return made(tmp_path_factory.mktemp("small") / "run")


def spec_of(page: Page, number: int) -> dict[str, Any]:
    return page.specs[number]


@pytest.mark.parametrize(("number", "split"), [(0, "choosing"), (1, "judging")])
def test_the_chart_holds_every_method_both_levels_and_the_choice(small_run: RunFolder, number: int, split: str) -> None:
    data = spec_of(Page(build_page(small_run)), number)["datasets"]
    found = {(row["s"], row["x"]): row["y"] for row in data["rows"]}
    assert found == {
        (method, depth): pytest.approx(loss(method, depth, split), rel=1e-4)
        for method in METHODS for depth in range(LEAST[method], BEFORE + 1)
    }  # fmt: skip
    assert data["level-0"] == [{"y": pytest.approx(loss("merge", BEFORE, split), rel=1e-4), "t": "full network"}]
    assert data["level-1"] == [{"y": 1.5 + number, "t": "allowed"}]
    assert data["chosen"] == [{"x": 5, "y": pytest.approx(loss("refit, tuned", 5, split), rel=1e-4), "t": "chosen: 5"}]


def test_the_page_says_who_chose_and_who_judged(small_run: RunFolder) -> None:
    page = Page(build_page(small_run))
    for text in (
        "Samples that choose: 100 (one half of the samples), samples that judge: 101", "No sample does both",
        "The loss goes from 1 to 1.49 with 5 layers (+49\u00a0%); up to 1.5 was allowed.",
        "The loss goes from 1.1 to 1.639 with 5 layers (+49\u00a0%); the same tolerance would allow 2.5.",
        "12 → 5", "50\u00a0%", "1 → 1.49", "1.1 → 1.64", "100 + 101", "A trained Leaky ResNet with fewer layers",
        "merge, refit, refit, tuned: 1 to 3 layers", "needs at least four", "Where do the layers stand?",
    ):  # fmt: skip
        assert text in page.text, text
    assert len(page.specs) == 4
    steps = [row["y"] for row in spec_of(page, 3)["datasets"]["rows"]]
    assert steps == pytest.approx([1 / 12] * 12 + [1 / 5] * 5, rel=1e-4)
    assert "Known to this version, but not recorded" not in page.text
    assert "γ₀ = " not in page.text


@pytest.mark.parametrize(
    "part", [{}, None, 7, [1], {"depth": "5", "depth_before": 12}, {"depth": True, "depth_before": 12},
             {"depth": -1, "depth_before": 12}, {"depth": 10**9, "depth_before": 12}],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_known(part: Any) -> None:
    found = read_compression({"compression": part})
    assert found is not None
    assert found.depth is None or found.before is None
    assert "how many layers" in found.problems[0]
    assert read_compression({}) is None


def test_a_page_without_a_record_says_so(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.write_run(compression=7)
    page = Page(build_page(run))
    assert "how many layers there were" in page.text
    assert len(page.specs) == 4
    assert "chosen" not in spec_of(page, 0)["datasets"]


def test_numbers_that_cannot_be_used_are_none() -> None:
    for value in (math.nan, math.inf, 1e300, "1", True, None, [1]):
        found = read_compression({"compression": {"choosing": {"full": value, "loss": value, "n": value}}})
        assert found is not None
        part = found.parts["choosing"]
        assert (part.full, part.loss, part.bound) == (None, None, None)
        assert part.n is None or value == 1


def test_losses_of_any_size_are_drawn_or_explained() -> None:
    table = MetricTable()
    for depth, value in enumerate((1e200, 1e30, 0.0, -1.0), 1):
        table.add("loss", value, layer="drop", index=depth, split="judging")
    (line,) = depth_lines(table.frame(), "loss", "judging")
    assert line.values == {2: 1e30, 3: 0.0, 4: -1.0}
    assert line.reasons == {"a number too large to be shown": (1,)}


def test_a_run_without_rows_or_arrays_has_a_page(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.write_metrics(MetricTable())
    (run.path / "arrays.safetensors").unlink()
    page = Page(build_page(run))
    assert page.specs == []
    for text in ("not recorded by this run", "arrays.safetensors is missing"):
        assert text in page.text


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    poison = " ".join(payload for payload in PAYLOADS if "\ud7ff" not in payload) + " \u2028 \x00"
    text = build_page(made(tmp_path / "run", poison=poison))
    page = Page(text)
    assert "<script>window.__pwned" not in text
    assert "<img src=x" not in text
    assert "datum['a.b'][0].c" in page.text
    assert len(page.specs) == 4


def test_a_compression_stands_alone(small_run: RunFolder, normal_run: RunFolder) -> None:
    with pytest.raises(InputError, match="a compression has a page of its own"):
        build_page([small_run, normal_run])


def test_charts_as_files(small_run: RunFolder, tmp_path: Path) -> None:
    names = sorted(path.name for path in save_charts(small_run, tmp_path, ["svg"]))
    assert names == ["layer-steps.svg", "loss-choosing.svg", "loss-judging.svg", "score-judging.svg"]
    text = (tmp_path / "loss-choosing.svg").read_text(encoding="utf-8")
    for label in ("chosen: 5", "allowed", "full network"):
        assert label in text


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_it_draws_in_a_browser(chromium: Any, tmp_path: Path, width: int, theme: str) -> None:
    poison = " ".join(payload for payload in PAYLOADS if "\ud7ff" not in payload)
    file = tmp_path / "page.html"
    file.write_text(build_page(made(tmp_path / "run", poison=poison)), encoding="utf-8")
    with opened(chromium, file, width=width, theme=theme) as page:
        charts = page.evaluate(MARKS)
        assert len(charts) == 4
        for chart in charts:
            assert chart["lines"] >= 2
            assert chart["over"] <= 1
            assert chart["clipped"] == []
        assert page.evaluate(OVERFLOW) == 0
        assert page.evaluate("window.__pwned") is None
