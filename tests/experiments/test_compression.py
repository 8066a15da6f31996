"""A trained run with fewer layers: against networks made by hand, and everything that it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from isthmus import InputError, load
from isthmus._records import RunFolder
from isthmus.data import teacher
from isthmus.experiments import (
    CompressionConfig,
    LeakyConfig,
    file_source,
    run_compression,
    run_leaky,
    task_from_source,
)
from isthmus.experiments import _compression as compression
from isthmus.experiments._compression_source import read_compressible
from isthmus.experiments._compression_verdict import compression_claims
from isthmus.models import LeakyResNet
from isthmus.train import RESAMPLE_METHODS, FitConfig, data_term, depth_curve, fit, resample, score, training_rows

SOURCE = {"name": "teacher", "seed": 3, "widths": [6, 2, 4], "kind": "mlp", "n_train": 60, "n_test": 41}
CONFIG = LeakyConfig(width=10, depth=7, effective_depth=2.0, epochs=60, log_points=2, dtype="float64", seed=5,
                     metrics=("loss",))  # fmt: skip


def trained(path: Path, source: dict[str, Any] | None = None, **changes: Any) -> RunFolder:
    settings = {field: getattr(CONFIG, field) for field in CONFIG.__dataclass_fields__} | changes
    task = task_from_source(source or SOURCE)
    return run_leaky(task, LeakyConfig(**settings), path, command="train", title="A run", data=source or SOURCE,
                     page=False)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("base") / "run").path


def loss_of(model: LeakyResNet, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(data_term("square", model(x), y))


def value(frame: pl.DataFrame, **where: Any) -> Any:
    for name, wanted in where.items():
        frame = frame.filter(pl.col(name) == wanted)
    return frame.item(0, "value")


def test_every_row_is_of_the_network_made_by_hand(base: Path, tmp_path: Path) -> None:
    run = run_compression(base, tmp_path / "out", CompressionConfig(tolerance=0.5), page=False)
    model, task = load(base).module, task_from_source(SOURCE)
    parts = {"choosing": read_compressible(base, "auto").choosing, "judging": read_compressible(base, "auto").judging}
    frame, depth = run.metrics(), run.run["leaky"]["depth"]
    for split, part in parts.items():
        whole = loss_of(model, part.x, part.y)
        assert value(frame, layer="full", split=split, metric="loss") == whole
        within: list[int] = []
        for method in RESAMPLE_METHODS:
            for wanted in range(1, 8):
                found = value(frame, layer=method, split=split, metric="loss", index=wanted)
                try:
                    made = resample(model, wanted, task.x_train, method=method)
                except InputError:
                    assert found is None
                    continue
                assert found == loss_of(made, part.x, part.y)
                with torch.no_grad():
                    assert value(frame, layer=method, split=split, metric="r_squared", index=wanted) == score(
                        "square", made(part.x), part.y)[1]  # fmt: skip
                if method == "refit" and found <= 1.5 * whole:
                    within.append(wanted)
        if split == "choosing":
            assert depth == min(within) < 7
    small = load(run.path).module
    assert torch.equal(small.weight, resample(model, depth, task.x_train, method="refit").weight)
    record, (claim, *_) = run.run["compression"], run.verdict()
    for split, part in parts.items():
        assert record[split]["loss"] == loss_of(small, part.x, part.y)
        assert record[split]["n"] == len(part)
        assert f"{record[split]['full']:.3g} to {record[split]['loss']:.3g}" in claim.text
    costs = [(net(parts["judging"].x) - parts["judging"].y).square().sum(1).detach().numpy() for net in (small, model)]
    error = float(np.std(costs[0] - costs[1], ddof=1) / np.sqrt(len(costs[0])))
    assert record["judging"]["change_stderr"] == pytest.approx(error, rel=1e-12)
    assert claim.text.startswith(f"7 → {depth} layers by refit. On the 21 samples that did not choose")
    assert [frame.row(row, named=True)["layer"] for row in claim.rows] == [
        "full", "full", "refit", "refit", "full", "refit",
    ]  # fmt: skip


def test_halves_of_the_test_samples_choose_and_judge_by_the_seed(base: Path) -> None:
    one, again = read_compressible(base, "auto"), read_compressible(base, "test")
    task = task_from_source(SOURCE)
    assert torch.equal(one.choosing.x, again.choosing.x)
    assert (len(one.choosing), len(one.judging), len(one.train)) == (20, 21, 60)
    together = torch.cat([one.choosing.x, one.judging.x])
    assert torch.equal(together.sort(0).values, task.x_test.sort(0).values)
    both = {tuple(row) for row in one.choosing.x.tolist()} & {tuple(row) for row in one.judging.x.tolist()}
    assert not both
    assert not torch.equal(together, task.x_test)  # in an order drawn from the seed


def test_validation_samples_choose_and_all_test_samples_judge(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", validation_fraction=0.25)
    task = teacher(widths=(6, 2, 4), n_train=60, n_test=41, seed=3)
    kept, held = training_rows(60, FitConfig(validation_fraction=0.25, seed=5))
    found = read_compressible(run.path, "auto")
    for part, rows in ((found.choosing, held), (found.train, kept)):
        assert torch.equal(part.x, task.x_train[rows])
        assert torch.equal(part.y, task.y_train[rows])
    assert torch.equal(found.judging.x, task.x_test)
    assert len(read_compressible(run.path, "test").choosing) == 20
    out = run_compression(run.path, tmp_path / "out", CompressionConfig(tolerance=9), page=False)
    assert out.run["compression"]["choosing"]["what"] == "the run's validation samples"


@pytest.mark.parametrize(
    ("steps", "method"),
    [("equidistant", "refit"), ("adaptive", "merge"), ("adaptive", "drop"), ("irregular", "equidistant")],
)
def test_the_small_network_is_read_back_and_can_be_compressed_again(tmp_path: Path, steps: str, method: str) -> None:
    base = trained(tmp_path / "run", steps=steps, epochs=3, width=8)
    first = run_compression(base.path, tmp_path / "a", CompressionConfig(tolerance=1e3, method=method), page=False)
    module, x = load(first.path).module, task_from_source(SOURCE).x_train
    depth = module.depth
    wanted = resample(load(base.path).module, depth, x, method=method)
    assert torch.equal(module(x), wanted(x))
    assert module.effective_depth == wanted.effective_depth
    assert first.arrays()["position"] == pytest.approx(wanted.positions().numpy())
    assert load(first.path).predict(np.zeros((2, 6))).shape == (2, 4)
    if method == "drop":  # always down to one layer here
        with pytest.raises(InputError, match="at least 2 layers"):
            run_compression(first.path, tmp_path / "b", page=False)
        return
    config = CompressionConfig(tolerance=1e3, absolute=True, method="drop")
    second = run_compression(first.path, tmp_path / "b", config, page=False)
    assert second.run["leaky"]["depth"] == 1
    assert second.run["compression"]["depth_before"] == depth
    for split in ("choosing", "judging"):
        assert second.run["compression"][split]["n"] == first.run["compression"][split]["n"]


def test_fine_tuned_networks_have_a_curve_of_their_own(base: Path, tmp_path: Path) -> None:
    config = CompressionConfig(tolerance=5.0, method="merge", finetune=4, learning_rate=1e-3)
    run = run_compression(base, tmp_path / "out", config, page=False)
    task, depth, frame = task_from_source(SOURCE), run.run["leaky"]["depth"], run.metrics()
    by_hand = resample(load(base).module, depth, task.x_train, method="merge")
    fit(by_hand, task.x_train, task.y_train,
        FitConfig(epochs=4, learning_rate=1e-3, ridge=CONFIG.ridge, seed=5, log_points=2))  # fmt: skip
    assert torch.equal(load(run.path).module.weight, by_hand.weight)
    judging = read_compressible(base, "auto").judging
    where = {"split": "judging", "metric": "loss", "index": depth}
    assert value(frame, layer="merge, tuned", **where) == loss_of(by_hand, judging.x, judging.y)
    assert value(frame, layer="merge", **where) != value(frame, layer="merge, tuned", **where)
    assert "by merge and 4 epochs of fine-tuning" in run.verdict()[0].text
    behind = [frame.row(row, named=True) for row in run.verdict()[0].rows]
    assert behind[2]["layer"] == behind[3]["layer"] == "merge, tuned"


def test_a_depth_that_only_pleases_those_that_chose_it_is_said(base: Path) -> None:
    source = read_compressible(base, "auto")
    every = depth_curve(source.model, source.choosing.x, source.choosing.y, x_train=source.train.x)
    part: dict[str, Any] = {"n": 9, "full": 2.0, "loss": 2.5, "bound": 3.0}
    record: dict[str, Any] = {"score": "r_squared", "depth": 3, "depth_before": 7, "method": "refit", "finetune": 0,
                              "tolerance": 0.5, "relative": True, "choosing": part,
                              "judging": part | {"change_stderr": 0.1}}  # fmt: skip
    rows = {f"{who}/{split}/loss": k for k, (who, split) in enumerate(
        (who, split) for who in ("full", "small") for split in ("choosing", "judging"))}  # fmt: skip
    first, others = compression_claims(record, every, rows)
    assert first.text == (
        "7 → 3 layers by refit. On the 9 samples that did not choose, the loss went from 2 to 2.5 (+25 % ± 5 %); on "
        "the 9 that chose, from 2 to 2.5 (+25 %, where 50 % more was allowed)."
    )
    assert (first.level, first.rows, others.name) == ("finding", (0, 1, 2, 3), "methods")
    scored = record | {"judging": record["judging"] | {"full_score": 0.9, "score": 0.85}}
    assert "(+25 % ± 5 %), and R² from 0.9 to 0.85; on the 9" in compression_claims(scored, every, rows)[0].text
    record["judging"]["loss"] = 3.001
    (caution,) = [claim for claim in compression_claims(record, every, rows) if claim.name == "judged"]
    assert caution.level == "caution"
    assert "more than the tolerance of 50 %" in caution.text
    assert caution.rows == (1, 3)
    record["judging"]["loss"] = None
    claim = compression_claims(record, every, rows)[0]
    assert claim.level == "caution"
    assert "not finite" in claim.text
    absolute = compression_claims(
        record | {"relative": False, "judging": record["judging"] | {"loss": 2.2}}, every, rows
    )
    assert "from 2 to 2.2 (+0.2 ± 0.1)" in absolute[0].text
    assert "(+0.5, where 0.5 more was allowed)" in absolute[0].text


def test_a_tolerance_that_no_depth_meets_writes_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the best is .* with \d layers") as caught:
        run_compression(base, tmp_path / "out", CompressionConfig(tolerance=0.0, method="merge"), page=False)
    assert caught.value.argument == "tolerance"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_a_command_that_ends_while_it_writes_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(compression, "save_weights", fail)
    with pytest.raises(type(error)):
        run_compression(base, tmp_path / "out", CompressionConfig(tolerance=9.0), page=False)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_command_left_is_removed_and_what_came_meanwhile_is_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".out.part-0123abcd").mkdir()
    run_compression(base, tmp_path / "out", CompressionConfig(tolerance=9.0), page=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write = compression.save_weights

    def meanwhile(*given: Any) -> None:
        write(*given)
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "mine").touch()

    monkeypatch.setattr(compression, "save_weights", meanwhile)
    with pytest.raises(InputError, match="where nothing is yet"):
        run_compression(base, tmp_path / "late", CompressionConfig(tolerance=9.0), page=False)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent.name in ("late", tmp_path.name)) == [
        "late", "mine", "out",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"tolerance": float("inf")}, "tolerance"),
        ({"method": "shrink"}, "method"),
        ({"choose_by": "train"}, "choose_by"),
        ({"finetune": -1}, "finetune"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"choose_by": "validation"}, "choose_by"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_bad_settings_are_named(base: Path, tmp_path: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        run_compression(base, tmp_path / "out", CompressionConfig(**given), page=False)
    assert caught.value.argument == named
    assert not list(tmp_path.iterdir())


def altered(base: Path, path: Path, change: Any) -> Path:
    shutil.copytree(base, path)
    record = json.loads((path / "run.json").read_text())
    change(record)
    (path / "run.json").write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("leaky"), "a run of a Leaky ResNet \\(this one is of `train`\\)"),
        (lambda r: r.update(status="failed"), "a run that is complete \\(status here: failed\\)"),
        (lambda r: r.update(status="running"), "isthmus train --resume"),
        (lambda r: r["configuration"].pop("data"), "data given as tensors are not kept"),
        (lambda r: r["configuration"].update(data={}), "which data it was trained on"),
        (lambda r: r["configuration"]["data"].update(seed=4), "their scaling is another"),
        (lambda r: r["configuration"].update(seed="x"), "a run.json of `isthmus train`"),
        (lambda r: r["configuration"].update(ridge="x"), "a run.json of `isthmus train`"),
        (lambda r: r["configuration"].pop("precision"), "a run.json of `isthmus train`"),
    ],
)
def test_runs_that_cannot_be_compressed_are_refused(base: Path, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_compression(altered(base, tmp_path / "run", change), tmp_path / "out", page=False)
    assert not (tmp_path / "out").exists()


def test_one_test_sample_cannot_both_choose_and_judge(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", SOURCE | {"n_test": 1}, epochs=1)
    with pytest.raises(InputError, match="1 test sample, expected at least 2"):
        run_compression(run.path, tmp_path / "out")


def test_a_run_without_weights_or_a_folder_that_is_taken_is_refused(base: Path, tmp_path: Path) -> None:
    run = altered(base, tmp_path / "run", lambda _: None)
    (run / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        run_compression(run, tmp_path / "out")
    with pytest.raises(InputError, match="where nothing is yet"):
        run_compression(base, run)
    with pytest.raises(InputError, match=r"run\.json"):
        run_compression(tmp_path, tmp_path / "out")


def test_a_file_of_data_must_be_there_unchanged(tmp_path: Path) -> None:
    file, rng = tmp_path / "houses.csv", np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)).round(3).tolist()
    file.write_text("\n".join(["a,b,y", *(",".join(map(str, row)) for row in rows)]))
    run = trained(tmp_path / "run", file_source(str(file), target=["y"], task="regression"), epochs=2, width=6)
    config = CompressionConfig(tolerance=1e3)
    assert run_compression(run.path, tmp_path / "out", config, page=False).run["task"]["name"] == "houses.csv"
    before = file.read_text()
    file.write_text(before.replace("0.", "1.", 1))
    with pytest.raises(InputError, match="it has changed"):
        run_compression(run.path, tmp_path / "other", config, page=False)
    file.unlink()
    with pytest.raises(InputError, match="a file that is there"):
        run_compression(run.path, tmp_path / "other", config, page=False)
    assert not (tmp_path / "other").exists()
