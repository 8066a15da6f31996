"""Fitting two effective learning rates to a pair of samples: this library beside the published procedure.

    OMP_NUM_THREADS=1 python benchmarks/two_point.py [--epochs 3000] [--pairs 5] [--fits 10000] [--quick]

The published procedure (arXiv 2402.09142, docs/theory 2.4): 200 ratios `η_h/η_y` on a logarithmic grid around
`h_end²/(X Y)`, each with the `η_y` whose growth from small weights takes as long as y takes to half of its change; a
stiff solve of the three equations for each (`solve_ivp`, rtol 1e-6, on all epochs). The best one is where BFGS
(`minimize`) starts, in `log η`.

One: the same traces fitted by both, in alternating order. Printed are the median and the range of the ratios of
processor time, and of the squared errors over all epochs (ours over theirs: 1 or less is no worse). Many: the time
of `fit_two_points` for many traces of 200 to 3000 epochs, and the memory that this process took at its largest.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import time
import warnings

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from torch import Tensor

from isthmus.theory import fit_two_point, fit_two_points, two_point

GRID, WIDTH, NOISE = 200, 1.0, 2e-3  # the grid goes from 10^−WIDTH to 10^WIDTH times the rich ratio


def solve(start: np.ndarray, rates: np.ndarray, X: float, Y: float, t: np.ndarray, method: str) -> np.ndarray | None:
    eta_h, eta_y = rates

    def field(_: float, z: np.ndarray) -> list[float]:
        h, y, v = z
        return [
            -eta_h * X * v,
            -v * (eta_y * h + eta_h * X * y / h),
            -0.5 * eta_y * (3 * v - y + Y) * h - 0.5 * eta_h * X * (y + v) * v / h,
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = solve_ivp(field, (0, float(t[-1])), start, method, t, rtol=1e-6, atol=1e-9)
    return found.y if found.success and found.y.shape[1] == len(t) else None


def published(t: np.ndarray, curves: np.ndarray, X: float, Y: float, method: str) -> tuple[np.ndarray, float]:
    """Rates and squared error, by the published procedure."""
    start = curves[:, 0]

    def error(log_rates: np.ndarray) -> float:
        found = solve(start, np.exp(np.clip(log_rates, -50, 50)), X, Y, t, method)
        return 1e12 if found is None else float(np.square(found - curves).sum())

    half = int(np.argmax(curves[1] > (curves[1, 0] + curves[1, -1]) / 2))
    grid = (curves[0, -1] ** 2 / (X * Y)) * np.logspace(-WIDTH, WIDTH, GRID)
    best, least = np.zeros(2), math.inf
    for ratio in grid:
        # η_y from the growth rate of small weights, η_y √(ratio·X·Y), over the time to the middle of the change.
        growth = 0.5 * math.log(max(curves[1, -1] / curves[1, 0], 2.0)) / max(t[half], t[1])
        eta_y = growth / math.sqrt(ratio * X * Y)
        guess = np.log([ratio * eta_y, eta_y])
        if (found := error(guess)) < least:
            best, least = guess, found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = minimize(error, best, method="BFGS")
    return np.exp(found.x), float(found.fun)


def draw(fits: int, epochs: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Times, traces with noise, X and Y, of runs from rich to lazy that learn within their time."""
    g = torch.Generator().manual_seed(seed)

    def log(low: float, high: float) -> Tensor:
        return torch.exp(low + (high - low) * torch.rand(fits, generator=g, dtype=torch.float64))

    t = torch.arange(epochs, dtype=torch.float64)
    X, Y, ratio, h0, y0 = log(-0.5, 0.5), log(-1, 0.5), log(-2, 2), log(-4, 0), log(-5, -3)
    v0 = y0 - 0.3 * (y0 * Y).sqrt()
    eta_y = log(1.5, 3.5) / (epochs * (ratio * X * Y).sqrt())  # a few times its time scale
    path = two_point(t, h0, y0, v0, eta_h=ratio * eta_y, eta_y=eta_y, dx2=X, dy2=Y)
    curves = torch.stack([path.h, path.y, path.v], 1)
    curves[..., 1:] += NOISE * torch.randn(curves[..., 1:].shape, generator=g, dtype=torch.float64)
    curves[:, :2].clamp_(min=1e-9)
    return t, curves, X, Y


def one(epochs: int, pairs: int, method: str) -> None:
    t, curves, X, Y = draw(pairs, epochs, seed=0)
    fit_two_point(t, *curves[0], dx2=float(X[0]), dy2=float(Y[0]))  # warm
    ratios, errors, ours, theirs = [], [], [], []
    for i in range(pairs):
        x, y = float(X[i]), float(Y[i])

        def mine(i: int = i, x: float = x, y: float = y) -> float:
            return fit_two_point(t, *curves[i], dx2=x, dy2=y).misfit

        def reference(i: int = i, x: float = x, y: float = y) -> float:
            return published(t.numpy(), curves[i].numpy(), x, y, method)[1]

        seconds, misfits = {}, {}
        for name, call in (("ours", mine), ("theirs", reference))[:: 1 if i % 2 else -1]:
            begun = time.process_time()
            misfits[name] = call()
            seconds[name] = time.process_time() - begun
        ours.append(seconds["ours"])
        theirs.append(seconds["theirs"])
        ratios.append(seconds["theirs"] / seconds["ours"])
        errors.append(misfits["ours"] / misfits["theirs"])
    print(f"{method:6} {epochs} epochs, {pairs} pairs: ours {statistics.median(ours) * 1e3:.0f} ms, theirs "
          f"{statistics.median(theirs):.1f} s; faster by {statistics.median(ratios):.0f} "
          f"({min(ratios):.0f} to {max(ratios):.0f}); squared error ours/theirs {statistics.median(errors):.6f} "
          f"({min(errors):.6f} to {max(errors):.6f})", flush=True)  # fmt: skip


def many(fits: int) -> None:
    lengths = (200, 500, 1000, 3000)
    whole = 0.0
    for k, epochs in enumerate(lengths):
        count, spent, done = fits // len(lengths), 0.0, 0
        bad, fitted = 0, []
        while done < count:  # traces are made a few hundred at a time, to keep this program small
            some = min(250, count - done)
            t, curves, X, Y = draw(some, epochs, seed=1000 * k + done)
            begun = time.process_time()
            found = fit_two_points(t, curves[:, 0], curves[:, 1], curves[:, 2], dx2=X, dy2=Y)
            spent += time.process_time() - begun
            bad += sum(bool(reason) for reason in found.reasons)
            fitted.append(found.r_squared_all)
            done += some
        whole += spent
        r2 = torch.cat(fitted).nanmedian()
        print(f"{count} fits of {epochs} epochs: {spent:.1f} s, {spent / count * 1e3:.1f} ms each; "
              f"{bad} not fitted; median R² {float(r2):.5f}", flush=True)  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{fits} fits: {whole:.0f} s of processor time; this process at its largest {peak:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--fits", type=int, default=10000)
    parser.add_argument("--quick", action="store_true", help="one pair, 200 fits")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, one thread")
    for method in ("LSODA",) if given.quick else ("LSODA", "Radau"):
        one(given.epochs, 1 if given.quick else given.pairs, method)
    many(200 if given.quick else given.fits)


if __name__ == "__main__":
    main()
