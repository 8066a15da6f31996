"""The effective learning rates of many pairs of samples at once."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus._errors import InputError
from isthmus.theory._curve_fits import THIN, held
from isthmus.theory._two_point import Numbers, check_distances
from isthmus.theory._two_point_fit import TwoPointFit
from isthmus.theory._two_point_flow import curves_and_slopes
from isthmus.theory._two_point_search import MEAN, STARTS, fit_mean, fit_rates
from isthmus.theory._two_point_traces import Start, check_times, gap_of_means, usable

_CHUNK = 65536
"""Numbers of one curve that are worked on at a time."""
_COLUMNS = (
    "eta_h", "eta_y", "eta_h_stderr", "eta_y_stderr", "correlation", "covariance", "start", "laziness", "misfit",
    "noise", "autocorrelation", "r_squared", "r_squared_all", "start_misfits", "starts_agreeing", *MEAN,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TwoPointFits:
    """Two effective learning rates for each of many pairs, and how well the theory fits (docs/theory 2.4).

    A row for each fit. Rows that could not be fitted are NaN, and `reasons` says why. `fits[i]` is one of them with its
    curves, as `fit_two_point` gives it.

    Attributes:
        eta_h: of the encoder.
        eta_y: of the decoder.
        eta_h_stderr: its standard error, `η_h` times that of `log η_h`.
        eta_y_stderr: its standard error.
        correlation: of `log η_h` and `log η_y`.
        covariance: of the parameters, as in `TwoPointFit`.
        start: `h(0), a, b²` of the fitted curves.
        misfit: `Σ residual²` over times and curves.
        noise: standard deviation of the residuals of each curve: h, y, v here and below.
        autocorrelation: of neighbouring residuals of each curve.
        r_squared: `1 − Σ residual² / Σ (curve − its mean)²` of each curve.
        r_squared_all: the same with both sums over the three curves.
        laziness: `A / √(A² + 4 (η_h/η_y) X Y)`: 0 is rich, 1 lazy (docs/theory 2.3).
        start_misfits: what each start came to, on thinned times, smallest first; NaN where there was no such start.
        starts_agreeing: share of the starts that came to the smallest, within a thousandth.
        used: how many of the times were fitted: fewer than all where the run diverged, 0 where none could be.
        reasons: why a row could not be fitted; empty where it was.
        notes: what there is to know about a diverged run, or about the rate of the mean; empty if nothing.
        eta_mean: `η_ȳ`, of the mean prediction; NaN where neither `loss` nor `mean` was given, or there is none.
        eta_mean_stderr: its standard error.
        eta_mean_r_squared: of `‖ȳ − ȳ*‖²` by its exponential.
        times: as given (not copied, and so are the next five).
        h: as given.
        y: as given.
        v: as given.
        dx2: as given, one for each fit.
        dy2: as given, one for each fit.
    """

    eta_h: Float[Tensor, " fits"]
    eta_y: Float[Tensor, " fits"]
    eta_h_stderr: Float[Tensor, " fits"]
    eta_y_stderr: Float[Tensor, " fits"]
    correlation: Float[Tensor, " fits"]
    covariance: Float[Tensor, "fits p p"]
    start: Float[Tensor, "fits 3"]
    misfit: Float[Tensor, " fits"]
    noise: Float[Tensor, "fits 3"]
    autocorrelation: Float[Tensor, "fits 3"]
    r_squared: Float[Tensor, "fits 3"]
    r_squared_all: Float[Tensor, " fits"]
    laziness: Float[Tensor, " fits"]
    start_misfits: Float[Tensor, "fits starts"]
    starts_agreeing: Float[Tensor, " fits"]
    used: Int[Tensor, " fits"]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    eta_mean: Float[Tensor, " fits"]
    eta_mean_stderr: Float[Tensor, " fits"]
    eta_mean_r_squared: Float[Tensor, " fits"]
    times: Float[Tensor, "fits times"]
    h: Float[Tensor, "fits times"]
    y: Float[Tensor, "fits times"]
    v: Float[Tensor, "fits times"]
    dx2: Float[Tensor, " fits"]
    dy2: Float[Tensor, " fits"]

    def __len__(self) -> int:
        return len(self.reasons)

    def __getitem__(self, index: int) -> TwoPointFit:
        """One fit with its curves and residuals.

        Raises:
            InputError: a row that could not be fitted; it says why.
            IndexError: no such row.
        """
        i = range(len(self))[index]
        if self.reasons[i]:
            raise InputError(f"fits[{i}]", "a row that was not fitted", "a row whose reason is empty", self.reasons[i])

        one = slice(i, i + 1)
        used, errors = int(self.used[i]), self.covariance[i]
        t = self.times[i, :used].double().cpu()
        measured = _rows(self.h, self.y, self.v, torch.tensor([i]))[0, :, :used]
        rates = torch.stack([self.eta_h[one], self.eta_y[one]], 1).log()
        h, a, b2 = self.start[one].unbind(1)
        p = torch.cat([rates, torch.stack([h.log(), a, b2.sqrt()], 1)], 1)[:, : len(errors)]
        fitted = curves_and_slopes((t - t[0])[None], p, self.start[one], self.dx2[one], self.dy2[one])[0][0]
        known = not bool(torch.isnan(self.eta_mean[i]))
        return TwoPointFit(
            eta_h=float(self.eta_h[i]),
            eta_y=float(self.eta_y[i]),
            eta_h_stderr=float(self.eta_h_stderr[i]),
            eta_y_stderr=float(self.eta_y_stderr[i]),
            correlation=float(self.correlation[i]),
            covariance=errors,
            start=self.start[i],
            fitted=fitted,
            residuals=measured - fitted,
            misfit=float(self.misfit[i]),
            noise=self.noise[i],
            autocorrelation=self.autocorrelation[i],
            r_squared=self.r_squared[i],
            r_squared_all=float(self.r_squared_all[i]),
            laziness=float(self.laziness[i]),
            start_misfits=self.start_misfits[i][~torch.isnan(self.start_misfits[i])],
            starts_agreeing=float(self.starts_agreeing[i]),
            times=t,
            measured=measured,
            dx2=float(self.dx2[i]),
            dy2=float(self.dy2[i]),
            used=used,
            note=self.notes[i],
            eta_mean=float(self.eta_mean[i]) if known else None,
            eta_mean_stderr=float(self.eta_mean_stderr[i]) if known else None,
            eta_mean_r_squared=float(self.eta_mean_r_squared[i]) if known else None,
        )


def _rows(h: Tensor, y: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Some rows of the three traces, `(rows, 3, times)`."""
    return torch.stack([x[rows].double() for x in (h, y, v)], 1)


