"""`isthmus report`: make a run's page again, or one page for several runs, and their charts as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus._errors import InputError, RunFolderError

FORMATS = ("png", "svg", "pdf")


def report(
    runs: Annotated[tuple[Path, ...], Parameter(name="run", help="A run folder, or several to compare.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Page of several runs; comparison.html unless given.")] = None,
    charts: Annotated[Path | None, Parameter(help="Also save every chart into this folder.")] = None,
    formats: Annotated[tuple[str, ...], Parameter(help="Of the charts: png, svg, pdf.")] = FORMATS,
) -> None:
    """Write the page of a run folder, or one page with several side by side, from their files alone (no network)."""
    from isthmus._records import RunFolder, write_whole
    from isthmus.report import build_page, save_charts, write_page

    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InputError("formats", ", ".join(unknown), "png, svg or pdf")
    folders = [RunFolder.open(run) for run in runs]
    if len(folders) == 1:
        if out is not None:
            raise InputError("out", str(out), "nothing with one run", "its page is report.html in its folder")
        page = write_page(folders[0].path)
    else:
        page = out if out is not None else Path("comparison.html")
        if page.exists() or not page.absolute().parent.is_dir():
            raise RunFolderError("out", str(page), "a file that does not exist yet, in a folder that does")
        text = build_page(folders)
        write_whole(page, lambda part: part.write_text(text, encoding="utf-8"))
    console = Console()
    console.print(f"page: {escape(str(page))}", highlight=False, soft_wrap=True)
    if charts is not None:
        for path in save_charts(folders if len(folders) > 1 else folders[0], charts, formats):
            console.print(f"chart: {escape(str(path))}", highlight=False, soft_wrap=True)
