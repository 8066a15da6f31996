"""Fewer layers for a trained run: loss against depth, the smallest depth within a stated loss, and a run of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from isthmus._errors import InputError, RunFolderError, near_name_hint
from isthmus._records import RunFolder, check_new_folder
from isthmus.experiments._compression_rows import Curves, compression_record, compression_rows, per_sample
from isthmus.experiments._compression_source import CHOOSERS, CompressionSource, read_compressible
from isthmus.experiments._compression_verdict import compression_claims
from isthmus.experiments._kept import save_weights
from isthmus.models import check_device, real_number, whole_number
from isthmus.report import write_page
from isthmus.train import RESAMPLE_METHODS, DepthCurve, FitConfig, compress, depth_curves


@dataclasses.dataclass(frozen=True)
class CompressionConfig:
    """How a trained network is to lose layers.

    Attributes:
        tolerance: at least 0: how much its loss may rise, as a share of the full network's.
        method: of `isthmus.train.resample`.
        absolute: the tolerance is an amount of the loss, not a share of it.
        finetune: epochs of a short training of every smaller network before it is judged; 0 for none.
        learning_rate: first step size of that training.
        choose_by: `validation`, `test` (one half of the test samples) or `auto`, by whichever the run has.
        device: where to compute.
    """

    tolerance: float | int = 0.05
    method: str = "refit"
    absolute: bool = False
    finetune: int = 0
    learning_rate: float | int = 3e-3
    choose_by: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        real_number("tolerance", self.tolerance, "a finite number of at least 0", low=0.0)
        for name, value, known in (("method", self.method, RESAMPLE_METHODS), ("choose_by", self.choose_by, CHOOSERS)):
            if value not in known:
                raise InputError(name, value, ", ".join(map(repr, known)), near_name_hint(value, known))
        whole_number("finetune", self.finetune, smallest=0)
        real_number("learning_rate", self.learning_rate, "a finite number > 0", low=0.0, low_open=True)


CompressionProgress = Callable[[int, int, int], None]
_PART = ".part-"


def run_compression(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: CompressionConfig | None = None,
    *,
    show: Callable[[DepthCurve], None] | None = None,
    progress: CompressionProgress | None = None,
    page: bool = True,
) -> RunFolder:
    """Loss against depth of a finished run by every method, and the fewest layers within the tolerance (1.2, 1.3).

    The run is only read. Held-out samples that choose the depth are not those that judge it: the validation samples
    choose where the run has some, else one half of the test samples, drawn from the run's seed; the rest of the test
    samples judge. The new folder is made beside its place and takes it by one rename, so it is there whole or not at
    all.

    Args:
        run: folder of a finished run of `isthmus train`, `demo`, a sweep, or `compress`.
        out: the new run folder; `load`, `isthmus predict` and `isthmus report` read it like that of a training.
        config: what is asked for; the defaults unless given.
        show: called with loss against depth by every method, on the samples that choose, before anything is chosen.
        progress: called with the work done, all of it, and the depth at hand: first over the networks of every method,
            then in layers times epochs over those that one is chosen from.
        page: write the page, too.

    Raises:
        RunFolderError: no finished run of a Leaky ResNet, or a path where something is already.
        InputError: data that are gone or have changed; a tolerance that no depth meets, which names the best depth.

    Example:
        >>> run_compression("runs/my-run", "runs/smaller").verdict()[0].text  # doctest: +SKIP
        '20 → 6 layers by refit. …'
    """
    config = config or CompressionConfig()
    target, begun = check_new_folder(out), time.monotonic()
    source, tuning = prepare_compression(run, config)
    choosing, judging = depth_curves(
        source.model, [(part.x, part.y) for part in (source.choosing, source.judging)], loss=source.loss,
        x_train=source.train.x, progress=progress,
    )  # fmt: skip
    if show is not None:
        show(choosing)
    small = compress(
        source.model, source.choosing.x, source.choosing.y, tolerance=config.tolerance, relative=not config.absolute,
        loss=source.loss, method=config.method, x_train=source.train.x, y_train=source.train.y, finetune=tuning,
        x_judge=source.judging.x, y_judge=source.judging.y, progress=progress,
    )  # fmt: skip
    return _written(source, config, Curves(choosing, judging, small), target, begun, page=page)


def prepare_compression(
    run: str | os.PathLike[str], config: CompressionConfig
) -> tuple[CompressionSource, FitConfig | None]:
    """Check every setting, and read the run: what is compressed, and how it is fine-tuned; writes nothing."""
    device = check_device(config.device)
    source = read_compressible(run, config.choose_by)
    source.model.to(device)
    if not config.finetune:
        return source, None
    return source, dataclasses.replace(
        source.fit, epochs=config.finetune, learning_rate=float(config.learning_rate), log_points=2,
        validation_fraction=0.0,
    )  # fmt: skip


def _written(
    source: CompressionSource, config: CompressionConfig, curves: Curves, target: Path, begun: float, *, page: bool
) -> RunFolder:
    """Make the folder beside its place, and put it there by one rename."""
    small, before = curves.small, source.folder.run
    table, rows = compression_rows(source, config.method, curves, tuned=bool(config.finetune))
    costs = [per_sample(model, source.judging, source.loss) for model in (source.model, small.model)]
    record = compression_record(source, dataclasses.asdict(config), curves, costs[1] - costs[0])
    name = source.folder.path.name
    for left in target.absolute().parent.glob(f".{glob.escape(target.name)}{_PART}*"):
        shutil.rmtree(left, ignore_errors=True)  # of a command that was killed while it wrote
    part = target.absolute().parent / f".{target.name}{_PART}{uuid.uuid4().hex[:8]}"
    try:
        run = RunFolder.create(
            part, command="compress", seed=source.fit.seed, device=config.device, dtype=before["dtype"],
            configuration={
                **source.configuration, "depth": small.depth, "effective_depth": small.model.effective_depth,
                "steps": small.model.steps.name, "pairs": 0,
                "compress": {"run": str(source.folder.path), **dataclasses.asdict(config)},
            },
            extra={
                "title": f"{before.get('title') or name}: {source.model.depth} → {small.depth} layers",
                "leaky": {**before["leaky"], "depth": small.depth, "effective_depth": small.model.effective_depth,
                          "steps": small.model.steps.name},
                "task": before["task"], "loss": before["loss"], "loss_reduction": before.get("loss_reduction"),
                "warnings": before.get("warnings") or [], "compression": record,
            },
        )  # fmt: skip
        run.write_metrics(table)
        run.write_arrays({
            **{f"scaling/{key}": value for key, value in source.saved.scaling.to_arrays().items()},
            "position": small.model.positions().cpu().numpy(),
            "compression/position_before": source.model.positions().cpu().numpy(),
        })  # fmt: skip
        run.write_verdict(compression_claims(record, curves.choosing, rows))
        save_weights(run, small.model)
        run.finish("complete", seconds=time.monotonic() - begun)
        if page:
            write_page(run.path)
        _put(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return RunFolder.open(target)


def _put(part: Path, target: Path) -> None:
    """One rename; nothing that has come there meanwhile is replaced."""
    with contextlib.suppress(OSError):
        part.rename(target)  # onto an empty folder, too
    if part.exists():
        raise RunFolderError("out", str(target), "a path where nothing is yet", "choose another name")