def fit_two_points(
    t: Float[Tensor, " times"] | Float[Tensor, "fits times"],
    h: Float[Tensor, "fits times"],
    y: Float[Tensor, "fits times"],
    v: Float[Tensor, "fits times"],
    *,
    dx2: Numbers,
    dy2: Numbers,
    start: Start = "measured",
    loss: Float[Tensor, "fits times"] | None = None,
    mean: Float[Tensor, "fits times"] | None = None,
) -> TwoPointFits:
    """Fit `η_h` and `η_y` to the states of many pairs at once (arXiv 2402.09142, docs/theory 2.4).

    What `fit_two_point` does, for every row. A row that cannot be fitted does not stop the others: its numbers are NaN,
    and `reasons` says why. Runs of different lengths go into one call with NaN after their ends. Rows are worked on
    a few at a time, so that memory hardly grows with their number.

    Args:
        t: times, increasing, the same for all rows or a row for each fit; steps, say. Then the rates are per step.
        h: `‖dh‖²` at these times.
        y: `‖dy‖²`, of predictions.
        v: `‖dy‖² − dy·dy*`.
        dx2: `X`, squared distance of the two inputs, one for all or one for each fit.
        dy2: `Y`, squared distance of the two targets, the same.
        start: `measured` or `fitted`, as in `fit_two_point`.
        loss: `½ mean_i ‖y_i − y_i*‖²` over the two samples, for the rate of the mean.
        mean: `‖ȳ − ȳ*‖²`, of the mean prediction from the mean target, for the same where the loss is not known.

    Raises:
        InputError: shapes that do not agree, common times that do not increase or are fewer than 8, or both `loss` and
            `mean`. What is wrong with one row is in its `reasons`.

    Example:
        >>> t = torch.linspace(0, 60, 100)
        >>> path = two_point(t, 0.1, 0.02, 0.0, eta_h=torch.tensor([0.2, 0.4]), eta_y=0.5, dx2=1, dy2=0.5)
        >>> fits = fit_two_points(t, path.h, path.y, path.v, dx2=1, dy2=0.5)
        >>> [round(float(rate), 6) for rate in fits.eta_h] == [0.2, 0.4]
        True
        >>> any(fits.reasons)
        False
    """
    return _fit_rows(t, h, y, v, dx2, dy2, start, loss, mean)[0]


