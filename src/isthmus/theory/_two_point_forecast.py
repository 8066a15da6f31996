"""The rest of a run, predicted from how two of its samples came apart at its beginning."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._errors import InputError
from isthmus.theory._two_point_fit import TwoPointBand, TwoPointFit
from isthmus.theory._two_point_fits import fit_two_point
from isthmus.theory._two_point_traces import Start, check_times, usable


@dataclasses.dataclass(frozen=True)
class TwoPointForecast:
    """The rest of a run, predicted from its beginning (docs/theory 2.4).

    Attributes:
        fit: to the beginning.
        band: the prediction of the rest.
        error: root of the mean squared error over the rest, of each curve: h, y, v.
        r_squared: `1 − Σ error² / Σ (curve − its value at the split)²` over the rest, of each curve: below 0 where
            saying "nothing changes any more" would have been better.
        covered: share of the rest inside the band, of each curve.
    """

    fit: TwoPointFit
    band: TwoPointBand
    error: Float[Tensor, " 3"]
    r_squared: Float[Tensor, " 3"]
    covered: Float[Tensor, " 3"]


def forecast_two_point(
    t: Float[Tensor, " times"],
    h: Float[Tensor, " times"],
    y: Float[Tensor, " times"],
    v: Float[Tensor, " times"],
    *,
    dx2: float | int,
    dy2: float | int,
    share: float = 0.5,
    start: Start = "measured",
    confidence: float = 0.95,
) -> TwoPointForecast:
    """Fit the beginning of a run and predict the rest of it (docs/theory 2.4).

    Args:
        t: as in `fit_two_point`, and so are `h`, `y`, `v`, `dx2`, `dy2` and `start`.
        h: `‖dh‖²`.
        y: `‖dy‖²`.
        v: `‖dy‖² − dy·dy*`.
        dx2: `X`.
        dy2: `Y`.
        share: of the measurements that are fitted.
        start: see `fit_two_point`.
        confidence: of the band.

    Raises:
        InputError: what `fit_two_point` raises for the beginning, or a share that leaves nothing to predict.
    """
    times = torch.as_tensor(t).detach().double().cpu()
    check_times(times)
    h, y, v = (torch.as_tensor(x).detach().double().cpu() for x in (h, y, v))
    used, _ = usable(h, y, v, float(dy2))
    times, curves = times[:used], torch.stack([h, y, v])[:, :used]
    cut = round(share * len(times)) if 0 < share < 1 else len(times)
    if cut >= len(times):
        raise InputError("share", share, "a number in (0, 1) that leaves at least one time to predict")
    fit = fit_two_point(times[:cut], h[:cut], y[:cut], v[:cut], dx2=dx2, dy2=dy2, start=start)
    band = fit.predict(times[cut:], confidence=confidence)
    rest = curves[:, cut:]
    error = (rest - band.value).square()
    power = (rest - curves[:, cut - 1 : cut]).square().sum(1)
    return TwoPointForecast(
        fit=fit,
        band=band,
        error=error.mean(1).sqrt(),
        r_squared=1 - error.sum(1) / power.clamp(min=1e-300),
        covered=((rest >= band.low) & (rest <= band.high)).double().mean(1),
    )
