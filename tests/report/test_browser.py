"""The page in a real browser: it draws, fits its window, asks for nothing, and runs nothing but its own code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from isthmus._records import RunFolder
from isthmus.report import build_page, write_page
from isthmus.report._themes import SERIES, THEMES
from report.looking import LOOKS, MARKS, OVERFLOW, READY, opened

pytestmark = pytest.mark.browser


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.fixture(scope="module")
def normal_page(normal_run: RunFolder) -> Path:
    return write_page(normal_run.path)


@pytest.fixture(scope="module")
def hostile_pages(
    hostile_run: RunFolder, normal_run: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """A hostile run alone, and beside another, where its title is in legends and tooltips of the charts."""
    folder = tmp_path_factory.mktemp("hostile-pages")
    pages = [folder / "one.html", folder / "two.html"]
    pages[0].write_text(build_page(hostile_run), encoding="utf-8")
    pages[1].write_text(build_page([hostile_run, normal_run]), encoding="utf-8")
    return pages


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_every_chart_draws_inside_its_column(chromium: Any, normal_page: Path, width: int, theme: str) -> None:
    with opened(chromium, normal_page, width=width, theme=theme) as page:
        charts = page.evaluate(MARKS)
        assert len(charts) == 13
        for chart in charts:
            assert chart["drawn"] == theme
            assert chart["lines"] >= 1
            assert chart["over"] <= 1
            assert chart["clipped"] == []
            assert chart["background"] == _rgb(THEMES[theme]["surface"])
        assert page.evaluate(OVERFLOW) == 0
        for details in page.locator("details").all():
            details.evaluate("(element) => { element.open = true; }")
        assert page.evaluate(OVERFLOW) == 0


def test_charts_follow_the_window(chromium: Any, normal_page: Path) -> None:
    with opened(chromium, normal_page, width=1280) as page:
        before = page.evaluate(MARKS)
        page.set_viewport_size({"width": 390, "height": 800})
        narrow = "[...document.querySelectorAll('.chart svg')].every((s) => s.getBoundingClientRect().width < 340)"
        for _ in range(100):
            if page.evaluate(narrow) and page.locator(READY).count():
                break
            page.wait_for_timeout(100)
        after = page.evaluate(MARKS)
        assert [c["clipped"] for c in after] == [[]] * len(before)
        assert page.evaluate(OVERFLOW) == 0


def test_toggle_changes_page_and_chart_colours(chromium: Any, normal_page: Path) -> None:
    with opened(chromium, normal_page, theme="light") as page:
        strokes = "[...document.querySelectorAll('#energies .mark-line path')].map((p) => p.getAttribute('stroke'))"
        assert page.evaluate(strokes) == SERIES["light"][:3]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == _rgb(THEMES["light"]["page"])
        page.get_by_role("button", name="Dark theme").click()
        page.wait_for_selector("#settling .chart[data-drawn=dark]")
        assert page.evaluate(strokes) == SERIES["dark"][:3]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == _rgb(THEMES["dark"]["page"])
        page.get_by_role("button", name="Light theme").click()
        page.wait_for_selector("#settling .chart[data-drawn=light]")
        assert page.evaluate(strokes) == SERIES["light"][:3]


def test_page_follows_the_system_until_told_otherwise(chromium: Any, normal_page: Path) -> None:
    with opened(chromium, normal_page, theme="light") as page:
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("#settling .chart[data-drawn=dark]")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == _rgb(THEMES["dark"]["page"])


def test_one_unit_is_equally_long_on_both_axes(chromium: Any, normal_page: Path) -> None:
    ticks = """
    [...document.querySelectorAll("#path .role-axis .role-axis-label text")]
      .map((t) => ({ value: Number(t.textContent.replace("−", "-")), box: t.getBoundingClientRect().toJSON() }))
    """
    for width in (390, 1280):
        with opened(chromium, normal_page, width=width) as page:
            found = page.evaluate(ticks)
            turn = next(k for k in range(1, len(found)) if found[k]["value"] < found[k - 1]["value"])
            across, up = found[:turn], found[turn:]
            unit_x = (across[-1]["box"]["x"] + across[-1]["box"]["width"] / 2 - across[0]["box"]["x"]
                      - across[0]["box"]["width"] / 2) / (across[-1]["value"] - across[0]["value"])  # fmt: skip
            unit_y = (up[0]["box"]["y"] - up[-1]["box"]["y"]) / (up[-1]["value"] - up[0]["value"])
            # Labels are centred on their ticks to about a pixel over some 150.
            assert unit_x == pytest.approx(unit_y, rel=0.03)


def test_keyboard_reaches_everything_and_shows_where_it_is(chromium: Any, normal_page: Path) -> None:
    focus = """
    (() => {
      const at = document.activeElement, style = getComputedStyle(at);
      return [at.tagName, at.id || at.className || at.textContent.trim().slice(0, 30), style.outlineStyle,
              parseFloat(style.outlineWidth)];
    })()
    """
    with opened(chromium, normal_page) as page:
        page.keyboard.press("Tab")
        tag, name, *_ = page.evaluate(focus)
        assert (tag, name) == ("A", "skip")
        seen: list[tuple[str, str]] = []
        for _ in range(120):
            page.keyboard.press("Tab")
            tag, name, style, width = page.evaluate(focus)
            if tag == "BODY":
                break
            assert style != "none", (tag, name)
            assert width >= 2, (tag, name)
            seen.append((tag, name))
        assert ("BUTTON", "theme") in seen
        assert sum(tag == "SUMMARY" for tag, _ in seen) == 4 + 13 + 1  # claims, charts, configuration
        assert ("DIV", "scroll") in seen  # the table of numbers, which is always open
        page.locator("#energies summary").focus()
        page.keyboard.press("Enter")
        for expected in ("BUTTON", "BUTTON", "DIV"):  # two ways to save, then the table
            page.keyboard.press("Tab")
            assert page.evaluate(focus)[0] == expected
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "verdict"


def test_charts_and_tables_have_names_for_screen_readers(chromium: Any, normal_page: Path) -> None:
    with opened(chromium, normal_page) as page:
        for details in page.locator("details").all():
            details.evaluate("(element) => { element.open = true; }")
        labels = [chart.get_attribute("aria-label") for chart in page.get_by_role("img").all()]
        assert len([label for label in labels if label and len(label) > 40]) == 13
        table = page.get_by_role("table", name="Is the energy conserved along the path?")
        assert table.get_by_role("rowheader").first.text_content() == "representation 0"
        assert table.get_by_role("columnheader").all_text_contents()[:3] == ["place", "p", "Hamiltonian, symmetric"]


def test_chart_saves_as_file(chromium: Any, normal_page: Path, tmp_path: Path) -> None:
    with opened(chromium, normal_page) as page:
        page.locator("#ranks summary").click()
        for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
            with page.expect_download() as waiting:
                page.locator("#ranks").get_by_role("button", name=f"Save as {kind}").click()
            assert waiting.value.suggested_filename == f"ranks.{kind.lower()}"
            waiting.value.save_as(tmp_path / kind)
            assert (tmp_path / kind).read_bytes().startswith(start)


def test_tooltip_tells_the_value(chromium: Any, normal_page: Path) -> None:
    with opened(chromium, normal_page) as page:
        point = page.locator("#stationarity .mark-symbol path").nth(7)
        point.scroll_into_view_if_needed()
        point.hover()
        said = page.locator(".tip").inner_text()
        assert re.search(r"where step 8\s+p 0\.\d+\s+value 0\.\d+", said), said
        page.keyboard.press("Escape")
        assert page.locator(".tip").is_hidden()


def _inert(page: Any) -> None:
    assert page.evaluate("window.__pwned") is None
    assert page.locator("img").count() == 0
    assert page.evaluate("[...document.scripts].filter((s) => !s.type).length") == 2


@pytest.mark.parametrize("csp", [True, False], ids=["policy on", "policy off"])
def test_hostile_text_is_inert(chromium: Any, hostile_pages: list[Path], csp: bool) -> None:
    # With the policy off, nothing but the escaping stands between the text and the browser.
    for page_file in hostile_pages:
        with opened(chromium, page_file, csp=csp) as page:
            assert "window.__pwned" in page.locator("body").inner_text()
            assert {chart["drawn"] for chart in page.evaluate(MARKS)} == {"light"}
            assert page.evaluate(OVERFLOW) == 0
            _inert(page)


@pytest.mark.parametrize("csp", [True, False], ids=["policy on", "policy off"])
def test_hostile_legends_and_tooltips_are_inert(chromium: Any, hostile_pages: list[Path], csp: bool) -> None:
    with opened(chromium, hostile_pages[1], csp=csp) as page:
        assert "</script><script>" in page.locator("#stationarity svg").text_content()
        points = page.locator("#stationarity .mark-symbol path")
        points.first.scroll_into_view_if_needed()
        told = []
        for k in range(6):  # the hostile run has six layers, and is drawn first
            points.nth(k).hover(force=True)
            told.append(page.locator(".tip").text_content())
            _inert(page)
        assert any("<img src=x" in text for text in told), told


def test_hostile_text_stays_inside_a_phone(chromium: Any, hostile_pages: list[Path]) -> None:
    with opened(chromium, hostile_pages[0], width=390, theme="dark") as page:
        for details in page.locator("details").all():
            details.evaluate("(element) => { element.open = true; }")
        assert page.evaluate(OVERFLOW) == 0


def test_the_policy_stops_what_the_page_did_not_bring(chromium: Any, normal_page: Path, tmp_path: Path) -> None:
    # The policy is real: a script put into the file by another hand does not run.
    text = normal_page.read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(text.replace("</main>", "<script>window.__pwned = 1</script></main>"), encoding="utf-8")
    context = chromium.new_context()
    try:
        page = context.new_page()
        page.goto(changed.as_uri())
        page.wait_for_selector(READY, state="attached", timeout=60_000)
        assert page.evaluate("window.__pwned") is None
    finally:
        context.close()


def test_a_huge_run_draws(chromium: Any, huge_run: RunFolder) -> None:
    with opened(chromium, write_page(huge_run.path), width=390) as page:
        assert {chart["drawn"] for chart in page.evaluate(MARKS)} == {"light"}
        assert page.evaluate(OVERFLOW) == 0


def test_a_run_without_values_shows_its_reasons(chromium: Any, skipped_run: RunFolder) -> None:
    with opened(chromium, write_page(skipped_run.path)) as page:
        assert page.locator(".chart").count() == 0
        assert page.locator("#energies .reasons").inner_text().count("L̃ = 0") >= 1


def test_print_hides_the_controls_and_keeps_the_charts(chromium: Any, normal_page: Path) -> None:
    with opened(chromium, normal_page) as page:
        page.emulate_media(media="print")
        assert page.locator("#theme").is_hidden()
        assert page.locator("nav").is_hidden()
        assert page.locator("#energies svg").is_visible()
