"""A compression in words: how many layers, at what loss on samples that chose and on samples that did not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from isthmus._records import Claim
from isthmus.experiments._compression_rows import CHOOSING, FULL, JUDGING
from isthmus.train import DepthCurve


def _change(part: Mapping[str, Any], *, relative: bool) -> str:
    """How far the loss moved, with the standard error of the move where it is known."""
    full, loss, error = part["full"], part["loss"], part.get("change_stderr")
    if relative and full > 0:
        spread = f" ± {100 * error / full:.2g} %" if error is not None else ""
        return f"{100 * (loss / full - 1):+.2g} %{spread}"
    return f"{loss - full:+.3g}" + (f" ± {error:.2g}" if error is not None else "")


def _score(record: Mapping[str, Any]) -> str:
    """How far the score moved on the samples that judge; empty where it is not defined."""
    ends = [record[JUDGING].get(name) for name in ("full_score", "score")]
    if not all(isinstance(end, float) and math.isfinite(end) for end in ends):
        return ""
    return f", and {'accuracy' if record['score'] == 'accuracy' else 'R²'} from {ends[0]:.3g} to {ends[1]:.3g}"


def compression_claims(record: Mapping[str, Any], every: DepthCurve, rows: Mapping[str, int]) -> list[Claim]:
    """The claims of a compression.

    Args:
        record: of `compression_record`.
        every: loss against depth by every method, on the samples that choose.
        rows: of `compression_rows`.
    """
    choosing, judging, relative = record[CHOOSING], record[JUDGING], bool(record["relative"])
    behind = [rows[f"{who}/{split}/loss"] for who in (FULL, "small") for split in (CHOOSING, JUDGING)]
    scores = [rows[name] for who in (FULL, "small") if (name := f"{who}/{JUDGING}/{record['score']}") in rows]
    tuned = f" and {record['finetune']} epochs of fine-tuning" if record["finetune"] else ""
    allowed = f"{100 * record['tolerance']:.3g} %" if relative else f"{record['tolerance']:.3g}"
    numbers = {
        "depth": record["depth"], "depth_before": record["depth_before"], "tolerance": record["tolerance"],
        **{f"{split}_{key}": record[split][key] for split in (CHOOSING, JUDGING) for key in ("full", "loss", "n")},
    }  # fmt: skip
    said = f"{record['depth_before']} → {record['depth']} layers by {record['method']}{tuned}. "
    if judging["loss"] is None:
        text = f"On the {judging['n']} samples that did not choose, its outputs are not finite numbers: do not use it."
        return [Claim("depth", said + text, "caution", tuple(behind), numbers), _others(record, every)]
    went = {split: f"from {part['full']:.3g} to {part['loss']:.3g} ({_change(part, relative=relative)}"
            for split, part in ((CHOOSING, choosing), (JUDGING, judging))}  # fmt: skip
    text = (
        f"On the {judging['n']} samples that did not choose, the loss went {went[JUDGING]}){_score(record)}; on the "
        f"{choosing['n']} that chose, {went[CHOOSING]}, where {allowed} more was allowed)."
    )
    claims = [Claim("depth", said + text, "finding", (*behind, *scores), numbers)]
    if judging["loss"] > judging["bound"]:
        text = (
            f"On the samples that did not choose, the loss rose by more than the tolerance of {allowed}: the depth "
            "looks better to the samples that chose it. Give a smaller tolerance, or a run that held out more samples."
        )
        claims.append(Claim("judged", text, "caution", tuple(behind[1::2]), {"bound": judging["bound"]}))
    return [*claims, _others(record, every)]


def _others(record: Mapping[str, Any], every: DepthCurve) -> Claim:
    """How far every method gets without training, on the samples that choose."""
    bound, before = record[CHOOSING]["bound"], record["depth_before"]
    least: dict[str, int] = {}
    for point in every.points:
        if point.loss is not None and point.loss <= bound:
            least[point.method] = min(point.depth, least.get(point.method, point.depth))
    parts = [f"{method} {depth}" for method, depth in sorted(least.items(), key=lambda item: item[1]) if depth < before]
    none = [method for method, depth in least.items() if depth == before]
    text = "Fewest layers within the bound without training, on the samples that choose: " + (
        ", ".join(parts) if parts else "none below the full depth"
    )
    text += f"; {' and '.join(none)} no fewer than {before}." if parts and none else "."
    return Claim("methods", text, "finding" if parts else "none", (), dict(least))
