"""The page of a run of `measure` in a real browser: names can be read, tables filter and sort, nothing foreign runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isthmus._records import RunFolder
from isthmus.report import build_page, write_page
from report.looking import LOOKS, MARKS, OVERFLOW, opened

pytestmark = pytest.mark.browser

MakeRun = Callable[..., RunFolder]
LABELS = """
(key) => [...document.querySelectorAll(`#${key} .chart`)].map((chart) =>
  [...chart.querySelectorAll(".role-axis-label")].map((group) => [...group.querySelectorAll("text")])
    .sort((a, b) => b.length - a.length)[0].map((text) => {
      const box = text.getBoundingClientRect();
      return { text: text.textContent, size: parseFloat(getComputedStyle(text).fontSize), top: box.top,
               bottom: box.bottom, left: box.left };
    }))
"""
COLUMN = """
([key, column]) => [...document.querySelectorAll(`#${key} tbody tr`)].filter((row) => !row.hidden)
  .map((row) => row.cells[column].firstChild.textContent)
"""
HEADS = "(key) => [...document.querySelectorAll(`#${key} thead th`)].map((h) => h.textContent)"
SITES = "layers-0-representation"


@pytest.fixture(scope="module")
def measured_page(measured_run: RunFolder) -> Path:
    return write_page(measured_run.path)


@pytest.fixture(scope="module")
def deep_page(deep_run: RunFolder) -> Path:
    return write_page(deep_run.path)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_every_chart_draws_inside_its_column(chromium: Any, measured_page: Path, width: int, theme: str) -> None:
    with opened(chromium, measured_page, width=width, theme=theme) as page:
        charts = page.evaluate(MARKS)
        assert len(charts) == 13
        for chart in charts:
            assert (chart["drawn"], chart["clipped"]) == (theme, [])
            assert chart["over"] <= 1
        cells = page.locator("#layer-spectra .chart").first.locator(".mark-rect.role-mark path")
        assert cells.count() == 13 * 64
        assert len({cells.nth(k).get_attribute("fill") for k in range(0, 832, 40)}) > 5
        assert page.locator("#moves .mark-rect.role-mark path").count() >= 12
        assert page.evaluate(OVERFLOW) == 0
        for details in page.locator("details").all():
            details.evaluate("(element) => { element.open = true; }")
        assert page.evaluate(OVERFLOW) == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_two_hundred_names_can_be_read(chromium: Any, deep_page: Path, width: int) -> None:
    with opened(chromium, deep_page, width=width) as page:
        for key in ("layer-spectra", "layer-weight-spectra", "moves"):
            charts = page.evaluate(LABELS, key)
            assert charts, key
            for labels in charts:
                assert len(labels) == (199 if key == "moves" else 200), key
                assert min(label["size"] for label in labels) >= 9, key
                for above, below in itertools.pairwise(labels):
                    assert below["top"] >= above["bottom"] - 0.5, (key, above, below)
                words = {"layer-weight-spectra": "dense.weight"}.get(key, "output.dense")
                assert sum(words in label["text"] for label in labels) >= 150, key
                assert len({label["text"] for label in labels}) >= 180, key
            window = page.locator(f"#{key} .panel").first
            assert window.get_attribute("tabindex") == "0", key  # it scrolls, so the keyboard must reach it
            assert window.bounding_box()["height"] <= 961, key


def test_a_tooltip_tells_the_whole_name(chromium: Any, deep_page: Path, deep_run: RunFolder) -> None:
    name = deep_run.run["measured"]["sites"][3]["name"]
    with opened(chromium, deep_page) as page:
        cell = page.locator("#layer-spectra .chart").first.locator(".mark-rect.role-mark path").nth(3 * 32 + 1)
        cell.scroll_into_view_if_needed()
        cell.hover()
        said = page.locator(".tip").inner_text()
        assert f"layer {name}" in said
        assert "singular value no. 2" in said
        point = page.locator("#layer-ranks .mark-symbol path").nth(7)
        point.scroll_into_view_if_needed()
        point.hover(force=True)
        assert "layer transformer.encoder" in page.locator(".tip").inner_text()


def test_the_table_filters_by_name_and_type(chromium: Any, measured_page: Path) -> None:
    with opened(chromium, measured_page) as page:
        box = page.locator(f"#{SITES}")
        field, status = box.get_by_label("Filter by name or type"), box.get_by_role("status")
        assert status.inner_text() == "13 of 13 layers"
        for text, expected in (("H.1", ["h.1", "h.10", "h.11"]), ("gpt2block h.7", ["h.7"]), ("nothing", []),
                               ("", ["wte", *(f"h.{i}" for i in range(12))])):  # fmt: skip
            field.fill(text)
            assert page.evaluate(COLUMN, [SITES, 0]) == expected
            assert status.inner_text() == f"{len(expected)} of 13 layers"
        field.fill("h.1")
        assert len(page.evaluate(COLUMN, ["layers-0-weight", 0])) == 48  # each table has a filter of its own


def test_the_table_sorts_by_every_kind_of_column(chromium: Any, measured_page: Path) -> None:
    with opened(chromium, measured_page) as page:
        heads = page.evaluate(HEADS, SITES)
        table = page.locator(f"#{SITES} table")

        def press(name: str) -> list[str]:
            table.get_by_role("button", name=name, exact=True).click()
            return page.evaluate(COLUMN, [SITES, heads.index(name)])

        def state(name: str) -> str | None:
            return table.locator("th", has=page.get_by_role("button", name=name, exact=True)).get_attribute("aria-sort")

        names = ["h.0", "h.1", "h.2", "h.3", "h.4", "h.5", "h.6", "h.7", "h.8", "h.9", "h.10", "h.11", "wte"]
        assert press("layer") == names  # h.2 before h.10
        assert state("layer") == "ascending"
        assert press("layer") == names[::-1]
        ranks = [float(text) for text in press("numerical rank")]
        assert ranks == sorted(ranks, reverse=True)
        assert (state("numerical rank"), state("layer")) == ("descending", None)
        moves = press("relative move")
        assert moves[-1] == "—"  # without a value: last
        assert [float(m) for m in moves[:-1]] == sorted((float(m) for m in moves[:-1]), reverse=True)
        moves = press("relative move")
        assert moves[-1] == "—"
        assert state("relative move") == "ascending"
        depths = [float(text) for text in press("p")]
        assert depths == sorted(depths, reverse=True)
        assert table.locator("thead th[aria-sort]").count() == 1


def test_the_keyboard_filters_and_sorts(chromium: Any, measured_page: Path) -> None:
    with opened(chromium, measured_page) as page:
        page.locator(f"#{SITES} input").focus()
        page.keyboard.type("h.1")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "layer"
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(style) != "none"
        page.keyboard.press("Enter")
        page.keyboard.press("Space")
        assert page.evaluate(COLUMN, [SITES, 0]) == ["h.11", "h.10", "h.1"]


def test_without_javascript_the_tables_are_whole(chromium: Any, measured_page: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(measured_page.as_uri())
        assert page.locator(f"#{SITES} tbody tr:visible").count() == 13
        assert page.locator("#layers-0-weight tbody tr:visible").count() == 48
        assert page.locator(".filter:visible").count() == 0
        assert page.locator(".sortable button").count() == 0
    finally:
        context.close()


@pytest.mark.parametrize("csp", [True, False], ids=["policy on", "policy off"])
def test_hostile_names_are_text_and_run_nothing(chromium: Any, deep_page: Path, csp: bool) -> None:
    with opened(chromium, deep_page, csp=csp) as page:
        said: list[str] = []
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        assert "<script>alert(1)</script>" in page.locator(f"#{SITES}").text_content()
        assert {chart["drawn"] for chart in page.evaluate(MARKS)} == {"light"}
        labels = [label["text"] for label in page.evaluate(LABELS, "layer-spectra")[0]]
        assert any("datum" in text for text in labels)
        page.locator(f"#{SITES} input").fill("<script>alert")
        assert 1 <= len(page.evaluate(COLUMN, [SITES, 0])) < 20
        page.locator(f"#{SITES} thead button").first.click()
        cells = page.locator("#layer-spectra .chart").first.locator(".mark-rect.role-mark path")
        for row in range(5, 120, 10):
            cells.nth(row * 32).hover(force=True)
            assert page.locator(".tip").text_content()
        assert page.evaluate("window.__pwned") is None
        assert page.locator("img").count() == 0
        assert page.evaluate("[...document.scripts].filter((s) => !s.type).length") == 2
        assert said == []
        assert page.evaluate(OVERFLOW) == 0


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_pages_of_several_and_of_few_draw(
    chromium: Any, make_measured: MakeRun, normal_run: RunFolder, single_run: RunFolder, unmeasured_run: RunFolder,
    tmp_path: Path, width: int,
) -> None:  # fmt: skip
    pages = {"one": single_run, "none": unmeasured_run, "two": [make_measured(title="A"), single_run],
             "mixed": [make_measured(title="A"), normal_run, unmeasured_run]}  # fmt: skip
    for name, runs in pages.items():
        target = tmp_path / f"{name}.html"
        target.write_text(build_page(runs), encoding="utf-8")
        with opened(chromium, target, width=width) as page:
            charts = page.evaluate(MARKS)
            assert {chart["drawn"] for chart in charts} == ({"light"} if name != "none" else set())
            assert [chart["clipped"] for chart in charts if chart["clipped"]] == [], name
            assert page.evaluate(OVERFLOW) == 0
