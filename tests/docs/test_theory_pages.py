"""Section numbers and anchors that docstrings cite are there, and nothing in the documentation needs the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEORY = ROOT / "docs" / "theory"
SECTIONS = {
    "leaky-resnets.md": (1, 10),
    "representation-dynamics.md": (2, 6),
    "bottleneck-structure.md": (3, 7),
    "alignment.md": (4, 5),
}
HEADING = re.compile(r"^## (\d)\.(\d+) .*? \{#(\d)-(\d+)-[a-z-]+\}$", re.M)
CITATION = re.compile(r"docs/theory,? (?:section )?(\d\.\d+)")
CITING = [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]


def headings(page: str) -> list[tuple[str, str]]:
    found = HEADING.findall((THEORY / page).read_text(encoding="utf-8"))
    return [(f"{a}.{b}", f"{c}.{d}") for a, b, c, d in found]


@pytest.mark.parametrize("page", SECTIONS)
def test_sections_are_numbered_without_gaps_and_anchored_by_their_number(page: str) -> None:
    chapter, last = SECTIONS[page]
    expected = [f"{chapter}.{i}" for i in range(1, last + 1)]
    assert headings(page) == [(n, n) for n in expected]


def test_every_cited_section_exists() -> None:
    known = {number for page in SECTIONS for number, _ in headings(page)}
    cited = {(p.name, n) for p in CITING for n in CITATION.findall(p.read_text(encoding="utf-8"))}
    assert cited
    assert {(name, n) for name, n in cited if n not in known} == set()


def test_every_page_of_theory_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [p.name for p in (ROOT / "docs").rglob("*.md") if str(p.relative_to(ROOT / "docs")) not in navigation]
    assert missing == []


def test_no_page_loads_anything_from_the_network() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in configuration
    assert re.findall(r"https?://", configuration) == []
    loads = re.compile(r"""(?:src|href)=["']https?://[^"']+["'][^>]*|url\(["']?https?://|!\[[^\]]*\]\(https?://""")
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "assets").rglob("*.css")]
    found = {p.name: loads.findall(p.read_text(encoding="utf-8")) for p in pages}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_stylesheet_of_katex_asks_only_for_fonts_that_are_there() -> None:
    folder = ROOT / "docs" / "assets" / "katex"
    asked = set(re.findall(r"url\(([^)]+)\)", (folder / "katex.min.css").read_text(encoding="utf-8")))
    there = {str(p.relative_to(folder)) for p in (folder / "fonts").iterdir()}
    assert asked == there
    assert (folder / "LICENSE").read_text(encoding="utf-8").startswith("The MIT License")
