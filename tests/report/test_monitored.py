"""The page of a monitored training, as text: its last step is the page of `measure`, its slider holds every step."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from isthmus._records import Claim, MetricTable, RunFolder
from isthmus.report import build_page, save_charts
from isthmus.report._figures import Budget, Section, Slider
from isthmus.report._monitored import read_training
from isthmus.report._monitoredfigures import during_training
from isthmus.report._monitoredwords import remarks
from isthmus.report._numbers import shown_claims
from isthmus.report._page import MAX_BYTES
from isthmus.report._read import RunView
from isthmus.report._sections import build_sections
from report.conftest import PAYLOADS
from report.looking import Page
from report.training import STEPS, aligned, monitored, rank, spectrum

MakeRun = Callable[..., RunFolder]
MOVING = ["during-spectra", "during-ranks", "during-cost", "during-alignment"]
FIXED = ["ranks-by-step", "moves-by-step", "alignment-by-step", "loss-by-step"]
NAMES = ("in", *(f"blocks.{k}" for k in range(5)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return monitored(tmp_path_factory.mktemp("monitored") / "run", failed={24: "the loss is not finite"})


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return build_page(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def section(run: RunFolder) -> Section:
    return _during(run)


def _during(run: RunFolder, budget: Budget | None = None) -> Section:
    view = RunView(run)
    assert view.training is not None
    return during_training(view, view.training, Budget() if budget is None else budget, order=0, several=False)


def _figure(section: Section, key: str) -> Any:
    return next(figure for figure in section.every_figure if figure.key == key)


def _rows(section: Section, key: str) -> list[dict[str, Any]]:
    return _figure(section, key).panels[0].spec["datasets"]["rows"]


def _param(section: Section, key: str, name: str) -> Any:
    params = _figure(section, key).panels[0].spec["params"]
    return next(param["value"] for param in params if param["name"] == name)


def _slider(section: Section) -> Slider:
    assert section.slider is not None
    return section.slider


def _domains(node: object) -> list[Any]:
    """Every domain of a y scale in a specification."""
    if isinstance(node, list):
        return [found for part in node for found in _domains(part)]
    if not isinstance(node, dict):
        return []
    own = [node["y"]["scale"]["domain"]] if "scale" in node.get("y", {}) else []
    return own + [found for part in node.values() for found in _domains(part)]


def test_the_section_stands_first_and_says_what_measuring_took(run: RunFolder, page: Page, section: Section) -> None:
    assert [figure.key for figure in _slider(section).figures] == MOVING
    assert [figure.key for figure in section.figures] == FIXED
    (cost, failed) = [text.replace("\u00a0", " ") for _, text in section.remarks]
    assert cost == (
        "Measured at 11 steps, from 0 to 512. Measuring took 3.1 % of the time of training; the budget is 5 % (1.24 s "
        "beside 40 s). 2 of the schedule's 13 steps were not measured, to keep within the budget."
    )
    assert failed == "The measurement at step 24 failed: the loss is not finite"
    assert "512, the last of 11 measured" in page.text
    links = [str(a["href"]) for t, a in page.elements if t == "a" and str(a.get("href")).endswith("-section")]
    assert links[0] == "#during-section"


def test_the_rest_is_the_page_of_measure_of_the_last_step(run: RunFolder, tmp_path: Path) -> None:
    frame = run.metrics().filter((pl.col("step") == 512) & (pl.col("split") == ""))
    extra = {key: run.run[key] for key in ("title", "measured", "warnings")}
    alone = RunFolder.create(tmp_path / "alone", command="measure", configuration=run.run["configuration"], seed=0,
                             device="cpu", dtype="float32", extra=extra)  # fmt: skip
    alone.write_metrics(frame.with_columns(step=pl.lit(None, dtype=pl.Int64())))
    alone.write_verdict([])
    alone.write_arrays({name: a for name, a in run.arrays().items() if not name.startswith("steps/")})
    alone.finish()
    during, *rest = build_sections([RunView(run)], Budget())
    assert during.key == "during"
    expected = build_sections([RunView(alone)], Budget())
    assert rest == expected
    assert next(s.layers for s in rest if s.layers)[0].rows[1].cells[0].text == "256"
    views = RunView(run), RunView(alone)
    assert views[0].frame.height == frame.height
    assert views[0].single("loss") == views[1].single("loss") == pytest.approx(2.3 * np.exp(-5.12) + 0.05)
    numbers = [Page(build_page(folder)).text.split("Every number this page uses")[1] for folder in (run, alone)]
    tables = [text.split("Known to this version")[0] for text in numbers]
    assert tables[0] == tables[1]


def test_the_slider_has_every_step(page: Page, section: Section) -> None:
    slider = _slider(section)
    assert slider.steps == STEPS
    inputs = [a for t, a in page.elements if t == "input" and a.get("type") == "range"]
    assert [(a["min"], a["max"], a["value"], a["step"]) for a in inputs] == [("0", "10", "10", "1")]
    assert inputs[0]["data-steps"] == " ".join(map(str, STEPS))
    labels = [a.get("for") for t, a in page.elements if t == "label"]
    assert inputs[0]["id"] in labels
    box = next(a for t, a in page.elements if a.get("class") == "slider no-print")
    assert "hidden" in box  # until the page's script can drive it
    assert [label for label, _ in slider.ticks if label] == ["0", "2", "8", "32", "128", "512"]
    assert [label for label, narrow in slider.ticks if label and not narrow] == ["0", "8", "128", "512"]
    for figure in slider.figures:
        assert _param(section, figure.key, "at") == 10
        assert _param(section, figure.key, "steps") == list(STEPS)
        assert figure.panels[0].spec["title"]["text"] == {"expr": "'step ' + format(steps[at], 'd')"}


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("during-ranks", "centred participation ratio", rank),
        ("during-ranks", "numerical rank", lambda *where: 2 * rank(*where)),
        ("during-cost", "cost of identity, γ₀ = 0.01", lambda *where: rank(*where) / 0.01**0.1),
        ("during-alignment", "alignment", lambda *where: aligned(*where)[0]),
    ],
)
def test_every_step_of_a_chart_holds_its_own_numbers(section: Section, key: str, name: str, value: Any) -> None:
    rows = [row for row in _rows(section, key) if row["s"] == name]
    assert [row["a"] for row in rows] == list(range(11))
    for row in rows:
        expected = [value(STEPS[row["a"]], k, 6) for k in range(6)]
        assert row["y"] == pytest.approx(expected, rel=5e-5)
        errors = [aligned(STEPS[row["a"]], k, 6)[1] if key == "during-alignment" else None for k in range(6)]
        assert row["e"] == (pytest.approx(errors, rel=5e-5) if key == "during-alignment" else errors)
    assert _param(section, key, "names") == list(NAMES)
    assert _param(section, key, "places") == pytest.approx([k / 5 for k in range(6)])


def test_the_heat_map_holds_the_spectra_of_every_step(section: Section) -> None:
    rows = _rows(section, "during-spectra")
    assert [(row["a"], row["k"]) for row in rows] == [(a, k) for a in range(11) for k in range(6)]
    for row in rows:
        expected = spectrum(STEPS[row["a"]], row["k"], 6, 48)
        assert row["t"] == pytest.approx(expected[0], rel=5e-5)
        assert row["v"] == pytest.approx(expected / expected[0], rel=5e-5)
    assert _param(section, "during-spectra", "names") == list(NAMES)


def test_axes_hold_every_step_and_do_not_move(section: Section) -> None:
    for key in MOVING[1:]:
        spec = _figure(section, key).panels[0].spec
        (domain,) = {tuple(d) for d in _domains(spec["layer"])}
        ends = [v + s * (e or 0) for row in _rows(section, key) for v, e in zip(row["y"], row["e"], strict=True)
                for s in (-1, 1)]  # fmt: skip
        low = 0 if key == "during-alignment" else min(ends)
        assert domain == pytest.approx((low, max(ends)), rel=1e-4)


def test_the_last_step_is_a_faint_line(section: Section) -> None:
    layers = _figure(section, "during-ranks").panels[0].spec["layer"]
    faint, *rest = [layer for layer in layers if layer["mark"]["type"] == "line"]
    assert faint["transform"][0]["filter"] == "datum.a === 10"
    assert faint["mark"]["opacity"] == 0.4
    assert [layer["transform"][0]["filter"] for layer in rest] == ["datum.a === at"]


def test_courses_hold_every_step_of_every_layer(section: Section) -> None:
    for key, value in (("ranks-by-step", rank), ("alignment-by-step", lambda *w: aligned(*w)[0])):
        rows = _rows(section, key)
        assert [row["n"] for row in rows] == list(NAMES)
        for k, row in enumerate(rows):
            assert row["x"] == list(STEPS)
            assert row["y"] == pytest.approx([value(step, k, 6) for step in STEPS], rel=5e-5)
    assert [row["n"] for row in _rows(section, "moves-by-step")] == list(NAMES[1:])  # the first has none
    axis = _figure(section, "ranks-by-step").panels[0].spec["layer"][0]["encoding"]["x"]
    assert axis["scale"] == {"type": "symlog", "constant": 1, "domain": [0, 512], "nice": False}
    assert axis["axis"]["values"] == [0, 1, 10, 100]
    losses = {row["n"]: row for row in _rows(section, "loss-by-step")}
    train = losses["training loss"]
    assert train["y"] == pytest.approx([2.2 * np.exp(-x / 90) + 0.04 for x in train["x"]], rel=5e-5)
    assert losses["loss on the measured samples"]["x"] == list(STEPS)


def test_tables_hold_every_step_of_every_layer(section: Section) -> None:
    for key in MOVING:
        (table,) = _figure(section, key).tables
        assert table.columns[:3] == ("layer", "step", "p")
        assert [row[:2] for row in table.rows] == [(name, str(step)) for step in STEPS for name in NAMES]
    (table,) = _figure(section, "during-alignment").tables
    value, error = aligned(8, 3, 6)
    row = next(row for row in table.rows if row[:2] == ("blocks.2", "8"))
    assert row[3] == f"{value:.4g} ± {error:.2g}"
    (table,) = _figure(section, "ranks-by-step").tables
    assert table.columns == ("layer", "p", *(f"step {step}" for step in STEPS))
    assert [float(cell) for cell in table.rows[2][2:]] == pytest.approx([rank(s, 2, 6) for s in STEPS], rel=5e-4)


def test_answers_say_what_changed_most(section: Section) -> None:
    said = {f.key: " ".join(text for _, text in f.answers).replace("\u00a0", " ") for f in section.every_figure}
    first, last = rank(0, 3, 6), rank(512, 3, 6)
    assert (
        f"falls most at layer blocks.2, from {first:.3g} to {last:.3g} and rises most at layer blocks.4"
        in said["during-ranks"]
    )
    assert said["during-alignment"] == (
        "The largest alignment: 0.055 ± 0.03 at layer blocks.4 at step 0, and 0.532 ± 0.022 at layer blocks.2 at step "
        "512."
    )
    assert "48 at step 0 and 27 at step 512 in layer blocks.2" in said["during-spectra"]
    assert said["moves-by-step"].endswith("it falls nowhere.")


def test_claims_may_stand_on_rows_of_several_steps(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0, 8, 64))
    mine = (pl.col("metric") == "participation_ratio_centred") & (pl.col("layer") == "blocks.2")
    rows = run.metrics().select(mine.arg_true()).to_series().to_list()
    run.write_verdict([Claim("change", "It fell.", "finding", tuple(rows))])
    (shown,) = shown_claims(RunView(run), "finding")
    assert shown.table.columns[:4] == ("metric", "layer", "step", "p")
    assert [row[:3] for row in shown.table.rows] == [
        ("participation_ratio_centred", "blocks.2", step) for step in ("0", "8", "64")
    ]
    assert [float(row[4]) for row in shown.table.rows] == pytest.approx([rank(s, 3, 6) for s in (0, 8, 64)], rel=5e-4)


def test_one_step_has_no_slider_and_says_why(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0,), losses=0)
    page = Page(build_page(run))
    assert "Only step 0 was measured, so there is no slider" in page.text
    assert not [a for t, a in page.elements if t == "input" and a.get("type") == "range"]
    assert not [a for t, a in page.elements if a.get("id") in MOVING + FIXED[:3]]
    assert "Which directions survive in each layer?" in page.text


def test_no_step_at_all_is_a_page_with_reasons(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(), failed={0: "out of memory", 8: "out of memory"}, losses=0)
    page = Page(build_page(run))
    assert "No step of the training has any numbers." in page.text
    assert "The measurements at steps 0, 8 failed: out of memory" in page.text
    assert page.specs == []


def test_a_failed_last_step_leaves_the_one_before(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0, 8, 64), failed={128: "weights are not finite"})
    view = RunView(run)
    assert view.problems == [
        "The last measurement, at step 128, failed (weights are not finite): this page shows step 64."
    ]
    assert view.frame["step"].unique().to_list() == [64]
    assert _slider(_during(run)).steps == (0, 8, 64)


def test_a_step_without_arrays_has_a_reason(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0, 8, 64))
    arrays = run.arrays()
    run.write_arrays({name: a for name, a in arrays.items() if not name.startswith("steps/8/")})
    section = _during(run)
    assert {row["a"] for row in _rows(section, "during-spectra")} == {0, 2}
    figure = _figure(section, "during-spectra")
    assert figure.reasons == [("step 8", "arrays.safetensors holds no spectra/representation_centred")]
    run.write_arrays({"nothing": np.zeros(0)})
    figure = _figure(_during(run), "during-spectra")
    assert figure.panels == []
    assert figure.reasons == [("step 0, 8, 64".replace("step", "steps"),
                               "arrays.safetensors holds no spectra/representation_centred")]  # fmt: skip


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones(6), "is not a table of singular values"),
        (np.full((6, 2), -1.0), "is not a table of singular values"),
        (np.ones((5, 2)), "has 5 rows, but 6 layers were measured"),
    ],
)
def test_arrays_that_cannot_be_drawn_have_a_reason(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    run = monitored(tmp_path / "run", steps=(0, 8))
    run.write_arrays(run.arrays() | {"steps/0/spectra/representation_centred": array})
    section = _during(run)
    assert {row["a"] for row in _rows(section, "during-spectra")} == {1}
    assert reason in _figure(section, "during-spectra").reasons[0][1]


def test_arrays_of_another_step_than_the_table_are_not_shown_for_it(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0, 8, 64))
    run.write_metrics(run.metrics().filter(pl.col("step") < 64))
    view = RunView(run)
    assert "arrays.safetensors ends at step 64, metrics.parquet at step 8" in view.problems[0]
    np.testing.assert_array_equal(view.arrays["spectra/representation_centred"],
                                  run.arrays()["steps/8/spectra/representation_centred"])  # fmt: skip
    assert [text for _, text in _during(run).remarks][
        1
    ] == "run.json lists step 64, of which metrics.parquet holds no number."


def test_a_layer_of_some_steps_only_keeps_its_place(tmp_path: Path) -> None:
    names = {0: ["in", "gone", "out"], 8: ["in", "out"], 64: ["in", "new", "out"]}
    section = _during(monitored(tmp_path / "run", names, steps=(0, 8, 64)))
    assert _param(section, "during-ranks", "names") == ["in", "gone", "new", "out"]
    rows = [row["y"] for row in _rows(section, "during-ranks") if row["s"] == "centred participation ratio"]
    expected = [[(0, 0, 3), (0, 1, 3), None, (0, 2, 3)], [(8, 0, 2), None, None, (8, 1, 2)],
                [(64, 0, 3), None, (64, 1, 3), (64, 2, 3)]]  # fmt: skip
    for row, wanted in zip(rows, expected, strict=True):
        assert [v is None for v in row] == [w is None for w in wanted]
        assert [v for v in row if v is not None] == pytest.approx([rank(*w) for w in wanted if w], rel=5e-5)
    heat = {(row["a"], row["k"]): row["t"] for row in _rows(section, "during-spectra")}
    assert set(heat) == {(0, 0), (0, 1), (0, 3), (1, 0), (1, 3), (2, 0), (2, 2), (2, 3)}
    assert heat[1, 3] == pytest.approx(spectrum(8, 1, 2, 48)[0], rel=5e-5)
    assert [row["n"] for row in _rows(section, "ranks-by-step")] == ["in", "gone", "new", "out"]
    assert _rows(section, "ranks-by-step")[1]["x"] == [0]


def test_a_layer_stands_where_it_was_measured_last(tmp_path: Path) -> None:
    names = {0: ["in", "gone", "a", "out"], 8: ["in", "a", "b", "out"]}
    section = _during(monitored(tmp_path / "run", names, steps=(0, 8), losses=0))
    names_and_places = [_param(section, "during-ranks", name) for name in ("names", "places")]
    assert names_and_places[0] == ["in", "gone", "a", "b", "out"]
    assert names_and_places[1] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1], rel=5e-5)


def test_rows_of_arrays_have_the_names_that_the_run_gives_them(tmp_path: Path) -> None:
    names = {0: ["in", "gone", "out"], 8: ["in", "out"]}
    run = monitored(tmp_path / "run", names, steps=(0, 8), monitor={"sites": ["in", "gone", "out"]})
    arrays = run.arrays()
    short = arrays["steps/8/spectra/representation_centred"]
    full = np.stack([short[0], np.full_like(short[0], np.nan), short[1]])
    run.write_arrays(arrays | {"steps/8/spectra/representation_centred": full})
    heat = {(row["a"], row["k"]): row["t"] for row in _rows(_during(run), "during-spectra")}
    assert set(heat) == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)}
    assert heat[1, 2] == pytest.approx(spectrum(8, 1, 2, 48)[0], rel=5e-5)


def test_missing_values_are_blank_and_without_alignment_there_is_no_such_chart(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0, 8, 64), alignment=False)
    lacking = (pl.col("metric") == "participation_ratio_centred") & (pl.col("step") == 8)
    frame = run.metrics().with_columns(
        value=pl.when(lacking).then(None).otherwise(pl.col("value")),
        status=pl.when(lacking).then(pl.lit("failed")).otherwise(pl.col("status")),
        note=pl.when(lacking).then(pl.lit("not finite")).otherwise(pl.col("note")),
    )
    run.write_metrics(frame)
    section = _during(run)
    assert [f.key for f in section.every_figure] == [k for k in (*MOVING, *FIXED) if "alignment" not in k]
    rows = [row for row in _rows(section, "during-ranks") if row["s"] == "centred participation ratio"]
    assert [row["a"] for row in rows] == [0, 2]
    reasons = dict(_figure(section, "during-ranks").reasons)
    assert reasons["centred participation ratio"] == "step 8: failed: not finite (6 rows)"
    assert _rows(section, "ranks-by-step")[0]["x"] == [0, 64]


@pytest.mark.parametrize(
    "part",
    ["text", [], {}, {"steps": "x", "failed": 3}, {"steps": [None, -1, 1e300, True], "failed": {"x": 1, "-3": []}},
     {"share": "much", "budget": float("inf"), "postponed": 1.5, "seconds_measuring": -1}],
)  # fmt: skip
def test_a_broken_mapping_is_no_error(run: RunFolder, part: Any) -> None:
    training = read_training({"command": "monitor", "monitor": part}, run.metrics())
    assert training is not None
    assert training.steps == STEPS
    assert (training.share, training.budget, training.postponed, training.measuring, training.lost) == (
        None, None, None, None, (),
    )  # fmt: skip
    assert training.failed == ((24, "the loss is not finite"),)
    assert read_training({"command": "measure"}, run.metrics()) is None


def test_more_than_the_budget_is_explained(tmp_path: Path) -> None:
    run = monitored(tmp_path / "run", steps=(0, 1), monitor={"share": 0.4, "postponed": 1})
    (said,) = [text.replace("\u00a0", " ") for _, text in _during(run).remarks]
    assert "took 40 % of the time of training; the budget is 5 %" in said
    assert "The first and the last step are measured whatever they cost. 1 of the schedule's 13 steps was not" in said


def test_what_the_share_leaves_out_is_said(run: RunFolder) -> None:
    def said(**monitor: Any) -> str:
        part = run.run["monitor"] | monitor
        training = read_training(run.run | {"monitor": part}, run.metrics())
        assert training is not None
        return remarks(training)[0].replace("\u00a0", " ")

    assert "Not counted" not in said()
    assert "Not counted: 0.25 s to make the monitor, and the time that this page took." in said(seconds_start=0.25)
    assert "to make the monitor, and 1.4 s for the page." in said(seconds_start=0.25, seconds_page=1.41)
    for scheduled in (None, 1, "x"):  # a folder that does not say, or contradicts itself
        assert "2 of the schedule's steps were not measured, to keep within the budget." in said(scheduled=scheduled)
    assert "1 of the schedule's 1 step was not measured" in said(scheduled=1, postponed=1)


def test_charts_have_tables_and_elements_are_well_formed(html: str, page: Page, section: Section) -> None:
    assert all(figure.tables for figure in section.every_figure)
    identifiers = Counter(a["id"] for _, a in page.elements if a.get("id"))
    assert identifiers.most_common(1)[0][1] == 1
    assert not [a for _, a in page.elements if [n for n in a if n == "style" or n.startswith("on")]]
    opened = Counter(tag for tag, _ in page.elements)
    for tag in ("div", "figure", "section", "p", "span", "details"):
        assert opened[tag] == len(re.findall(f"</{tag}>", html)), tag
    for spec in page.specs:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", json.dumps(spec)), spec["description"]
        assert spec["params"][0]["name"] == "room"


def _hostile(path: Path) -> RunFolder:
    names = [*PAYLOADS, "x" * 400, "x" * 400 + "y", "<script>alert(1)</script>", '{"expr": "width"}']
    return monitored(path, names, steps=(0, 8, 64), title=PAYLOADS[0], failed={9: " ".join(PAYLOADS)},
                     monitor={"share": PAYLOADS[0], "steps": [*PAYLOADS]})  # fmt: skip


def test_hostile_names_stay_text(tmp_path: Path, page: Page) -> None:
    html = build_page(_hostile(tmp_path / "run"))
    hostile = Page(html)
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements}
    assert len(hostile.scripts) - len(hostile.specs) == len(page.scripts) - len(page.specs)
    assert "<script>alert(1)</script>" in hostile.text
    assert not [a for _, a in hostile.elements if [n for n in a if n.startswith("on")]]
    names = _param(_during(RunFolder.open(tmp_path / "run")), "during-ranks", "names")
    assert len(set(names)) == len(names) == len(PAYLOADS) + 4


@pytest.mark.slow
def test_many_steps_and_layers_fit_on_a_page(tmp_path: Path) -> None:
    names = [f"transformer.encoder.layers.{k}.attention.output.dense" for k in range(50)]
    steps = sorted({int(1.16**k) + k for k in range(60)})
    assert len(steps) == 60
    run = monitored(tmp_path / "run", names, steps=steps, values=64, losses=3000)
    html = build_page(run)
    assert len(html.encode()) <= MAX_BYTES
    section = _during(run)
    rows = _rows(section, "during-spectra")
    assert {row["a"] for row in rows} == set(range(60))
    assert {len(row["v"]) for row in rows} == {64}
    assert "Drawn: 40 of 50 layers, evenly spaced." in _figure(section, "during-spectra").notes
    assert {row["a"] for row in _rows(section, "during-ranks")} == set(range(60))
    assert all(len(row["y"]) == 50 for row in _rows(section, "during-ranks"))
    assert "about 400 of" in " ".join(_figure(section, "loss-by-step").notes)


def test_what_does_not_fit_is_left_out_and_the_page_says_so(tmp_path: Path) -> None:
    steps = [k * k for k in range(20)]
    run = monitored(tmp_path / "run", [f"layers.{k}" for k in range(12)], steps=steps, values=24, losses=0)
    whole, small = _during(run), _during(run, Budget(16, 16))
    assert _slider(whole).steps == tuple(steps)
    assert _slider(whole).note == ""
    assert _slider(small).steps == (0, 36, 169, 361)
    assert _slider(small).note.startswith("The slider has 4 of 20 measured steps, evenly spaced")
    for key in MOVING:
        assert _param(small, key, "steps") == [0, 36, 169, 361]
        assert _param(small, key, "at") == 3
        assert {row["a"] for row in _rows(small, key)} == {0, 1, 2, 3}
        assert len(_figure(small, key).tables[0].rows) <= 32
    row = next(row for row in _rows(small, "during-ranks") if row["a"] == 1)
    assert row["y"] == pytest.approx([rank(36, k, 12) for k in range(12)], rel=5e-5)
    assert "The table holds 8 of 20 steps and 4 of 12 layers, evenly spaced; all are in metrics.parquet." in (
        _figure(small, "during-ranks").notes
    )
    colour = _figure(whole, "ranks-by-step").panels[0].spec["layer"][0]["encoding"]["color"]
    assert colour["field"] == "p"  # twelve layers have a ramp, not a legend
    few = _during(run, Budget(400, 16))
    assert len(_figure(few, "ranks-by-step").tables[0].rows) == 12


def test_charts_as_files_are_of_the_last_step_and_say_so(
    run: RunFolder, section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.report._sections.build_sections", lambda _views, _budget: [section])
    written = save_charts(run, tmp_path, formats=("svg",))
    stems = {path.stem for path in written}
    assert stems == {*MOVING, *FIXED}
    drawn = (tmp_path / "during-alignment.svg").read_text()
    assert "Step 512, the last of 11 measured steps" in drawn
    assert len(re.findall('aria-roledescription="point"|<path[^>]*transform="translate[^>]*d="M', drawn)) < 40
    assert "Step 512" not in (tmp_path / "ranks-by-step.svg").read_text()


def test_a_monitored_run_stands_beside_others(run: RunFolder, single_run: RunFolder, tmp_path: Path) -> None:
    other = monitored(tmp_path / "other", steps=(0, 8, 64), title="Another")
    sections = build_sections([RunView(f) for f in (single_run, run)], Budget())
    assert [s.key for s in sections][:2] == ["during-2", "dimensions"]
    assert sections[0].title == "During training: A small network"
    assert [f.key for f in _slider(sections[0]).figures] == [f"{key}-2" for key in MOVING]
    ranks = next(f for f in sections[1].figures if f.key == "layer-ranks")
    rows = [row for panel in ranks.panels for row in panel.spec["datasets"]["rows"] if "blocks.2" in row["w"]]
    centred = [row["y"] for row in rows if row["y"] == pytest.approx(rank(512, 3, 6), rel=1e-3)]
    assert len(centred) == 1
    assert len(rows) == 5  # five ranks of the last step, and of no other
    page = Page(build_page([run, other]))
    identifiers = Counter(a["id"] for _, a in page.elements if a.get("id"))
    assert identifiers.most_common(1)[0][1] == 1
    assert [a["id"] for t, a in page.elements if t == "input" and a.get("type") == "range"] == [
        "during-1-at", "during-2-at",
    ]  # fmt: skip


def test_a_monitored_leaky_resnet_keeps_its_own_page(make_run: MakeRun) -> None:
    run = make_run(depth=8)
    reason = MetricTable()
    reason.skip("cost_of_identity", "of no layer", layer="representation")
    frame = pl.concat([run.metrics().filter(pl.col("step").is_null()), reason.frame()])
    later = frame.with_columns(step=pl.lit(64, dtype=pl.Int64()), value=pl.col("value") * 1.1)
    run.write_metrics(pl.concat([frame.with_columns(step=pl.lit(0, dtype=pl.Int64())), later]))
    run.run |= {"command": "monitor", "monitor": {"steps": [0, 64]}}
    spectra = run.arrays()["spectra/representation"]
    run.write_arrays(run.arrays() | {f"steps/{step}/spectra/representation": spectra for step in (0, 64)})
    during, *rest = build_sections([RunView(run)], Budget())
    keys: Mapping[str, Any] = {figure.key: figure for figure in during.every_figure}
    assert {"during-ranks", "during-cost", "ranks-by-step", "moves-by-step"} <= set(keys)
    for key in ("during-spectra", "during-cost"):
        assert _param(during, key, "names") == [f"representation.{k}" for k in range(9)]
    assert "training" not in [section.key for section in rest]
    energies = next(f for section in rest for f in section.figures if f.key == "layer-steps")
    steps = [row["y"] for row in energies.panels[0].spec["datasets"]["rows"]]
    assert sum(steps) == pytest.approx(1.1, rel=1e-3)  # of step 64 only
