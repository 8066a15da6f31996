"""What tangent kernels and layerwise alignment cost: against `nngeometry`, in the number of samples, and on a CNN.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py [--quick] [--peers FOLDER] [--only kernels|samples|cnn]

*Kernels.* Class-traced kernels of all layers of a 10 × 256 MLP (n = 256, C = 10, float32), and alignments, against
`nngeometry` 0.4: the Gram matrix of the whole network at once, and layer by layer, which is what one kernel per layer
takes there. It gives the dense (C, n, C, n) Gram, then traced over the classes; both agree to float32 rounding,
which is checked. All take turns in one run. It is found in a folder of its own:

    pip install --no-deps --target peers nngeometry==0.4
    python benchmarks/alignment.py --peers peers

*Samples.* Alignment of a 6 × 128 MLP by the estimate, at growing n: seconds, seconds per sample, and the peak resident
memory of a process of its own beyond that of its data.

*CNN.* Alignment of a ResNet-18 (images of 32 × 32, n = 512, C = 10): seconds beside C forward and backward passes over
the same samples, and peak resident memory.

On one thread, as above, the processor time of a process is taken, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.probe import align, tangent_kernel

N, WIDTH, DEPTH, CLASSES = 256, 256, 10, 10


def mlp(width: int, depth: int, inputs: int, classes: int) -> nn.Sequential:
    """`depth` linear layers with ReLUs between."""
    torch.manual_seed(0)
    sizes = [inputs, *[width] * (depth - 1), classes]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.short = nn.Conv2d(inner, outer, 1, stride, bias=False) if stride > 1 or inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.short(x))


def resnet18(quick: bool) -> nn.Sequential:
    """ResNet-18 for small images; a quarter as wide with `quick`."""
    torch.manual_seed(0)
    w = 16 if quick else 64
    blocks = [Block(w, w, 1), Block(w, w, 1), Block(w, 2 * w, 2), Block(2 * w, 2 * w, 1), Block(2 * w, 4 * w, 2),
              Block(4 * w, 4 * w, 1), Block(4 * w, 8 * w, 2), Block(8 * w, 8 * w, 1)]  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, CLASSES))  # fmt: skip


def timed(function: Callable[[], Any]) -> float:
    """Processor seconds of one call on one thread, wall seconds otherwise."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start


