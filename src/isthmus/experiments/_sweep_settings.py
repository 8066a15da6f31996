"""What a sweep runs: one configuration per run, from a grid or a list, every setting checked before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import os
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, cast

from isthmus._errors import InputError, near_name_hint
from isthmus.data import teacher
from isthmus.experiments._kept import digest_of
from isthmus.experiments._leaky_run import LeakyConfig, prepare_leaky
from isthmus.experiments._sources import NAMES, file_source, is_file, task_from_source

COMMANDS = ("train",)
TABLES = ("sweep", "base", "grid", "run")
_OF_A_TEACHER = {"teacher_widths": "widths", "teacher_kind": "kind", "n_train": "n_train", "n_test": "n_test"}
_OF_A_FILE = ("target", "task", "inputs", "impute", "test_fraction")
_OF_THE_COMMAND = ("out", "config", "resume", "dry_run", "quiet", "tensorboard", "processes", "given")
_READABLE = 80
_MOST = 10_000
_INTEGERS = 2**63


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: of its folder: the settings that differ between runs, and the digest.
        digest: hash of its whole configuration, that of the data's content included.
        settings: what differs between the runs of its sweep.
        source: how the data are made.
        config: the network and its training.
    """

    name: str
    digest: str
    settings: Mapping[str, Any]
    source: Mapping[str, Any]
    config: LeakyConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs that differ in some settings, all of them checked.

    Attributes:
        name: of its folder under `runs/` where no other is given.
        command: what each run does; `train` trains and measures one Leaky ResNet.
        axes: settings that differ, each with its values in order.
        runs: in order; no two are the same.
        configuration: what it was made from, for the record.
    """

    name: str
    command: str
    axes: Mapping[str, tuple[Any, ...]]
    runs: tuple[SweepRun, ...]
    configuration: Mapping[str, Any]


def _types() -> dict[str, Any]:
    """Every setting of a run, with the type of its value."""
    known: dict[str, Any] = {"data": str}
    of_file, of_teacher = typing.get_type_hints(file_source), typing.get_type_hints(teacher)
    known |= {name: of_file[name] for name in _OF_A_FILE}
    known |= {name: of_teacher[other] for name, other in _OF_A_TEACHER.items()}
    return known | typing.get_type_hints(LeakyConfig)


def _checked(name: str, value: Any, expected: Any) -> Any:
    """`value` as a setting of this type; a whole number is a number, and one text is a list of one."""
    options = typing.get_args(expected) if NoneType in typing.get_args(expected) else (expected,)
    (kind,) = [option for option in options if option is not NoneType]
    if typing.get_origin(kind) is not None:
        inner = typing.get_args(kind)[0]
        items: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(_checked(name, item, inner) for item in items)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and abs(value) >= _INTEGERS:
        raise InputError(name, value, "a number of less than 64 bits")
    if kind is float and (whole or isinstance(value, float)):
        return float(value) + 0.0  # -0 is 0
    if (kind is int and whole) or (kind in (str, bool) and isinstance(value, kind)):
        return value
    words = {float: "a number", int: "a whole number", str: "text in quotation marks", bool: "true or false"}
    raise InputError(name, value, words[kind])


def _known(name: str, where: str, types: Mapping[str, Any]) -> str:
    setting = name.replace("-", "_")
    if setting in _OF_THE_COMMAND:
        raise InputError(where, name, "a setting of the runs", "this is an option of the command")
    if setting not in types:
        raise InputError(where, name, "a setting of `isthmus train`", near_name_hint(setting, types))
    return setting


def _new(name: str, where: str, types: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    setting = _known(name, where, types)
    if setting in found:
        raise InputError(where, name, f"each setting once ({setting} is there already, with the other dash)")
    return setting


def _settings(table: object, where: str, types: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise InputError(where, table, "a table of settings")
    found: dict[str, Any] = {}
    for name, value in cast("Mapping[str, Any]", table).items():
        key = _new(name, where, types, found)
        found[key] = _checked(key, value, types[key])
    return found


def _axes(grid: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    axes: dict[str, tuple[Any, ...]] = {}
    for name, values in grid.items():
        key = _new(name, "grid", types, axes)
        if not isinstance(values, (list, tuple)) or not values:
            raise InputError(f"grid.{name}", values, "a list of values", "what all runs share belongs into [base]")
        axes[key] = tuple(_checked(key, value, types[key]) for value in cast("Sequence[Any]", values))
    return axes


def source_of_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a run, as `isthmus train` records them.

    Raises:
        InputError: no data, a file that is not there, or settings of other data.
    """
    data, seed = settings.get("data"), settings.get("seed", LeakyConfig.seed)
    if data is None:
        raise InputError("data", "nothing", "a file, 'digits' or 'teacher'", "give it in [base]")
    wrong = [name for name in _OF_A_FILE if name in settings and not is_file(data)]
    wrong += [name for name in _OF_A_TEACHER if name in settings and data != "teacher"]
    if wrong:
        whose = "files" if wrong[0] in _OF_A_FILE else "teachers"
        raise InputError(wrong[0], settings[wrong[0]], f"no such setting for data {data!r}", f"it is for {whose}")
    if is_file(data):
        return file_source(data, **{name: settings[name] for name in _OF_A_FILE if name in settings}, seed=seed)
    if data not in NAMES:
        raise InputError("data", data, "'digits', 'teacher' or a file", near_name_hint(data, NAMES))
    if data != "teacher":
        return {"name": data, "seed": seed}
    usual = _usual(data)
    chosen = {other: settings.get(name, usual[name]) for name, other in _OF_A_TEACHER.items()}
    return {"name": data, "seed": seed, **chosen, "widths": list(chosen["widths"])}


