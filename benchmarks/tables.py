"""The estimators on tables, honestly: nested cross-validation beside an MLP, boosted trees and a plain ResNet.

    pip install statsmodels          # real tables that ship inside a package
    python benchmarks/tables.py [--mnist FILE.npz] [--jobs 2] [--only NAME …] [--quick] [--out docs/results/tables.json]

Real tables: of scikit-learn (iris, wine, breast cancer, digits, diabetes), of statsmodels (fair, anes96, star98,
randhie), and, by path, 10,000 MNIST digits (`images`, `labels`). Made: a teacher through 3 of 30 dimensions, for
numbers and for classes.

Outer loop: 3 folds, over seeds (one for tables of more than 5000 rows); inner loop: 3 folds over the grids below (one
split of 80:20 where there is one seed). Everything is standardised inside the folds. Reported: mean and standard
error over the outer folds of R² or accuracy, and the seconds of one final fit on one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from isthmus.estimators import LeakyResNetClassifier, LeakyResNetRegressor

MANY = 5000


def teacher(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """1000 Gaussian samples of 30 numbers; targets through 3 dimensions, with 10% noise."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(1000, 30))
    hidden = np.tanh(np.tanh(x @ rng.normal(size=(30, 40)) / 30**0.5) @ rng.normal(size=(40, 3)) / 40**0.5)
    y = np.tanh(2 * hidden @ rng.normal(size=(3, 40))) @ rng.normal(size=(40, 5 if kind == "classes" else 10))
    y += 0.1 * y.std(0) * rng.normal(size=y.shape)
    return x, (y.argmax(1) if kind == "classes" else y)


def load(name: str, mnist: Path | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Columns, targets, and `numbers` or `classes`."""
    plain = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer, "digits": load_digits}
    if name in plain:
        return (*plain[name](return_X_y=True), "classes")
    if name == "diabetes":
        return (*load_diabetes(return_X_y=True), "numbers")
    if name.startswith("teacher"):
        kind = name.split()[-1]
        return (*teacher(kind), kind)
    if name == "mnist":
        assert mnist is not None
        with np.load(mnist) as found:
            return found["images"].reshape(len(found["labels"]), -1) / 255.0, found["labels"], "classes"
    import statsmodels.api as sm

    data = getattr(sm.datasets, name).load_pandas()
    x, y = data.exog.to_numpy(float), np.asarray(data.endog, float)
    if name == "anes96":
        return x, data.data["vote"].to_numpy(int), "classes"
    if name == "star98":
        share = y[:, 0] / y.sum(1)
        return x, share, "numbers"
    return x, np.log1p(y), "numbers"  # fair and randhie: rates and counts with long tails


NAMES = ("iris", "wine", "breast cancer", "digits", "diabetes", "fair", "anes96", "star98", "randhie", "mnist",
         "teacher numbers", "teacher classes")  # fmt: skip


def models(kind: str, seed: int, *, large: bool, outputs: int) -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """Estimators and the grids they choose from in the inner loop."""
    classes = kind == "classes"
    ours = LeakyResNetClassifier if classes else LeakyResNetRegressor
    mlp = MLPClassifier if classes else MLPRegressor
    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    own: dict[str, Any] = {"random_state": seed, "dtype": "float32"}
    theirs: dict[str, Any] = {"random_state": seed, "max_iter": 300}
    if large:
        own |= {"batch_size": 200, "max_epochs": 20, "learning_rate": 3e-3}
        theirs |= {"max_iter": 20}
    forest = trees(random_state=seed)
    many = outputs > 1 and not classes
    grids = {
        "Leaky ResNet": (ours(**own), {"ridge": [1e-3, 1e-2, 1e-1], "effective_depth": [1.0, 3.0]}),
        "ResNet (L̃ = 0)": (ours(**own, effective_depth=0.0), {"ridge": [1e-3, 1e-2, 1e-1]}),
        "MLP": (mlp(**theirs), {"alpha": [1e-4, 1e-2, 1.0], "hidden_layer_sizes": [(100,), (64, 64, 64)]}),
        "boosted trees": (
            MultiOutputRegressor(forest) if many else forest,
            {f"{'estimator__' if many else ''}learning_rate": [0.05, 0.1],
             f"{'estimator__' if many else ''}max_leaf_nodes": [7, 31]},
        ),
    }  # fmt: skip
    if large:
        grids["Leaky ResNet"][1].update(ridge=[1e-3, 1e-2], effective_depth=[1.0])
        grids["ResNet (L̃ = 0)"][1].update(ridge=[1e-3, 1e-2])
        grids["MLP"][1].update(alpha=[1e-4, 1e-1])
        grids["boosted trees"][1].clear()
    return grids


def one(name: str, mnist: Path | None, seed: int, fold: int, label: str) -> dict[str, Any]:
    """One outer fold of one model on one table."""
    torch.set_num_threads(1)
    x, y, kind = load(name, mnist)
    large = len(x) > MANY
    outer = (StratifiedKFold if kind == "classes" else KFold)(3, shuffle=True, random_state=seed)
    train, test = list(outer.split(x, y))[fold]
    estimator, grid = models(kind, seed, large=large, outputs=1 if y.ndim == 1 else y.shape[1])[label]
    if large:
        inner: Any = (StratifiedShuffleSplit if kind == "classes" else ShuffleSplit)(
            1, test_size=0.2, random_state=seed
        )
    else:
        inner = (StratifiedKFold if kind == "classes" else KFold)(3, shuffle=True, random_state=seed)
    step = type(estimator).__name__.lower()
    search = GridSearchCV(make_pipeline(StandardScaler(), estimator),
                          {f"{step}__{k}": v for k, v in grid.items()}, cv=inner)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        search.fit(x[train], y[train])
        whole = time.perf_counter() - start
    best = {k.split("__", 1)[1]: v for k, v in search.best_params_.items()}
    return {"table": name, "model": label, "seed": seed, "fold": fold, "score": float(search.score(x[test], y[test])),
            "seconds": float(search.refit_time_), "search_seconds": whole, "best": best, "rows": len(x),
            "columns": x.shape[1], "kind": kind}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(NAMES))
    parser.add_argument("--quick", action="store_true", help="one fold of the first three tables")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [n for n in NAMES if n in options.only and (n != "mnist" or options.mnist)]
    names = names[:3] if options.quick else names
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for name in names:
        x, _, kind = load(name, options.mnist)
        large = len(x) > MANY
        seeds = range(1 if large or options.quick else options.seeds)
        labels = models(kind, 0, large=large, outputs=1)
        jobs = [(name, options.mnist, seed, fold, label) for label in labels for seed in seeds
                for fold in range(1 if options.quick else 3)]  # fmt: skip
        found = joblib.Parallel(options.jobs)(joblib.delayed(one)(*job) for job in jobs)
        rows += found
        said = []
        for label in labels:
            mine = [r for r in found if r["model"] == label]
            scores = np.array([r["score"] for r in mine])
            error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
            said.append(f"{label} {scores.mean():.3f} ± {error:.3f} ({np.mean([r['seconds'] for r in mine]):.2f} s)")
        print(f"{name:<16}{len(x):>6} × {x.shape[1]:<4}{kind:<9}{' | '.join(said)}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s in all")
    if options.out is not None:
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
        }
        options.out.write_text(json.dumps({"versions": versions, "jobs": options.jobs, "folds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
