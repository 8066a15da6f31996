"""A training step against its 60 bare matrix products: with the path as one function, and as the plain loop.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--quick]

Full batch, float32, N = 1000, L = 20, 30 inputs and outputs. `products`: the 20 + 20 + 20 matrix products of forward
pass, input gradients and weight gradients, into preallocated results, and nothing else. `step`: objective, gradients
and fused Adam. The three take turns in one run. Ratios are of the medians; in brackets, of the fastest rounds, and the
range over rounds of each round's own ratio. On one thread, as above, the processor time of this process is taken, which
other programs disturb less; threads on shared cores wait for each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch

from isthmus.models import LeakyResNet, _path_function
from isthmus.train import objective

N, DEPTH, FEATURES = 1000, 20, 30


def products(width: int) -> Callable[[], None]:
    a, w = torch.randn(DEPTH + 1, N, width), torch.randn(DEPTH, width, width)
    moved, gradient = torch.empty(DEPTH, N, width), torch.empty(DEPTH, width, width)

    def work() -> None:
        for i in range(DEPTH):
            torch.mm(a[i], w[i].mT, out=moved[i])
        for i in reversed(range(DEPTH)):
            torch.mm(a[i + 1], w[i], out=moved[i])
            torch.mm(a[i + 1].mT, a[i], out=gradient[i])

    return work


def step(width: int, *, plain: bool) -> Callable[[], None]:
    model = LeakyResNet(FEATURES, FEATURES, width=width, depth=DEPTH, effective_depth=7.0, dtype=torch.float32)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(N, FEATURES, generator=generator) for _ in range(2))

    def work() -> None:
        cost, ridge = objective(model, "square", 1e-3, x, y)
        adam.zero_grad(set_to_none=True)
        (cost + ridge).backward()
        adam.step()

    def work_plain() -> None:
        with mock.patch.object(_path_function, "_fuses", return_value=False):
            work()

    return work_plain if plain else work


def seconds(work: Callable[[], None], repeats: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        work()
    return (clock() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 41")
    rounds = 5 if parser.parse_args().quick else 41
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, N = {N}, L = {DEPTH}, {rounds} rounds"
    )
    for width, repeats in ((100, 4), (256, 1)):
        works = {
            "products": products(width),
            "plain loop": step(width, plain=True),
            "one function": step(width, plain=False),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for i in range(-1, rounds):
            for name, work in works.items():
                taken = seconds(work, repeats)
                if i >= 0:  # the first round warms up
                    times[name].append(taken)
        bare = times["products"]
        print(f"w = {width}: products {statistics.median(bare) * 1e3:.2f} ms")
        for name in ("plain loop", "one function"):
            middle, best = statistics.median(times[name]), min(times[name])
            ratios = sorted(t / b for t, b in zip(times[name], bare, strict=True))
            print(
                f"  step, {name:12s} {middle * 1e3:7.2f} ms, ratio {middle / statistics.median(bare):.3f} "
                f"(of the fastest {best / min(bare):.3f}; by round {ratios[0]:.3f} to {ratios[-1]:.3f})"
            )


if __name__ == "__main__":
    main()
