"""Pairs of samples that are tracked while `fit` trains."""

import dataclasses

import numpy as np
import pytest
import torch

from isthmus import InputError, LeakyResNet
from isthmus.models import Adaptive
from isthmus.probe import _pairs_trace
from isthmus.train import FitConfig, fit

CONFIG = FitConfig(epochs=10, batch_size=24, learning_rate=1e-2, validation_fraction=0.2, log_points=2, pairs=6)
X = torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
Y = torch.tanh(X @ torch.randn(5, 3, generator=torch.Generator().manual_seed(3)))


class _KilledError(Exception):
    pass


def _train(checkpoint=None, config=CONFIG, kill=None, seconds=0.0):
    model = LeakyResNet(5, 3, width=8, depth=4, effective_depth=3.0, steps=Adaptive(interval=3), seed=4)

    def watch(epoch, epochs, log):
        if epoch == kill:
            raise _KilledError

    return model, fit(model, X, Y, config, checkpoint=checkpoint, checkpoint_seconds=seconds, progress=watch)


def test_every_epoch_is_recorded_and_the_weights_are_those_without():
    model, result = _train()
    plain, without = _train(config=dataclasses.replace(CONFIG, pairs=0))
    assert without.pairs is None
    for one, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert result.pairs.steps == list(range(11))
    assert len(result.pairs.pairs) == 6
    rates = [CONFIG.rate(2 * epoch, 2) + CONFIG.rate(2 * epoch + 1, 2) for epoch in range(10)]  # 48 samples, 24 at once
    np.testing.assert_allclose(result.pairs.times, [0, *np.cumsum(rates)], rtol=1e-12)


@pytest.mark.parametrize("kill", [5, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_records_the_same(tmp_path, kill, monkeypatch):
    monkeypatch.setattr(_pairs_trace, "MOST", 8)
    _, whole = _train()
    with pytest.raises(_KilledError):
        _train(tmp_path / "c.pt", kill=kill)
    _, resumed = _train(tmp_path / "c.pt")
    assert whole.pairs.steps == resumed.pairs.steps == [0, 2, 4, 6, 8, 10]
    assert whole.pairs.table.equals(resumed.pairs.table)
    assert whole.pairs.run_record() == resumed.pairs.run_record()
    for name, matrix in whole.pairs.matrices.items():
        assert np.array_equal(matrix, resumed.pairs.matrices[name]), name


def test_a_number_of_pairs_that_cannot_be():
    with pytest.raises(InputError, match="pairs: got -1, expected an integer ≥ 0"):
        FitConfig(pairs=-1)
