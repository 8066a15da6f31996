"""The page of a paper's figures made again: its charts hold the recorded numbers, its claims say whether they held."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import re
import struct
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vl_convert

from isthmus._errors import InputError
from isthmus._records import Claim, MetricTable, RunFolder
from isthmus.report import build_page, save_charts, write_page
from isthmus.report._figures import Budget
from isthmus.report._page import MAX_BYTES
from isthmus.report._read import RunView, _sound
from isthmus.report._reproducedcharts import Scale, numbers_of
from isthmus.report._reproducedfigures import reproduced_sections
from isthmus.report._reproducedwords import took
from report.conftest import PAYLOADS
from report.looking import Page

COLUMNS = ("panel", "series", "x", "y", "low", "high", "seed", "n")
Row = tuple[Any, ...]
DEPTH = np.linspace(0, 1, 21)


def panel(key: str, title: str, x: str, y: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "title": title, "x": x, "y": y, "kind": "line", "x_scale": "linear", "y_scale": "linear",
            "rules": [], "marks": [], "square": False} | more  # fmt: skip


def figure(key: str, title: str, *panels: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"key": key, "title": title, "shows": f"What the paper's figure {key} shows, in a sentence of the usual "
            "size that says which curves there are and what becomes of them.",
            "setting": "Teacher 30 → 3 → 30 with 1000 samples, width 100, 20 layers, ridge 0.001, 3 seeds.",
            "seconds": 812.0, "note": "", "panels": list(panels)} | more  # fmt: skip


def make(path: Path, figures: Sequence[Mapping[str, Any]], data: Mapping[str, Iterable[Row]], *,
         claims: Sequence[Claim] = (), title: str = "Leaky ResNets, reproduced", **more: Any) -> RunFolder:  # fmt: skip
    """A run folder of a reproduction with these figures, and the rows of each one's CSV file."""
    part = {"paper": "Leaky ResNets (arXiv 2405.17573)", "preset": "quick", "machine": "2 cores, no accelerator",
            "setting": "All networks are trained with Adam and then with L-BFGS to a stationary point, in float64.",
            "figures": list(figures)} | more  # fmt: skip
    run = RunFolder.create(path, command="isthmus reproduce leaky-resnets", configuration={"preset": "quick"}, seed=0,
                           device="cpu", dtype="float64", extra={"title": title, "reproduction": part})  # fmt: skip
    (path / "figures").mkdir()
    for key, rows in data.items():
        with (path / "figures" / f"{key}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows((*row, *[""] * (len(COLUMNS) - len(row))) for row in rows)
    table = MetricTable()
    table.add("bottleneck_rank", 3, note="of the network with L̃ = 7")
    run.write_metrics(table)
    run.write_verdict(claims)
    run.finish()
    return run


def _spectra(panel_key: str, kept: int) -> list[Row]:
    dip = 4 * DEPTH * (1 - DEPTH)
    return [
        (panel_key, f"s{k + 1}", p, max(2.2 * 0.97**k * (1 if k < kept else (1 - 0.999 * d)), 1e-9))
        for k in range(100) for p, d in zip(DEPTH, dip, strict=True)
    ]  # fmt: skip


def _claim(name: str, text: str, holds: str, **values: Any) -> Claim:
    level = {"held": "finding", "not judged": "none"}.get(holds, "caution")
    return Claim(name, text, level, (0,), {"holds": holds, **values})  # type: ignore[arg-type]


def sample(path: Path) -> RunFolder:
    """Seven figures as the paper has them: ranks, spectra, energies, steps, projections, a path, and losses."""
    rng = np.random.default_rng(0)
    data: dict[str, list[Row]] = {"1a": [], "1c": [], "2a": [], "2b": [], "2c": [], "3": []}
    estimates = ("−2H/L̃ at p = 0.5", "−2H/L̃, symmetric", "−2H/L̃, stabilised", "cost of identity", "stable rank of A",
                 "nuclear rank of A")  # fmt: skip
    for j, name in enumerate(estimates):
        for depth in (1, 2, 3, 5, 7, 10, 15):
            y = 3 + (6 + j) * np.exp(-depth / (2 + 0.4 * j))
            data["1a"].append(("rank", name, depth, y, y - 0.3 - 0.1 * j, y + 0.35, "", 3))
    data["1b"] = [*_spectra("weights", 3), *_spectra("representations", 3)]
    for seed in range(3):
        for name, level in (("Hamiltonian", -10.0), ("kinetic energy", 4.0), ("potential energy", -14.0)):
            for p in DEPTH:
                wave = 0 if name == "Hamiltonian" else 18 * (p - 0.5) ** 2
                y = level + wave + 0.3 * seed + rng.normal(0, 0.1)
                data["1c"].append(("energies", name, p, y, "", "", seed))
    for name, start in (("equal layers", 0), ("adaptive layers", 1)):
        for p in DEPTH[1:]:
            y = (40 * (p - 0.5) ** 4 + 0.02) if start == 0 else 0.5 + 0.1 * np.sin(9 * p)
            data["2a"].append(("speed", name, p, y))
        for k, p in enumerate(DEPTH):
            data["2b"].append(("positions", name, k, p if start == 0 else 0.5 + np.sign(p - 0.5) * 2 * (p - 0.5) ** 2))
    for name, bend in (("L̃ = 1", 0.4), ("L̃ = 7", 2.5)):
        for p in DEPTH:
            data["2c"].append(("plane", name, 2 * p - 1, bend * (p - 0.5) ** 2 + 0.05 * np.sin(12 * p)))
    for name, scale in (("ridge 0.01", 1.0), ("ridge 0.001", 0.2), ("ridge 0.0001", 0.05)):
        for layers in (4, 8, 16, 32, 64):
            y = scale / layers + 1e-4
            data["3"].append(("error", name, layers, y, y * 0.7, y * 1.4, "", 5))
            data["3"].append(("gap", name, layers, -scale * 30 / layers + 0.1 * layers))
    figures = [
        figure("1a", "The Hamiltonian approaches the bottleneck rank",
               panel("rank", "Rank estimates", "effective depth L̃", "dimensions", rules=[[3.0, "k* = 3"]])),
        figure("1b", "Only three singular values survive in the middle",
               panel("weights", "Singular values of W_p", "depth p", "singular value", marks=DEPTH.tolist()),
               panel("representations", "Singular values of A_p", "depth p", "singular value", y_scale="log")),
        figure("1c", "The Hamiltonian is conserved", panel("energies", "Energies", "depth p", "energy",
               rules=[[-10, "−L̃k*/2"], [-9.8, "mean of H"]]), note="One of the seeds began near a saddle."),
        figure("2a", "Adaptive layers even out the change per layer",
               panel("speed", "Speed along the path", "depth p", "relative change", y_scale="log")),
        figure("2b", "Where adaptive layers stand",
               panel("positions", "Positions of the layers", "layer", "depth p", kind="points"),
               panel("lines", "The same as a chart of hairlines", "layer", "depth p", marks=[0.05, 0.1])),
        figure("2c", "The path bends", panel("plane", "Projection on two directions", "first direction",
               "second direction", kind="path", square=True)),
        figure("3", "Error against the number of layers",
               panel("error", "Test error", "layers L", "error", x_scale="log", y_scale="log"),
               panel("gap", "Distance from the continuous network", "layers L", "distance", x_scale="log",
                     y_scale="symlog")),
    ]  # fmt: skip
    data["2b"] += [("lines", "layers", p, p**2) for p in DEPTH[:5]]
    claims = [
        _claim("1a/approaches-rank", "At L̃ = 15 the estimate −2H/L̃ is 3.02, within 0.1 of k* = 3.", "held", gap=0.02),
        _claim("1a/bounds-hold", "The bound holds at 6 of 7 effective depths.", "partly", holding=6, of=7),
        _claim("1b/three-survive", "3 of 100 singular values exceed a tenth of the largest at p = 0.5.", "held"),
        _claim("1c/conserved", "The Hamiltonian varies by 12 % along the path, more than the 5 % of the paper.", "not"),
        _claim("2a/even", "Adaptive layers lower the ratio of largest to smallest change from 86 to 1.5.", "held"),
        _claim("2c/bends", "One seed only: nothing can be said about the bend.", "not judged"),
        _claim("3/order-one", "The error falls as L to the power −0.98 ± 0.03.", "held", slope=-0.98),
    ]  # fmt: skip
    return make(path, figures, data, claims=claims)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return sample(tmp_path_factory.mktemp("reproduced") / "run")


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return build_page(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def one(path: Path, rows: Iterable[Row] = (), *, claims: Sequence[Claim] = (), **of_panel: Any) -> RunFolder:
    """A run with one figure of one panel."""
    part = figure("1", "One", panel("p", "Panel", "x axis", "y axis", **of_panel))
    return make(path / "run", [part], {"1": rows}, claims=claims)


def spec_of(run: RunFolder) -> dict[str, Any]:
    (spec,) = Page(build_page(run)).specs
    return spec


def section(html: str, anchor: str) -> str:
    start = html.index(f'<section id="paper-{anchor}-section"')
    return html[start : html.index("</section>", start)]


def drawn(spec: dict[str, Any], series: str, field: str = "y") -> list[float]:
    return [row[field] for row in spec["datasets"]["rows"] if row["s"] == series]


def scales(spec: dict[str, Any], channel: str) -> dict[str, Any]:
    return next(la["encoding"][channel]["scale"] for la in spec["layer"] if "scale" in la["encoding"].get(channel, {}))


def test_every_figure_has_a_section_in_the_order_of_the_list(page: Page, html: str) -> None:
    anchors = [str(a["id"]) for t, a in page.elements if t == "section"]
    keys = [f"paper-{key}-section" for key in ("1a", "1b", "1c", "2a", "2b", "2c", "3")]
    assert anchors == ["verdict", *keys, "numbers", "provenance"]
    headings = re.findall(r'<h2 id="paper-[^"]+">(.*?)</h2>', html)
    assert headings[:2] == ["Fig 1a. The Hamiltonian approaches the bottleneck rank",
                            "Fig 1b. Only three singular values survive in the middle"]  # fmt: skip
    links = [a["href"] for t, a in page.elements if t == "a"]
    assert [link for link in links if str(link).startswith("#paper")] == 2 * [f"#{key}" for key in keys]


def test_the_top_says_what_was_run_and_a_section_how(page: Page, html: str) -> None:
    top = page.text[: page.text.index("Fig 1a. The")]
    for said in ("Leaky ResNets, reproduced", "Leaky ResNets (arXiv 2405.17573)", "quick", "2 cores, no accelerator",
                 "then with L-BFGS to a stationary point"):  # fmt: skip
        assert said in top
    said = Page(section(html, "1c")).text
    assert "What the paper's figure 1c shows" in said
    assert "Teacher 30 → 3 → 30" in said
    assert "14 min" in said
    assert "One of the seeds began near a saddle." in said
    assert "<dt>Note</dt>" not in section(html, "1a")


def test_claims_stand_with_their_figure_once_and_say_whether_they_held(html: str, page: Page, run: RunFolder) -> None:
    assert "7 claims checked: 4 held, 1 partly held, 1 not held, 1 not judged." in page.text
    for claim in run.verdict():
        key, name = claim.name.split("/")
        words = {"held": "held", "partly": "partly held", "not": "not held", "not judged": "not judged"}
        own = section(html, key)
        said = own[: own.index(claim.text)]
        assert said.endswith(f">{words[str(claim.values['holds'])]}</span> "), claim.name
        assert page.text.count(claim.text) == 1
        overview = html[: html.index('<section id="paper-1a')]
        assert re.search(f"<td>{name.replace('-', ' ')}</td><td><span class=.badge [a-z-]+.>"
                         f"{words[str(claim.values['holds'])]}<", overview)  # fmt: skip
    assert "<dt>gap</dt><dd>0.02</dd>" in section(html, "1a")
    assert "<dt>holds</dt>" not in html


def test_charts_hold_the_recorded_numbers(page: Page, run: RunFolder) -> None:
    spec = page.specs[0]
    with (run.path / "figures" / "1a.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["series"] == "stable rank of A"]
    for field, column in (("x", "x"), ("y", "y"), ("l", "low"), ("h", "high"), ("n", "n")):
        assert drawn(spec, "stable rank of A", field) == pytest.approx([float(r[column]) for r in rows], rel=5e-6)
    assert [(r["y"], r["t"]) for r in spec["datasets"]["rules"]] == [(3.0, "k* = 3")]
    assert [r["x"] for r in page.specs[6]["datasets"]["layers"]] == [0.05, 0.1]
    assert scales(page.specs[8], "x")["type"] == scales(page.specs[8], "y")["type"] == "log"
    assert scales(page.specs[9], "y")["type"] == "symlog"


def test_every_chart_has_a_table_and_elements_are_well_formed(page: Page, html: str) -> None:
    charts = [a for t, a in page.elements if t == "div" and a.get("data-spec")]
    assert len(charts) == len(page.specs) == 10
    identifiers = Counter(a["id"] for _, a in page.elements if a.get("id"))
    assert identifiers.most_common(1)[0][1] == 1
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert tables == 10 + 7 + 1 + 1  # charts, claims, overview, numbers
    assert sum(tag == "caption" for tag, _ in page.elements) == tables
    assert sum(a.get("class") == "scroll" and a.get("tabindex") == "0" for _, a in page.elements) == tables
    assert not [a for _, a in page.elements if [n for n in a if n == "style" or n.startswith("on")]]
    for spec in page.specs:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", json.dumps(spec)), spec["description"]
    table = section(html, "1a")[section(html, "1a").index("<thead>", section(html, "1a").index("Data and files")) :]
    assert re.findall('<th scope="col">(.*?)</th>', table)[:2] == ["effective depth L̃", "−2H/L̃ at p = 0.5"]
    assert "6.639 (6.339 … 6.989)" in table


def test_a_few_series_have_a_legend_and_many_a_ramp(page: Page, html: str) -> None:
    few, many = page.specs[0], page.specs[1]
    assert len(scales(few, "color")["domain"]) == 6
    assert scales(many, "color") == {"domain": [1, 100], "range": "ramp", "nice": False, "type": "log"}
    assert [row["k"] for row in many["datasets"]["rows"] if row["s"] == "s37"] == [37] * 21
    assert "strokeDash" not in json.dumps(many)
    assert "100 series, coloured by number" in section(html, "1b")
    heads = re.findall("<th scope=.col.>(s[0-9]+)</th>", section(html, "1b"))
    assert heads == [f"s{k + 1}" for k in range(100)] * 2


def test_many_series_without_numbers_have_no_legend(tmp_path: Path) -> None:
    run = one(tmp_path, [("p", name * 3, x, x) for name in "abcdefghi" for x in range(3)])
    spec = spec_of(run)
    colour = next(la["encoding"]["color"] for la in spec["layer"])
    assert colour["legend"] is None
    assert {t["title"] for la in spec["layer"] for t in la["encoding"]["tooltip"]} >= {"series"}
    assert "9 series, too many for a legend" in Page(build_page(run)).text


def test_seeds_are_curves_of_one_series(page: Page, html: str) -> None:
    rows = page.specs[3]["datasets"]["rows"]
    assert {row["s"] for row in rows} == {"Hamiltonian", "kinetic energy", "potential energy"}
    assert len({row["g"] for row in rows}) == 9
    assert {row["a"] for row in rows} == {"0", "1", "2"}
    assert [la["mark"]["strokeWidth"] for la in page.specs[3]["layer"] if la["mark"]["type"] == "line"] == [1.1]
    assert '<th scope="col">Hamiltonian (seed 2)</th>' in section(html, "1c")


def test_a_mean_beside_its_seeds_is_the_thicker_line(tmp_path: Path) -> None:
    rows = [("p", "s", x, x + seed, "", "", seed) for seed in (0.0, 1.0) for x in range(3)]
    spec = spec_of(one(tmp_path, [*rows, *[("p", "s", x, x) for x in range(3)]]))
    lines = {la["transform"][0]["filter"]: la["mark"].get("strokeWidth") for la in spec["layer"]
             if la["mark"]["type"] == "line"}  # fmt: skip
    assert lines == {"isValid(datum.a)": 1.1, "!isValid(datum.a)": None}
    assert {row.get("a") for row in spec["datasets"]["rows"]} == {"0", "1", None}


def test_lines_are_in_order_of_x_and_paths_in_order_of_rows(tmp_path: Path, page: Page) -> None:
    rows = [("p", "s", x, y) for x, y in ((2, 1), (0, 5), (1, 3))]
    assert drawn(spec_of(one(tmp_path / "line", rows)), "s", "x") == [0, 1, 2]
    spec = spec_of(one(tmp_path / "path", rows, kind="path"))
    assert drawn(spec, "s", "x") == [2, 0, 1]
    assert drawn(spec, "s", "i") == [0, 1, 2]
    assert [(e["x"], e["t"]) for e in spec["datasets"]["ends"]] == [(2, "start"), (1, "end")]
    assert {la["mark"]["type"] for la in spec_of(one(tmp_path / "points", rows, kind="points"))["layer"]} == {"point"}
    plane = page.specs[7]
    x, y = scales(plane, "x")["domain"], scales(plane, "y")["domain"]
    assert x[1] - x[0] == pytest.approx(y[1] - y[0])
    assert plane["width"] == plane["height"]


@pytest.mark.parametrize("kind", ["linear", "log", "symlog"])
def test_an_axis_holds_its_values_and_a_few_ticks(kind: str) -> None:
    for values in ([2.2, 2.9], [0.02, 2.5], [1e-9, 1e5], [5.0, 5.0], [1.0, 1.0001], [1e-90, 1e99]):
        scale = Scale(kind, np.array(values))
        assert scale.low < min(values) <= max(values) < scale.high
        assert [scale.at(scale.share(v)) for v in values] == pytest.approx(values)
        ticks = scale._ticks()
        assert kind == "linear" or 2 <= len(ticks) <= 16, values
        assert ticks == sorted(set(ticks))
        assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_labels_of_close_reference_lines_are_moved_apart(page: Page) -> None:
    spec = page.specs[3]
    places = [rule["b"] for rule in spec["datasets"]["rules"]]
    low, high = scales(spec, "y")["domain"]
    assert abs(places[1] - places[0]) / (high - low) * spec["height"] >= 14
    assert [rule["y"] for rule in spec["datasets"]["rules"]] == [-10, -9.8]


def _remove(run: RunFolder) -> None:
    (run.path / "figures" / "1.csv").unlink()


def _write(text: str) -> Callable[[RunFolder], None]:
    def write(run: RunFolder) -> None:
        (run.path / "figures" / "1.csv").write_bytes(text.encode("utf-8", "surrogateescape"))

    return write


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_remove, "figures/1.csv is missing from the run folder"),
        (_write(""), "figures/1.csv cannot be read"),
        (_write("panel,series,x,y\np,a,1,2,3,4,5,6\n"), "figures/1.csv cannot be read"),
        (_write("panel,series,x\np,a,1\n"), "figures/1.csv has no column y"),
        (_write("panel,series,x,y\n"), "the file of data holds no row of this panel"),
        (_write("panel,series,x,y\nq,a,1,2\n"), "1 rows of data belong to no panel of run.json: “q”."),
        (_write("panel,series,x,y\np,a,nan,2\np,a,1,inf\np,a,1,word\np,a,1e200,1\n"), "4 of 4 rows: without a finite"),
        (_write("panel,series,x,y\np,a,1,2\np,b,1,\n"), "b: no row of it can be drawn"),
        (_write("panel,series,x,y\n\udcff\udcfe,a,1,2\n\udcff"), "belong to no panel"),
    ],
)
def test_data_that_cannot_be_drawn_have_a_reason(tmp_path: Path, change: Any, reason: str) -> None:
    run = one(tmp_path, [("p", "a", 1, 2)])
    assert "Not shown, and why" not in build_page(run)
    change(run)
    html = build_page(run)
    assert reason in Page(section(html, "1")).text
    drawn_here = len(Page(html).specs)
    assert drawn_here == (1 if "b: no row" in reason else 0)
    assert ("Nothing to draw here." in html) == (drawn_here == 0)


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show(tmp_path: Path) -> None:
    rows = [("p", "a", x, y, y - 2, y + 1) for x, y in ((1, 1.0), (2, 0.0), (3, -4.0), (4, 10.0))]
    run = one(tmp_path, rows, y_scale="log", rules=[[0, "zero"], [2, "two"]])
    spec = spec_of(run)
    assert drawn(spec, "a") == [1, 10]
    assert min(drawn(spec, "a", "l")) >= scales(spec, "y")["domain"][0] * 0.999 > 0
    text = Page(build_page(run)).text
    assert "2 of 4 rows: not above 0, which a logarithmic axis needs" in text
    assert "reference lines: 1 cannot be drawn" in text
    assert [rule["t"] for rule in spec["datasets"]["rules"]] == ["two"]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("text", "run.json lists no figures"),
        (None, "run.json lists no figures"),
        ({"figures": 3}, "run.json lists no figures"),
        ({"figures": [1, None, {"key": "1", "panels": "x"}]}, "2 of 3 figures in run.json cannot be read"),
        ({"figures": [{}]}, "run.json gives no key for this figure"),
        ({"figures": [{"key": "1", "panels": [7, {"key": "p"}]}]}, "1 of 2 panels in run.json cannot be read"),
        ({"figures": [{"key": "1", "panels": [{"key": "p", "kind": ["x"]}]}]}, "is none of line, points, path"),
        ({"figures": [{"key": "1", "panels": [{"key": "p", "x_scale": 4, "marks": [1, "x", None], "rules": 4}]}]},
         "hairlines: 2 cannot be drawn"),
        ({"figures": [{"key": "1", "panels": [{"key": "p", "square": True, "y_scale": "log"}]}]}, "both are linear"),
        ({"figures": [{"key": "1", "seconds": float("nan"), "title": None}]}, "(no title recorded)"),
        ({"figures": [{"key": "../../secret", "panels": [{"key": "p"}]}]}, "the figure's key cannot name a file"),
    ],
)  # fmt: skip
def test_a_broken_mapping_gives_a_page_that_says_so(tmp_path: Path, part: Any, said: str) -> None:
    run = one(tmp_path, [("p", "a", 1, 2), ("p", "a", 2, 3)])
    (run.path.parent / "secret.csv").write_text("panel,series,x,y\np,stolen,1,2\n")
    run.run["reproduction"] = part
    text = Page(build_page(run)).text
    assert said in text
    assert "stolen" not in text
    assert text.count("not recorded by this run") >= 2  # the paper and the machine at least


