"""What `measure` returns: a table, a verdict, spectra; it can be looked at, saved and made into a page."""

from __future__ import annotations

import dataclasses
import html
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from isthmus._errors import IsthmusError
from isthmus._records import Claim, RunFolder, check_new_folder, write_whole
from isthmus.report import write_page

if TYPE_CHECKING:
    import pandas

_SHOWN_METRICS = {
    "participation_ratio_centred": "PR (centred)",
    "effective_rank": "effective rank",
    "numerical_rank": "rank (1%)",
    "cost_of_identity": "COI",
    "relative_move": "moves by",
}
_SHOWN_LAYERS = 40
_MARK = {"finding": "•", "caution": "!", "none": "·"}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of a model.

    Attributes:
        table: the tidy table, one number per row (docs/architecture.md, Names of the numbers).
        verdict: what it says, in words, each claim with the rows of the table behind it.
        arrays: spectra as matrices, one row per layer, padded with NaN.
        layers: the representations that were measured, in order of execution.
        skipped: modules that were not, with the reason.
        notes: what was decided without being asked, and what to do otherwise.
        record: what a run folder keeps of how this was made.
    """

    table: pl.DataFrame
    verdict: Sequence[Claim]
    arrays: Mapping[str, np.ndarray]
    layers: Sequence[Mapping[str, Any]]
    skipped: Sequence[Mapping[str, str]]
    notes: Sequence[str]
    record: Mapping[str, Any]

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a pandas frame.

        Raises:
            IsthmusError: pandas or pyarrow is not installed.
        """
        try:
            return self.table.to_pandas()
        except ModuleNotFoundError as error:
            raise IsthmusError(
                f"to_pandas needs pandas and pyarrow ({error}): pip install 'isthmus[pandas]'"
            ) from error

    def with_record(self, *, title: str, configuration: Mapping[str, Any]) -> Measurement:
        """The same with another title and more of how it was made, for the run folder and the page."""
        record = dict(self.record)
        record["title"], record["configuration"] = title, {**record["configuration"], **configuration}
        return dataclasses.replace(self, record=record)

    def save(self, folder: str | os.PathLike[str], *, command: str = "measure") -> RunFolder:
        """Write a run folder with the page, whole or not at all.

        Args:
            folder: where; nothing may be there yet.
            command: name of the command, for the record.

        Raises:
            RunFolderError: the folder exists and is not empty, or cannot be made.
            WriteError: a full disk.
        """
        check_new_folder(folder, "folder")
        details = dict(self.record)
        run = RunFolder.create(
            folder, command=command, configuration=details.pop("configuration"), seed=details.pop("seed"),
            device=details.pop("device"), dtype=details.pop("dtype"), extra={**details, "warnings": list(self.notes)},
        )  # fmt: skip
        run.write_metrics(self.table)
        run.write_arrays(self.arrays)
        run.write_verdict(self.verdict)
        run.finish()
        write_page(run.path)
        return run

    def report(self, path: str | os.PathLike[str] = "isthmus-report.html") -> Path:
        """Write the page as one self-contained HTML file (one that is there is replaced), and return its path.

        Raises:
            WriteError: the file cannot be written.
        """
        target = Path(path)
        with tempfile.TemporaryDirectory() as temporary:
            page = (self.save(Path(temporary) / "run").path / "report.html").read_bytes()
        write_whole(target, lambda part: part.write_bytes(page))
        return target

    def _summary(self) -> tuple[list[str], list[tuple[str, ...]], str]:
        """Header, rows and remark of the short table of layers."""
        own = self.table.filter((pl.col("baseline") == "") & (pl.col("status") == "ok"))
        own = own.filter((pl.col("metric") != "cost_of_identity") | pl.col("note").str.starts_with("gamma0=0.001"))
        known: dict[tuple[str, str], float] = {
            (layer, metric): value for layer, metric, value in own.select("layer", "metric", "value").iter_rows()
        }
        columns = [m for m in _SHOWN_METRICS if any((layer["name"], m) in known for layer in self.layers)]
        rows = [
            (str(layer["name"]), str(layer["width"]), *(_short(known.get((layer["name"], m))) for m in columns))
            for layer in self.layers[:_SHOWN_LAYERS]
        ]
        more = len(self.layers) - len(rows)
        remark = f"{more} more layers in .table" if more > 0 else ""
        return ["layer", "width", *(_SHOWN_METRICS[m] for m in columns)], rows, remark

    def __rich__(self) -> RenderableType:
        header, rows, remark = self._summary()
        grid = Table(*header, box=None, header_style="bold")
        for column in grid.columns[1:]:
            column.justify = "right"
        for row in rows:
            grid.add_row(*map(escape, row))
        parts: list[RenderableType] = [f"{_MARK[c.level]} {escape(c.text)}" for c in self.verdict]
        parts += [f"[dim]note: {escape(note)}[/dim]" for note in self.notes]
        return Group(*parts, "", grid, *([f"[dim]{remark}[/dim]"] if remark else []))

    def __str__(self) -> str:
        console = Console(width=120, no_color=True, record=True, file=io.StringIO())
        console.print(self.__rich__())
        return console.export_text().rstrip()

    def _repr_html_(self) -> str:
        header, rows, remark = self._summary()
        claims = "".join(f"<li>{html.escape(c.text)}</li>" for c in self.verdict)
        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<ul>{claims}</ul>{table}<p>{html.escape(remark)}</p>"


def _short(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"
