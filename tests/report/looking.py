"""Two ways to look at a page: as its elements and text, and in a browser that watches what it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

READY = "html[data-charts=ready]"
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective + e.sample));
"""
MARKS = """
[...document.querySelectorAll(".chart")].map((chart) => ({
  drawn: chart.dataset.drawn,
  lines: [...chart.querySelectorAll(".mark-line path, .mark-symbol path")].filter((p) => p.getAttribute("d")).length,
  over: chart.querySelector("svg").getBoundingClientRect().right - chart.getBoundingClientRect().right,
  clipped: [...chart.querySelectorAll("svg text")].filter((text) => {
    const box = text.getBoundingClientRect(), frame = chart.querySelector("svg").getBoundingClientRect();
    return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
      box.bottom > frame.bottom + 1);
  }).map((text) => text.textContent),
  background: getComputedStyle(chart.querySelector("svg")).backgroundColor,
}))
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

# Each width and each theme; the other two pairs tell of both at once what these tell of each.
LOOKS = [
    (390, "dark"), (1280, "light"),
    pytest.param(390, "light", marks=pytest.mark.slow), pytest.param(1280, "dark", marks=pytest.mark.slow),
]  # fmt: skip


@contextmanager
def opened(
    chromium: Any, page_file: Path, *, width: int = 1280, theme: str = "light", csp: bool = True, script: str = ""
) -> Iterator[Any]:
    """The page, drawn, with `script` run before its own.

    On leaving, it has asked for nothing, the console is empty, and no policy was violated.
    """
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, bypass_csp=not csp)
    context.add_init_script(WATCH + script)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(page_file.as_uri())
        page.wait_for_selector(READY, state="attached", timeout=60_000)
        yield page
        assert page.evaluate("window.violations") == []
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    finally:
        context.close()


class Page(HTMLParser):
    """Collects what the tests ask about: scripts, styles, elements and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside: tuple[str, dict[str, str | None]] | None = None
        self._held = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside, self._held = (tag, dict(attrs)), ""

    def handle_endtag(self, tag: str) -> None:
        if self._inside is not None and tag == self._inside[0]:
            if tag == "script":
                self.scripts.append((self._inside[1], self._held))
            else:
                self.styles.append(self._held)
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        else:
            self._held += data

    @property
    def specs(self) -> list[dict[str, Any]]:
        return [json.loads(text) for attrs, text in self.scripts if str(attrs.get("id", "")).startswith("spec-")]

    @property
    def policy(self) -> dict[str, list[str]]:
        meta = next(a for t, a in self.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
        parts = [part.split() for part in str(meta["content"]).split(";")]
        return {name: values for name, *values in parts}
