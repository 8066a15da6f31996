"""The page of a paper's figures made again in a real browser: it draws, it can be reached, and nothing foreign runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isthmus.report import write_page
from report.looking import LOOKS, MARKS, OVERFLOW, opened
from report.test_reproduced import hostile, sample

pytestmark = pytest.mark.browser

LEGENDS = """
(key) => [...document.querySelectorAll(`#${key} .role-legend`)].map((legend) => ({
  symbols: legend.querySelectorAll(".role-legend-symbol path").length,
  texts: [...legend.querySelectorAll("text")].map((text) => text.textContent),
}))
"""
OVERLAPS = """
[...document.querySelectorAll(".chart")].flatMap((chart) => {
  const boxes = [...chart.querySelectorAll("svg text")].filter((t) => t.textContent.trim())
    .map((t) => [t.textContent, t.getBoundingClientRect()]).filter(([, b]) => b.width);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  return boxes.flatMap(([t, a], k) => boxes.slice(k + 1).filter(([, b]) => meet(a, b))
    .map(([u]) => `${chart.dataset.name}: ${t} | ${u}`));
})
"""


@pytest.fixture(scope="module")
def sample_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(sample(tmp_path_factory.mktemp("seen") / "run").path)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = hostile(tmp_path_factory.mktemp("hostile") / "run")
    run.run["reproduction"]["figures"][1]["title"] = "a calm title"  # what is no UTF-8 cannot be written to run.json
    run.run["reproduction"]["figures"][1]["panels"][0]["title"] = "line\u2028break \x00"
    run.write_run()
    return write_page(run.path)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_every_chart_draws_inside_its_column(chromium: Any, sample_page: Path, width: int, theme: str) -> None:
    with opened(chromium, sample_page, width=width, theme=theme) as page:
        charts = page.evaluate(MARKS)
        assert len(charts) == 10
        for chart in charts:
            assert (chart["drawn"], chart["clipped"]) == (theme, [])
            assert chart["over"] <= 1
            assert chart["lines"] > 1
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate(OVERFLOW) == 0
        for details in page.locator("details").all():
            details.evaluate("(element) => { element.open = true; }")
        assert page.evaluate(OVERFLOW) == 0


def test_the_marks_are_those_of_the_data(chromium: Any, sample_page: Path) -> None:
    with opened(chromium, sample_page) as page:

        def count(key: str, kind: str) -> int:
            return page.locator(f"#{key} .mark-{kind}.role-mark path, #{key} .mark-{kind}.role-mark line").count()

        assert count("fig-1a-rank", "line") == 6
        assert count("fig-1a-rank", "rule") == 6 * 7 + 1  # a bar per point, and k*
        assert count("fig-1b-weights", "line") == 100
        assert count("fig-1b-weights", "rule") == 21
        assert count("fig-1c-energies", "line") == 9
        assert count("fig-2b-positions", "line") == 0
        assert count("fig-2b-positions", "symbol") == 2 * 21
        assert count("fig-2c-plane", "line") == 2
        (few,) = page.evaluate(LEGENDS, "fig-1a-rank")
        assert few["symbols"] == len(few["texts"]) == 6
        (many,) = page.evaluate(LEGENDS, "fig-1b-weights")
        assert many["symbols"] == 0  # a ramp
        assert {"no.", "1", "10", "100"} <= set(many["texts"])
        colours = page.locator("#fig-1b-weights .mark-line.role-mark path")
        assert len({colours.nth(k).get_attribute("stroke") for k in (0, 3, 20, 99)}) == 4
        box = page.locator("#fig-2c-plane .chart").evaluate(
            "(e) => { const b = e.querySelector('.role-frame .background').getBoundingClientRect();"
            " return [b.width, b.height]; }")  # fmt: skip
        assert box[0] == pytest.approx(box[1], abs=1.5)


def test_a_tooltip_names_the_series(chromium: Any, sample_page: Path) -> None:
    with opened(chromium, sample_page) as page:
        point = page.locator("#fig-1b-weights .mark-symbol.role-mark path").nth(2100 - 5)
        point.scroll_into_view_if_needed()
        point.hover(force=True)
        assert "series s" in page.locator(".tip").inner_text()
        bar = page.locator("#fig-1a-rank .mark-symbol.role-mark path").first
        bar.scroll_into_view_if_needed()
        bar.hover(force=True)
        said = page.locator(".tip").inner_text()
        assert "series −2H/L̃ at p = 0.5" in said
        assert "n 3" in said


def test_the_keyboard_reaches_claims_and_tables(chromium: Any, sample_page: Path) -> None:
    with opened(chromium, sample_page) as page:
        link = page.locator(".overview a").first
        link.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#paper-1a-section"
        figure = page.locator("#fig-1a-rank")
        for summary, inside in ((figure.locator("summary"), figure.locator("table")),
                                (page.locator("#paper-1a-section .claim summary").first,
                                 page.locator("#paper-1a-section .claim table").first)):  # fmt: skip
            assert not inside.is_visible()
            summary.focus()
            page.keyboard.press("Enter")
            assert inside.is_visible()
        figure.locator("summary").focus()
        seen: list[str] = []
        for _ in range(4):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.textContent").strip()[:12]
                        + "/" + str(page.evaluate("document.activeElement.getAttribute('role')")))  # fmt: skip
        assert seen[:2] == ["Save as SVG/None", "Save as PNG/None"]
        assert seen[2].endswith("/region")


def test_a_badge_can_be_read_in_both_themes(chromium: Any, sample_page: Path) -> None:
    styles = """[...document.querySelectorAll(".overview .badge")].map((b) => { const s = getComputedStyle(b);
      return [b.textContent, s.color, s.backgroundColor, s.borderStyle].join(" "); })"""
    for theme in ("light", "dark"):
        with opened(chromium, sample_page, theme=theme) as page:
            found = page.evaluate(styles)
            assert len(found) == 7
            assert len(set(found)) == 4  # one look for each of the four words
            assert page.locator(".overview .badge").first.bounding_box()["width"] > 30


@pytest.mark.parametrize("csp", [True, False], ids=["policy on", "policy off"])
def test_hostile_text_runs_nothing(chromium: Any, hostile_page: Path, csp: bool) -> None:
    with opened(chromium, hostile_page, csp=csp) as page:
        said: list[str] = []
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        charts = page.evaluate(MARKS)
        assert len(charts) >= 12
        assert {chart["drawn"] for chart in charts} == {"light"}
        assert "</script><script>window.__pwned=1</script>" in page.locator("main").text_content()
        for chart in page.locator(".chart").all():
            chart.locator(".mark-symbol.role-mark path").first.hover(force=True)
            assert page.locator(".tip").text_content()
        assert page.evaluate("window.__pwned") is None
        assert page.locator("img").count() == 0
        assert page.evaluate("[...document.scripts].filter((s) => !s.type).length") == 2
        assert said == []
        assert page.evaluate(OVERFLOW) == 0


def test_without_javascript_the_words_and_tables_are_there(chromium: Any, sample_page: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(sample_page.as_uri())
        assert page.locator(".overview .badge:visible").count() == 7
        page.locator("#fig-1a-rank summary").click()
        assert page.locator("#fig-1a-rank tbody tr:visible").count() == 7
    finally:
        context.close()
