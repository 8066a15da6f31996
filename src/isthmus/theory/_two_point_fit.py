"""The two effective learning rates of a network, fitted to how two of its samples came apart."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.theory._two_point_flow import curves_and_slopes


@dataclasses.dataclass(frozen=True)
class TwoPointBand:
    """What a fit predicts; rows are h, y, v.

    Attributes:
        times: the times asked for.
        value: the curves.
        low: below which a measurement falls with probability `(1 − confidence)/2`.
        high: above which it does.
    """

    times: Float[Tensor, " times"]
    value: Float[Tensor, "3 times"]
    low: Float[Tensor, "3 times"]
    high: Float[Tensor, "3 times"]


@dataclasses.dataclass(frozen=True)
class TwoPointFit:
    """Two effective learning rates, and how well the theory fits (arXiv 2402.09142, docs/theory 2.4).

    Attributes:
        eta_h: of the encoder.
        eta_y: of the decoder.
        eta_h_stderr: its standard error, `η_h` times that of `log η_h`.
        eta_y_stderr: its standard error.
        correlation: of `log η_h` and `log η_y`.
        covariance: of the parameters: `log η_h, log η_y`, and where the start is fitted `log h(0)`, `a` and `b`, the
            parts of `dy/√h` along and across `dy*`.
        start: `h(0), a, b²` of the fitted curves.
        fitted: the curves at the times given; rows are h, y, v here and below.
        residuals: measured minus fitted.
        misfit: `Σ residual²` over times and curves.
        noise: standard deviation of the residuals of each curve.
        autocorrelation: of neighbouring residuals, within `[0, 1)`: near 1 where the theory, and not noise, is what
            they come from. Standard errors are widened by `√((1 + ρ)/(1 − ρ))` for it.
        r_squared: `1 − Σ residual² / Σ (curve − its mean)²` of each curve.
        r_squared_all: the same with both sums over the three curves.
        laziness: `A / √(A² + 4 (η_h/η_y) X Y)` of the fitted curves: 0 is rich, 1 lazy (docs/theory 2.3).
        start_misfits: what each start of the search came to, on thinned times, smallest first.
        starts_agreeing: share of the starts that came to the smallest, within a thousandth.
        times: those that were fitted.
        measured: the curves at these times.
        dx2: as given.
        dy2: as given.
        used: how many of the times given were fitted: fewer than all where the run diverged.
        note: what there is to know about that, or about the rate of the mean; empty if nothing.
        eta_mean: `η_ȳ`, of the mean prediction; None where neither `loss` nor `mean` was given, or there is none.
        eta_mean_stderr: its standard error.
        eta_mean_r_squared: of `‖ȳ − ȳ*‖²` by its exponential.
    """

    eta_h: float
    eta_y: float
    eta_h_stderr: float
    eta_y_stderr: float
    correlation: float
    covariance: Float[Tensor, "p p"]
    start: Float[Tensor, " 3"]
    fitted: Float[Tensor, "3 times"]
    residuals: Float[Tensor, "3 times"]
    misfit: float
    noise: Float[Tensor, " 3"]
    autocorrelation: Float[Tensor, " 3"]
    r_squared: Float[Tensor, " 3"]
    r_squared_all: float
    laziness: float
    start_misfits: Float[Tensor, " starts"]
    starts_agreeing: float
    times: Float[Tensor, " times"]
    measured: Float[Tensor, "3 times"]
    dx2: float
    dy2: float
    used: int
    note: str = ""
    eta_mean: float | None = None
    eta_mean_stderr: float | None = None
    eta_mean_r_squared: float | None = None

    def interval(self, confidence: float = 0.95) -> Float[Tensor, "2 2"]:
        """Confidence intervals `(low, high)` of `η_h` and of `η_y`, a row each; symmetric in their logarithms.

        Raises:
            InputError: a confidence outside (0, 1).
        """
        rates = torch.tensor([self.eta_h, self.eta_y], dtype=torch.float64)
        width = self._quantile(confidence) * self.covariance.diagonal()[:2].sqrt()
        return torch.stack([rates * torch.exp(-width), rates * torch.exp(width)], 1)

    def predict(self, times: Float[Tensor, " times"], *, confidence: float = 0.95) -> TwoPointBand:
        """The curves at any times from the first one on, with intervals for single measurements.

        Their variance is that of the residuals plus what the uncertainty of the parameters makes of the curve. Where
        the theory itself is off, residuals do not know how far it will be off later.

        Raises:
            InputError: times before the first one of the fit, or a confidence outside (0, 1).
        """
        quantile = self._quantile(confidence)
        t = torch.as_tensor(times).detach().double()
        if t.ndim != 1 or not bool((torch.isfinite(t) & (t >= self.times[0])).all()):
            raise InputError("times", times, f"a list of times, none before the first of the fit ({self.times[0]:g})")
        rates = torch.tensor([[self.eta_h, self.eta_y]], dtype=torch.float64).log()
        h, a, b2 = self.start
        parameters = torch.cat([rates[0], torch.stack([h.log(), a, b2.sqrt()])])[None, : len(self.covariance)]
        inputs, targets = torch.tensor([[self.dx2], [self.dy2]], dtype=torch.float64)
        since = (t - self.times[0])[None]
        value, slope = curves_and_slopes(since, parameters, self.start[None], inputs, targets)
        value, slope = value[0], slope[0]
        spread = torch.einsum("ict,ij,jct->ct", slope, self.covariance, slope)
        width = quantile * (spread.clamp(min=0) + self.noise.square()[:, None]).sqrt()
        return TwoPointBand(times=t, value=value, low=value - width, high=value + width)

    def _quantile(self, confidence: float) -> float:
        if not 0 < confidence < 1:
            raise InputError("confidence", confidence, "a number in (0, 1)")
        import scipy.stats  # not at the top: it takes a while to load

        return float(scipy.stats.t.ppf((1 + confidence) / 2, self.residuals.numel() - len(self.covariance)))
