"""Geometry of a path from second moments against N × N matrices: time, agreement, memory.

    python benchmarks/geometry.py [--quick]

One path (N = 2000, w = 100, L = 20, float64). `geometry`: what `path_geometry` gives without momenta, that is the costs
of identity and kinetic energies at its three default γ₀, and the spectra of all nodes. `one γ₀`: cost and energy
at one γ₀ only, though the moments carry all the rest. Against it, in turn and in one run: the same numbers by Cholesky
solves with `K + γI` (N × N), or by `pinv(K + γI)`, and SVDs. Prints the median ratios with their spread, the largest
relative difference, and the peak memory of streaming N samples.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from isthmus.geometry import (
    GAMMA0S,
    PathAccumulator,
    RowSpace,
    identity_cost_from_moments,
    kinetic_energy,
    path_geometry,
)

LT = 7.0
Numbers = list[Tensor]


def make_path(n: int, width: int, depth: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A random leaky ReLU path, its features, its steps, and its weights with a zero bias column."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    nodes = [torch.randn(n, width, generator=g, dtype=torch.float64) * scale]
    weight = LT * torch.randn(depth, width, width, generator=g, dtype=torch.float64) * (2 / width) ** 0.5
    for w in weight:
        nodes.append((1 - LT / depth) * nodes[-1] + nodes[-1].relu() @ w.T / depth)
    path = torch.stack(nodes)
    features = torch.cat([path.relu(), torch.ones_like(path[..., :1])], -1)
    weight = torch.cat([weight, torch.zeros_like(weight[..., :1])], -1)
    return path, features, torch.full((depth,), 1 / depth, dtype=torch.float64), weight


def ours(path: Tensor, features: Tensor, rho: Tensor, weight: Tensor, gamma0s: tuple[float, ...]) -> Numbers:
    acc = PathAccumulator()
    acc.update(path, features)
    moments = acc.result()
    if len(gamma0s) == 1:
        space = RowSpace.of(moments.feature_gram, eps=moments.product_eps)
        cost = identity_cost_from_moments(moments.cross, moments.norm_sq, space, gamma0s[0]).stabilised[:-1]
        return [cost, kinetic_energy(moments, space, rho, LT, gamma0s[0])]
    found = path_geometry(moments, weight=weight, layer_steps=rho, effective_depth=LT, has_bias=True, gamma0s=gamma0s)
    energies = [t for e in found.energies.values() for t in (e.cost.stabilised[:-1], e.kinetic)]
    return [*energies, found.spectrum[:-1, :10], found.spectrum_centred[:-1, :10], found.weight_spectrum]


def dense(
    path: Tensor, features: Tensor, rho: Tensor, weight: Tensor, gamma0s: tuple[float, ...], method: str
) -> Numbers:
    n, width = path.shape[1:]
    energies = [[torch.empty(len(rho), dtype=path.dtype) for _ in range(2)] for _ in gamma0s]
    spectra, centred = [], []
    for i in range(len(rho)):
        s = features[i]
        gram = s @ s.T
        top = torch.linalg.matrix_norm(s, 2) ** 2
        both = torch.cat([path[i], (path[i + 1] - path[i]) / rho[i]], 1)
        for gamma0, (cost, kinetic) in zip(gamma0s, energies, strict=True):
            k = gram.clone()
            k.diagonal().add_(gamma0 * top)
            if method == "cholesky":
                solved = torch.cholesky_solve(both, torch.linalg.cholesky(k))
            else:
                solved = torch.linalg.pinv(k) @ both
            norms = (both * solved).sum(0)
            cost[i], kinetic[i] = norms[:width].sum(), norms[width:].sum() / (2 * LT)
        if len(gamma0s) > 1:
            spectra.append(torch.linalg.svdvals(path[i] / n**0.5)[:10])
            centred.append(torch.linalg.svdvals((path[i] - path[i].mean(0)) / n**0.5)[:10])
    flat = [t for pair in energies for t in pair]
    if len(gamma0s) == 1:
        return flat
    return [*flat, torch.stack(spectra), torch.stack(centred), torch.linalg.svdvals(weight[..., :-1])]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(label: str, layers: int, gamma0s: tuple[float, ...], method: str, runs: int) -> None:
    """Both sides in turn, on the first `layers` layers; the fast side is the best of three of its turn."""
    path, features, rho, weight = make_path(2000, 100, 20)
    one = (path[: layers + 1], features[: layers + 1], torch.full_like(rho[:layers], 1 / layers), weight[:layers])
    difference = 0.0
    for a, b in zip(ours(*one, gamma0s), dense(*one, gamma0s, method), strict=True):
        difference = max(difference, float(((a - b).abs() / b.abs().amax(-1, keepdim=True)).max()))
    ratios, fast, slow = [], [], []
    for _ in range(runs):
        fast.append(min(seconds(lambda: ours(*one, gamma0s)) for _ in range(3)))
        slow.append(seconds(lambda: dense(*one, gamma0s, method)))
        ratios.append(slow[-1] / fast[-1])
    spread = f"ratio {statistics.median(ratios):6.1f} (min {min(ratios):.1f}, max {max(ratios):.1f}, {runs} pairs)"
    print(
        f"{label:9s} L = {layers:2d}  {method:8s} {statistics.median(slow):6.2f} s, "
        f"moments {statistics.median(fast):.4f} s, {spread}, largest relative difference {difference:.1e}"
    )


def peak_memory() -> float:
    """Peak resident memory of this process in MiB (`ru_maxrss` would count the parent's from before the exec)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stream(n: int, batch: int = 1000) -> None:
    """Stream `n` samples of a w = 100, L = 20 path, and print this process's peak memory."""
    path, features, _, _ = make_path(batch, 100, 20)
    acc = PathAccumulator()
    acc.update(path, features)
    before = peak_memory()
    for _ in range(n // batch - 1):
        acc.update(path, features)
    after = peak_memory()
    print(f"N = {acc.result().n:>9,}: peak memory {after:.1f} MiB, {after - before:+.1f} MiB after the first batch")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one pair, N up to 1e5")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        stream(arguments.stream)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float64, N = 2000, w = 100, L = 20")
    runs = 1 if arguments.quick else 7
    compare("geometry", 20, GAMMA0S, "cholesky", runs)
    compare("one γ₀", 20, GAMMA0S[:1], "cholesky", runs)
    # pinv is slow enough for a part of the path to do: the same layers on both sides.
    compare("geometry", 2, GAMMA0S, "pinv", min(3, runs))
    compare("one γ₀", 2, GAMMA0S[:1], "pinv", min(3, runs))
    for n in (1_000, 100_000) if arguments.quick else (1_000, 100_000, 1_000_000):
        subprocess.run([sys.executable, __file__, "--stream", str(n)], check=True)


if __name__ == "__main__":
    main()
