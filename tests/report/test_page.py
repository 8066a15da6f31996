"""The page as text: what it says, what it escapes, its policy and its size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus._errors import InputError, RunFolderError
from isthmus._records import METRICS, RunFolder
from isthmus.report import build_page, write_page
from isthmus.report._page import MAX_BYTES, script_json
from report.looking import Page

MakeRun = Callable[..., RunFolder]


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.fixture(scope="module")
def page(normal_run: RunFolder) -> Page:
    return Page(build_page(normal_run))


def test_policy_allows_exactly_the_scripts_and_the_style_of_the_page(page: Page) -> None:
    code = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    assert len(code) == 2
    assert page.policy["script-src"] == [_digest(text) for text in code]
    assert page.policy["style-src"] == [_digest(text) for text in page.styles]
    assert page.policy["default-src"] == ["'none'"]
    assert "unsafe" not in str(page.policy)


def test_page_names_no_address_to_load_from(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"url\(|@import", page.styles[0])
    for spec in page.specs:
        assert '"url"' not in json.dumps(spec)


def test_no_style_attribute_and_no_inline_handler(page: Page) -> None:
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)


def test_every_metric_of_the_run_is_defined(page: Page, normal_run: RunFolder) -> None:
    present = set(normal_run.metrics()["metric"])
    for name in present:
        metric = METRICS[name]
        for said in (name, metric.definition, metric.source, metric.trust):
            assert said in page.text, said


def test_metrics_that_the_run_lacks_are_named(page: Page, normal_run: RunFolder) -> None:
    absent = set(METRICS) - set(normal_run.metrics()["metric"])
    assert {"accuracy", "rank_estimate"} <= absent
    tail = page.text.split("not recorded here:")[1]
    assert all(name in tail for name in absent)


def test_verdict_comes_with_the_rows_behind_it(page: Page, normal_run: RunFolder) -> None:
    claims = normal_run.verdict()
    for claim in claims:
        assert claim.text in page.text
    behind = page.text.split(f"Rows behind this claim ({claims[0].name})")[1].split("Rows behind this claim")[0]
    assert behind.count("hamiltonian_rank") == 20
    assert behind.count("cost_of_identity") == 21


def test_cautions_stand_apart_from_findings(normal_run: RunFolder) -> None:
    html = build_page(normal_run)
    aside = html[html.index('<aside class="cautions"') : html.index("</aside>")]
    for claim in normal_run.verdict():
        assert (claim.text in aside) == (claim.level == "caution")


def test_gamma_and_stationarity_stand_beside_hamiltonian_numbers(page: Page) -> None:
    beside = "γ₀ = 0.001 · stationarity residual: median 0.21, largest 0.45"
    row = page.text.split("hamiltonian_rank_stable")[-1].split("stationarity\n")[0]
    assert beside in row
    assert beside in page.text.split("Is the energy conserved")[0]


def test_charts_hold_the_recorded_numbers(page: Page, normal_run: RunFolder) -> None:
    frame = normal_run.metrics()
    recorded = frame.filter((frame["metric"] == "hamiltonian_rank_symmetric") & (frame["status"] == "ok"))
    ranks = next(s for s in page.specs if s["description"].startswith("Line chart of H rank"))
    drawn = [row for row in ranks["datasets"]["rows"] if row["s"] == "H rank, symmetric"]
    # The charts carry five significant digits.
    assert [row["y"] for row in drawn] == pytest.approx(recorded["value"].to_list(), rel=5e-5)
    assert [row["x"] for row in drawn] == pytest.approx(recorded["position"].to_list(), rel=5e-5)
    assert ranks["datasets"]["rules"] == [{"y": 3.0, "t": "k* = 3"}]


def test_every_chart_has_a_table_with_caption_and_headers(page: Page) -> None:
    charts = [a for t, a in page.elements if t == "div" and a.get("data-spec")]
    assert len(charts) == len(page.specs) == 13
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert tables == 13 + 4 + 1  # charts, claims, numbers
    assert sum(tag == "caption" for tag, _ in page.elements) == tables
    assert all(a.get("scope") in ("col", "row") for t, a in page.elements if t == "th")


def test_specifications_hold_no_colour(page: Page) -> None:
    for spec in page.specs:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", json.dumps(spec)), spec["description"]


def test_reasons_are_shown_instead_of_empty_charts(skipped_run: RunFolder) -> None:
    html = build_page(skipped_run)
    page = Page(html)
    assert page.specs == []
    reason = "skipped: L̃ = 0: without a leak there is no bottleneck to measure"
    for key in ("energies", "ranks", "stationarity", "standard-ranks", "layer-steps", "speed", "jacobian", "loss"):
        figure = html[html.index(f'<figure id="{key}"') :]
        shown = figure[: figure.index("</figure>")]
        assert 'class="reasons"' in shown, key
        assert reason in shown[shown.index('class="reasons"') :], key
    assert "arrays.safetensors is missing from the run folder" in page.text
    assert "arrays.safetensors holds no spectra/weight" in page.text


def test_an_unfinished_run_says_so(make_run: MakeRun) -> None:
    run = make_run("Stopped")
    run.write_run(status="running", finished=None)
    assert "The run's status is running, not complete" in Page(build_page(run)).text


def test_missing_table_and_verdict_give_a_page_all_the_same(make_run: MakeRun) -> None:
    run = make_run("Half a run")
    (run.path / "metrics.parquet").unlink()
    (run.path / "verdict.json").write_text("{not json")
    text = Page(build_page(run)).text
    assert "metrics.parquet is missing from the run folder" in text
    assert "verdict.json cannot be read" in text
    assert "not recorded by this run" in text


def test_rows_named_by_a_claim_but_not_there_are_left_out(make_run: MakeRun) -> None:
    run = make_run("Wild rows")
    claim = {"name": "wild", "text": "Wild.", "level": "finding", "rows": [10**9, -1, 0], "values": {}}
    (run.path / "verdict.json").write_text(json.dumps([claim]))
    html = build_page(run)
    behind = html[html.index("Rows behind this claim (wild)") :]
    assert behind[: behind.index("</table>")].count("<tr>") == 2  # the head, and row 0


@pytest.mark.parametrize("text", ["</script>", "<!--", "a&b", "\u2028\u2029", "'\"\\", "\x00", "]]>"])
def test_script_json_cannot_end_its_element_and_reads_back(text: str) -> None:
    written = script_json({"k": [text, 1.5, None]})
    assert not re.search("[<>&\u2028\u2029\x00]", written)
    assert json.loads(written) == {"k": [text, 1.5, None]}


def test_hostile_text_makes_no_element(normal_run: RunFolder, hostile_run: RunFolder) -> None:
    calm, hostile = Page(build_page(normal_run)), Page(build_page(hostile_run))
    tags = {tag for tag, _ in calm.elements}
    assert {tag for tag, _ in hostile.elements} <= tags
    assert not [a for _, a in hostile.elements if "onerror" in a or a.get("src")]
    assert len(hostile.scripts) == len(calm.scripts)
    assert "{{7*7}}{% for x in [1] %}x{% endfor %}" in hostile.text
    assert "</script><script>window.__pwned=1</script>" in hostile.text
    assert hostile.policy["script-src"] == calm.policy["script-src"]


def test_lone_surrogates_do_not_stop_the_page(make_run: MakeRun) -> None:
    run = make_run("Broken text")
    run.run["title"] = "Broken \ud800 text"
    assert "<h1>Broken ? text</h1>" in build_page(run)


def test_a_huge_run_fits_and_says_what_was_left_out(huge_run: RunFolder) -> None:
    assert huge_run.metrics().height > 200_000
    html = build_page(huge_run)
    assert len(html.encode()) <= MAX_BYTES
    page = Page(html)
    assert "Drawn: about 400 of 6001 rows per curve" in page.text
    assert "All of them are in metrics.parquet" in page.text
    drawn = next(s for s in page.specs if s["description"].startswith("Line chart of stationarity"))
    rows = drawn["datasets"]["rows"]
    frame = huge_run.metrics()
    whole = frame.filter(frame["metric"] == "stationarity")["value"]
    assert 390 < len(rows) < 410
    assert max(r["y"] for r in rows) == pytest.approx(whole.max(), rel=5e-5)
    assert min(r["y"] for r in rows) == pytest.approx(whole.min(), rel=5e-5)
    assert rows[-1]["w"] == "step 6000"


def test_many_runs_are_thinned_until_they_fit(huge_run: RunFolder) -> None:
    html = build_page([huge_run] * 4)
    assert 1_000_000 < len(html.encode()) <= MAX_BYTES
    assert "Six thousand layers (4)" in html
    assert re.search(r"Drawn: about (200|100|50) of 6001 rows", html)


def test_comparison_puts_runs_side_by_side(make_run: MakeRun) -> None:
    first, second = make_run("First teacher"), make_run("Second teacher", depth=14, rank=6)
    page = Page(build_page([first, second]))
    assert "2 runs side by side" in page.text
    assert page.text.count("Keeps 3 of 30") == page.text.count("Keeps 6 of 30") == 1
    together = next(s for s in page.specs if {r.get("s") for r in s["datasets"]["rows"]} ==
                    {"First teacher", "Second teacher"})  # fmt: skip
    assert together["description"].startswith("Line chart of First teacher, Second teacher")
    energies = [s for s in page.specs if "kinetic" in s["description"]]
    domains = [json.dumps(layer["encoding"]["y"]["scale"]) for s in energies for layer in s["layer"]
               if layer["encoding"].get("y", {}).get("scale")]  # fmt: skip
    assert len(energies) == 2
    assert len(set(domains)) == 1


def test_write_page_writes_what_build_page_returns(make_run: MakeRun) -> None:
    run = make_run("Written")
    target = write_page(run.path)
    assert target == run.path / "report.html"
    assert target.read_text(encoding="utf-8") == build_page(RunFolder.open(run.path))
    assert not [p for p in run.path.iterdir() if p.name.endswith(".part")]


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="a run folder"):
        write_page(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least one run folder"):
        build_page([])


def test_building_a_page_needs_no_torch(make_run: MakeRun) -> None:
    run = make_run("No torch")
    code = (
        "import sys; from isthmus.report import write_page; "
        f"write_page({str(run.path)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
    assert (run.path / "report.html").stat().st_size > 900_000
