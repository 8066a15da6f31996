"""The tables of docs/architecture.md, the import contract and the code say the same."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from isthmus._records import METRICS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "isthmus"
MODULES = sorted(SOURCE.rglob("*.py"))


def table_under(page: Path, heading: str) -> list[list[str]]:
    """Rows of the first table under a heading, without its two head lines; cells keep their Markdown."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(heading)}( \{{.*\}})?", line))
    table: list[str] = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            table.append(line)
        elif table or line.startswith("#"):
            break
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def plain(cell: str) -> str:
    """A cell as a reader sees it: backslash escapes undone, the dash that stands for nothing removed."""
    return "" if cell == "–" else re.sub(r"\\(.)", r"\1", cell)


def layout_rows() -> list[set[str]]:
    rows = table_under(ROOT / "docs" / "architecture.md", "Layout")
    return [{name.rstrip("/") for name in re.findall(r"`([^`]+)`", row[1])} for row in rows]


def contract_layers() -> list[set[str]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [c["layers"] for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    return [{name.strip(" ()") for name in row.split("|")} for row in layers]


def test_every_module_of_the_first_level_is_in_the_layout_and_in_the_contract() -> None:
    found = {p.parent.name for p in SOURCE.glob("*/__init__.py")} | {p.stem for p in SOURCE.glob("*.py")} - {"__init__"}
    assert {"models", "_records"} <= found
    assert found <= set().union(*layout_rows())
    assert found <= set().union(*contract_layers())


def test_layout_and_contract_have_the_same_rows_in_the_same_order() -> None:
    assert layout_rows() == contract_layers()


def test_what_the_layout_calls_planned_does_not_exist() -> None:
    rows = table_under(ROOT / "docs" / "architecture.md", "Layout")
    planned = [name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)` \(planned\)", row[1])]
    exist = [name for name in planned if (SOURCE / name / "__init__.py").exists() or (SOURCE / f"{name}.py").exists()]
    assert exist == []
    present = set().union(*layout_rows()) - set(planned)
    assert {n for n in present if not (SOURCE / n).is_dir() and not (SOURCE / f"{n}.py").is_file()} == set()


def test_reading_results_imports_no_torch_and_training_nothing_that_it_does_not_need() -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(name, *sorted({'torch', 'sklearn', 'pandas', 'scipy.stats', 'scipy.optimize', 'altair',"
        " 'vl_convert', 'jinja2', 'lightning_fabric', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    without = ["isthmus", "isthmus._errors", "isthmus._records", "isthmus.report", "isthmus.cli"]
    names = [*without, "isthmus._random", "isthmus.experiments"]  # the last two show that the check can fail
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [*without, "isthmus._random torch", "isthmus.experiments torch"]


def test_the_table_of_metric_names_is_the_catalogue() -> None:
    rows = table_under(ROOT / "docs" / "architecture.md", "Names of the numbers")
    written = {row[0].strip("`"): [plain(cell) for cell in row[1:4]] for row in rows}
    assert len(written) == len(rows), "a name stands twice in the table"
    assert written == {m.name: [m.of, m.definition, m.unit] for m in METRICS.values()}


def test_columns_of_the_table_are_listed_where_the_run_folder_is_described() -> None:
    from isthmus._records import COLUMNS

    rows = dict(row[:2] for row in table_under(ROOT / "docs" / "architecture.md", "A run folder"))
    assert rows["`metrics.parquet`"].removeprefix("the tidy table: ").split(", ") == list(COLUMNS)


def test_no_module_is_a_grab_bag_and_none_is_too_long() -> None:
    assert [p.name for p in SOURCE.rglob("*") if re.fullmatch(r"_*(utils?|helpers?|misc|common)(\.py)?", p.name)] == []
    lengths = {str(p.relative_to(SOURCE)): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def _imports_of_init(path: Path) -> list[ast.alias]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        alias
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isthmus")
        for alias in node.names
    ]


def test_packages_export_public_names_with_the_redundant_alias() -> None:
    inits = sorted(SOURCE.rglob("__init__.py"))
    exported = {str(p.relative_to(SOURCE)): _imports_of_init(p) for p in inits}
    assert exported["__init__.py"], "the package itself exports names"
    wrong = {
        f"{init}: {alias.name}"
        for init, aliases in exported.items()
        for alias in aliases
        if not alias.name.startswith("_") and alias.asname != alias.name
    }
    assert wrong == set()


def test_modules_that_hold_code_are_private() -> None:
    public = [str(p.relative_to(SOURCE)) for p in MODULES if not p.stem.startswith("_")]
    assert public == []


def test_no_subpackage_shares_a_name_with_a_public_function() -> None:
    packages = {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert names
    assert packages & set(names) == set()
