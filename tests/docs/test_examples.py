"""What README and the guide show runs, and names only what exists."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from isthmus.probe import _monitor_schedule

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
SHORTEST = "effective-theory.md"
SHORTER = {  # trainings of the same kind, in fewer steps; that processes give the same has its own tests
    "estimators.md": ("cv=3", "cv=2"),
    "several-processes.md": ("processes=2)", "processes=1)"),
    "during-training-trainer.md": ("max_steps=120", "max_steps=56"),
    "during-training-lightning.md": ("max_epochs=100", "max_epochs=35"),
}
RUNNABLE = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").rglob("*.md"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.M | re.S)


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each fenced block of these languages."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match["language"] in languages:
            yield text.count("\n", 0, match.start("code")), match["code"]


def shell_lines() -> list[tuple[str, list[str]]]:
    """Every command line of every shell block, as (where, words); continued lines are joined."""
    found: list[tuple[str, list[str]]] = []
    for page in PAGES:
        for line, code in blocks(page, "bash", "console", "sh", "shell"):
            for command in code.replace("\\\n", " ").splitlines():
                words = command.split("#")[0].removeprefix("$ ").split()
                found.append((f"{page.relative_to(ROOT)}:{line + 1}", words))
    return [(where, words) for where, words in found if words]


# Lightning 2.6 uses what torch 2.13 deprecates, and asks for more workers on machines with more cores.
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("page", [p for p in RUNNABLE if any(blocks(p, "python"))], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ticks = itertools.count()  # what a Monitor measures does not hang on how fast this machine is
    monkeypatch.setattr(_monitor_schedule, "clock", lambda: float(next(ticks)))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    long, short = SHORTER.get(page.name, ("", ""))
    assert not long or page.read_text(encoding="utf-8").count(long) == 1
    for line, code in blocks(page, "python"):
        shown = code.replace(long, short) if long else code
        exec(compile("\n" * line + shown, str(page), "exec"), namespace)  # one page is one session
    if "trainer" in namespace:  # the page of such a training has a slider worth the name
        assert len(namespace["callback"].monitor.steps) > 5


@pytest.fixture(scope="module")
def printed() -> ModuleType:
    """docs/tools/printed.py, which is no package."""
    where = ROOT / "docs" / "tools" / "printed.py"
    spec = importlib.util.spec_from_file_location("printed", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.name, marks=[] if p.name == SHORTEST else pytest.mark.slow) for p in TUTORIALS]
)
def test_tutorials_print_what_they_show(
    page: Path, printed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # as a reader's session begins
    results = printed.run(page.read_text(encoding="utf-8"), str(page))
    assert len(results) >= 5
    assert [(said, got) for said, got in results if not printed.agree(said, got)] == []


def test_what_is_printed_is_compared(printed: ModuleType) -> None:
    assert printed.agree("depth  4: 11.83 ███", "depth 4: 11.84 ██")
    assert not printed.agree("depth  4: 11.83", "depth 4: 14.8")
    assert not printed.agree("Keeps 3 dimensions", "Keeps 2 dimensions")
    assert not printed.agree("clear peak", "no clear peak")
    assert printed.agree("cost_rank 1.9 ± 0.4", "cost_rank 1.9 ± 0.6")
    page = "```python\nprint(2)\n```\n\n```text\n1\n```\n"
    assert printed.run(page, "page") == [("1\n", "2\n")]
    assert printed.rewritten(page, [("1\n", "2\n")]) == page.replace("1\n", "2\n")


def test_readme_has_a_python_block() -> None:
    assert any(blocks(ROOT / "README.md", "python"))


def test_shell_blocks_name_only_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.M))
    assert {"demo", "test"} <= targets
    named = [(where, words[1]) for where, words in shell_lines() if words[0] == "make"]
    assert named
    assert [(where, target) for where, target in named if target not in targets] == []


def test_shell_blocks_name_only_commands_and_options_that_exist() -> None:
    from isthmus.cli._app import app

    commands = set(app)
    lines = [(where, words[1:]) for where, words in shell_lines() if words[0].rpartition("/")[2] == "isthmus"]
    assert lines
    wrong = [f"{where}: {' '.join(words)}" for where, words in lines if words and words[0] not in commands]
    for where, words in lines:
        if words and words[0] in commands and not words[0].startswith("-"):
            parameters = app[words[0]].assemble_argument_collection()
            known = {name for argument in parameters for name in argument.names} | {"--help", "-h"}
            options = [word.partition("=")[0] for word in words[1:] if word.startswith("-")]
            wrong += [f"{where}: {words[0]} {option}" for option in options if option not in known]
    assert wrong == []


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_documented_commands_are_those_of_the_application(page: str) -> None:
    from isthmus.cli._app import app

    documented = set(re.findall(r"^\| `isthmus ([\w-]+)` \|", (ROOT / page).read_text(encoding="utf-8"), re.M))
    assert documented == {name for name in app if not name.startswith("-")}


def test_the_page_of_every_command_is_explained() -> None:
    from isthmus.cli._app import app

    table = (ROOT / "docs" / "guide" / "reading-the-page.md").read_text(encoding="utf-8")
    first = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| "))
    without = {"predict", "report"}  # the one writes a table, the other the pages of the rest
    assert {name for name in app if not name.startswith("-")} - without - set(re.findall(r"\w+", first)) == set()


def test_every_guide_and_tutorial_is_reached_from_the_front_page() -> None:
    front = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {f"{p.parent.name}/{p.name}" for p in PAGES if p.parent.name in {"guide", "tutorials"}}
    assert len(pages) > 15
    assert {page for page in pages if f"({page})" not in front} == set()


def test_page_that_answers_questions_names_only_numbers_that_exist() -> None:
    from isthmus._metrics import METRICS

    page = (ROOT / "docs" / "guide" / "which-number.md").read_text(encoding="utf-8")
    cells = [row.split("|")[2] for row in page.splitlines() if row.startswith("| ")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} - {"depth_curve"}  # a function
    assert len(named) > 15
    assert named - set(METRICS) == set()