def _usual(data: object) -> dict[str, Any]:
    """What the settings are, of a run on these data, where it does not give them."""
    usual: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(LeakyConfig)}
    if data == "teacher":
        of_teacher = inspect.signature(teacher).parameters
        usual |= {name: of_teacher[other].default for name, other in _OF_A_TEACHER.items()}
    elif isinstance(data, str) and is_file(data):
        of_file = inspect.signature(file_source).parameters
        usual |= {name: of_file[name].default for name in _OF_A_FILE}
    return usual


def _digest(source: Mapping[str, Any], config: LeakyConfig) -> str:
    """Of a file its content counts, and not where it is: a sweep may be moved, or mounted elsewhere."""
    data = dict(source)
    if "sha256" in data:
        data["name"] = Path(data["name"]).name
    return digest_of({"command": "train", "data": data, **dataclasses.asdict(config)})


def shown(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, (list, tuple)):
        return ",".join(shown(item) for item in cast("Sequence[Any]", value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def title_of(settings: Mapping[str, Any]) -> str:
    """What tells a run from the others of its sweep, in words."""
    return ", ".join(f"{name} = {shown(value)}" for name, value in settings.items())


def _name(settings: Mapping[str, Any], digest: str) -> str:
    readable = "_".join(f"{name}={shown(value)}" for name, value in settings.items())
    safe = re.sub(r"[^A-Za-z0-9_.=,-]+", "-", readable)[:_READABLE].strip("-.")
    return f"{safe or 'run'}_{digest}"


def make_sweep(
    base: Mapping[str, Any],
    *,
    grid: Mapping[str, Any] | None = None,
    runs: Sequence[Any] | None = None,
    name: str = "sweep",
) -> Sweep:
    """The runs of a sweep, from the settings that they share and a grid or a list of those that differ.

    Settings are the options of `isthmus train`, with underscores. The data are made, and every setting is checked;
    nothing is written.

    Args:
        base: settings of all runs.
        grid: a list of values of each axis; the runs are all combinations, the last axis fastest. `seed` is one axis.
        runs: instead of a grid: a mapping of settings for each run.
        name: of the sweep.

    Raises:
        InputError: an unknown setting, a value that cannot be used, or two runs that are the same.

    Example:
        >>> from isthmus.experiments import make_sweep
        >>> base = {"data": "teacher", "n_train": 40, "n_test": 20, "teacher_widths": [4, 2, 4], "depth": 8, "width": 8}
        >>> sweep = make_sweep(base, grid={"effective_depth": [1, 3], "seed": [0, 1, 2]})
        >>> len(sweep.runs), sweep.runs[0].name
        (6, 'effective_depth=1_seed=0_...')
    """
    types = _types()
    shared = _settings(base, "base", types)
    if (grid is None) == (runs is None):
        raise InputError("sweep", "both" if grid is not None else "neither", "either a [grid] or a list of [[run]]")
    if grid is not None:
        axes = _axes(grid, types)
        if (many := math.prod(len(values) for values in axes.values())) > _MOST:
            raise InputError(
                "grid", f"{many:,} combinations", f"at most {_MOST:,} runs", "give fewer values, or several sweeps"
            )
        listed = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        where = "grid"
    else:
        if not isinstance(runs, (list, tuple)) or not runs:
            raise InputError("run", runs, "a list of tables of settings, one or more")
        listed = [_settings(entry, f"run {number}", types) for number, entry in enumerate(runs, 1)]
        where = "run"
    if both := sorted(set(shared) & {key for entry in listed for key in entry} if where == "grid" else ()):
        raise InputError("grid", both[0], "settings that [base] does not have", "remove it from one of the two")
    whole = [shared | entry for entry in listed]
    differing = _differing(whole) if where == "run" else axes_of(listed)
    sources: dict[str, dict[str, Any]] = {}
    made = [_run(settings, differing, number, len(whole), sources) for number, settings in enumerate(whole, 1)]
    seen: dict[str, str] = {}
    for run in made:
        if run.digest in seen:
            raise InputError(where, title_of(run.settings) or "no settings", "runs that differ",
                             f"it is the same as {seen[run.digest] or 'another one'}; leave one out")  # fmt: skip
        seen[run.digest] = title_of(run.settings)
    _check(made)
    configuration = {"command": "train", "base": shared, "runs": listed} | ({"grid": grid} if grid is not None else {})
    return Sweep(name, "train", differing, tuple(made), configuration)


def axes_of(listed: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Every setting with its values, in order of appearance."""
    keys = list(dict.fromkeys(key for entry in listed for key in entry))
    return {key: tuple(dict.fromkeys(entry[key] for entry in listed if key in entry)) for key in keys}


def _differing(whole: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Settings that are not the same in all runs; one that a run does not give has its usual value there."""
    keys = list(dict.fromkeys(key for settings in whole for key in settings))
    usual = [_usual(settings.get("data")) for settings in whole]
    full = [{key: settings.get(key, own.get(key)) for key in keys}
            for settings, own in zip(whole, usual, strict=True)]  # fmt: skip
    return {key: values for key, values in axes_of(full).items() if len(values) > 1}


def _run(
    settings: Mapping[str, Any], axes: Mapping[str, Any], number: int, runs: int, sources: dict[str, dict[str, Any]]
) -> SweepRun:
    """One run; `sources` keeps those of the runs before it, so that a file is read once for its hash."""
    usual = _usual(settings.get("data"))
    config = LeakyConfig(**{f.name: settings.get(f.name, f.default) for f in dataclasses.fields(LeakyConfig)})
    own = {key: settings.get(key, usual.get(key)) for key in axes}
    of_data = json.dumps({key: settings.get(key) for key in ("data", *_OF_A_FILE, *_OF_A_TEACHER)})
    with_place = f"in run {number} of {runs}" + (f" ({title_of(own)})" if own else "")
    try:
        if of_data not in sources:
            sources[of_data] = source_of_settings(settings)
    except InputError as error:
        raise _placed(error, with_place) from None
    source = sources[of_data] | {"seed": config.seed}
    digest = _digest(source, config)
    return SweepRun(_name(own, digest), digest, own, source, config)


def _placed(error: InputError, place: str) -> InputError:
    hint = f"{error.hint}; {place}" if error.hint else place
    return type(error)(error.argument, error.value, error.expected, hint)


def _check(runs: Sequence[SweepRun]) -> None:
    """Make each of the data once, and the network of every run."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(json.dumps(run.source, sort_keys=True), []).append(number)
    for numbers in groups.values():
        task = None
        for number in numbers:
            run = runs[number]
            try:
                task = task_from_source(run.source) if task is None else task
                prepare_leaky(task, run.config)
            except InputError as error:
                said = f" ({title_of(run.settings)})" if run.settings else ""
                raise _placed(error, f"in run {number + 1} of {len(runs)}{said}") from None


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """A sweep from a TOML file.

    `[sweep]` may say the `command` (`train`); `[base]` holds settings of all runs; `[grid]` a list of values of each
    axis, or `[[run]]`, once for each run, its own settings.

    Raises:
        InputError: no such file, no TOML, an unknown key, or what `make_sweep` refuses.
    """
    file = Path(path)
    try:
        there = file.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise InputError("config", str(file), "an existing TOML file")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("config", str(file), f"a TOML file ({error})") from None
    for name in content:
        if name not in TABLES:
            raise InputError("config", name, "the tables [sweep], [base], [grid] or [[run]]",
                             near_name_hint(name, TABLES))  # fmt: skip
    kinds: dict[str, tuple[type, str]] = {"run": (list, "a list of tables, [[run]] once for each run")}
    for name, value in content.items():
        kind, expected = kinds.get(name, (dict, f"a table, [{name}]"))
        if not isinstance(value, kind):
            raise InputError(name, value, expected)
    head: dict[str, Any] = content.get("sweep", {})
    for name in head:
        if name != "command":
            raise InputError("sweep", name, "the key command", near_name_hint(name, ("command",)))
    command = head.get("command", "train")
    if command not in COMMANDS:
        raise InputError("sweep.command", command, "'train'", "other commands cannot be swept")
    return make_sweep(content.get("base", {}), grid=content.get("grid"), runs=content.get("run"), name=file.stem)
