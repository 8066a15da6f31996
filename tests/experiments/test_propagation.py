from __future__ import annotations

from pathlib import Path

import pytest

from isthmus.experiments import PropagationConfig, run_propagation

CHAOTIC = {"activation": "tanh", "weight_variance": 3.0, "bias_variance": 0.1}  # c* = 0.4775
CENTRED = CHAOTIC | {"bias_variance": 0.0}  # c* = 0
LINEAR = {"activation": "linear", "weight_variance": 1.0}
PAIRS = "correlations of pre-activations go from"
DIED = "Once activations have died out, every correlation is kept: inputs stay apart."
BELOW = "is not above the backward correlation at the input: there is no equilibrium layer."
NOTHING_LOST = "Nothing is lost forwards: the forward loss is nowhere below that of the input, "


@pytest.mark.parametrize(
    ("settings", "phase", "equilibrium"),
    [
        ({}, f"signals go deepest. Inputs become more alike with depth: {PAIRS} 0 to c* = 1 in the long run, as a "
         "power of the layer.", "are equal at layer"),
        ({"correlation": 1.0}, "The inputs are equal, and stay so.", BELOW),
        ({"activation": "tanh", "weight_variance": 0.5}, f"gradients vanish, and activations die out. {DIED}",
         f"{NOTHING_LOST}1."),
        ({"activation": "gelu"}, DIED, "are equal at layer"),
        ({"activation": "silu"}, DIED, "are equal at layer"),
        (LINEAR | {"correlation": 0.3}, "Every correlation is kept: inputs stay as alike as they are.",
         f"{BELOW} {NOTHING_LOST}0.7."),
        (LINEAR, "Every correlation is kept: inputs stay as alike as they are.", BELOW),
        (LINEAR | {"weight_variance": 2.0}, "grows without end. Once activations have grown large, every correlation "
         "is kept", BELOW),
        (CHAOTIC, f"gradients explode. Inputs become more alike with depth: {PAIRS} 0.03226 to c* = 0.4775 in the long "
         "run, closer by a factor e in 8.985 layers.", "are equal at layer"),
        (CHAOTIC | {"correlation": 0.9}, f"Inputs become less alike with depth: {PAIRS} 0.9032 to c* = 0.4775",
         f"{NOTHING_LOST}0.1."),
        (CENTRED, "Correlations of pre-activations start at c* = 0, where they stay.",
         f"are equal at layer 12 of 12. {NOTHING_LOST}1."),
        (CENTRED | {"correlation": -1.0}, "The inputs are opposite, and stay so.", "stays above the backward"),
    ],
)  # fmt: skip
def test_words_say_what_the_recursion_does(
    settings: dict[str, str | float], phase: str, equilibrium: str, tmp_path: Path
) -> None:
    config = PropagationConfig(12, **settings)  # pyright: ignore[reportArgumentType]
    run = run_propagation(config, tmp_path / "run", page=False)
    claims = {claim.name: claim for claim in run.verdict()}
    assert phase in claims["phase"].text
    assert equilibrium in claims["equilibrium"].text
    assert ("law" in claims) == (not settings)  # not for equal inputs, which have no equilibrium layer at any depth
    losses = run.arrays()["propagation/forward_loss"]
    if "more alike" in phase:
        assert losses[-1] < losses[1] - 0.1
    elif "less alike" in phase:
        assert losses[-1] > losses[1] + 0.1
    elif DIED in phase:
        assert losses[-1] == pytest.approx(losses[-3], rel=0.05)
    else:
        assert losses.tolist() == pytest.approx([losses[0]] * 13, abs=1e-12)
