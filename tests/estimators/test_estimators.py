"""The estimators by scikit-learn's own rules, and what they promise beyond them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from isthmus import InputError, LeakyResNetClassifier, LeakyResNetRegressor, Measurement
from isthmus.train import Descent, data_term, weighted_data_term

Estimator = LeakyResNetClassifier | LeakyResNetRegressor
FAST: dict[str, Any] = {"max_epochs": 40, "depth": 3, "random_state": 0, "learning_rate": 3e-2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([LeakyResNetRegressor(), LeakyResNetClassifier()])
def test_scikit_learns_checks_with_the_defaults(estimator: Estimator, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([
    LeakyResNetRegressor(max_epochs=50, depth=2, learning_rate=3e-2),
    LeakyResNetClassifier(max_epochs=30, depth=2, learning_rate=3e-2),
])  # fmt: skip
def test_scikit_learns_checks(estimator: Estimator, check: Callable[[Any], None]) -> None:
    check(estimator)


def regression(n: int = 120, outputs: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return make_regression(n, 6, n_targets=outputs, noise=1.0, random_state=0)


def classification(n: int = 150, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return make_classification(n, 6, n_informative=4, n_classes=classes, random_state=0)


def quiet(fit: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit()


def test_several_outputs_in_their_own_units() -> None:
    x, y = regression(outputs=3)
    y = y * [1.0, 100.0, 1e-3] + [0.0, 5.0, -7.0]
    fitted = quiet(lambda: LeakyResNetRegressor(**{**FAST, "max_epochs": 300}, ridge=1e-3).fit(x, y))
    assert fitted.predict(x).shape == y.shape
    assert fitted.score(x, y) > 0.95  # every output counts the same, whatever its unit
    assert fitted.n_outputs_ == 3


def test_a_known_function_is_learned() -> None:
    x = np.linspace(-2, 2, 200)[:, None]
    fitted = quiet(lambda: LeakyResNetRegressor(random_state=0, ridge=1e-4).fit(x, np.sin(2 * x[:, 0])))
    assert fitted.score(x, np.sin(2 * x[:, 0])) > 0.98


def test_in_pipelines_grids_and_cross_validation() -> None:
    x, y = load_iris(return_X_y=True)
    pipe = make_pipeline(PolynomialFeatures(2), LeakyResNetClassifier(**FAST))
    scores = quiet(lambda: cross_val_score(pipe, x, y, cv=3))
    assert scores.mean() > 0.9
    grid = GridSearchCV(LeakyResNetClassifier(**FAST), {"ridge": [1e-3, 1e-1], "effective_depth": [0.0, 1.0]}, cv=2)
    quiet(lambda: grid.fit(x, y))
    assert set(grid.best_params_) == {"ridge", "effective_depth"}


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_frames_with_feature_names(kind: str) -> None:
    x, y = regression()
    names = [f"column {i}" for i in range(x.shape[1])]
    frame = pd.DataFrame(x, columns=names) if kind == "pandas" else pl.DataFrame(dict(zip(names, x.T, strict=True)))
    fitted = quiet(lambda: LeakyResNetRegressor(**FAST).fit(frame, y))
    assert list(fitted.feature_names_in_) == names
    np.testing.assert_allclose(fitted.predict(frame), quiet(lambda: LeakyResNetRegressor(**FAST).fit(x, y)).predict(x))
    if kind == "pandas":
        with pytest.raises(ValueError, match="feature names"):
            fitted.predict(frame.rename(columns={"column 0": "other"}))


def test_a_weight_of_two_is_the_sample_twice() -> None:
    x, y = regression(60)
    weight = np.ones(60)
    weight[:20], weight[20:30] = 2, 0
    rows = np.repeat(np.arange(60), weight.astype(int))
    one = quiet(lambda: LeakyResNetRegressor(**FAST).fit(x, y, sample_weight=weight))
    other = quiet(lambda: LeakyResNetRegressor(**FAST).fit(x[rows], y[rows]))
    # the same sums in another order: 40 steps of Adam enlarge float64 rounding to about 1e-9 of the targets' size
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=1e-6, atol=1e-6 * np.abs(y).max())


def test_the_loss_is_that_of_the_theory() -> None:
    torch.manual_seed(0)
    outputs, y, classes = torch.randn(9, 4), torch.randn(9, 4), torch.randint(0, 4, (9,))
    ones = torch.full((9,), 0.7)
    torch.testing.assert_close(weighted_data_term("square", outputs, y, ones), data_term("square", outputs, y))
    torch.testing.assert_close(
        weighted_data_term("cross_entropy", outputs, classes, ones), data_term("cross_entropy", outputs, classes)
    )
    with pytest.raises(InputError, match="'square' or 'cross_entropy'"):
        weighted_data_term("hinge", outputs, y, ones)


def test_loss_curve_epochs_and_convergence() -> None:
    x, y = regression()
    with pytest.warns(ConvergenceWarning, match="Increase max_epochs"):
        short = LeakyResNetRegressor(**{**FAST, "max_epochs": 15}, tol=0.0, ridge=1e-4).fit(x, y)
    assert short.n_iter_ == len(short.loss_curve_) == 15
    assert short.loss_curve_[-1] < short.loss_curve_[0]
    assert short.loss_ == short.loss_curve_[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = LeakyResNetRegressor(**{**FAST, "max_epochs": 600}, tol=1e-2).fit(x, y)
    assert done.n_iter_ < 600


def test_early_stopping_keeps_the_best() -> None:
    x, y = classification(200)
    fitted = quiet(
        lambda: LeakyResNetClassifier(
            **{**FAST, "max_epochs": 200}, early_stopping=True, n_iter_no_change=15, validation_fraction=0.25
        ).fit(x, y)
    )
    assert fitted.n_iter_ < 200
    assert len(fitted.validation_scores_) == fitted.n_iter_
    assert fitted.best_validation_score_ == max(fitted.validation_scores_)


def test_partial_fit_goes_on_where_it_was() -> None:
    x, y = classification()
    settings = {**FAST, "learning_rate": 1e-2}
    whole, broken = LeakyResNetClassifier(**settings), LeakyResNetClassifier(**settings)
    for i in range(12):
        whole.partial_fit(x, y, classes=[0, 1, 2] if i == 0 else None)
        broken.partial_fit(x, y, classes=[0, 1, 2])
        broken = pickle.loads(pickle.dumps(broken))
    np.testing.assert_array_equal(whole.predict_proba(x), broken.predict_proba(x))
    assert whole.n_iter_ == 12
    assert whole.loss_curve_[-1] < whole.loss_curve_[0]
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        LeakyResNetClassifier().partial_fit(x, y)
    with pytest.raises(ValueError, match="is not the same as on last call"):
        whole.partial_fit(x, y, classes=[0, 1])
    r = LeakyResNetRegressor(**settings)
    for _ in range(3):
        r.partial_fit(*regression())
    assert r.n_iter_ == 3


def test_probabilities_and_decisions() -> None:
    x, y = classification(classes=2)
    fitted = quiet(lambda: LeakyResNetClassifier(**FAST).fit(x, np.array(["no", "yes"])[y]))
    p = fitted.predict_proba(x)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(x)), p)
    assert set(fitted.predict(x)) <= {"no", "yes"}
    np.testing.assert_array_equal(fitted.predict(x) == "yes", fitted.decision_function(x) > 0)


def test_the_module_is_the_estimator() -> None:
    x, y = regression(outputs=2)
    fitted = quiet(lambda: LeakyResNetRegressor(**FAST, steps="adaptive").fit(x, y))
    module = fitted.to_module()
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), fitted.predict(x), rtol=1e-10)
    with torch.no_grad():
        module.network.weight.zero_()  # a copy
    assert np.abs(fitted.predict(x)).max() > 1
    assert fitted.layer_steps_.shape == (3,)
    assert fitted.layer_steps_.sum() == pytest.approx(1)
    assert not np.allclose(fitted.layer_steps_, 1 / 3)


def test_measured_with_and_without_targets() -> None:
    x, y = load_diabetes(return_X_y=True)
    fitted = quiet(lambda: LeakyResNetRegressor(**FAST).fit(x, y))
    found = fitted.measure(x, y)
    assert isinstance(found, Measurement)
    assert "stationarity" in {c.name for c in found.verdict}
    ranks = found.table.filter(pl.col("metric") == "hamiltonian_rank_symmetric", pl.col("status") == "ok")
    assert len(ranks) == 3
    plain = fitted.measure(x)
    skipped = plain.table.filter(pl.col("metric") == "stationarity")
    assert skipped["status"].to_list() == ["skipped"]
    assert 0 < fitted.bottleneck_rank_ <= fitted.module_.network.width


def test_float32_and_mini_batches_and_repeatability(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = classification()
    settings = {**FAST, "dtype": "float32", "batch_size": 32, "max_epochs": 5, "verbose": True}
    first, second = (quiet(lambda: LeakyResNetClassifier(**settings).fit(x, y)) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    assert first.module_.network.weight.dtype == torch.float32
    assert "Epoch 5, loss = " in capsys.readouterr().out
    state = torch.random.get_rng_state()
    quiet(lambda: LeakyResNetClassifier(**settings).fit(x, y))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pickled_and_cloned() -> None:
    x, y = regression()
    fitted = quiet(lambda: LeakyResNetRegressor(**FAST).fit(x, y))
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(x), fitted.predict(x))
    with pytest.raises(NotFittedError):
        clone(fitted).predict(x)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 0}, "width: got 0"), ({"ridge": -1.0}, "ridge: got -1.0"), ({"max_epochs": 0}, "max_epochs: got 0"),
        ({"dtype": "half"}, "'float32' or 'float64'"), ({"device": "cuda:9"}, "try 'cpu'"), ({"tol": -1}, "tol"),
        ({"batch_size": 0}, "batch_size"), ({"learning_rate": 0}, "learning_rate"), ({"depth": 0}, "depth"),
        ({"validation_fraction": 1.0}, "validation_fraction"), ({"steps": "even"}, "steps"),
        ({"effective_depth": -1}, "effective_depth"), ({"effective_depth": 9.0, "depth": 3}, "effective_depth"),
        ({"n_iter_no_change": 0}, "n_iter_no_change"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LeakyResNetRegressor(**{**FAST, **change}).fit(*regression())


def test_data_that_cannot_be_used() -> None:
    x, y = regression()
    with pytest.raises(ValueError, match="contains NaN"):
        LeakyResNetRegressor(**FAST).fit(np.where(x > 2, np.nan, x), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        LeakyResNetRegressor(**FAST).fit(x, y[:5])
    with pytest.raises(ValueError, match="at least one non-zero"):
        LeakyResNetRegressor(**FAST).fit(x, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match="Unknown label type"):
        LeakyResNetClassifier(**FAST).fit(x, y)
    with pytest.raises(NotFittedError):
        LeakyResNetClassifier().predict(x)


def test_descent_in_batches_meets_every_sample_once() -> None:
    """One epoch of equal batches at step size ~0 meets the mean over all samples."""
    from isthmus import LeakyResNet

    torch.manual_seed(0)
    net = LeakyResNet(4, 2, width=6, depth=2, effective_depth=1.0, dtype=torch.float64)
    x, y, w = torch.randn(20, 4).double(), torch.randn(20, 2).double(), torch.rand(20).double()
    with torch.no_grad():
        expected = weighted_data_term("square", net(x), y, w) + 0.1 * net.weight_cost()
    descent = Descent(net, loss="square", ridge=0.1, seed=0)
    found = descent.epoch(x, y, w, batch_size=7, rate=1e-14)
    assert found == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("effective_depth", [0.0, 1.5])
def test_steps_by_hand_are_those_of_autograd(loss: str, effective_depth: float) -> None:
    torch.manual_seed(0)
    from isthmus import LeakyResNet

    def net() -> LeakyResNet:
        return LeakyResNet(4, 3, width=6, depth=4, effective_depth=effective_depth, dtype=torch.float64, seed=1)

    x, w = torch.randn(20, 4).double(), torch.rand(20).double()
    y = torch.randn(20, 3).double() if loss == "square" else torch.randint(0, 3, (20,))
    hand, graph = (Descent(net(), loss=loss, ridge=0.3, seed=0) for _ in range(2))
    graph._embedded = lambda x: None  # type: ignore[method-assign]
    for _ in range(3):
        values = [d.epoch(x, y, w, batch_size=6, rate=1e-2) for d in (hand, graph)]
        assert values[0] == pytest.approx(values[1], rel=1e-12)
    for one, other in zip(hand.model.parameters(), graph.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert not torch.equal(hand.model.weight, net().weight)