def _fit_rows(
    t: Tensor, h: Tensor, y: Tensor, v: Tensor, dx2: Numbers, dy2: Numbers, start: Start,
    loss: Tensor | None, mean: Tensor | None,
) -> tuple[TwoPointFits, list[InputError | None]]:  # fmt: skip
    """The fits, and what is wrong with each row that could not be fitted."""
    if start not in ("measured", "fitted"):
        raise InputError("start", start, "'measured' or 'fitted'")
    if loss is not None and mean is not None:
        raise InputError("mean", "both loss and mean", "one of them", "the loss is used for nothing else")
    h, y, v = (torch.as_tensor(x).detach().cpu() for x in (h, y, v))
    gap = loss if mean is None else mean
    gap = None if gap is None else torch.as_tensor(gap).detach().cpu()
    if h.ndim != 2:
        raise InputError("h", f"shape {tuple(h.shape)}", "shape (fits, times)", "fit_two_point takes a single pair")
    for name, x in (("y", y), ("v", v), ("loss" if mean is None else "mean", gap)):
        if x is not None and x.shape != h.shape:
            raise InputError(name, f"shape {tuple(x.shape)}", f"one number for each of {tuple(h.shape)} (fits, times)")
    count, length = h.shape
    times = torch.as_tensor(t).detach().double().cpu()
    if times.ndim == 1:
        check_times(times)
    if times.shape not in (h.shape[1:], h.shape):
        raise InputError(
            "t", f"shape {tuple(times.shape)}", f"{length} times, or a row of them for each of {count} fits"
        )
    X, Y = _per_fit("dx2", dx2, count), _per_fit("dy2", dy2, count)
    used, notes = torch.zeros(count, dtype=torch.int64), [""] * count
    errors: list[InputError | None] = [None] * count
    for i in range(count):
        try:
            check_distances(float(X[i]), float(Y[i]))
            if times.ndim == 2:
                check_times(times[i])
            used[i], notes[i] = usable(h[i].double(), y[i].double(), v[i].double(), float(Y[i]))
        except InputError as error:
            errors[i] = error
    times = times.expand(h.shape)
    p = 5 if start == "fitted" else 2
    shapes = {"covariance": (p, p), "start": (3,), "noise": (3,), "autocorrelation": (3,), "r_squared": (3,)}
    shapes["start_misfits"] = (STARTS,)
    out = {name: torch.full((count, *shapes.get(name, ())), torch.nan, dtype=torch.float64) for name in _COLUMNS}
    size = max(1, _CHUNK // max(length, STARTS * min(length, THIN)))
    good = used.nonzero()[:, 0]
    for rows in good.split(size) if len(good) else ():
        n = used[rows]
        curves, since = held(_rows(h, y, v, rows), n), held(times[rows] - times[rows, :1], n)
        found = fit_rates(since, curves, n, X[rows], Y[rows], with_start=start == "fitted")
        reached = torch.isfinite(found["misfit"])
        for i in rows[~reached].tolist():
            hint = "are dx2 and dy2 theirs?"
            errors[i] = InputError("h, y, v", "these traces", "curves that the theory can come near", hint)
        if gap is not None:
            own = held(gap[rows].double(), n)
            own = own if loss is None else gap_of_means(own, curves[:, 1], curves[:, 2], Y[rows, None])
            name = "mean" if loss is None else "loss"
            columns, reasons = fit_mean(since, own, n, name, with_start=start == "fitted")
            found |= columns
            for i, reason in zip(rows.tolist(), reasons, strict=True):
                notes[i] = "; ".join(x for x in (notes[i], reason and f"no rate of the mean: {reason}") if x)
        for name, values in found.items():
            out[name][rows[reached]] = values[reached]
    for i, error in enumerate(errors):
        if error is not None:
            used[i], notes[i] = 0, ""
    fits = TwoPointFits(
        **out,
        used=used,
        reasons=tuple("" if error is None else str(error) for error in errors),
        notes=tuple(notes),
        times=times,
        h=h,
        y=y,
        v=v,
        dx2=X,
        dy2=Y,
    )
    return fits, errors


def _per_fit(name: str, value: Numbers, count: int) -> Tensor:
    """A number for each fit, from one for all of them or from one each."""
    found = torch.as_tensor(value).detach().double().cpu()
    if found.shape not in ((), (1,), (count,)):
        raise InputError(name, f"shape {tuple(found.shape)}", f"one number, or one for each of {count} fits")
    return found.expand(count)


def fit_two_point(
    t: Float[Tensor, " times"],
    h: Float[Tensor, " times"],
    y: Float[Tensor, " times"],
    v: Float[Tensor, " times"],
    *,
    dx2: float | int,
    dy2: float | int,
    start: Start = "measured",
    loss: Float[Tensor, " times"] | None = None,
    mean: Float[Tensor, " times"] | None = None,
) -> TwoPointFit:
    """Fit `η_h` and `η_y` to the state of two samples during training (arXiv 2402.09142, docs/theory 2.4).

    Least squares over the three curves, each epoch weighing the same, in `log η`, from many starts at once: the
    equations integrated once over time give the first, which is then multiplied by up to 10 and 1/10. Curves and
    derivatives are exact (docs/theory 2.2). Standard errors are of the sandwich form: each curve has a noise of
    its own, and neighbouring residuals may be correlated.

    Args:
        t: times, increasing; steps, say. Then the rates are per step.
        h: `‖dh‖²` at these times.
        y: `‖dy‖²`, of predictions.
        v: `‖dy‖² − dy·dy*`.
        dx2: `X`, squared distance of the two inputs.
        dy2: `Y`, squared distance of the two targets.
        start: `measured` takes the curves' first values as they are, as the authors do and as a trained network gives
            them; `fitted` finds the state at the first time too, for traces with noise.
        loss: `½ mean_i ‖y_i − y_i*‖²` over the two samples, summed over outputs. What the distance does not explain of
            it is `½ m(t)`, and `m(t) = m_0 e^{−2 η_ȳ t}` is fitted for the rate of the mean.
        mean: `m = ‖ȳ − ȳ*‖²`, of the mean prediction from the mean target, for the same where the loss is not known.

    Where the traces end in numbers that are not finite, the run diverged: what came before is fitted, without the times
    at which `‖dy − dy*‖²` had already exploded, and `used` and `note` say so.

    Raises:
        InputError: traces that are too short, constant, of different lengths or with gaps, or finite at fewer than 8
            times, times that do not increase, negative squared distances, identical inputs, or no start that leads to a
            fit.

    Example:
        >>> t = torch.linspace(0, 60, 100)
        >>> path = two_point(t, 0.1, 0.02, 0.0, eta_h=0.2, eta_y=0.5, dx2=1, dy2=0.5)
        >>> fit = fit_two_point(t, path.h, path.y, path.v, dx2=1, dy2=0.5)
        >>> round(fit.eta_h, 6), round(fit.eta_y, 6)
        (0.2, 0.5)
    """
    for name, trace in (("h", h), ("y", y), ("v", v)):
        if torch.as_tensor(trace).ndim != 1:
            raise InputError(
                name, f"shape {tuple(trace.shape)}", "one list of numbers", "fit_two_points takes many pairs"
            )
    one, two, three = (torch.as_tensor(x)[None] for x in (h, y, v))
    losses, means = (None if x is None else torch.as_tensor(x)[None] for x in (loss, mean))
    fits, (error,) = _fit_rows(t, one, two, three, dx2, dy2, start, losses, means)
    if error is not None:
        raise error
    return fits[0]
