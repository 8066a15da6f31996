"""What `measure` costs: against a bare forward pass, against `delve`, and in memory against stored activations.

    OMP_NUM_THREADS=1 python benchmarks/measure.py [--quick] [--peers PYTHON] [--only transformer|cnn|memory]

*Time.* A GPT-2-like transformer (12 blocks of width 384, sequences of 128) and a ResNet-18 (images of 112 × 112), both
with random weights, float32. `forward`: `model(batch)` over all batches, in evaluation mode without gradients. `blocks`
and `*`: the streaming pass of `measure` with these `layers` over the same batches. All three take turns in one run;
ratios are to the forward pass of the same round. What does not grow with the number of samples is timed apart: the
survey of the model before the pass, and spectra and weights after it.

*Peer.* `delve` 0.1.50 (layer saturation: eigenvalues of the covariance of the outputs of Linear and Conv2d layers) and
Isthmus on the same layers, in turn. Of a transformer `delve` reads the last position only, or all positions as one
vector (49,152 features, covariance 18 GiB); here each position is given to it as a sample, as Isthmus has it. It
starts its covariance anew with every batch (`SaturationTracker._record_stat` looks for a matrix where the dictionary of
matrices is), so that its numbers are of the last batch: they are compared with ours of that batch. It needs an
environment of its own:

    python3 -m venv peers && peers/bin/pip install torch==2.13.0 numpy tqdm pandas matplotlib tensorboardX
    peers/bin/pip install --no-deps delve==0.1.50
    python benchmarks/measure.py --peers peers/bin/python

*Memory.* Peak resident memory of a process that measures `blocks` of 10,000 samples, and of one whose hooks store the
same outputs and then take their Gram matrices one batch at a time (no copy of what is stored).

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
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS, WIDTH, HEADS, LENGTH, VOCABULARY = 12, 384, 6, 128, 1000


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (t.reshape(n, length, HEADS, -1).transpose(1, 2) for t in self.qkv(x).split(WIDTH, 2))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.wide, self.gelu, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(self.gelu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, length: int = LENGTH) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ConvBlock(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        skip = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.skip = skip if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out + (x if self.skip is None else self.skip(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(*(ConvBlock(a, b) for a, b in itertools.pairwise(widths)))
        self.average, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(self.relu(self.norm(self.conv(x)))))
        return self.head(self.average(x).flatten(1))


def make(kind: str, quick: bool) -> tuple[nn.Module, list[Tensor]]:
    """A model in evaluation mode and its batches, the same in every process."""
    torch.manual_seed(0)
    if kind == "transformer":
        return Transformer().eval(), [torch.randint(VOCABULARY, (16, LENGTH)) for _ in range(1 if quick else 2)]
    return ResNet().eval(), [torch.randn(32, 3, 112, 112) for _ in range(1 if quick else 4)]


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    start = clock()
    work()
    return clock() - start


@torch.no_grad()
def forward_pass(model: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        model(batch)


Timed = tuple[float, float, float]


def our_pass(
    model: nn.Module, batches: list[Tensor], layers: str | list[str], metrics: frozenset[str] | None, spectra: bool
) -> tuple[Timed, Any]:
    """Seconds of survey, pass, and of spectra and weights (as `measure` does them); and the numbers."""
    from isthmus._records import MetricTable
    from isthmus.probe._numbers import Numbers, weight_matrices
    from isthmus.probe._one import MeasureOptions, prepared
    from isthmus.probe._pass import run_pass

    options = MeasureOptions(layers, None, None, "", None, None, None, None, 0, metrics, 0)
    start = clock()
    with prepared(model, batches, options) as ready:
        middle = clock()
        result = run_pass(model, iter([ready.first, *ready.rest]), ready.plan, ready.survey, ready.handles)
        end = clock()
    if not spectra:
        return (middle - start, end - middle, 0.0), None
    numbers = Numbers(ready.plan, result, wanted=metrics, baseline="")
    again = clock()
    table = MetricTable()
    numbers.write(table)
    if metrics is None:
        numbers.write_weights(table, weight_matrices(model, {}))
    return (middle - start, end - middle, clock() - again), numbers


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}–{max(ratios):.2f}, {len(ratios)} rounds)"


def against_forward(kind: str, rounds: int, quick: bool) -> None:
    model, batches = make(kind, quick)
    samples = sum(len(b) for b in batches)
    times: dict[str, list[float]] = {"forward": [], "blocks": [], "*": []}
    before: dict[str, float] = {}
    for i in range(-1, rounds):
        for name, taken in times.items():
            if name == "forward":
                value = seconds(lambda: forward_pass(model, batches))
            else:
                (before[name], value, _), _ = our_pass(model, batches, name, None, False)
            if i >= 0:  # the first round warms up
                taken.append(value)
    bare = times.pop("forward")
    print(f"{kind}, {samples} samples: forward pass {statistics.median(bare):.2f} s")
    for name, limit in (("blocks", 2), ("*", 6)):
        ratios = [t / b for t, b in zip(times[name], bare, strict=True)]
        verdict = "holds" if statistics.median(ratios) <= limit else "MISSED"
        after = "" if quick else f", spectra and weights {our_pass(model, batches, name, None, True)[0][2]:.2f} s"
        print(
            f"  {name:6s} pass {statistics.median(times[name]):6.2f} s, of the forward pass {shown(ratios)}; "
            f"target ≤ {limit}: {verdict}; apart: survey {before[name]:.2f} s{after}"
        )


class Peer:
    """`delve` in its own process, one timed pass for every line it is sent."""

    def __init__(self, python: str, kind: str, quick: bool) -> None:
        command = [python, __file__, "--worker", kind, *(["--quick"] if quick else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer's process ended with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def worker(kind: str, quick: bool) -> None:
    """The side of the peer: pass and `add_saturations`, timed, on every line read."""
    from delve import SaturationTracker  # pyright: ignore[reportMissingImports]
    from delve.writers import AbstractWriter  # pyright: ignore[reportMissingImports]

    class Kept(AbstractWriter):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            self.values: dict[str, float] = {}

        def resume_from_saved_state(self, initial_epoch: int) -> None: ...

        def add_scalar(self, name: str, value: float, **_: object) -> None: ...

        def add_scalars(self, prefix: str, value_dict: dict[str, float], **_: object) -> None:
            self.values.update(value_dict)

        def save(self) -> None: ...

        def close(self) -> None: ...

    class EveryPosition(SaturationTracker):  # pyright: ignore[reportUntypedBaseClass]
        def _record_stat(self, activations_batch: Tensor, *others: object) -> None:
            flat = activations_batch.flatten(0, 1) if activations_batch.dim() == 3 else activations_batch
            super()._record_stat(flat, *others)

    answer, sys.stdout = sys.stdout, sys.stderr  # delve prints
    with tempfile.TemporaryDirectory() as folder:
        for _ in sys.stdin:
            model, batches = make(kind, quick)
            kept = Kept()
            tracker = EveryPosition(folder, kept, model, stats=["lsat"], device="cpu")
            start = clock()
            forward_pass(model, batches)
            during = clock() - start
            start = clock()
            tracker.add_saturations(save=False)
            after = clock() - start
            found = {key.rpartition("_")[2].replace("-", "."): value for key, value in kept.values.items()}
            print(json.dumps({"pass": during, "spectra": after, "saturation": found}), file=answer, flush=True)


def saturation(spectrum: Tensor) -> float:
    """`delve`'s layer saturation from our spectrum."""
    shares = spectrum.square().cumsum(0) / spectrum.square().sum()
    below = shares[shares < 0.99]
    count = max(len(below), 1)
    if len(below) and 0.99 - float(below[-1]) > 0.02:
        count = min(count + 1, len(below))
    return count / len(spectrum)


