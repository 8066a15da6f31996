"""The claims of a reproduction: which figure each belongs to, and whether it held."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from isthmus._records import Claim
from isthmus.report._figures import Section
from isthmus.report._numbers import ShownClaim, shown_claim
from isthmus.report._read import RunView
from isthmus.report._reproduced import PaperFigure, clean
from isthmus.report._reproducedfigures import OTHER, claim_figure

OUTCOMES = {"held": "held", "partly": "partly held", "not": "not held", "not judged": "not judged"}
"""What a claim says of itself, and how the page says it."""

_CLAIMS = 40


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim, its name without that of its figure, and whether it held; `style` is a class of the style sheet."""

    shown: ShownClaim
    name: str
    outcome: str
    style: str


def _outcome(claim: Claim) -> str:
    held = claim.values.get("holds")
    return held if isinstance(held, str) and held in OUTCOMES else "not judged"


def _belongs(run: RunView, claim: Claim, figure: PaperFigure) -> bool:
    if run.reproduction is None:
        return False
    own = claim_figure(run.reproduction, claim.name)
    return own is figure or (own is None and figure is OTHER)


def _claims(run: RunView, figure: PaperFigure) -> list[Claim]:
    return [claim for claim in run.claims if _belongs(run, claim, figure)]


def judged(run: RunView, figure: PaperFigure) -> list[Judged]:
    """The claims of one figure, in the order of the verdict."""
    found: list[Judged] = []
    for claim in _claims(run, figure)[:_CLAIMS]:
        name = clean(claim.name).removeprefix(f"{figure.key}/") if figure is not OTHER else clean(claim.name)
        outcome = _outcome(claim)
        values = {k: v for k, v in claim.values.items() if k != "holds"}
        shown = shown_claim(run, dataclasses.replace(claim, values=values))
        said = clean(name.replace("-", " ").replace("_", " "), 120) or "(no name)"
        found.append(Judged(shown, said, OUTCOMES[outcome], outcome.replace(" ", "-")))
    return found


def left_out(run: RunView, figure: PaperFigure) -> int:
    """How many claims of a figure the page does not show."""
    return max(0, len(_claims(run, figure)) - _CLAIMS)


def overview(run: RunView, sections: Sequence[Section]) -> list[tuple[str, PaperFigure, list[Judged]]]:
    """Every figure of the page by its short name, with its claims."""
    papers = [(section.short, section.paper) for section in sections if section.paper is not None]
    return [(short, figure, judged(run, figure)) for short, figure in papers]


def tally(run: RunView) -> str:
    """How many claims held, in one sentence."""
    if not run.claims:
        return "This run states no claims."
    counts = Counter(_outcome(claim) for claim in run.claims)
    said = ", ".join(f"{counts[key]} {words}" for key, words in OUTCOMES.items() if counts[key])
    return f"{len(run.claims)} {'claim' if len(run.claims) == 1 else 'claims'} checked: {said}."


def took(seconds: float | None) -> str:
    """A span of time in words."""
    if seconds is None or seconds < 0:
        return "not recorded by this run"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 6000 else f"{minutes / 1440:.0f} days"