@pytest.mark.parametrize("values", [{"holds": "yes"}, {"holds": 1}, {}])
def test_a_claim_that_does_not_say_whether_it_held_is_not_judged(tmp_path: Path, values: Any) -> None:
    run = one(tmp_path, [("p", "a", 1, 2)])
    claim = {"name": "1/odd", "text": "An odd claim.", "level": "finding", "rows": [99, -1], "values": values}
    (run.path / "verdict.json").write_text(json.dumps([claim]))
    page = Page(build_page(run))
    assert "1 claim checked: 1 not judged." in page.text
    assert page.text.count("An odd claim.") == 1


@pytest.mark.parametrize("values", [None, [], "text", {"holds": ["held"], 3: None}])
def test_fields_of_a_claim_get_the_type_they_should_have(values: Any) -> None:
    raw = SimpleNamespace(name=7, text=["x"], level="sure", rows=("x", 3, None), values=values)
    claim = _sound(raw)
    assert (claim.name, claim.text, claim.level, claim.rows) == ("7", "['x']", "none", (3,))
    assert claim.values == ({"holds": "['held']", "3": None} if isinstance(values, dict) else {})


def signals(node: Any) -> Iterator[str]:
    """Every expression of a Vega specification."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name in ("signal", "expr", "update", "test", "labelExpr") and isinstance(value, str):
            yield value
        yield from signals(value)


def test_no_text_of_a_run_becomes_part_of_an_expression(tmp_path: Path) -> None:
    texts = ['injected" + evil + "', "injected'+evil+'", "injected\\"]
    for kind, text in itertools.product(("line", "points", "path"), texts):
        rows = [
            (text, f"{text} {s}", x, x, x - 1, x + 1, text)
            for x in range(3)
            for s in range(12 if text[8] == "'" else 2)
        ]
        part = figure("1", text, panel(text, text, text, text, kind=kind, rules=[[1, text]], marks=[1]))
        run = make(tmp_path / f"{kind}{texts.index(text)}", [part], {"1": rows})
        spec = spec_of(run)
        assert "injected" in json.dumps(spec)
        compiled = vl_convert.vegalite_to_vega(spec)
        found = list(signals(compiled))
        assert len(found) > 5
        assert not [text for text in found if "injected" in text]


def test_claims_of_no_figure_and_missing_verdicts_are_shown(tmp_path: Path) -> None:
    run = one(tmp_path, [("p", "a", 1, 2)], claims=[_claim("9z/lost", "Of a figure that is not here.", "held")])
    html = build_page(run)
    assert "Of a figure that is not here." in html[html.index('<section id="other-claims-section"') :]
    assert "9z/lost" in Page(html).text
    (run.path / "verdict.json").unlink()
    (run.path / "metrics.parquet").unlink()
    text = Page(build_page(run)).text
    assert "This run states no claims." in text
    assert "verdict.json is missing from the run folder" in text
    assert "metrics.parquet is missing from the run folder" in text
    assert "arrays.safetensors is missing" not in text


def hostile(path: Path) -> RunFolder:
    """A run with hostile text wherever text can stand; the data's own keys are as hostile as their file allows."""
    figures: list[dict[str, Any]] = []
    data: dict[str, list[Row]] = {}
    texts = [*PAYLOADS, "<script>alert(1)</script>", '{"signal": "width"}', "../../up", "x" * 5000]
    for k, text in enumerate(texts):
        key = f"{k}a"
        kind = ("line", "points", "path")[k % 3]
        more = {"kind": kind, "rules": [[1, text]], "y_scale": "symlog" if k % 2 else "linear"}
        figures.append(figure(key, text, panel(text, text, text, text, **more), shows=text, setting=text, note=text))
        data[key] = [(text, f"{text} {j}", x, x * j, x * j - 1, x * j + 1, text if j else "", 3)
                     for j in range(1 + 10 * (k % 2)) for x in range(5)]  # fmt: skip
    figures += [figure(text, "key", panel("p", "p", "x", "y")) for text in texts]
    claims = [_claim(f"{k}a/{text}", text, text) for k, text in enumerate(texts)]
    claims += [_claim(PAYLOADS[0], "No figure", "held", **{PAYLOADS[1]: PAYLOADS[2]})]
    run = make(path, figures, data, claims=claims, title=PAYLOADS[0], preset=PAYLOADS[1], machine=PAYLOADS[0],
               setting=PAYLOADS[3], paper=PAYLOADS[4])  # fmt: skip
    run.run["reproduction"]["figures"][0]["panels"][0]["key"] = PAYLOADS[0]
    for entry in (run.run["reproduction"]["figures"][1], run.run["reproduction"]["figures"][1]["panels"][0]):
        entry["title"] = "\ud800 half a character and \x00"
    return run


