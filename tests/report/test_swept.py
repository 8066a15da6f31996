"""The page of a sweep, of a run folder made up for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus import InputError
from isthmus._records import Claim, MetricTable, RunFolder
from isthmus.report import build_page, save_charts
from isthmus.report._swept import read_sweep_record
from report.conftest import PAYLOADS
from report.looking import MARKS, OVERFLOW, Page, opened

DEPTHS, STEPS, SEEDS = (1.0, 3.0, 7.0), ("equidistant", "adaptive"), (0, 1, 2)


def loss(depth: float, steps: str, seed: int) -> float:
    return depth + 10 * STEPS.index(steps) + 0.1 * seed


def made(path: Path, *, poison: str = "") -> RunFolder:
    """A folder as a sweep writes it, of which the last run failed; `poison` stands in every text that files choose."""
    run = RunFolder.create(path, command="sweep" + poison, configuration={"base": {"data": poison}}, seed=0,
                           device="cpu", dtype="float32", extra={"title": "Sweep depths" + poison})  # fmt: skip
    table, listed = MetricTable(), list[dict[str, Any]]()
    every = [(depth, steps, seed) for depth in DEPTHS for steps in STEPS for seed in SEEDS]
    for number, (depth, steps, seed) in enumerate(every, 1):
        digest, failed = f"{number:010x}", number == len(every)
        listed.append({"digest": digest, "name": f"effective_depth={depth:g}_seed={seed}_{digest}{poison}",
                       "seed": seed,
                       "settings": {"effective_depth": depth, "steps" + poison: steps + poison, "seed": seed},
                       "status": "failed" if failed else "complete", "error": "it diverged" + poison})  # fmt: skip
        if not failed:
            where: dict[str, Any] = {"layer": digest, "index": number, "step": 9, "seed": seed}
            table.add("loss", loss(depth, steps, seed), split="test", **where)
            table.add("loss", 0.5, split="train", **where)
            table.add("accuracy", 0.9 - 0.01 * depth, split="test", **where)
            table.add("rank_estimate", 3 - 1 / depth, split="train", **where)
    run.write_metrics(table)
    run.write_verdict([Claim("runs", "17 of 18 runs are complete." + poison, "finding"),
                       Claim("failed", "1 of 18 runs failed." + poison, "caution")])  # fmt: skip
    run.finish("failed", sweep={"axes": {"effective_depth": [*DEPTHS], "steps" + poison: [s + poison for s in STEPS],
                                         "seed": [*SEEDS]}, "runs": listed})  # fmt: skip
    return run


@pytest.fixture(scope="module")
def swept_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return made(tmp_path_factory.mktemp("sweep") / "run")


@pytest.fixture(scope="module")
def page(swept_run: RunFolder) -> Page:
    return Page(build_page(swept_run))


def spec_of(page: Page, named: str) -> dict[str, Any]:
    (found,) = [spec for spec in page.specs if named in spec["description"]]
    return found


def test_every_run_is_in_the_table_and_leads_to_its_page(page: Page) -> None:
    links = [a["href"] for tag, a in page.elements if tag == "a" and str(a.get("href")).startswith("runs/")]
    assert links[0] == "runs/effective_depth=1_seed=0_0000000001/report.html"
    assert len(links) == 17, "the failed one has no page"
    assert "effective_depth = 7, steps = adaptive, seed = 2" in page.text
    assert "What failed, and why" in page.text
    assert "it diverged" in page.text
    for text in ("test loss", "train loss", "test accuracy", "train rank estimate", "17 of 18 runs are complete"):
        assert text in page.text


def test_charts_have_means_over_seeds_and_their_range(page: Page) -> None:
    spec = spec_of(page, "How does the loss depend on effective_depth")
    rows = spec["datasets"]["rows"]
    assert len(rows) == 6
    (row,) = [row for row in rows if row["x"] == 3 and row["s"] == "steps = adaptive"]
    assert row["y"] == pytest.approx(13.1)
    assert (row["l"], row["h"], row["n"]) == (pytest.approx(13.0), pytest.approx(13.2), 3)
    (last,) = [row for row in rows if row["x"] == 7 and row["s"] == "steps = adaptive"]
    assert last["n"] == 2, "a failed run is in no mean"
    assert "effective_depth = 1 (steps = equidistant) has the best loss, 1.1." in page.text.replace("\u00a0", " ")
    assert "Points are means over up to 3 seeds." in page.text


def test_a_setting_in_words_is_numbered(page: Page) -> None:
    spec = spec_of(page, "How does the accuracy depend on steps")
    assert "steps (1 is equidistant, 2 is adaptive)" in spec["description"]
    assert {row["x"] for row in spec["datasets"]["rows"]} == {1, 2}


def test_a_sweep_stands_alone(swept_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a sweep has a page of its own"):
        build_page([swept_run, made(tmp_path / "another")])


@pytest.mark.parametrize("sweep", [
    None, 3, [], {}, {"runs": 3}, {"runs": []}, {"runs": [3, None, []]}, {"axes": 3, "runs": [{}]},
    {"axes": {"a": 1}, "runs": [{"settings": 3, "digest": [], "name": {}, "status": None, "error": 7}]},
    {"axes": {"a": []}, "runs": [{"settings": {"a": [1, {}]}}, {"settings": {"a": 1e400}}, {"settings": {"a": True}}]},
])  # fmt: skip
def test_a_record_that_holds_anything_makes_a_page(sweep: Any, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", command="sweep", configuration={}, seed=0, device="cpu", dtype="float32")
    run.run["sweep"] = sweep
    table = MetricTable()
    table.add("loss", 1.0, layer="x")
    run.write_metrics(table)
    run.write_verdict([])
    assert read_sweep_record(run.run, table.frame()) is not None
    assert "Every run, with its final numbers" in Page(build_page(run)).text


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    for name in ("../..", "javascript:alert(1)", "a/b", "//host", "", "."):
        run.run["sweep"]["runs"][0]["name"] = name
        found = read_sweep_record(run.run, run.metrics())
        assert found is not None
        assert found.runs[0].link == "", name
        assert found.runs[1].link


def test_a_run_without_a_page_has_no_link_and_a_long_seed_is_whole(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    for entry in run.run["sweep"]["runs"][:2]:
        entry["page"], entry["settings"]["seed"] = False, 20240101 + entry["seed"]
    found = read_sweep_record(run.run, run.metrics())
    assert found is not None
    assert [bool(one.link) for one in found.runs[:3]] == [False, False, True]
    assert found.runs[1].title == "effective_depth = 1, steps = equidistant, seed = 20240102"


@pytest.mark.parametrize(
    "poison", [*PAYLOADS[:2], *(pytest.param(text, marks=pytest.mark.slow) for text in PAYLOADS[2:])]
)
def test_text_of_a_file_is_shown_and_never_run(poison: str, tmp_path: Path) -> None:
    page = Page(build_page(made(tmp_path / "run", poison=poison)))
    assert len([1 for attrs, _ in page.scripts if attrs.get("type") != "application/json"]) == 2
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object")]
    assert not [
        a["href"] for tag, a in page.elements if tag == "a" and str(a["href"]).startswith(("java", "//", "http"))
    ]


@pytest.mark.slow
def test_charts_as_files(swept_run: RunFolder, tmp_path: Path) -> None:
    paths = save_charts(swept_run, tmp_path / "charts", ["svg"])
    assert {path.stem for path in paths} == {
        f"sweep-{axis}-{metric}" for axis in (1, 2) for metric in ("loss", "accuracy", "rank_estimate")
    }


@pytest.mark.browser
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), pytest.param(1280, "light", marks=pytest.mark.slow)])
def test_the_page_in_a_browser(chromium: Any, swept_run: RunFolder, tmp_path: Path, width: int, theme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(build_page(swept_run), encoding="utf-8")
    with opened(chromium, file, width=width, theme=theme) as page:
        marks = page.evaluate(MARKS)
        assert len(marks) == 6
        assert all(mark["lines"] and not mark["clipped"] and mark["over"] <= 1 for mark in marks)
        assert page.evaluate(OVERFLOW) <= 0
        page.fill("input[type=search]", "failed")
        assert page.locator(".layers tbody tr:visible").count() == 1
        assert page.locator(".layers .shown").inner_text() == "1 of 18 runs"
