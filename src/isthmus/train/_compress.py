"""Fewer layers for a trained Leaky ResNet: loss against depth, and the smallest depth within a stated loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from isthmus._errors import DivergedError, InputError
from isthmus.models import LeakyResNet, real_number, whole_number
from isthmus.train._config import FitConfig
from isthmus.train._loop import fit
from isthmus.train._objective import check_samples, data_term, score
from isthmus.train._resample import RESAMPLE_METHODS, least_depth, resampler

if TYPE_CHECKING:
    import polars as pl


@dataclasses.dataclass(frozen=True)
class DepthPoint:
    """A network of one depth, judged.

    Attributes:
        method: how it was made, a method of `resample`.
        depth: `L'`.
        loss: data term on the samples; None where there is no such network, or none with finite outputs.
        score: accuracy or R² there, NaN where it is not defined; None as `loss`.
        note: why there is no number; else empty.
    """

    method: str
    depth: int
    loss: float | None
    score: float | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class DepthCurve:
    """Loss against depth (`depth_curve`, `compress`); printed as a table.

    Attributes:
        points: of all methods and depths, deep ones first; the full depth is among them.
        full: the model itself.
        loss_name: `square`, `mean_square` or `cross_entropy`.
        score_name: `accuracy` or `r_squared`.
    """

    points: tuple[DepthPoint, ...]
    full: DepthPoint
    loss_name: str
    score_name: str

    def frame(self) -> pl.DataFrame:
        """A row for each point: `method`, `depth`, `loss`, `score`, `note`; missing numbers are null."""
        import polars as pl

        schema = {"method": pl.String, "depth": pl.Int64, "loss": pl.Float64, "score": pl.Float64, "note": pl.String}
        return pl.DataFrame([dataclasses.astuple(p) for p in self.points], schema=schema, orient="row").with_columns(
            pl.col("score").fill_nan(None)
        )

    def chart(self) -> Any:
        """Loss against depth, an `altair.Chart`: a line for each method, the full network dashed. `save` writes it."""
        import altair as alt
        import polars as pl

        title = f"loss ({self.loss_name.replace('_', ' ')}, log scale)"
        known = self.frame().filter(pl.col("loss") > 0)
        lines = alt.Chart(known).mark_line(point=True).encode(
            x=alt.X("depth:Q", title="layers", scale=alt.Scale(zero=False), axis=alt.Axis(format="d")),
            y=alt.Y("loss:Q", title=title, scale=alt.Scale(type="log", nice=False)),
            color=alt.Color("method:N", title="method"),
            tooltip=["method", "depth", alt.Tooltip("loss:Q", format=".4~g"), alt.Tooltip("score:Q", format=".4~g")],
        )  # fmt: skip
        full = alt.Chart(pl.DataFrame({"loss": [self.full.loss]})).mark_rule(strokeDash=[4, 3]).encode(y="loss:Q")
        return (lines + full).properties(width=520, height=280)

    def __str__(self) -> str:
        methods = list(dict.fromkeys(p.method for p in self.points))
        found = {(p.depth, p.method): p for p in self.points}
        rows = [("layers", *methods)]
        for depth in dict.fromkeys(p.depth for p in self.points):
            losses = [found[depth, m].loss if (depth, m) in found else None for m in methods]
            rows.append((str(depth), *("–" if loss is None else f"{loss:.4g}" for loss in losses)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        body = "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
        return f"loss ({self.loss_name.replace('_', ' ')}) by depth; full network: {self.full.loss:.4g}\n{body}"


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What `compress` returns.

    Attributes:
        model: the smaller network.
        depth: its number of layers.
        loss: its loss on the samples.
        bound: the largest loss that was allowed.
        curve: loss at every depth, after fine-tuning where there was some.
        judged: the same networks on samples that took no part in the choice (`x_judge`); None without such.
    """

    model: LeakyResNet
    depth: int
    loss: float
    bound: float
    curve: DepthCurve
    judged: DepthCurve | None = None


def depth_curve(
    model: LeakyResNet,
    x: Float[Tensor, "n features"],
    y: Shaped[Tensor, "rows ..."],
    *,
    loss: str = "square",
    depths: Sequence[int] | None = None,
    methods: Sequence[str] = RESAMPLE_METHODS,
    x_train: Float[Tensor, "m features"] | None = None,
) -> DepthCurve:
    """The loss of the model at other depths, before one is chosen (arXiv 2405.17573, docs/theory 1.2 and 1.3).

    Each network is made by `resample` and judged by the data term `C`; nothing is trained. A depth that a method cannot
    reach has a point that says why.

    Args:
        model: the network; it is left as it is.
        x: samples to judge by: such as the model has not seen.
        y: their targets.
        loss: `square`, `mean_square` or `cross_entropy` (`data_term`).
        depths: numbers of layers; 1 to `L` unless given. The full depth is judged in any case.
        methods: of `resample`.
        x_train: inputs by which layers are merged, refitted and dropped; `x` unless given.

    Raises:
        InputError: data that do not fit the model or the loss, a depth below 1, or an unknown method.

    Example:
        >>> net = LeakyResNet(8, 2, width=16, depth=6, effective_depth=2.0)
        >>> curve = depth_curve(net, torch.randn(20, 8), torch.randn(20, 2), methods=["merge"])
        >>> curve.full.depth, curve.points[0].depth
        (6, 6)
    """
    (curve,) = depth_curves(model, [(x, y)], loss=loss, depths=depths, methods=methods, x_train=x_train)
    return curve