def spread(ratios: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"


def kernels(peers: str | None, rounds: int) -> None:
    """Class-traced kernels of every layer, ours and theirs in turn."""
    model, x = mlp(WIDTH, DEPTH, 784, CLASSES), torch.randn(N, 784)
    y = torch.arange(N) % CLASSES
    print(f"kernels: {DEPTH} × {WIDTH} MLP, n = {N}, C = {CLASSES}")
    jobs: dict[str, Callable[[], Any]] = {
        "isthmus, traced kernels of all layers": lambda: tangent_kernel(model, x, kind="traced"),
        "isthmus, alignments of all layers": lambda: align(model, x, targets=y, bootstrap=0, progress=False),
        "isthmus, with 200 resamplings": lambda: align(model, x, targets=y, progress=False),
    }
    if peers is None:
        print("  nngeometry: skipped (give the folder it is in with --peers, see the docstring)")
    else:
        sys.path.insert(0, peers)
        jobs |= theirs(model, x)
    slow = "nngeometry, layer by layer"
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for name, job in jobs.items():
        if name != slow:
            job()
    for i in range(rounds):
        for name, job in jobs.items():
            if name != slow or i < 2:
                times[name].append(timed(job))
    first = times["isthmus, traced kernels of all layers"]
    for name, taken in times.items():
        ratios = [t / f for t, f in zip(taken, first, strict=False)]
        print(f"  {name:<40} {statistics.median(taken):8.3f} s   {spread(ratios)} × ours")


def theirs(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The same with `nngeometry`, checked to agree."""
    from nngeometry.gram import GramMatrix  # pyright: ignore[reportMissingImports]
    from nngeometry.layercollection import LayerCollection  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))

    def gram(layer: nn.Module | None) -> Tensor:
        collection = LayerCollection.from_model(model) if layer is None else LayerCollection()
        if layer is not None:
            collection.add_layer_from_model(model, layer)
        dense = GramMatrix(model=model, loader=loader, function=lambda *d: model(d[0]), layer_collection=collection)
        return torch.einsum("cxcy->xy", dense.data)

    ours = tangent_kernel(model, x, kind="traced")
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    error = float((gram(None).double() - ours.total.double()).norm() / ours.total.double().norm())
    last = linear[-1]
    single = float(
        (gram(last[1]).double() - ours.layers[last[0]].double()).norm() / ours.layers[last[0]].double().norm()
    )
    print(f"  agree with nngeometry: whole {error:.1e}, last layer {single:.1e}")
    return {
        "nngeometry, whole network at once": lambda: gram(None),
        "nngeometry, layer by layer": lambda: [gram(m) for _, m in linear],
    }


def child(code: str) -> dict[str, Any]:
    """Run a part of this file in a process of its own; its numbers."""
    words = [sys.executable, str(Path(__file__).resolve()), "--child", code]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def samples(quick: bool) -> None:
    """Time and memory of the estimate at growing n, each in a process of its own."""
    print("samples: 6 × 128 MLP on 64 inputs, C = 10, estimate with 32 probes")
    for n in (500, 1000, 2000) if quick else (1000, 5000, 10_000, 50_000):
        found = child(f"samples:{n}")
        print(f"  n = {n:>6}: {found['seconds']:7.2f} s, {1e6 * found['seconds'] / n:7.1f} µs a sample, "
              f"peak {found['memory'] / 2**20:6.0f} MiB beyond the data and the libraries")  # fmt: skip


def cnn(quick: bool) -> None:
    """A ResNet-18: its alignment beside C forward and backward passes."""
    n = 64 if quick else 512
    found = child(f"cnn:{n}:{int(quick)}")
    print(f"cnn: ResNet-18 {'(quarter width) ' if quick else ''}n = {n}, C = {CLASSES}, method {found['methods']}")
    print(f"  alignment {found['seconds']:.1f} s; {CLASSES} forward and backward passes {found['passes']:.1f} s; ratio "
          f"{found['seconds'] / found['passes']:.1f}; peak {found['memory'] / 2**30:.2f} GiB in all")  # fmt: skip


def run_child(code: str) -> None:
    """What a process of its own measures."""
    kind, *rest = code.split(":")
    torch.set_num_threads(1)

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    if kind == "samples":
        n = int(rest[0])
        model, x, y = mlp(128, 6, 64, CLASSES), torch.randn(n, 64), torch.arange(n) % CLASSES
        align(model, x[:64], targets=y[:64], method="estimate", probes=32, bootstrap=0, progress=False)
        before = peak()
        seconds = timed(lambda: align(model, x, targets=y, method="estimate", probes=32, bootstrap=0, batch_size=500,
                                      progress=False))  # fmt: skip
        print(json.dumps({"seconds": seconds, "memory": peak() - before}))
        return
    n, quick = int(rest[0]), bool(int(rest[1]))
    model, x, y = resnet18(quick).eval(), torch.randn(n, 3, 32, 32), torch.arange(n) % CLASSES

    def passes() -> None:
        for _ in range(CLASSES):
            for part in x.split(32):
                model(part).square().sum().backward()

    taken = timed(passes)
    model.zero_grad()
    found: list[Any] = []
    seconds = timed(lambda: found.append(align(model, x, targets=y, batch_size=32, max_memory=8 * 2**30, bootstrap=0,
                                               progress=False)))  # fmt: skip
    methods = sorted({layer.method for layer in found[0].layers})
    print(json.dumps({"seconds": seconds, "passes": taken, "memory": peak(), "methods": "; ".join(methods)}))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--peers", help="folder nngeometry is installed in")
    parser.add_argument("--only", choices=("kernels", "samples", "cnn"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child)
        return
    print(f"threads: {torch.get_num_threads()}, torch {torch.__version__}")
    if arguments.only in (None, "kernels"):
        kernels(arguments.peers, 3 if arguments.quick else 9)
    if arguments.only in (None, "samples"):
        samples(arguments.quick)
    if arguments.only in (None, "cnn"):
        cnn(arguments.quick)


if __name__ == "__main__":
    main()
