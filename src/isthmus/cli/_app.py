"""The command line: parse, call, print. No mathematics."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import cyclopts
from rich.console import Console
from rich.markup import escape

import isthmus
from isthmus._errors import DataWarning, DivergedError, IsthmusError
from isthmus.cli._demo import demo
from isthmus.cli._report import report
from isthmus.cli._train import train

app = cyclopts.App(
    name="isthmus",
    help="Shows, predicts and controls where a deep network learns its features.",
    version=isthmus.__version__,
    help_format="plaintext",
)
app.command(demo)
app.command(train)
app.command(report)

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130


def _say(console: Console, label: str, text: str) -> None:
    console.print(f"[bold]{label}:[/bold] {escape(text)}", soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns (and as a script exits with) its exit code.

    0: done. 1: the work failed (a diverged training). 2: bad input, with one sentence on stderr. 130: interrupted.
    """
    console = Console(stderr=True)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, (DataWarning, UserWarning)):
            _say(console, "warning", str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        try:
            app(list(sys.argv[1:] if arguments is None else arguments), exit_on_error=False, print_error=False,
                result_action="return_value", console=Console())  # fmt: skip
        except cyclopts.CycloptsError as error:
            _say(console, "error", " ".join(str(error).split()))
            return BAD_INPUT
        except DivergedError as error:
            _say(console, "failed", str(error))
            return FAILED
        except IsthmusError as error:
            _say(console, "error", str(error))
            return BAD_INPUT
        except KeyboardInterrupt:
            _say(console, "interrupted", "what was complete is in the run folder")
            return INTERRUPTED
    return 0


def script() -> None:
    """Entry point of the `isthmus` script."""
    sys.exit(main())
