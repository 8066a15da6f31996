"""The page of a run of `measure`, as text: its charts hold the recorded numbers, its tables every layer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isthmus._records import MetricTable, RunFolder
from isthmus.report import build_page, save_charts
from isthmus.report._layers import brief, distinct, middle, read_layers
from isthmus.report._layertables import layer_tables, skipped_tables
from isthmus.report._page import MAX_BYTES
from isthmus.report._read import RunView
from report.looking import Page

MakeRun = Callable[..., RunFolder]
KEYS = {
    "layer-ranks", "identity-cost", "layer-spectra", "layer-spectra-uncentred", "weight-ranks", "layer-weight-spectra",
    "moves", "backward-norm", "backward-rank", "stretch",
}  # fmt: skip


@pytest.fixture(scope="module")
def html(measured_run: RunFolder) -> str:
    return build_page(measured_run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def _spec(page: Page, start: str) -> dict[str, Any]:
    return next(spec for spec in page.specs if spec["description"].startswith(start))


def _figures(page: Page) -> list[str]:
    return [str(a["id"]) for t, a in page.elements if t == "figure"]


def _param(spec: dict[str, Any], name: str) -> Any:
    return next(p["value"] for p in spec["params"] if p["name"] == name)


def _recorded(run: RunFolder, metric: str, of: str, baseline: str = "") -> Any:
    frame = run.metrics()
    names = [entry["name"] for entry in run.run["measured"][of]]
    rows = frame.filter((frame["metric"] == metric) & (frame["baseline"] == baseline) & frame["layer"].is_in(names))
    return rows.filter(rows["status"] == "ok")


def test_facts_say_what_was_measured(html: str) -> None:
    said = html[html.index('<dl class="facts">') : html.index("</dl>", html.index('<dl class="facts">'))]
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", said))
    assert facts == {
        "model": "GPT2Model", "parameters": "124\u202f439\u202f808", "samples": "1\u202f000",
        "layers measured": "13 (blocks)", "weight matrices": "48", "layers skipped": "13",
        "loss (cross_entropy)": "3.21", "compared with": "init",
    }  # fmt: skip


def test_a_measured_run_has_its_own_figures_and_a_leaky_one_none_of_them(page: Page, normal_run: RunFolder) -> None:
    assert set(_figures(page)) == KEYS
    assert not KEYS & set(_figures(Page(build_page(normal_run))))


@pytest.mark.parametrize(
    ("start", "name", "metric", "of"),
    [
        ("Line chart of centred part", "effective rank", "effective_rank", "sites"),
        ("Line chart of effective rank", "effective rank", "effective_rank", "weights"),
        ("Line chart of backward norm", "backward norm", "backward_norm", "sites"),
    ],
)
def test_curves_hold_the_recorded_numbers_and_names(
    page: Page, measured_run: RunFolder, start: str, name: str, metric: str, of: str
) -> None:
    spec = _spec(page, start)
    for baseline in ("", "init"):
        recorded = _recorded(measured_run, metric, of, baseline)
        model = baseline or "the model"
        drawn = [row for row in spec["datasets"]["rows"] if row["s"] == name and row["b"] == model]
        assert [row["y"] for row in drawn] == pytest.approx(recorded["value"].to_list(), rel=5e-5)
        assert [row["x"] for row in drawn] == pytest.approx(recorded["position"].to_list(), rel=5e-5, abs=1e-12)
        assert [row["w"] for row in drawn] == recorded["layer"].to_list()


def test_a_baseline_is_dashed_and_named(page: Page) -> None:
    layers = _spec(page, "Line chart of centred part")["layer"]
    dash = next(la["encoding"]["strokeDash"]["scale"] for la in layers if "strokeDash" in la["encoding"])
    assert dash == {"domain": ["the model", "init"], "range": [[1, 0], [5, 4]]}


def test_the_cost_of_identity_is_drawn_at_each_gamma(page: Page, measured_run: RunFolder) -> None:
    rows = _spec(page, "Line chart of cost")["datasets"]["rows"]
    recorded = _recorded(measured_run, "cost_of_identity", "sites")
    for gamma in ("0.0001", "0.001", "0.01"):
        drawn = [row["y"] for row in rows if row["s"] == f"cost of identity, γ₀ = {gamma}" and row["b"] == "the model"]
        notes = recorded["note"].str.starts_with(f"gamma0={gamma};")
        assert drawn == pytest.approx(recorded.filter(notes)["value"].to_list(), rel=5e-5)
        assert len(drawn) == 13


def test_the_heat_map_holds_shares_of_the_largest_value(page: Page, measured_run: RunFolder) -> None:
    maps = [spec for spec in page.specs if spec["description"].startswith("Heat map")]
    names = ("spectra/representation_centred", "spectra/representation", "spectra/weight")
    order = [prefix + name for name in names for prefix in ("", "baseline/")]
    arrays = measured_run.arrays()
    assert len(maps) == len(order)
    for spec, name in zip(maps, order, strict=True):
        values, rows = arrays[name][:, :64], spec["datasets"]["rows"]
        drawn = np.array([[np.nan if v is None else v for v in row["v"]] for row in rows])
        np.testing.assert_allclose(drawn, values / values[:, :1], rtol=5e-5)
        assert [row["t"] for row in rows] == pytest.approx(values[:, 0].tolist(), rel=5e-5)
        of = "weights" if "weight" in name else "sites"
        assert _param(spec, "names") == [entry["name"] for entry in measured_run.run["measured"][of]]
        assert spec["encoding"]["y"]["scale"]["domain"] == list(range(len(rows)))  # the first layer on top


def test_blanks_of_a_spectrum_stay_blank(make_measured: MakeRun) -> None:
    run = make_measured(["a", "b"], [], baseline="")
    values = np.array([[4.0, 1.0, np.nan], [np.nan, np.nan, np.nan]])
    run.write_arrays({"spectra/representation_centred": values})
    spec = _spec(Page(build_page(run)), "Heat map")
    assert [row["v"] for row in spec["datasets"]["rows"]] == [[1.0, 0.25, None], [None, None, None]]
    assert _param(spec, "names") == ["a", "b"]


def test_bars_tell_the_move_of_each_layer(page: Page, measured_run: RunFolder) -> None:
    spec = _spec(page, "Bar chart")
    recorded = _recorded(measured_run, "relative_move", "sites")
    names = _param(spec, "names")
    drawn = {names[row["k"]]: row["y"] for row in spec["datasets"]["rows"] if row["b"] == "the model"}
    assert list(drawn) == recorded["layer"].to_list()
    assert list(drawn.values()) == pytest.approx(recorded["value"].to_list(), rel=5e-5)
    assert "wte" not in drawn  # skipped there, and the page says so
    assert "the first representation has none before it" in page.text


def test_the_table_holds_every_layer_and_every_number(measured_run: RunFolder) -> None:
    view = RunView(measured_run)
    sites, weights = layer_tables([view], 1000)
    assert [row.name for row in sites.rows] == [entry["name"] for entry in measured_run.run["measured"]["sites"]]
    assert len(weights.rows) == 48
    assert sites.words == ("type", "no.", "p", "width")
    assert [cell.text for cell in weights.rows[1].words] == ["Linear", "1", "0.02128", "2304 × 768"]
    assert sites.metrics[0] == "observations"
    assert len(set(sites.metrics)) == len(sites.metrics) == 15
    for table, of in ((sites, "sites"), (weights, "weights")):
        for heading, metric in (("stable rank", "stable_rank"), ("effective rank", "effective_rank")):
            column = table.metrics.index(heading)
            values = [float(row.cells[column].value) for row in table.rows]
            assert values == _recorded(measured_run, metric, of)["value"].to_list()
            assert all(cell.cells[column].baselines[0][0] == "init" for cell in table.rows)
    move = sites.metrics.index("relative move")
    assert (sites.rows[0].cells[move].text, sites.rows[0].cells[move].value) == ("—", "")
    assert ("cost of identity exact", "skipped: identity_residual is not 0 – wte, h.0, h.1, h.2 and 9 more") in (
        sites.reasons
    )


def test_skipped_layers_are_grouped_by_type_and_reason(measured_run: RunFolder, page: Page) -> None:
    (table,) = skipped_tables([RunView(measured_run)], 100)
    assert [(g.type, g.count, g.reason) for g in table.groups] == [
        ("Dropout", 12, "not selected by layers='blocks'"), ("LayerNorm", 1, "its output is a tuple"),
    ]  # fmt: skip
    assert table.groups[0].first == "h.0.drop, h.1.drop, h.2.drop, h.3.drop"
    assert table.groups[0].rest.startswith("h.4.drop")
    assert "13 skipped layers" in page.text


def test_charts_have_tables_and_elements_are_well_formed(html: str, page: Page) -> None:
    charts = [a for t, a in page.elements if t == "div" and a.get("data-spec")]
    assert len(charts) == len(page.specs) == 13  # ten figures, and three heat maps of the baseline
    identifiers = Counter(a["id"] for _, a in page.elements if a.get("id"))
    assert identifiers.most_common(1)[0][1] == 1
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert sum(tag == "caption" for tag, _ in page.elements) == tables
    assert tables == 13 + 1 + 2 + 1 + 1  # charts, claim, layers, skipped, numbers
    assert all(a.get("scope") in ("col", "row") for t, a in page.elements if t == "th")
    assert not [a for _, a in page.elements if [n for n in a if n == "style" or n.startswith("on")]]
    for spec in page.specs:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", json.dumps(spec)), spec["description"]
        assert spec["params"][0]["name"] == "room"
    figure = html[html.index('<figure id="layer-ranks"') :]
    assert "smallest value, 5.95, at h.6" in figure[: figure.index("</figure>")]


def test_two_hundred_hostile_layers_fit_and_stay_text(deep_run: RunFolder, page: Page) -> None:
    html = build_page(deep_run)
    assert len(html.encode()) <= MAX_BYTES
    deep = Page(html)
    assert {tag for tag, _ in deep.elements} <= {tag for tag, _ in page.elements}
    assert len(deep.scripts) == len(page.scripts)
    assert not [a for _, a in deep.elements if "onerror" in a or a.get("src")]
    names = [entry["name"] for entry in deep_run.run["measured"]["sites"]]
    spec = _spec(deep, "Heat map of the 32 largest singular values of 200 layers")
    assert _param(spec, "names") == names
    for words, limit in (("narrow", 22), ("middling", 34), ("wide", 60)):
        labels = _param(spec, words)
        assert max(map(len, labels)) <= limit
        calm = [label for k, label in enumerate(labels) if k % 10 != 5]
        assert len(set(calm)) == 180, words  # whose names differ in one number in their middle
    assert "Drawn: the 32 largest of up to 96 singular values." in deep.text
    for table in layer_tables([RunView(deep_run)], 1000):
        assert len(table.rows) == 200
    assert "{&#34;signal&#34;: &#34;width&#34;}" in html


def test_more_than_a_thousand_layers_are_thinned_and_the_page_says_so(make_measured: MakeRun) -> None:
    names = [f"stack.{i}.{'a' * 150}" for i in range(1200)]
    html = build_page(make_measured(names, names[:5], skipped=[]))
    assert len(html.encode()) <= MAX_BYTES
    text = Page(html).text
    assert re.search(r"The table holds \d+ of 1200 layers, evenly spaced; all are in metrics.parquet", text)
    assert re.search(r"Drawn: \d+ of 1200 layers, evenly spaced", text)


def test_a_run_that_skipped_everything_says_why(unmeasured_run: RunFolder) -> None:
    html = build_page(unmeasured_run)
    page = Page(html)
    assert page.specs == []
    for key in ("layer-ranks", "identity-cost", "moves", "backward-norm"):
        figure = html[html.index(f'<figure id="{key}"') :]
        assert "skipped: no layer was selected" in figure[: figure.index("</figure>")], key
    assert "stretch" not in _figures(page)  # nobody asked for it, so it is not on the page
    assert "13 skipped layers" in page.text


def test_one_layer_is_enough(single_run: RunFolder) -> None:
    page = Page(build_page(single_run))
    assert "5 at only" not in page.text
    assert "is 30.8 at only (p\u00a0=\u00a00), the only layer measured" in page.text
    assert len(_spec(page, "Heat map")["datasets"]["rows"]) == 1


def test_models_side_by_side_are_aligned_by_position(make_measured: MakeRun) -> None:
    first = make_measured(title="First model")
    second = make_measured(["in", "a", "b"], ["a.weight"], title="Second model", baseline="")
    page = Page(build_page([first, second]))
    charts = [s for s in page.specs if s["description"].startswith("Line chart of centred participation ratio: First")]
    assert len(charts) == 1
    assert charts[0]["height"] < 200  # one of five
    rows = charts[0]["datasets"]["rows"]
    assert {row["s"] for row in rows} == {"First model", "Second model"}
    assert [row["x"] for row in rows if row["s"] == "Second model"] == [0, 0.5, 1]
    assert {row["b"] for row in rows if row["s"] == "Second model"} == {"the model"}
    heat = [s["description"] for s in page.specs if s["description"].startswith("Heat map")]
    assert sum("First model: init: " in text for text in heat) == 3
    assert sum("Second model: " in text for text in heat) == 3
    assert sum(a.get("class") == "layers" for _, a in page.elements) == 5  # two tables each, and what was skipped


def test_measured_and_leaky_runs_share_a_page(make_measured: MakeRun, normal_run: RunFolder) -> None:
    measured = make_measured(title="A transformer")
    for runs in ([measured, normal_run], [normal_run, measured]):
        page = Page(build_page(runs))
        identifiers = Counter(a["id"] for _, a in page.elements if a.get("id"))
        assert identifiers.most_common(1)[0][1] == 1
        assert set(_figures(page)) >= KEYS | {"energies", "ranks", "weight-spectrum"}
        assert "A transformer: stationarity residual: not recorded by this run" in page.text
        assert "the layers of this run have names; its spectra are in the heat maps above" in page.text
        chart = _spec(page, "Line chart of effective rank: ")
        assert {row["s"] for row in chart["datasets"]["rows"]} == {"A transformer", normal_run.run["title"]}


def test_whole_model_rows_are_not_those_of_a_module_called_model(make_measured: MakeRun) -> None:
    view = RunView(make_measured(["model", "head"], [], baseline=""))
    assert view.single("loss") == 3.21
    assert view.curve("effective_rank", "representation").places == ("model", "head")
    assert view.curve("loss", "representation").y.size == 0


@pytest.mark.parametrize(
    "part",
    [
        "text", [], {}, {"sites": "text", "weights": 3, "skipped": {}}, {"sites": [1, None, {}], "weights": [{}]},
        {"sites": [{"name": None, "position": "x", "index": "y", "width": []}] * 2, "skipped": [{"name": "a"}]},
        {"model": ["x"], "parameters": "many", "samples": None, "sites": [{"name": "\ud800"}], "baseline": 7},
    ],
)  # fmt: skip
def test_a_broken_mapping_gives_a_page_all_the_same(make_measured: MakeRun, part: Any) -> None:
    run = make_measured(["a"], ["a.weight"])
    run.run["measured"] = part
    assert "Which directions survive in each layer?" in Page(build_page(run)).text


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones(3), "is not a table of singular values"),
        (np.array([[np.inf, 1.0]]), "is not a table of singular values"),
        (np.array([[1.0, -1.0]]), "is not a table of singular values"),
        (np.ones((3, 2)), "has 3 rows, but the run names 1 layers"),
        (np.full((1, 2), np.nan), "holds no value"),
        (np.zeros((1, 0)), "holds no spectra/representation_centred"),
    ],
)
def test_spectra_that_cannot_be_drawn_have_a_reason(make_measured: MakeRun, array: np.ndarray, reason: str) -> None:
    run = make_measured(["a"], [], baseline="")
    run.write_arrays({"spectra/representation_centred": array})
    assert reason in Page(build_page(run)).text


def test_zero_spectra_are_drawn_blank(make_measured: MakeRun) -> None:
    run = make_measured(["a"], [], baseline="")
    run.write_arrays({"spectra/representation_centred": np.zeros((1, 2))})
    assert _spec(Page(build_page(run)), "Heat map")["datasets"]["rows"][0]["v"] == [None, None]


def test_a_run_without_its_mapping_is_still_a_measured_one(make_measured: MakeRun) -> None:
    run = make_measured(["a"], [])
    del run.run["measured"]
    assert read_layers(run.run) is not None
    assert "effective depth" not in Page(build_page(run)).text


def test_a_leaky_resnet_that_was_measured_keeps_the_page_of_a_path(normal_run: RunFolder) -> None:
    run = RunFolder.open(normal_run.path)
    run.run["command"] = "measure"
    assert "Is the energy conserved along the path?" in Page(build_page(run)).text


def test_names_are_shortened_where_they_say_least() -> None:
    assert brief("h.0.attn", 22) == "h.0.attn"
    assert brief("encoder.layers.17.attention.output.dense", 34) == "…layers.17.attention.output.dense"
    assert brief("encoder.layers.17.attention.output.dense", 20) == "…17…output.dense"
    assert brief("0.body.7.attention.output", 14) == "0…7…output"
    assert brief("x" * 100, 9) == "xxxx…xxxx"
    assert middle("abcdefgh", 8) == "abcdefgh"
    assert middle("abcdefghi", 8) == "abc…fghi"
    assert distinct(["a", "a", "a (2)", "b"]) == ["a", "a (2)", "a (2) (2)", "b"]
    long = distinct(["p" * 200 + middle_part + "s" * 200 for middle_part in ("1", "2")])
    assert len(set(long)) == 2
    assert max(map(len, long)) <= 310


def test_charts_of_a_measured_run_are_saved(measured_run: RunFolder, single_run: RunFolder, tmp_path: Path) -> None:
    written = save_charts(measured_run, tmp_path, formats=("svg",))
    alone = KEYS - {"layer-spectra", "layer-spectra-uncentred", "layer-weight-spectra"}
    pairs = {f"{key}-{k}" for key in KEYS - alone for k in (1, 2)}
    assert {path.stem for path in written} == alone | pairs
    heat = (tmp_path / "layer-spectra-1.svg").read_text()
    assert "Which directions survive in each layer?" in heat
    assert heat.count("h.11") == 1
    (png,) = save_charts(RunFolder.open(single_run.path), tmp_path / "png", formats=("png",))[:1]
    assert png.read_bytes().startswith(b"\x89PNG")


def test_only_finished_numbers_of_the_model_itself_are_facts(make_measured: MakeRun) -> None:
    run = make_measured(["a"], [])
    table = MetricTable()
    table.add("loss", 9.0, layer="model", baseline="init")
    table.add("loss", 1.5, layer="model")
    run.write_metrics(table)
    assert RunView(run).single("loss") == 1.5
