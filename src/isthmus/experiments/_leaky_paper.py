"""`reproduce leaky-resnets`: the figures of arXiv 2405.17573, from their networks to a page (docs/theory 1.8)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from isthmus._records import MetricTable, RunFolder
from isthmus.experiments._leaky_figure1 import figure_1a, figure_1b, figure_1c, figure_3
from isthmus.experiments._leaky_figure2 import StepNetworks, figure_2a, figure_2b, figure_2c
from isthmus.experiments._leaky_networks import Network, Trained, train_networks
from isthmus.experiments._leaky_presets import BOTTLENECK, PAPER_RIDGE, PRESETS, RIDGE, SCHEMES, Preset
from isthmus.experiments._paper import Paper
from isthmus.experiments._reproduction import PaperFigure
from isthmus.experiments._sources import task_from_source
from isthmus.experiments._workers import Progress

FIGURES = ("1a", "1b", "1c", "2a", "2b", "2c", "3")
"""Figures of the Leaky ResNet paper that are reproduced."""

LEAKY = Paper(
    "leaky-resnets", "Leaky ResNets (arXiv 2405.17573)", "Figures of the Leaky ResNet paper", FIGURES, PRESETS
)
"""The Leaky ResNet paper."""

check_figures = LEAKY.check_figures
"""The figures asked for, in the order of the paper (all where none is named); `InputError` for others."""


def check_preset(name: str) -> Preset:
    """The preset of that name. Raises `InputError` for an unknown one."""
    LEAKY.check_preset(name)
    return PRESETS[name]


@dataclasses.dataclass(frozen=True)
class _Needs:
    """Networks by their part in the figures."""

    main: list[Network]
    finer: list[Network]
    readings: dict[str, list[Network]]
    steps: dict[tuple[int, str], list[Network]]

    def all(self) -> list[Network]:
        """Every network."""
        return [*self.main, *self.finer, *(n for g in self.readings.values() for n in g),
                *(n for g in self.steps.values() for n in g)]  # fmt: skip


def _needs(preset: Preset, figures: Sequence[str], device: str) -> _Needs:
    wanted = set(figures)
    lts = preset.effective_depths if wanted & {"1a", "3"} else (preset.shown,) if wanted & {"1b", "1c"} else ()
    main = [preset.rank_network(lt, seed) for lt in lts for seed in preset.seeds]
    finer: list[Network] = []
    readings: dict[str, list[Network]] = {}
    if "1a" in wanted:
        if preset.finer:
            finer = [
                preset.rank_network(preset.effective_depths[-1], seed, depth=preset.finer) for seed in preset.seeds
            ]
        readings = {
            f"λ = {ridge:.3g} ({why})": [preset.rank_network(preset.shown, seed, ridge=ridge) for seed in preset.seeds]
            for why, ridge in (("0.001/L̃, cost averaged over outputs", RIDGE / preset.shown),
                               ("0.001, cost summed over outputs", PAPER_RIDGE))
        }  # fmt: skip
    depths = preset.depths if "2a" in wanted else (preset.shown_depth,)
    schemes = SCHEMES if wanted & {"2a", "2c"} else ("adaptive",)
    steps = {
        (depth, scheme): [preset.step_network(depth, scheme, seed) for seed in preset.step_seeds]
        for depth in depths for scheme in schemes
    } if wanted & {"2a", "2b", "2c"} else {}  # fmt: skip

    def on(group: list[Network]) -> list[Network]:
        return [dataclasses.replace(n, config=dataclasses.replace(n.config, device=device)) for n in group]

    return _Needs(on(main), on(finer), {k: on(g) for k, g in readings.items()}, {k: on(g) for k, g in steps.items()})


def plan_reproduction(preset: str, figures: Sequence[str] = (), *, device: str = "cpu") -> int:
    """How many networks the figures need. Raises `InputError` for an unknown preset or figure."""
    needs = _needs(check_preset(preset), check_figures(figures), device)
    return len({network.name for network in needs.all()})


@functools.cache
def _teacher_logs(widths: tuple[int, ...], kind: str, n: int, seed: int) -> tuple[float, ...]:
    source = {"name": "teacher", "seed": seed, "widths": list(widths), "kind": kind, "n_train": n, "n_test": n}
    found = task_from_source(source).description["jacobian_log_singular_values"]
    assert isinstance(found, list)
    return tuple(float(v) for v in found[:BOTTLENECK])


def teacher_logs(t: Trained) -> list[float]:
    """Mean `log s_i` of the teacher's Jacobian, in the task's units, the largest first."""
    source = t.network.source
    return list(_teacher_logs(tuple(source["widths"]), source["kind"], source["n_train"], source["seed"]))


def reproduce_leaky_resnets(
    out: str | Path,
    *,
    preset: str = "quick",
    figures: Sequence[str] = (),
    jobs: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> RunFolder:
    """Figures of the Leaky ResNet paper: networks, charts (PNG, SVG, PDF), data, a verdict on each claim, and a page.

    `out` keeps every network: the same command goes on where it was interrupted, and another figure uses the networks
    that are there. Source: arXiv 2405.17573, docs/theory 1.6–1.9.

    Args:
        out: the folder; a new one, or one of this command and preset.
        preset: `quick`, `paper` or `full`.
        figures: any of `FIGURES`; all unless given.
        jobs: processes that train at the same time.
        device: where to train.
        progress: called when a network is done.

    Raises:
        InputError: an unknown preset or figure, or fewer than 1 job.
        RunFolderError: something else is in the folder.
        DivergedError: some networks could not be trained; the others are kept.
    """
    chosen, keys = check_preset(preset), check_figures(figures)

    def make(run: RunFolder, table: MetricTable) -> list[PaperFigure]:
        needs = _needs(chosen, keys, device)
        trained = train_networks(needs.all(), run.path / "networks", jobs=jobs, progress=progress)
        return _figures(chosen, keys, needs, {t.network.name: t for t in trained}, table)

    return LEAKY.run(Path(out), make, preset=preset, figures=keys, jobs=jobs, device=device)


def _figures(
    preset: Preset, keys: Sequence[str], needs: _Needs, trained: Mapping[str, Trained], table: MetricTable
) -> list[PaperFigure]:
    def opened(group: Sequence[Network]) -> list[Trained]:
        return [trained[network.name] for network in group]

    main = opened(needs.main)
    shown = [t for t in main if t.lt == preset.shown]
    steps: StepNetworks = {key: opened(group) for key, group in needs.steps.items()}
    make: dict[str, Callable[[], PaperFigure]] = {
        "1a": lambda: figure_1a(preset, main, opened(needs.finer), {k: opened(g) for k, g in needs.readings.items()},
                                teacher_logs, table),
        "1b": lambda: figure_1b(preset, shown),
        "1c": lambda: figure_1c(preset, shown),
        "2a": lambda: figure_2a(preset, steps),
        "2b": lambda: figure_2b(preset, steps),
        "2c": lambda: figure_2c(preset, steps),
        "3": lambda: figure_3(preset, main),
    }  # fmt: skip
    return [make[key]() for key in keys]
