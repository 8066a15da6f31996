"""Time of `fit`: the estimators beside scikit-learn's MLP at equal epochs, batch, size and dtype, interleaved.

    python benchmarks/estimators.py [--rounds 7] [--quick]

Both train with Adam on the same standardised rows: as many hidden layers of as many units as the path has, the same
batches, the same number of epochs, no early stop. Each round times both once, in alternating order; printed is the
median of the ratios (ours over theirs) with their range, and the medians of the seconds. Threads: torch and BLAS as
the machine has them.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier, MLPRegressor

from isthmus.estimators import LeakyResNetClassifier, LeakyResNetRegressor


def cases(quick: bool) -> list[tuple[str, int, int, int, int, int | None, str]]:
    """Name, rows, columns, width, depth, batch, dtype."""
    n = 1000 if quick else 5000
    return [
        ("full batch, float64", n, 40, 64, 6, None, "float64"),
        ("batch 200, float64", n, 40, 64, 6, 200, "float64"),
        ("batch 200, float32", n, 40, 64, 6, 200, "float32"),
        ("wide, batch 200, float64", n, 100, 100, 6, 200, "float64"),
        ("4 × as many rows", 4 * n, 40, 64, 6, 200, "float32"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rounds, epochs = (2, 3) if options.quick else (options.rounds, 30)
    print(f"torch threads: {torch.get_num_threads()}; {rounds} rounds; {epochs} epochs")
    rng = np.random.default_rng(0)
    for name, rows, columns, width, depth, batch, dtype in cases(options.quick):
        x = rng.normal(size=(rows, columns)).astype(dtype)
        targets = np.tanh(x @ rng.normal(size=(columns, 3)).astype(dtype))
        classes = targets.argmax(1)
        for kind, y in (("regression", targets), ("classification", classes)):
            ours_of = LeakyResNetRegressor if kind == "regression" else LeakyResNetClassifier
            theirs_of = MLPRegressor if kind == "regression" else MLPClassifier
            ours = ours_of(width=width, depth=depth, max_epochs=epochs, tol=0.0, n_iter_no_change=epochs + 1,
                           batch_size=batch, dtype=dtype, random_state=0)  # fmt: skip
            theirs = theirs_of(
                hidden_layer_sizes=(width,) * depth, max_iter=epochs, tol=0.0, n_iter_no_change=epochs + 1,
                batch_size=batch or rows, random_state=0,
            )  # fmt: skip
            ours.fit(x, y)  # imports and first calls are not what is compared
            theirs.fit(x, y)
            seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
            for round_ in range(rounds):
                pair = (("ours", ours), ("theirs", theirs))
                for label, estimator in pair if round_ % 2 else pair[::-1]:
                    start = time.perf_counter()
                    estimator.fit(x, y)
                    seconds[label].append(time.perf_counter() - start)
            assert ours.n_iter_ == theirs.n_iter_ == epochs
            ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
            middle = {label: statistics.median(found) for label, found in seconds.items()}
            print(
                f"{name:<26}{kind:<16}{rows:>7} rows  ours {middle['ours']:.3f} s  MLP {middle['theirs']:.3f} s  "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
