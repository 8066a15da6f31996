"""The page: one file that holds everything it shows, runs under a strict policy, and asks the network for nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import textwrap
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from isthmus._errors import InputError
from isthmus._records import RunFolder, write_whole

MAX_BYTES = 5_000_000
"""A page is never larger than this; data are thinned until it fits."""

_FORMATS = ("png", "svg", "pdf")
_FILE_FONT = "'DejaVu Sans', 'Segoe UI', 'Helvetica Neue', sans-serif"  # the first holds every sign of the labels
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def script_json(value: object) -> str:
    """JSON that can stand inside a `<script>` element: nothing in it can end the element or start another."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _resource(name: str) -> str:
    return files("isthmus.report").joinpath(name).read_text(encoding="utf-8")


def _vega_lite_version() -> str:
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that hands out one function and no more."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_vega_lite_version())
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _policy(scripts: Sequence[str], style: str) -> str:
    return (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _runs(run: RunFolder | Sequence[RunFolder]) -> list[RunFolder]:
    folders = [run] if isinstance(run, RunFolder) else list(run)
    if not folders:
        raise InputError("run", folders, "at least one run folder")
    return folders


def build_page(run: RunFolder | Sequence[RunFolder]) -> str:
    """The report of a run folder, or of several side by side, as one self-contained HTML page.

    The page embeds its scripts and data, makes no request, and holds at most `MAX_BYTES`; where data are thinned to
    fit, it says so. Text from the run (names, notes, titles) is shown and never run.

    Args:
        run: one folder, or several to compare.

    Returns:
        The HTML text.

    Raises:
        InputError: no folder, or so many that no page of `MAX_BYTES` can hold them.
    """
    from isthmus.report._figures import Budget
    from isthmus.report._read import load_runs

    folders = _runs(run)
    views, budget = load_runs(folders), Budget()
    while budget.points >= 16:
        page = _render(views, budget).encode("utf-8", "replace")
        if len(page) <= MAX_BYTES:
            return page.decode("utf-8")
        budget = budget.halved()
    raise InputError("run", len(folders), f"few enough run folders for a page of {MAX_BYTES / 1e6:.0f} MB",
                     "compare fewer of them at a time")  # fmt: skip


def _render(views: Sequence[Any], budget: Any) -> str:
    import jinja2

    from isthmus.report import _numbers, _reproducedwords
    from isthmus.report._sections import build_sections
    from isthmus.report._themes import THEMES, chart_config, style_variables

    sections = build_sections(views, budget)
    style, script = style_variables() + _resource("page.css"), _resource("page.js")
    numbers, absent = _numbers.shown_numbers(views)
    panels = [panel for section in sections for figure in section.every_figure for panel in figure.panels]
    loader = jinja2.FunctionLoader(_resource)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template("template.html").render(
        policy=_policy([_bundle(), script], style), style=style, bundle=_bundle(), script=script,
        themes=script_json({theme: chart_config(theme) for theme in THEMES}),
        specs={id(panel): script_json(panel.spec) for panel in panels}, id=id,
        identifiers={id(panel): f"spec-{number}" for number, panel in enumerate(panels)},
        views=views, sections=sections, numbers=numbers, absent=absent, words=_numbers,
        paper=_reproducedwords, reproduction=views[0].reproduction,
        title=views[0].title if len(views) == 1 else f"{len(views)} runs side by side",
    )  # fmt: skip


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, whole or not at all.

    Args:
        folder: path of the run folder.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: there is no run folder at that path.
    """
    run = RunFolder.open(folder)
    page = build_page(run)
    target = run.path / "report.html"
    write_whole(target, lambda path: path.write_text(page, encoding="utf-8", newline="\n"))
    return target


def save_charts(
    run: RunFolder | Sequence[RunFolder],
    directory: str | os.PathLike[str],
    formats: Sequence[str] = _FORMATS,
) -> list[Path]:
    """Write every chart of the page as image files, from the same specifications, in the light theme.

    Args:
        run: one folder, or several to compare.
        directory: where the files go; made if needed.
        formats: any of `png`, `svg`, `pdf`.

    Returns:
        Paths of the files. A figure without data has none; the page says why.

    Raises:
        InputError: an unknown format, or a directory that cannot be made.
    """
    from isthmus.report._figures import Budget
    from isthmus.report._read import load_runs
    from isthmus.report._sections import build_sections

    unknown = sorted(set(formats) - set(_FORMATS))
    if unknown:
        raise InputError("formats", unknown[0], f"one of {', '.join(_FORMATS)}")
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("directory", str(target), f"a folder that can be made ({error.strerror})") from None
    written: list[Path] = []
    for section in build_sections(load_runs(_runs(run)), Budget()):
        for figure in section.every_figure:
            for number, panel in enumerate(figure.panels):
                name = figure.key if len(figure.panels) == 1 else f"{figure.key}-{number + 1}"
                spec = _for_file(panel.spec, figure.title, panel.label or figure.source)
                written += [_save(spec, target / f"{name}.{kind}", kind) for kind in formats]
    return written


def _for_file(spec: dict[str, Any], title: str, label: str) -> dict[str, Any]:
    """The page's specification with a title, which the page prints as text."""
    heading = {"text": title, "subtitle": textwrap.wrap(label, 90)} if label else {"text": title}
    return spec | {"title": heading, "padding": 16}


def _save(spec: dict[str, Any], path: Path, kind: str) -> Path:
    import vl_convert

    from isthmus.report._themes import chart_config

    common: dict[str, Any] = {"vl_version": _vega_lite_version(), "config": chart_config("light", font=_FILE_FONT)}
    if kind == "svg":
        content = vl_convert.vegalite_to_svg(spec, **common).encode()
    elif kind == "png":
        content = vl_convert.vegalite_to_png(spec, scale=2, **common)
    else:
        content = vl_convert.vegalite_to_pdf(spec, **common)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path