def test_hostile_text_stays_text(tmp_path: Path, page: Page) -> None:
    html = build_page(hostile(tmp_path / "run"))
    found = Page(html)
    assert {tag for tag, _ in found.elements} - {tag for tag, _ in page.elements} <= {"ul", "li", "aside", "strong"}
    assert len(found.scripts) == len(found.specs) + 3
    assert not [a for _, a in found.elements if [n for n in a if n.startswith("on")] or a.get("src")]
    assert "{{7*7}}" in found.text
    assert "</script><script>window.__pwned=1</script>" in found.text
    assert len(found.specs) >= 13
    identifiers = [str(a["id"]) for _, a in found.elements if a.get("id")]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in identifiers)
    assert "�" in found.text  # the half of a character


def test_a_page_of_much_data_fits_and_says_what_is_left_out(tmp_path: Path) -> None:
    keys = [f"p{k}" for k in range(60)]
    figures = [figure(str(j), "Big", *[panel(key, key, "x", "y") for key in keys]) for j in range(2)]
    rows = [(key, f"series number {s}", x, x * s) for key in keys[:9] for s in range(30) for x in range(400)]
    rows += [(key, "short", x, x) for key in keys[9:] for x in range(2)]
    rows += [("p0", f"many {s}", 1, s) for s in range(2500)]
    html = build_page(make(tmp_path / "run", figures, {"0": rows, "1": rows}))
    assert len(html.encode()) <= MAX_BYTES
    page = Page(html)
    assert len(page.specs) == 100
    assert "20 panels are not shown: a page holds at most 100." in page.text
    # half of what a page that fits at once would draw
    assert re.search(r"Drawn: about (66|33|16) of up to 400 points per curve", page.text)
    assert "530 of 2530 curves: a chart holds at most 2000" in page.text


