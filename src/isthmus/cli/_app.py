"""The command line: parse, call, print. No mathematics."""

from __future__ import annotations

import sys
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts
from cyclopts.config import Toml
from rich.console import Console
from rich.markup import escape

import isthmus
from isthmus._errors import DataNote, DivergedError, InputError, IsthmusError
from isthmus.cli._compress import compress
from isthmus.cli._cost import cost
from isthmus.cli._demo import demo
from isthmus.cli._dynamics import dynamics
from isthmus.cli._measure import measure
from isthmus.cli._predict import predict
from isthmus.cli._propagate import propagate
from isthmus.cli._report import report
from isthmus.cli._reproduce import reproduce
from isthmus.cli._sweep import sweep
from isthmus.cli._train import train

app = cyclopts.App(
    name="isthmus",
    help="Shows, predicts and controls where a deep network learns its features.",
    version=isthmus.__version__,
    help_format="plaintext",
)
app.command(demo)
app.command(train)
app.command(measure)
app.command(predict)
app.command(report)
app.command(reproduce)
app.command(propagate)
app.command(cost)
app.command(compress)
app.command(dynamics)
app.command(sweep)

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130
CONFIG = "--config"
_RESUME = "continue with `isthmus train --resume` and the run folder"
_AGAIN = "the same command goes on where it stopped"
_AFTER_INTERRUPTION = {"train": _RESUME, "demo": _RESUME, "reproduce": _AGAIN, "cost": _AGAIN,
                       "sweep": _AGAIN}  # fmt: skip


def _say(console: Console, label: str, text: str) -> None:
    console.print(f"[bold]{label}:[/bold] {escape(text)}", soft_wrap=True, highlight=False)


def _without_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The command line without the `--config FILE` of `train`, `measure` or `cost`, and that file."""
    rest, file = list(words), None
    if rest[:1] not in (["train"], ["measure"], ["cost"]):
        return rest, None
    for i, word in enumerate(rest):
        if word == CONFIG or word.startswith(CONFIG + "="):
            value = rest[i + 1 : i + 2] if word == CONFIG else [word.removeprefix(CONFIG + "=")]
            if not value:
                raise InputError("config", "nothing", "a TOML file")
            del rest[i : i + (2 if word == CONFIG else 1)]
            file = Path(value[0])
            if not file.is_file():
                raise InputError("config", str(file), "an existing TOML file")
            break
    if any(word == CONFIG or word.startswith(CONFIG + "=") for word in rest):
        raise InputError("config", "more than one file", "one TOML file")
    if file is not None:
        try:
            tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError("config", str(file), f"a TOML file ({error})") from None
    return rest, file


def _run(words: Sequence[str]) -> None:
    rest, file = _without_config(words)
    # Options on the command line win over those of the file; an unknown key is an error with a near name.
    app.config = () if file is None else (Toml(str(file), must_exist=True, use_commands_as_keys=False),)
    command, bound, ignored = app.parse_args(rest, exit_on_error=False, print_error=False)
    extra: dict[str, Any] = {"given": frozenset(bound.arguments)} if "given" in ignored else {}
    command(*bound.args, **bound.kwargs, **extra)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns (and as a script exits with) its exit code.

    0: done. 1: the work failed (a diverged training, a full disk). 2: bad input, with one sentence on stderr.
    130: interrupted.
    """
    console = Console(stderr=True)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            _say(console, "note" if issubclass(category, DataNote) else "warning", str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        except cyclopts.CycloptsError as error:
            _say(console, "error", " ".join(str(error).split()))
            return BAD_INPUT
        except InputError as error:
            _say(console, "error", str(error))
            return BAD_INPUT
        except (DivergedError, IsthmusError) as error:
            _say(console, "failed", str(error))
            return FAILED
        except KeyboardInterrupt:
            hint = _AFTER_INTERRUPTION.get(next(iter(sys.argv[1:] if arguments is None else arguments), ""),
                                           "nothing was written")  # fmt: skip
            _say(console, "interrupted", hint)
            return INTERRUPTED
    return 0


def script() -> None:
    """Entry point of the `isthmus` script."""
    sys.exit(main())
