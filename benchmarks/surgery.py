"""Depth surgery: what a trained Leaky ResNet loses with its layers, beside training the small one from scratch.

    OMP_NUM_THREADS=1 python benchmarks/surgery.py [--seeds 3] [--epochs 400] [--tune 40] [--quick]

Teacher 15→6→3→15 (random ResNets), N = 300 and 1000 test samples, w = 30, L = 20, λ = 1e-3, float64, in two settings:
L̃ = 3 with adaptive steps, and L̃ = 7 with equidistant ones. Printed for every depth: the test loss over that of the
full network, mean and standard deviation over seeds, of

- `merge`, `refit`, `equidistant`, `drop`: methods of `isthmus.train.resample`, nothing trained;
- `+ tuned`: the same and then `tune` epochs of Adam at 3e-3;
- `scratch`: the small network trained for those `tune` epochs from its own start, at 3e-2;
- `scratch, long`: the small network trained for `epochs · L / depth + tune`, which costs as much as the training of the
  full network and the tuning together.

All networks of a row have the same number of layers, so the same cost of inference. `–` is a depth that cannot be had.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from isthmus import InputError
from isthmus.data import Task, teacher
from isthmus.models import LeakyResNet
from isthmus.train import RESAMPLE_METHODS, FitConfig, data_term, fit, resample

DEPTH, WIDTH, RIDGE, RATE, TUNING_RATE = 20, 30, 1e-3, 3e-2, 3e-3
SETTINGS = {(3.0, "adaptive"): (12, 8, 6, 4), (7.0, "equidistant"): (12, 10, 8)}
SCRATCH = ("scratch", "scratch, long")


def network(task: Task, depth: int, effective_depth: float, steps: str, seed: int) -> LeakyResNet:
    return LeakyResNet(task.in_features, task.out_features, width=WIDTH, depth=depth, effective_depth=effective_depth,
                       steps=steps, seed=seed, dtype=torch.float64)  # fmt: skip


def train(model: LeakyResNet, task: Task, epochs: int, rate: float, seed: int) -> None:
    config = FitConfig(epochs=epochs, learning_rate=rate, ridge=RIDGE, log_points=2, seed=seed)
    fit(model, task.x_train, task.y_train, config)


@torch.no_grad()
def loss(model: LeakyResNet, task: Task) -> float:
    return float(data_term("square", model(task.x_test), task.y_test))


def compare(effective_depth: float, steps: str, depths: tuple[int, ...], seed: int, epochs: int, tune: int) -> tuple[
        float, dict[tuple[str, int], float]]:  # fmt: skip
    """Test loss of the full network, and of every way and depth over it."""
    task = teacher((15, 6, 3, 15), "resnet", n_train=300, n_test=1000, seed=seed)
    full = network(task, DEPTH, effective_depth, steps, seed)
    train(full, task, epochs, RATE, seed)
    whole, found = loss(full, task), {}
    for depth in depths:
        for method in RESAMPLE_METHODS:
            try:
                small = resample(full, depth, task.x_train, method=method)
            except InputError:
                continue
            found[method, depth] = loss(small, task) / whole
            train(small, task, tune, TUNING_RATE, seed)
            found[f"{method} + tuned", depth] = loss(small, task) / whole
        for way, length in zip(SCRATCH, (tune, round(epochs * DEPTH / depth) + tune), strict=True):
            try:
                small = network(task, depth, effective_depth, steps, seed)
            except InputError:
                continue
            train(small, task, length, RATE, seed)
            found[way, depth] = loss(small, task) / whole
    return whole, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=400, help="of the full network")
    parser.add_argument("--tune", type=int, default=40, help="epochs of fine-tuning")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs: only to see that it runs")
    args = parser.parse_args()
    seeds, epochs, tune = (1, 20, 4) if args.quick else (args.seeds, args.epochs, args.tune)
    torch.set_num_threads(1)
    begun = time.process_time()
    for (effective_depth, steps), depths in SETTINGS.items():
        results = [compare(effective_depth, steps, depths, seed, epochs, tune) for seed in range(seeds)]
        wholes = [whole for whole, _ in results]
        print(f"\nL̃ = {effective_depth:g}, {steps} steps, {seeds} seeds: test loss of {DEPTH} layers "
              f"{statistics.mean(wholes):.3f}; below, test loss over it")  # fmt: skip
        print(f"\n| way | {' | '.join(f'{depth} layers' for depth in depths)} |")
        print(f"|---{'|---' * len(depths)}|")
        for way in (*RESAMPLE_METHODS, *(f"{method} + tuned" for method in RESAMPLE_METHODS), *SCRATCH):
            cells: list[str] = []
            for depth in depths:
                values = [found[way, depth] for _, found in results if (way, depth) in found]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}" if len(values) == seeds else "–")
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.process_time() - begun:.0f} s of one core")


if __name__ == "__main__":
    main()