def test_long_curves_keep_their_ends_and_extremes(tmp_path: Path) -> None:
    y = np.zeros(5000)
    y[1234], y[4321] = 9.0, -9.0
    run = one(tmp_path, [("p", "a", x, v) for x, v in enumerate(y)])
    spec = spec_of(run)
    assert {0, 1234, 4321, 4999} <= set(drawn(spec, "a", "x"))
    assert 400 <= len(drawn(spec, "a")) <= 402
    text = Page(build_page(run)).text
    assert "Drawn: about 400 of up to 5000 points per curve" in text
    assert "The table holds 400 of 5000 rows, evenly spaced" in text
    (shown,) = reproduced_sections(RunView(run), RunView(run).reproduction, Budget())  # type: ignore[arg-type]
    assert len(shown.figures[0].tables[0].rows) == 400


def test_charts_are_saved_under_the_names_of_their_panels(run: RunFolder, tmp_path: Path) -> None:
    written = save_charts(run, tmp_path / "charts")
    stems = {"fig-1a-rank", "fig-1b-weights", "fig-1b-representations", "fig-1c-energies", "fig-2a-speed",
             "fig-2b-positions", "fig-2b-lines", "fig-2c-plane", "fig-3-error", "fig-3-gap"}  # fmt: skip
    assert Counter(path.stem for path in written) == dict.fromkeys(stems, 3)
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n")
            assert min(struct.unpack(">II", content[16:24])) > 400
        elif path.suffix == ".svg":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            assert content.startswith(b"%PDF-")
            assert b"%%EOF" in content[-64:]
    svg = (tmp_path / "charts" / "fig-1a-rank.svg").read_text(encoding="utf-8")
    assert "Rank estimates" in svg
    assert "Fig 1a. The Hamiltonian approaches the bottleneck rank" in svg
    assert "k* = 3" in svg


