"""Jacobians of ReLU networks: one product of the whole batch per layer against loops over samples.

    python benchmarks/certificate.py [--quick]

A random network (20 inputs and outputs, depth 25, float64, one thread), 1000 samples. Ours: the pseudo-determinant
`log |Jf(x)|₊` at every sample, by `relu_jacobian` and singular values (those above 1% of the largest). Against it, in
turn and in one run, loops over samples (fewer of them, scaled to 1000): reverse mode
(`torch.autograd.functional.jacobian`), `torch.func.jacrev`, and the product along the layers for one sample at a time.
Prints median times, ratios with their spread, the largest difference, and the time of the whole certificate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from isthmus.geometry import bottleneck_certificate, relu_jacobian

SAMPLES, DEPTH, ENDS = 1000, 25, 20
Layers = list[Tensor]


def network(width: int) -> tuple[Layers, Layers]:
    g = torch.Generator().manual_seed(0)
    widths = [ENDS, *[width] * (DEPTH - 1), ENDS]
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [(2 / fan) ** 0.5 * torch.randn(out, fan, generator=g, dtype=torch.float64) for out, fan in pairs]
    return weights, [0.1 * torch.randn(out, generator=g, dtype=torch.float64) for out, _ in pairs]


def forward(weights: Layers, biases: Layers, x: Tensor) -> Tensor:
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(w @ x + b)
    return weights[-1] @ x + biases[-1]


def by_product(weights: Layers, biases: Layers, x: Tensor) -> Tensor:
    product = torch.eye(ENDS, dtype=x.dtype)
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = w @ x + b
        product = (w @ product) * (z > 0)[:, None]
        x = z.relu()
    return weights[-1] @ product


def log_pseudodet(jacobians: Tensor) -> Tensor:
    s = torch.linalg.svdvals(jacobians)
    return torch.where(s > 0.01 * s[..., :1], s, 1.0).log().sum(-1)


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def compare(width: int, runs: int, part: int) -> None:
    weights, biases = network(width)
    x = torch.randn(SAMPLES, ENDS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loops: dict[str, Callable[[Tensor], Tensor]] = {
        "reverse mode": lambda v: torch.autograd.functional.jacobian(lambda u: forward(weights, biases, u), v),  # type: ignore[return-value]
        "func.jacrev": torch.func.jacrev(lambda u: forward(weights, biases, u)),
        "product": lambda v: by_product(weights, biases, v),
    }
    times: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in loops}
    difference = 0.0
    for _ in range(runs):
        took, ours = min(
            (seconds(lambda: log_pseudodet(relu_jacobian(weights, biases, x))) for _ in range(3)), key=lambda p: p[0]
        )
        times.append(took)
        for name, single in loops.items():
            slow, found = seconds(lambda single=single: torch.stack([log_pseudodet(single(v)) for v in x[:part]]))
            ratios[name].append(slow * SAMPLES / part / took)
            difference = max(difference, float((found - ours[:part]).abs().max()))
    certificate, _ = seconds(lambda: bottleneck_certificate(weights, biases, x).gap)
    print(
        f"width {width}: {SAMPLES} samples in {statistics.median(times):.3f} s, differences up to {difference:.1e} nats"
    )
    for name, found in ratios.items():
        spread = f"min {min(found):.1f}, max {max(found):.1f}, {runs} pairs"
        print(f"    loop by {name:12s} takes {statistics.median(found):6.1f} times as long ({spread})")
    print(f"    certificate at {SAMPLES} samples: {certificate:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one pair of each, loops over 50 samples")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float64, depth {DEPTH}, {ENDS} inputs and outputs")
    for width in (20, 100):
        compare(width, 1 if quick else 5, 50 if quick else 200)


if __name__ == "__main__":
    main()
