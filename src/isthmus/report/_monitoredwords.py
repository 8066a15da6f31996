"""What the page says in words of a monitored training: what measuring took, and what changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isthmus.report._figures import unbroken
from isthmus.report._heatfigures import strong
from isthmus.report._history import History, SpectraHistory, Track
from isthmus.report._layers import brief
from isthmus.report._monitored import Training
from isthmus.report._read import number, shorten

_REASONS = 6
_IN_A_SENTENCE = 44


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)} %"


def _cost(training: Training) -> str:
    """What the measurements took."""
    said = ""
    if training.share is not None:
        said = f" Measuring took {_percent(training.share)} of the time of training"
        if training.budget is not None:
            said += f"; the budget is {_percent(training.budget)}"
        if training.measuring is not None and training.training is not None:
            said += f" ({number(training.measuring, 3)} s beside {number(training.training, 3)} s)"
        said += "."
        if training.budget is not None and training.share > training.budget:
            said += " The first and the last step are measured whatever they cost."
    if training.start is not None:
        page = "the time that this page took" if training.page is None else f"{number(training.page, 2)} s for the page"
        said += f" Not counted: {number(training.start, 2)} s to make the monitor, and {page}."
    if training.postponed:
        n, of = training.postponed, training.scheduled
        steps = "steps" if of is None or of < n else f"{of} step{'s' if of > 1 else ''}"
        said += f" {n} of the schedule's {steps} {'were' if n > 1 else 'was'} not measured, to keep within the budget."
    return said


def _steps(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:_REASONS]))
    return shown + (f" and {len(steps) - _REASONS} more" if len(steps) > _REASONS else "")


def remarks(training: Training) -> list[str]:
    """At which steps the training was measured, at which not and why, and what it cost."""
    steps = training.steps
    if not steps:
        said = "No step has numbers."
    elif len(steps) == 1:
        said = f"Only step {steps[0]} was measured, so there is no slider: the charts below show that step."
    else:
        said = f"Measured at {len(steps)} steps, from {steps[0]} to {steps[-1]}."
    found = [said + _cost(training)]
    reasons: dict[str, list[int]] = {}
    for step, reason in training.failed:
        reasons.setdefault(reason, []).append(step)
    for reason, failed in list(reasons.items())[:_REASONS]:
        what = "The measurements at steps" if len(failed) > 1 else "The measurement at step"
        found.append(f"{what} {_steps(failed)} failed: {shorten(reason)}")
    if len(reasons) > _REASONS:
        found.append(f"{len(reasons) - _REASONS} more reasons of failed measurements are in run.json.")
    if training.lost:
        found.append(f"run.json lists step {_steps(training.lost)}, of which metrics.parquet holds no number.")
    return [unbroken(text) for text in found]


def _named(past: History, layer: int) -> str:
    return f"layer {brief(past.names[layer], _IN_A_SENTENCE)}"


def with_error(track: Track, step: int, layer: int, digits: int = 3) -> str:
    """A value of a layer at a step, with its standard error where it has one."""
    error = float(track.errors[step, layer])
    shown = number(float(track.values[step, layer]), digits)
    return shown if np.isnan(error) else f"{shown} ± {number(error, 2)}"


def _ends(track: Track) -> tuple[int, int]:
    """The first and the last step at which the track has values."""
    known = np.flatnonzero(np.isfinite(track.values).any(axis=1))
    return int(known[0]), int(known[-1])


def change_answer(past: History) -> str:
    """Where the first track fell and rose most between its ends."""
    track = past.tracks[0]
    first, last = _ends(track)
    change = track.values[last] - track.values[first]
    start = f"From step {past.steps[first]} to step {past.steps[last]} the {track.name} "
    if first == last or np.isnan(change).all():
        return ""
    parts: list[str] = []
    for word, layer in (("falls", int(np.nanargmin(change))), ("rises", int(np.nanargmax(change)))):
        if (change[layer] < 0) == (word == "falls") and change[layer] != 0:
            values = f"from {with_error(track, first, layer)} to {with_error(track, last, layer)}"
            parts.append(f"{word} most at {_named(past, layer)}, {values}")
    if not parts:
        return f"{start}does not change at any layer."
    missing = {0: "rises", 1: "falls"}[int(parts[0].startswith("rises"))] if len(parts) == 1 else ""
    return f"{start}{' and '.join(parts)}{f'; it {missing} nowhere' if missing else ''}."


def peak_answer(past: History) -> str:
    """Where the first track is largest at its first and at its last step."""
    track = past.tracks[0]
    said: list[str] = []
    for step in dict.fromkeys(_ends(track)):
        layer = int(np.nanargmax(track.values[step]))
        said.append(f"{with_error(track, step, layer)} at {_named(past, layer)} at step {past.steps[step]}")
    return f"The largest {track.name}: {', and '.join(said)}."


def spectra_answer(past: SpectraHistory) -> str:
    """The layer whose number of strong directions changed most between the ends."""
    known = np.flatnonzero(np.isfinite(past.values).any(axis=(1, 2)))
    first, last = int(known[0]), int(known[-1])
    counts = np.array([[strong(row) for row in past.values[step]] for step in (first, last)])
    both = np.isfinite(past.values[[first, last]]).any(axis=2).all(axis=0)
    if first == last or not both.any():
        return ""
    change = np.where(both, np.abs(counts[1] - counts[0]), -1)
    layer, start = int(change.argmax()), "Singular values above a tenth of the layer's largest: "
    if change[layer] == 0:
        return f"{start}as many at step {past.steps[last]} as at step {past.steps[first]}, in every layer."
    return (
        f"{start}{counts[0, layer]} at step {past.steps[first]} and {counts[1, layer]} at step {past.steps[last]} in "
        f"layer {brief(past.names[layer], _IN_A_SENTENCE)}, the largest change."
    )
