"""Runs the Python blocks of a page as one session, and compares or writes what they print.

A ```text block right behind a ```python block holds what that block prints. `python docs/tools/printed.py PAGE…` writes
these blocks anew; tests/docs/test_examples.py compares them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<text>.*?)^```\n)?", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.I)


def run(text: str, name: str) -> list[tuple[str, str]]:
    """What each block is said to print, and what it printed; without a ```text block it is said to print nothing."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    results: list[tuple[str, str]] = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + match["code"], name, "exec"), namespace)
        results.append((match["text"] or "", printed.getvalue()))
    return results


def agree(said: str, printed: str, *, relative: float = 0.1, absolute: float = 0.02) -> bool:
    """Whether two texts have the same words, bars (█) aside, and numbers that agree as trainings on two machines do."""
    said, printed = said.replace("█", ""), printed.replace("█", "")
    if NUMBER.sub("#", said).split() != NUMBER.sub("#", printed).split():
        return False
    for a, b in zip(NUMBER.finditer(said), NUMBER.finditer(printed), strict=True):
        value, other = (float(match[0].replace("−", "-")) for match in (a, b))
        loose = 5 if said[: a.start()].endswith("± ") else 1  # an error is rougher than what it is of
        if abs(value - other) > loose * (absolute + relative * abs(value)):
            return False
    return True


def rewritten(text: str, results: list[tuple[str, str]]) -> str:
    """The page with every ```text block as printed."""
    printed = iter(results)

    def block(match: re.Match[str]) -> str:
        _, lines = next(printed)
        tail = "".join(f"{line.rstrip()}\n" for line in lines.splitlines())
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{tail}```\n" if tail else "")

    return BLOCK.sub(block, text)


def main(pages: list[str]) -> None:
    """Writes the pages anew."""
    here = Path.cwd()
    for page in pages:
        path = here / page
        text = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            start = time.process_time()
            results = run(text, page)
            sys.stdout.write(f"{page}: {time.process_time() - start:.1f} s of processor time\n")
            os.chdir(here)
        path.write_text(rewritten(text, results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