def against_peer(python: str, kind: str, rounds: int, quick: bool) -> None:
    model, batches = make(kind, quick)
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    metrics = frozenset({"participation_ratio_centred"})
    peer = Peer(python, kind, quick)
    passes: list[float] = []
    wholes: list[float] = []
    ours: list[float] = []
    difference = 0.0
    for i in range(-1, rounds):
        (_, during, after), _ = our_pass(model, batches, layers, metrics, True)
        said = peer()
        if i < 0:
            numbers = our_pass(model, batches[-1:], layers, metrics, True)[1]  # see the docstring
            spectra = {one.site.label: numbers.spectra[id(one.track)].centred for one in numbers.measured}
            assert set(said["saturation"]) == set(spectra), set(said["saturation"]) ^ set(spectra)
            differences = [abs(saturation(spectra[k]) - v) for k, v in said["saturation"].items()]
            difference = max(differences)
            continue
        passes.append(said["pass"] / during)
        wholes.append((said["pass"] + said["spectra"]) / (during + after))
        ours.append(during)
    peer.close()
    verdict = "holds" if min(statistics.median(passes), statistics.median(wholes)) >= 1 else "MISSED"
    print(
        f"  delve on {len(layers)} Linear and Conv2d layers: our pass {statistics.median(ours):.2f} s, delve's "
        f"{shown(passes)} of it; with eigenvalues {shown(wholes)}; target ≥ 1: {verdict}; "
        f"a layer's saturation differs by at most {difference:.1e}"
    )


