"""Numbers of pairs of samples while a network learns to tell them apart (arXiv 2402.09142)."""

from __future__ import annotations

from isthmus._metrics._metric import Metric

_TWO_POINTS = "arXiv 2402.09142, docs/theory 2.1"
_TWO_POINTS_FIT = "arXiv 2402.09142, docs/theory 2.4"
_TWO_POINTS_END = "arXiv 2402.09142, docs/theory 2.3"
PAIRS = (
    Metric("pair_h", "pair of samples, layer", "h = ‖dh‖², squared distance of two samples' representations",
           "squared activation", _TWO_POINTS),
    Metric("pair_y", "pair of samples", "y = ‖dy‖², squared distance of two samples' predictions", "squared output",
           _TWO_POINTS),
    Metric("pair_v", "pair of samples", "v = ‖dy‖² − dy·dy*", "squared output", _TWO_POINTS,
           "0 where the predictions are as far apart as the targets."),
    Metric("pair_mean", "pair of samples", "m = ‖ȳ − ȳ*‖², from the mean prediction of two samples to their mean "
           "target", "squared output", _TWO_POINTS),
    Metric("eta_h", "pair of samples, layer", "η_h, effective learning rate of what comes before a layer, fitted to h, "
           "y and v", "squared activation / (step · squared input · squared output)", _TWO_POINTS_FIT),
    Metric("eta_y", "pair of samples, layer", "η_y, effective learning rate of what comes after a layer, fitted to h, "
           "y and v", "1 / (step · squared activation)", _TWO_POINTS_FIT),
    Metric("eta_mean", "pair of samples", "η_ȳ, effective learning rate of the mean prediction, from m = m_0 "
           "exp(−2 η_ȳ t)", "1 / step", _TWO_POINTS_FIT),
    Metric("eta_h_median", "layer", "median of η_h over pairs with R² ≥ 0.9 in h, y and v", "squared activation / "
           "(step · squared input · squared output)", _TWO_POINTS_FIT, "The standard error is of the pairs' scatter."),
    Metric("eta_y_median", "layer", "median of η_y over pairs with R² ≥ 0.9 in h, y and v", "1 / (step · squared "
           "activation)", _TWO_POINTS_FIT, "The standard error is of the pairs' scatter."),
    Metric("two_point_r_squared", "pair of samples, layer", "smallest R² of h, y and v by two effective learning "
           "rates; a curve's standard deviation counts as a twentieth of its size at least", "fraction",
           _TWO_POINTS_FIT),
    Metric("two_point_error", "pair of samples, layer", "root mean squared error of the second half of a pair's way, "
           "predicted from the first: the largest of h, y and v, each over its range, which counts as a twentieth of "
           "its size at least", "fraction", _TWO_POINTS_FIT),
    Metric("two_point_share", "layer", "share of the judged pairs with two_point_r_squared ≥ 0.9 and two_point_error ≤ "
           "0.1", "fraction", _TWO_POINTS_FIT),
    Metric("laziness", "pair of samples, layer", "A / √(A² + 4 (η_h/η_y) X Y), A = h_0 − (η_h/η_y) X y_0/h_0: 0 is "
           "rich, 1 lazy, −1 all weight in the decoder", "", _TWO_POINTS_END),
    Metric("laziness_median", "layer", "median of laziness over pairs with R² ≥ 0.9 in h, y and v and targets that "
           "differ", "", _TWO_POINTS_END),
    Metric("structure_correlation", "layer", "Pearson's correlation of h_∞ = ½ (A + √(A² + 4 (η_h/η_y) X Y)) and the "
           "final h over pairs of samples, with the layer's median of η_h/η_y", "", _TWO_POINTS_END,
           "Compare with the correlation of the initial h and the final h, in the rows with a baseline."),
)  # fmt: skip