def depth_curves(
    model: LeakyResNet,
    parts: Sequence[tuple[Tensor, Tensor]],
    *,
    loss: str = "square",
    depths: Sequence[int] | None = None,
    methods: Sequence[str] = RESAMPLE_METHODS,
    x_train: Float[Tensor, "m features"] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[DepthCurve]:
    """`depth_curve` for several sets of samples: each network is made once, and judged by all of them.

    Args:
        model: the network; it is left as it is.
        parts: inputs and targets of each set: samples that choose a depth, say, and others that judge it.
        loss: see `depth_curve`, as for `depths` and `methods`.
        depths: numbers of layers.
        methods: of `resample`.
        x_train: inputs by which layers are merged, refitted and dropped; those of the first set unless given.
        progress: called with the networks made, their number, and the depth at hand.

    Raises:
        InputError: as `depth_curve`; no set of samples.

    Example:
        >>> net = LeakyResNet(8, 2, width=16, depth=6, effective_depth=2.0)
        >>> sets = [(torch.randn(20, 8), torch.randn(20, 2)) for _ in range(2)]
        >>> chooses, judges = depth_curves(net, sets, methods=["merge"])
        >>> len(chooses.points) == len(judges.points)
        True
    """
    if not parts:
        raise InputError("parts", "none", "at least one set of samples")
    known = [_checked(model, x, y, loss) for x, y in parts]
    fulls = [_full(model, x, y, loss)[0] for x, y in known]
    wanted = range(1, model.depth + 1) if depths is None else [whole_number("depths", depth) for depth in depths]
    order = sorted({*wanted, model.depth}, reverse=True)
    make, ways = resampler(model, known[0][0] if x_train is None else x_train), list(dict.fromkeys(methods))
    points: list[list[DepthPoint]] = [[] for _ in known]
    for i, depth in enumerate(order):
        for j, method in enumerate(ways):
            if progress is not None:
                progress(i * len(ways) + j, len(order) * len(ways), depth)
            network = _made(make, depth, method)
            for judged, (x, y) in zip(points, known, strict=True):
                judged.append(_point(network, method, depth, x, y, loss))
    return [_curve(judged, full, loss) for judged, full in zip(points, fulls, strict=True)]


def compress(
    model: LeakyResNet,
    x: Float[Tensor, "n features"],
    y: Shaped[Tensor, "rows ..."],
    *,
    tolerance: float | int,
    relative: bool = True,
    loss: str = "square",
    method: str = "refit",
    x_train: Float[Tensor, "m features"] | None = None,
    y_train: Shaped[Tensor, "train_rows ..."] | None = None,
    finetune: FitConfig | None = None,
    x_judge: Float[Tensor, "j features"] | None = None,
    y_judge: Shaped[Tensor, "judge_rows ..."] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Compressed:
    """The network of the fewest layers whose loss is within a tolerance (arXiv 2405.17573, docs/theory 1.2 and 1.3).

    With `C` the loss of the model on the samples, a smaller network may have a loss of `(1 + tolerance) C`, or of
    `C + tolerance` with `relative=False`. Every smaller depth is judged, since the loss need not rise as layers go: the
    smallest that is within the bound is taken, also where a larger one is not. The samples choose the depth, so its
    loss on them is a little too good; judge the result by others.

    Args:
        model: the network; it is left as it is.
        x: samples to judge by, a validation set: such as the model has not seen.
        y: their targets.
        tolerance: at least 0.
        relative: whether the tolerance is a share of the model's loss.
        loss: `square`, `mean_square` or `cross_entropy`.
        method: of `resample`.
        x_train: inputs by which layers are chosen and refitted; `x` unless given.
        y_train: their targets, for fine-tuning.
        finetune: a short training (`fit`) of every smaller network on `x_train` and `y_train`, before it is judged.
            Deterministic by its seed. Start from a small `learning_rate`: 3e-3, say.
        x_judge: samples that take no part in the choice; the same networks are judged by them, too.
        y_judge: their targets.
        progress: called with the work done, all of it (in layers times epochs), and the depth at hand.

    Raises:
        InputError: no smaller depth within the tolerance; a tolerance below 0; data that do not fit; fine-tuning
            without training data, or for another loss; `x_judge` without `y_judge`.

    Example:
        >>> net = LeakyResNet(8, 2, width=16, depth=6, effective_depth=2.0)
        >>> small = compress(net, torch.randn(50, 8), torch.randn(50, 2), tolerance=1.0)
        >>> small.depth < 6, small.loss <= small.bound
        (True, True)
    """
    x, y = _checked(model, x, y, loss)
    allowed = real_number("tolerance", tolerance, "a finite number of at least 0", low=0.0)
    if model.depth == 1:
        raise InputError("model", "1 layer", "a network of at least 2 layers")
    if finetune is not None and (x_train is None or y_train is None):
        raise InputError("finetune", "no training data", "x_train and y_train with it")
    if finetune is not None and finetune.loss != loss:
        raise InputError("finetune", f"loss={finetune.loss!r}", f"the loss that is judged by, {loss!r}")
    if (x_judge is None) != (y_judge is None):
        raise InputError("x_judge", "one of x_judge and y_judge", "both of them, or neither")
    others = None if x_judge is None or y_judge is None else _checked(model, x_judge, y_judge, loss, "judge")
    full, cost = _full(model, x, y, loss)
    bound = (1 + allowed) * cost if relative else cost + allowed
    make = resampler(model, x if x_train is None else x_train)
    points, chosen = [dataclasses.replace(full, method=method)], None
    wholly = None if others is None else _full(model, *others, loss, "x_judge")[0]
    judged = [] if wholly is None else [dataclasses.replace(wholly, method=method)]
    epochs = 1 if finetune is None else finetune.total_epochs
    work = epochs * sum(range(least_depth(model, method), model.depth))
    for depth in range(model.depth - 1, 0, -1):
        done = work - epochs * sum(range(least_depth(model, method), depth + 1))
        if progress is not None:
            progress(min(done, work), work, depth)
        network = _made(make, depth, method)
        if not isinstance(network, str) and finetune is not None and x_train is not None and y_train is not None:
            network = _tuned(network, x_train, y_train, finetune, _epochs_of(progress, done, work, depth))
        point = _point(network, method, depth, x, y, loss)
        points.append(point)
        if others is not None:
            judged.append(_point(network, method, depth, *others, loss))
        if point.loss is not None and not isinstance(network, str) and point.loss <= bound:
            chosen = network, point.loss
    curve = _curve(points, full, loss)
    if chosen is None:
        best = min(points[1:], key=lambda p: math.inf if p.loss is None else p.loss)
        reached = f"; the best is {best.loss:.4g} with {best.depth} layers" if best.loss is not None else ""
        said = f"one that a depth below {model.depth} meets: the loss may be {bound:.4g} at most{reached}"
        hint = "try a larger tolerance" + (", or fine-tuning (finetune)" if finetune is None else ", or more epochs")
        raise InputError("tolerance", tolerance, said, hint)
    return Compressed(chosen[0], chosen[0].depth, chosen[1], bound, curve,
                      None if wholly is None else _curve(judged, wholly, loss))  # fmt: skip


def _checked(model: LeakyResNet, x: Tensor, y: Tensor, loss: str, of: str = "") -> tuple[Tensor, Tensor]:
    name = f"y_{of}" if of else "y"
    if x.shape[0] != y.shape[0]:
        raise InputError(name, y.shape[0], f"as many rows as {name.replace('y', 'x', 1)} ({x.shape[0]})")
    check_samples(x, y, loss, model.in_features, model.out_features)
    return x.to(model.weight), y.to(model.weight) if y.is_floating_point() else y.to(model.weight.device)


def _curve(points: Sequence[DepthPoint], full: DepthPoint, loss: str) -> DepthCurve:
    return DepthCurve(tuple(points), full, loss, "accuracy" if loss == "cross_entropy" else "r_squared")


def _made(make: Callable[[int, str], LeakyResNet], depth: int, method: str) -> LeakyResNet | str:
    """The network, or why there is none."""
    try:
        return make(depth, method)
    except InputError as error:
        if error.argument != "depth":
            raise
        return f"needs {error.expected}"


def _epochs_of(
    progress: Callable[[int, int, int], None] | None, done: int, work: int, depth: int
) -> Callable[[int, int, Any], None] | None:
    if progress is None:
        return None
    return lambda epoch, _epochs, _log: progress(done + depth * epoch, work, depth)


def _tuned(
    network: LeakyResNet, x: Tensor, y: Tensor, config: FitConfig, progress: Callable[[int, int, Any], None] | None
) -> LeakyResNet | str:
    try:
        fit(network, x, y, config, progress=progress)
    except DivergedError as error:
        return str(error)
    return network


def _point(network: LeakyResNet | str, method: str, depth: int, x: Tensor, y: Tensor, loss: str) -> DepthPoint:
    """The network's loss and score; where there is none, why."""
    if isinstance(network, str):
        return DepthPoint(method, depth, None, None, network)
    with torch.no_grad():
        outputs = network(x)
        value = float(data_term(loss, outputs, y))
    if not math.isfinite(value):
        return DepthPoint(method, depth, None, None, "outputs that are not finite")
    return DepthPoint(method, depth, value, score(loss, outputs, y)[1])


def _full(model: LeakyResNet, x: Tensor, y: Tensor, loss: str, name: str = "x") -> tuple[DepthPoint, float]:
    """The model itself, and its loss."""
    point = _point(model, "full", model.depth, x, y, loss)
    if point.loss is None:
        raise InputError("model", point.note, f"finite outputs on {name}", "the training may have diverged")
    return point, point.loss