def test_hostile_keys_name_no_other_place(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "charts"
    written = save_charts(hostile(tmp_path / "run"), target, formats=("svg",))
    assert len(written) >= 13
    assert len({path.name.lower() for path in written}) == len(written)
    for path in written:
        assert path.parent == target
        assert re.fullmatch(r"fig-[A-Za-z0-9_-]{1,130}\.svg", path.name)
        ElementTree.parse(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "run"]


def test_keys_that_are_alike_get_names_of_their_own(tmp_path: Path) -> None:
    keys = ("rank", "rank", "Rank", "rank-title", "r/k", "r.k")
    panels = [panel(key, f"Panel {k}", "x", "y") for k, key in enumerate(keys)]
    rows = [(key, "a", x, x) for key in dict.fromkeys(keys) for x in range(3)]
    run = make(tmp_path / "run", [figure("a", "One", *panels), figure("a", "Two", *panels)], {"a": rows})
    identifiers = Counter(a["id"] for _, a in Page(build_page(run)).elements if a.get("id"))
    assert identifiers.most_common(1)[0][1] == 1
    written = save_charts(run, tmp_path / "charts", formats=("svg",))
    assert len({path.name.lower() for path in written}) == len(written) == 12
    titles = [f"Panel {k}" for k in range(6)] * 2
    assert all(title in path.read_text(encoding="utf-8") for title, path in zip(titles, written, strict=True))


def test_a_reproduction_is_not_compared(run: RunFolder, normal_run: RunFolder, tmp_path: Path) -> None:
    for runs in ([run, normal_run], [normal_run, run], [run, run]):
        with pytest.raises(InputError, match="a reproduction of a paper has a page of its own"):
            build_page(runs)
        with pytest.raises(InputError, match="a reproduction of a paper has a page of its own"):
            save_charts(runs, tmp_path)


def test_write_page_writes_what_build_page_returns(run: RunFolder, html: str) -> None:
    assert write_page(run.path).read_text(encoding="utf-8") == html


def test_an_empty_table_of_metrics_leaves_out_the_section_of_numbers(tmp_path: Path, html: str) -> None:
    run = one(tmp_path, [("p", "a", 1, 2)])
    run.write_metrics(MetricTable())
    page = Page(build_page(run))
    assert "numbers" not in {a.get("id") for _, a in page.elements}
    assert "#numbers" not in {a.get("href") for _, a in page.elements}
    assert 'id="numbers"' in html
    assert "not recorded here" not in page.text


def test_small_words() -> None:
    assert numbers_of(["s1", "s2", "s10"]) == [1, 2, 10]
    assert numbers_of(["s1", "t2"]) is None
    assert numbers_of(["s1", "s"]) is None
    assert [took(s) for s in (None, 3.21, 45.0, 812.0, 9000.0, 900_000.0, -1.0)] == [
        "not recorded by this run", "3.2 s", "45 s", "14 min", "2.5 h", "10 days", "not recorded by this run",
    ]  # fmt: skip


def test_the_sample_is_not_changed_by_reading(run: RunFolder) -> None:
    before = copy.deepcopy(run.run)
    build_page(run)
    assert run.run == before
