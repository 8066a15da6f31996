"""What a run's dynamics come to, in words with the rows behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from isthmus._records import Claim
from isthmus.experiments._dynamics_fits import AWAY, ERROR, R_SQUARED, LayerFits, distance_to_target
from isthmus.experiments._dynamics_rows import LayerSummary
from isthmus.experiments._dynamics_source import RecordedPairs
from isthmus.experiments._dynamics_structure import Structure

_NAMED = 6
_UNFINISHED = 0.1
_REGIMES = {
    "rich": "Learnt richly (representations become what inputs and targets ask for)",
    "in between": "Between rich and lazy",
    "lazy": "Lazy (representations stay near those of the start)",
    "moved": "Final distances hardly depend on the targets, yet representations leave those of the start",
    "decoder": "With most of the weight after the layer at the start",
}


def dynamics_claims(run: RecordedPairs, summaries: Sequence[LayerSummary], every: Sequence[LayerFits]) -> list[Claim]:
    """The verdict on a run."""
    claims = [_described(summaries)]
    claims += [claim for claim in (_regime(summaries), _rates(summaries), _structure(summaries)) if claim is not None]
    return [*claims, *_cautions(run, summaries, every)]


def _names(found: Sequence[LayerSummary]) -> str:
    shown = ", ".join(one.layer for one in found[:_NAMED])
    return shown + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def _rows(found: Sequence[LayerSummary], *metrics: str) -> tuple[int, ...]:
    return tuple(one.rows[metric] for one in found for metric in metrics)


def _described(summaries: Sequence[LayerSummary]) -> Claim:
    judged = [one for one in summaries if one.judged]
    rows = _rows(summaries, "two_point_share")
    if not judged:
        text = "Nothing can be said of any layer: no pair of samples can be judged. The table says why."
        return Claim("two_point", text, "none", rows)
    yes, no = ([one for one in judged if one.is_described is wanted] for wanted in (True, False))
    values = {"layers_described": len(yes), "layers_judged": len(judged), "least_r_squared": R_SQUARED,
              "largest_error": ERROR}  # fmt: skip
    if len(judged) == 1:
        text = f"Two numbers {'describe' if yes else 'do not describe'} the layer {judged[0].layer}"
    elif not no:
        text = f"Two numbers describe how each of {len(judged)} layers learns"
    elif not yes:
        text = f"Two numbers describe none of {len(judged)} layers"
    else:
        few, word = (yes, "Described") if len(yes) <= len(no) else (no, "Not described")
        text = f"Two numbers describe how {len(yes)} of {len(judged)} layers learn. {word}: {_names(few)}"
    shares = [one.described / one.judged for one in judged]
    low, high = f"{100 * min(shares):.0f} %", f"{100 * max(shares):.0f} %"
    pairs = f"{low} of the pairs at a layer are" if low == high else f"{low} to {high} of the pairs at a layer are"
    return Claim("two_point", f"{text}. {pairs} described.", "finding" if yes else "none", rows, values)


def _regime(summaries: Sequence[LayerSummary]) -> Claim | None:
    known = [one for one in summaries if one.regime]
    if not known:
        return None
    parts: list[str] = []
    for regime, words in _REGIMES.items():
        found = [one for one in known if one.regime == regime]
        if found:
            which = (
                "every layer" if len(found) == len(summaries) and len(found) > 1
                else f"{len(found)} layers ({_names(found)})" if len(found) > 1
                else f"layer {found[0].layer}"
            )  # fmt: skip
            parts.append(f"{words}: {which}.")
    values = {regime: sum(one.regime == regime for one in known) for regime in _REGIMES}
    return Claim("regime", " ".join(parts), "finding", _rows(known, "laziness_median"), values)


def _rates(summaries: Sequence[LayerSummary]) -> Claim | None:
    known = [one for one in summaries if np.isfinite(one.eta_h[0])]
    if len(known) < 2:
        return None
    parts = [
        f"{name} from {ends[0]:.3g} to {ends[1]:.3g}"
        for name, ends in (("η_h", (known[0].eta_h[0], known[-1].eta_h[0])),
                           ("η_y", (known[0].eta_y[0], known[-1].eta_y[0])))
    ]  # fmt: skip
    text = f"Effective learning rates go, from {known[0].layer} to {known[-1].layer}: {' and '.join(parts)}."
    return Claim("rates", text, "finding", _rows(known, "eta_h_median", "eta_y_median"))


def _structure(summaries: Sequence[LayerSummary]) -> Claim | None:
    known = [
        one for one in summaries if isinstance(one.structure, Structure) and np.isfinite(one.structure.correlation)
    ]
    found = [one.structure for one in known if isinstance(one.structure, Structure)]
    if not found:
        return None
    middle = float(np.median([one.correlation for one in found]))
    start = [one.start for one in found if np.isfinite(one.start)]
    before = float(np.median(start)) if start else float("nan")
    text = f"Final distances between samples correlate with the predicted ones at {middle:.2f}"
    text += " (median over layers)" if len(found) > 1 else ""
    if np.isfinite(before):
        less = (
            "the theory adds nothing to that" if middle <= before else "that is what the theory has to be better than"
        )
        text += f"; with the distances at the start at {before:.2f}, and {less}"
    level = "finding" if np.isfinite(before) and middle > before else "none"
    values = {"correlation": middle, "with_start": before if np.isfinite(before) else None, "n": found[0].n}
    return Claim("structure", text + ".", level, _rows(known, "structure_correlation"), values)


def _cautions(run: RecordedPairs, summaries: Sequence[LayerSummary], every: Sequence[LayerFits]) -> list[Claim]:
    found: list[Claim] = []

    def say(name: str, text: str, **values: float | int | str | None) -> None:
        found.append(Claim(name, text, "caution", values=values))

    total = len(run.pairs) * len(run.layers)
    diverged = sorted({note for one in every for note in one.notes if "diverged" in note})
    if diverged:
        count = sum("diverged" in note for one in every for note in one.notes)
        say("diverged", f"The run diverged: {count} of {total} fits are to what came before it.", fits=count)
    if run.failed:
        reason, count = Counter(run.failed).most_common(1)[0]
        many = "1 record could not be made and is" if len(run.failed) == 1 else (
            f"{len(run.failed)} records could not be made and are")  # fmt: skip
        others = f" ({count} of them)" if count < len(run.failed) else ""
        say("failed_records", f"{many} left out: {reason}{others}.", records=len(run.failed))
    away = sum(AWAY in note for one in every for note in one.notes)
    if away:
        say("moved_away", f"{away} of {total} fits are of pairs whose predictions moved away from their targets, as "
            "other samples or another loss than the mean square can make them: in the theory they never do.",
            fits=away)  # fmt: skip
    skipped = Counter(reason for one in every for reason in one.reasons if reason)
    if skipped:
        reason, count = skipped.most_common(1)[0]
        whole = sum(skipped.values())
        others = f"; {whole - count} others for other reasons" if whole > count else ""
        text = f"{whole} of {total} fits are left out. {count} of them: {reason}{others}."
        say("left_out", text, left_out=whole, fits=total)
    distance = distance_to_target(run.y, run.v, run.dy2)
    finite = np.asarray(np.isfinite(distance).all(axis=1))
    if (finite & (run.dy2 > 0)).any():
        finite &= run.dy2 > 0  # those of equal targets come from next to nothing
    if finite.any() and not diverged:
        left = float(np.median(distance[finite, -1] / np.maximum(distance[finite, 0], 1e-300)))
        if left > 1:
            say("unfinished", f"The squared distance between predictions and targets grew {left:.3g}-fold (median over "
                "pairs), and the final structure of 2.3 is for an end where it is 0.", left=left)  # fmt: skip
        elif left > _UNFINISHED:
            say("unfinished", f"Training had not come to its end: {100 * left:.0f} % of the squared distance between "
                "predictions and targets is left (median over pairs), and the final structure of 2.3 is for the end.",
                left=left)  # fmt: skip
    lacking = sum(
        bool(why) and why != AWAY and not reason
        for one in every
        for why, reason in zip(one.why_none, one.reasons, strict=True)
    )
    if lacking:
        say("no_prediction", f"{lacking} of {total} fits have no prediction of their second half, so they do not count "
            "as described; record more often where training is fast.", fits=lacking)  # fmt: skip
    notes = [note for note in run.notes if not note.startswith("not tracked")]  # the page names the layers that are
    if notes:
        say("pairs", f"About the pairs: {'; '.join(notes)}.")
    if "cross" in run.loss.lower() or "nll" in run.loss.lower():
        say(
            "loss",
            f"The loss recorded in this run is {run.loss}; the theory is for a training on the mean-square loss.",
            loss=run.loss,
        )
    return found
