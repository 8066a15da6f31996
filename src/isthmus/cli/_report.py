"""`isthmus report`: make a run's page again, and its charts as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from isthmus._errors import InputError

FORMATS = ("png", "svg", "pdf")


def report(
    run: Annotated[Path, Parameter(help="A run folder.")],
    /,
    *,
    charts: Annotated[Path | None, Parameter(help="Also save every chart into this folder.")] = None,
    formats: Annotated[tuple[str, ...], Parameter(help="Of the charts: png, svg, pdf.")] = FORMATS,
) -> None:
    """Write the page of a run folder, from its files alone (no torch, no network)."""
    from isthmus._records import RunFolder
    from isthmus.report import save_charts, write_page

    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InputError("formats", ", ".join(unknown), "png, svg or pdf")
    folder = RunFolder.open(run)
    console = Console()
    console.print(f"page: {escape(str(write_page(folder.path)))}", highlight=False, soft_wrap=True)
    if charts is not None:
        for path in save_charts(folder, charts, formats):
            console.print(f"chart: {escape(str(path))}", highlight=False, soft_wrap=True)
