"""Settings of the effective theory's experiments (arXiv 2402.09142, docs/theory 2.5), in three sizes."""

from __future__ import annotations

import dataclasses

from isthmus.experiments._effective_frame import FigureSettings


@dataclasses.dataclass(frozen=True)
class EffectivePreset:
    """Sizes and training of all figures.

    Attributes:
        name: of the preset.
        budget: what the figures may take, in words.
        setting: what holds for all figures, in words.
        needs_file: whether images must be given for the figures that read them; the digits otherwise.
        figures: settings of each, by its name.
    """

    name: str
    budget: str
    setting: str
    needs_file: bool
    figures: dict[str, FigureSettings]

    def figure(self, key: str) -> FigureSettings:
        """The settings of a figure."""
        return self.figures[key]


PRESETS: dict[str, EffectivePreset] = {
    preset.name: preset
    for preset in (
        EffectivePreset("quick", "a minute or two", "", False, {}),
        EffectivePreset("paper", "an hour", "", True, {}),
        EffectivePreset("full", "days", "", True, {}),
    )
}  # fmt: skip
"""The presets by name."""
