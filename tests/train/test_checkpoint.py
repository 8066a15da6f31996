"""A killed run ends as an unbroken one, to the bit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus import InputError, LeakyResNet
from isthmus import _records as records
from isthmus._errors import DivergedError
from isthmus.models import Adaptive
from isthmus.train import CheckpointError, FitConfig, FitResult, fit

CONFIG = FitConfig(
    epochs=40, sgd_epochs=10, learning_rate=1e-2, batch_size=16, validation_fraction=0.2, patience=45, log_points=12
)


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(60, 5, generator=g, dtype=torch.float64)
    return x, torch.tanh(x @ torch.randn(5, 3, generator=g, dtype=torch.float64))


def network() -> LeakyResNet:
    return LeakyResNet(5, 3, width=8, depth=6, effective_depth=3.0, steps=Adaptive(interval=3), seed=4,
                       dtype=torch.float32)  # fmt: skip


def train(checkpoint: Path | None, config: FitConfig = CONFIG, **options: Any) -> tuple[LeakyResNet, FitResult]:
    model = network()
    return model, fit(model, *data(), config, checkpoint=checkpoint, checkpoint_seconds=0.0, **options)


@pytest.fixture(scope="module")
def unbroken() -> tuple[LeakyResNet, FitResult]:
    return train(None)


def same(a: tuple[LeakyResNet, FitResult], b: tuple[LeakyResNet, FitResult]) -> bool:
    states = a[0].state_dict(), b[0].state_dict()
    return a[1] == b[1] and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def in_a_process_killed(work: Callable[[], object], after: float | None) -> bool:
    """Run `work` in a child and kill it with SIGKILL `after` seconds (None: it kills itself); True if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_random_moments(tmp_path: Path, unbroken: tuple[LeakyResNet, FitResult]) -> None:
    start = time.monotonic()
    train(tmp_path / "timing.pt")
    whole = time.monotonic() - start
    dice = random.Random(1)
    kills = 0
    for trial in range(2):
        path = tmp_path / f"{trial}.pt"
        for _ in range(6):
            kills += in_a_process_killed(lambda p=path: train(p), after=dice.uniform(0, 0.35 * whole))
        assert same(train(path), unbroken)
    assert kills >= 5  # the moments did fall inside the runs


@pytest.mark.parametrize("stage", ["half written", "before the rename", "after the rename"])
@pytest.mark.parametrize("which", [1, 7])
def test_killed_while_a_checkpoint_is_written(
    tmp_path: Path, unbroken: tuple[LeakyResNet, FitResult], stage: str, which: int
) -> None:
    path = tmp_path / "run.pt"

    def work() -> None:
        written = 0
        replace, fsync, save = Path.replace, os.fsync, torch.save

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def counted_save(content: Any, target: Any) -> None:
            nonlocal written
            written += 1
            save(content, target)
            if written == which and stage == "half written":
                os.truncate(target, os.path.getsize(target) // 2)
                die()

        def counted_fsync(handle: int) -> None:
            fsync(handle)
            if written == which and stage == "before the rename":
                die()

        def counted_replace(self: Path, target: Path) -> Path:
            result = replace(self, target)
            if written == which and stage == "after the rename":
                die()
            return result

        torch.save, os.fsync, Path.replace = counted_save, counted_fsync, counted_replace  # pyright: ignore
        train(path)

    assert in_a_process_killed(work, after=None)
    assert path.exists() == (which > 1 or stage == "after the rename")
    assert same(train(path), unbroken)


def test_a_finished_run_is_not_run_again(tmp_path: Path, unbroken: tuple[LeakyResNet, FitResult]) -> None:
    path = tmp_path / "run.pt"
    train(path)
    epochs: list[int] = []
    assert same(train(path, progress=lambda epoch, *_: epochs.append(epoch)), unbroken)
    assert epochs == []


def test_divergence_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    model = network()
    kept: list[bytes] = []

    def poison(epoch: int, *_: object) -> None:
        if epoch == 5:
            kept.append(path.read_bytes())
            with torch.no_grad():
                model.weight[0, 0, 0] = torch.nan

    with pytest.raises(DivergedError, match=r"epoch 6 .*try a learning_rate below .*last good checkpoint is .*run\.pt"):
        fit(model, *data(), CONFIG, checkpoint=path, checkpoint_seconds=0.0, progress=poison)
    assert path.read_bytes() == kept[0]
    state = torch.load(path, weights_only=True)["state"]
    assert state["epoch"] == 5
    assert all(bool(torch.isfinite(v).all()) for v in state["model"].values())


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    train(path, FitConfig(epochs=3, log_points=2))
    before = path.read_bytes()

    def full(content: Any, target: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    path.unlink()
    path.write_bytes(before)
    with pytest.raises(CheckpointError, match=r"No space left.*none before it|No space left.*is kept"):
        train(tmp_path / "other.pt", FitConfig(epochs=3, log_points=2))
    assert not list(tmp_path.glob("*.part"))
    assert not (tmp_path / "other.pt").exists()
    assert path.read_bytes() == before


def test_a_really_full_device_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def to_full(path: Path, write: Callable[[Path], object]) -> None:
        write(Path("/dev/full"))

    monkeypatch.setattr("isthmus.train._checkpoint.write_whole", to_full)
    with pytest.raises(CheckpointError, match="could not be written"):
        train(tmp_path / "run.pt", FitConfig(epochs=2, log_points=2))


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"", "cannot be read"),
        (b"garbage" * 100, "cannot be read"),
        ({"other": 1}, "it comes from elsewhere"),
        ({"isthmus_checkpoint": 99}, "it comes from elsewhere"),
    ],
)
def test_corrupt_and_foreign_checkpoints(tmp_path: Path, content: Any, needle: str) -> None:
    path = tmp_path / "run.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=needle):
        train(path)


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="cannot be read"):
        train(path)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


def test_a_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"isthmus_checkpoint": 1, "identity": {}, "state": Evil()}, tmp_path / "run.pt")
    with pytest.raises(InputError, match="cannot be read"):
        train(tmp_path / "run.pt")
    assert not (tmp_path / "hacked").exists()


def test_another_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(path)
    with pytest.raises(InputError, match=r"ridge: got 0\.5, expected 0\.001, as in the run to resume"):
        train(path, FitConfig(**{**vars(CONFIG), "ridge": 0.5}))
    x, y = data()
    with pytest.raises(InputError, match="data: got"):
        fit(network(), x + 1, y, CONFIG, checkpoint=path)
    other = LeakyResNet(5, 3, width=9, depth=6, effective_depth=3.0, dtype=torch.float32)
    with pytest.raises(InputError, match=r"model: got .*width=9"):
        fit(other, x, y, CONFIG, checkpoint=path)


def test_writing_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(records.os, "fsync", lambda h: (order.append("fsync"), fsync(h))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    train(tmp_path / "run.pt", FitConfig(epochs=1, log_points=2))
    assert order == ["fsync", "replace"]
