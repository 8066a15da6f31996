"""Small networks trained together against one after another: time of one step of all.

    OMP_NUM_THREADS=1 python benchmarks/ensemble.py [--quick]

Full batch, float32, N = 100, L = 20, E = 32 networks of different seeds and effective depths; square cost, ridge, fused
Adam. Both sides take turns in one run. The ratio is of the medians; in brackets the range over rounds of each round's
own ratio. On one thread the processor time of this process is taken, which other programs disturb less. Before timing,
both are trained for 10 steps in float64 and their weights compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from isthmus.models import LeakyEnsemble, LeakyResNet

N, DEPTH, MEMBERS, RIDGE = 100, 20, 32, 1e-3


def stepper(model: LeakyResNet | LeakyEnsemble, x: Tensor, y: Tensor) -> Callable[[], None]:
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        cost = (y - model(x)).square().sum() / N + RIDGE * model.weight_cost().sum()
        adam.zero_grad(set_to_none=True)
        cost.backward()
        adam.step()

    return step


def networks(width: int, dtype: torch.dtype) -> list[LeakyResNet]:
    return [LeakyResNet(8, 4, width=width, depth=DEPTH, effective_depth=float(i % 8), seed=i, dtype=dtype)
            for i in range(MEMBERS)]  # fmt: skip


def both(width: int, dtype: torch.dtype) -> tuple[list[LeakyResNet], LeakyEnsemble, dict[str, Callable[[], None]]]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(N, d, generator=generator, dtype=dtype) for d in (8, 4))
    alone = networks(width, dtype)
    ensemble = LeakyEnsemble.of(alone)
    steps = [stepper(net, x, y) for net in alone]

    def one_after_another() -> None:
        for step in steps:
            step()

    return alone, ensemble, {"one after another": one_after_another, "together": stepper(ensemble, x, y)}


def seconds(work: Callable[[], None]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 41")
    rounds = 5 if parser.parse_args().quick else 41
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, N = {N}, L = {DEPTH}, "
          f"E = {MEMBERS}, {rounds} rounds")  # fmt: skip
    for width in (16, 32, 64, 100):
        alone, ensemble, works = both(width, torch.float64)
        for _ in range(10):
            for work in works.values():
                work()
        difference = max(float(((a.weight - b.weight).abs().max() / a.weight.abs().max()).detach())
                         for a, b in zip(alone, ensemble.split(), strict=True))  # fmt: skip
        _, _, works = both(width, torch.float32)
        times: dict[str, list[float]] = {name: [] for name in works}
        for i in range(-1, rounds):
            for name, work in works.items():
                taken = seconds(work)
                if i >= 0:  # the first round warms up
                    times[name].append(taken)
        slow, fast = times.values()
        ratios = sorted(s / f for s, f in zip(slow, fast, strict=True))
        middle = statistics.median(slow), statistics.median(fast)
        print(
            f"w = {width:3d}: one after another {middle[0] * 1e3:7.2f} ms, together {middle[1] * 1e3:7.2f} ms, "
            f"{middle[0] / middle[1]:5.2f} times faster (by round {ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"weights after 10 steps differ by {difference:.1e}"
        )


if __name__ == "__main__":
    main()