def peak_memory() -> float:
    """Peak resident memory of this process in MiB (`ru_maxrss` would count the parent's from before the exec)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def batches_of(kind: str, samples: int) -> Iterator[Tensor]:
    for start in range(0, samples, 50):
        n = min(50, samples - start)
        yield torch.randint(VOCABULARY, (n, 16)) if kind == "transformer" else torch.randn(n, 3, 64, 64)


def remember(kind: str, way: str, samples: int) -> None:
    """Peak memory in MiB of one way, and how much of it came after the first bare batch."""
    torch.manual_seed(0)
    model = (Transformer() if kind == "transformer" else ResNet()).eval()
    forward_pass(model, list(batches_of(kind, 50)))
    before = peak_memory()
    if way == "stream":
        import isthmus

        found = isthmus.measure(model, batches_of(kind, samples), jacobian_samples=0, progress=False)
        kept = len(found.layers)
    else:
        stored: dict[str, list[Tensor]] = {}
        for name, block in model.get_submodule("blocks").named_children():
            stored[name] = []
            block.register_forward_hook(lambda _m, _i, out, to=stored[name]: to.append(out))
        with torch.no_grad():
            for batch in batches_of(kind, samples):
                model(batch)
        for outputs in stored.values():
            rows = (t.movedim(1, -1).flatten(0, -2) if t.dim() == 4 else t.flatten(0, -2) for t in outputs)
            sum(r.mT @ r for r in rows)
        kept = len(stored)
    print(json.dumps({"peak": peak_memory(), "growth": peak_memory() - before, "layers": kept}))


def memory(samples: int) -> None:
    for kind in ("transformer", "cnn"):
        said = {
            way: json.loads(subprocess.run(
                [sys.executable, __file__, "--remember", kind, way, str(samples)], check=True, capture_output=True,
                text=True).stdout)
            for way in ("stream", "store")
        }  # fmt: skip
        stream, store = said["stream"], said["store"]
        ratio = store["peak"] / stream["peak"]
        what = "sequences of 16" if kind == "transformer" else "images of 64 × 64"
        print(
            f"memory, {kind}, {samples:,} {what}: storing {store['peak']:.0f} MiB, streaming {stream['peak']:.0f} MiB "
            f"({stream['growth']:+.0f} MiB after a bare batch), ratio {ratio:.1f}, of the growth alone "
            f"{store['growth'] / max(stream['growth'], 1):.1f}; target 5: {'holds' if ratio >= 5 else 'MISSED'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one round of one batch, 500 samples in memory")
    parser.add_argument("--peers", help="interpreter of the peers' environment")
    parser.add_argument("--only", choices=["transformer", "cnn", "memory"], help="one part only")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--remember", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.quick)
        return
    if arguments.remember:
        kind, way, samples = arguments.remember
        remember(kind, way, int(samples))
        return
    rounds = 1 if arguments.quick else 5
    timed = "processor time" if torch.get_num_threads() == 1 else "wall time"
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {timed}, float32; medians (min–max)")
    for kind in ("transformer", "cnn"):
        if arguments.only in (None, kind):
            against_forward(kind, rounds, arguments.quick)
            if arguments.peers:
                against_peer(arguments.peers, kind, rounds, arguments.quick)
            else:
                print("  delve: skipped (give the interpreter of its environment with --peers, see the docstring)")
    if arguments.only in (None, "memory"):
        memory(500 if arguments.quick else 10_000)


if __name__ == "__main__":
    main()
