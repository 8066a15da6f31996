"""How much faster two processes measure than one, where reading the data is the limit, and train.

    python benchmarks/several_processes.py [--samples 1500] [--pairs 5] [--train] [--out FILE.json]

Every sample is a PNG of 448 × 448 random blocks, decoded and made half as large anew each time on one thread, as
pictures are. One process measures all of them; then two processes each their part, with `sharded=True`: pairs of runs,
one after the other, the order changing from pair to pair, so that a machine that is busy with something else disturbs
both alike. Each process has one thread.
A run's time is from the start of `measure` to its end (imports apart), between two barriers, and the processor time is
that of all its processes. Reported: the median and the range of the ratios of a pair.

The bound on what can be had is the share of the work that is divided: with processor times `p1` of one process and `p2`
of the busier of two, on two free cores, `p1 / p2`.

With `--train` instead: epochs of a Leaky ResNet of width 300 and 12 layers on 4000 samples (full batch, float32), by
`fit(..., processes=1)` and `processes=2`, one thread each: the median epoch, without what starting the processes and
recording metrics takes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKER = "worker"


def encoded(count: int) -> list[bytes]:
    """Pictures of random blocks, a few different ones, as PNG files."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    different: list[bytes] = []
    for _ in range(min(count, 64)):
        blocks = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        noisy = np.clip(blocks.astype(int) + rng.integers(-8, 9, blocks.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, format="PNG")
        different.append(file.getvalue())
    return [different[i % len(different)] for i in range(count)]


def work(folder: str, rank: int, size: int, samples: int) -> None:
    """One process of a run: waits for the others, measures its part, and prints what it took."""
    import numpy as np
    import torch
    import torch.distributed as dist
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset, DistributedSampler

    import isthmus

    class Pictures(Dataset[tuple[torch.Tensor, int]]):
        def __init__(self) -> None:
            self.files = encoded(samples)

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            whole = Image.open(io.BytesIO(self.files[index]))
            picture = np.asarray(whole.resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float32)
            return torch.from_numpy(picture).permute(2, 0, 1) / 255 + index % 7, index % 10

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(588, 128), nn.ReLU(), nn.Linear(128, 10))
    data = Pictures()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    sampler = DistributedSampler(data, shuffle=False)
    loader = DataLoader(data, batch_size=50, sampler=sampler)
    given = {"loss": "cross_entropy", "jacobian_samples": 0, "alignment_samples": 0, "progress": False}
    isthmus.measure(net, torch.randn(4, 3, 224, 224), jacobian_samples=0, progress=False)  # warm
    dist.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    found = isthmus.measure(net, loader, sharded=size > 1, **given)
    processor = time.process_time() - processor
    dist.barrier()
    wall = time.perf_counter() - wall
    seen = found.table.filter(found.table["metric"] == "observations")["n"].drop_nulls().max()
    print(json.dumps({"wall": wall, "processor": processor, "n": seen}))
    dist.destroy_process_group()


def run(size: int, samples: int) -> dict[str, float]:
    """A run of `size` processes: wall seconds, and processor seconds of all and of the busiest."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, WORKER, folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen([*command, str(rank), str(size), str(samples)], stdout=subprocess.PIPE, env=environment)
            for rank in range(size)
        ]
        said = [json.loads(process.communicate()[0]) for process in running]
    assert all(one["n"] == samples for one in said)
    times = [one["processor"] for one in said]
    return {"wall": max(one["wall"] for one in said), "processor": sum(times), "busiest": max(times)}


def seconds_of_an_epoch(processes: int, epochs: int = 12) -> float:
    """The median epoch of a training."""
    import torch

    from isthmus.models import LeakyResNet
    from isthmus.train import FitConfig, fit

    torch.set_num_threads(processes)  # which `fit` shares among them
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, 100, generator=g), torch.randn(4000, 10, generator=g)
    net = LeakyResNet(100, 10, width=300, depth=12, effective_depth=3.0, dtype=torch.float32)
    config = FitConfig(epochs=epochs, log_points=2)
    ends: dict[int, float] = {}
    fit(net, x, y, config, processes=processes, progress=lambda epoch, *_: ends.update({epoch: time.perf_counter()}))
    recorded = config.log_epochs()
    return statistics.median(ends[e] - ends[e - 1] for e in ends if e - 1 in ends and e not in recorded)


def train(count: int) -> None:
    """Interleaved pairs of trainings."""
    ratios: list[float] = []
    for number in range(count):
        order = (1, 2) if number % 2 == 0 else (2, 1)
        took = {processes: seconds_of_an_epoch(processes) for processes in order}
        ratios.append(took[1] / took[2])
        print(f"an epoch of one process {took[1]:.3f} s, of two {took[2]:.3f} s")
    ratios.sort()
    print(f"two processes train {statistics.median(ratios):.2f}× as fast as one (median of {count} pairs, "
          f"{ratios[0]:.2f} to {ratios[-1]:.2f}); load {os.getloadavg()[0]:.1f} on {os.cpu_count()}")  # fmt: skip


def main() -> None:
    """Interleaved pairs, and what they say."""
    if sys.argv[1:2] == [WORKER]:
        work(sys.argv[2], *map(int, sys.argv[3:6]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args()
    if given.train:
        train(given.pairs)
        return
    pairs: list[dict[int, dict[str, float]]] = []
    for number in range(given.pairs):
        order = (1, 2) if number % 2 == 0 else (2, 1)
        pairs.append({size: run(size, given.samples) for size in order})
        one, two = pairs[-1][1], pairs[-1][2]
        print(f"one {one['wall']:.2f} s ({one['processor']:.2f} s of processor), two {two['wall']:.2f} s "
              f"({two['processor']:.2f} s, the busier {two['busiest']:.2f} s)")  # fmt: skip
    ratios = sorted(pair[1]["wall"] / pair[2]["wall"] for pair in pairs)
    bounds = sorted(pair[1]["processor"] / pair[2]["busiest"] for pair in pairs)
    print(f"two processes are {statistics.median(ratios):.2f}× as fast as one (median of {len(ratios)} pairs, "
          f"{ratios[0]:.2f} to {ratios[-1]:.2f}); by processor time {statistics.median(bounds):.2f}× "
          f"({bounds[0]:.2f} to {bounds[-1]:.2f}); load {os.getloadavg()[0]:.1f} on {os.cpu_count()}")  # fmt: skip
    if given.out:
        summary = {"samples": given.samples, "pairs": pairs, "median": statistics.median(ratios),
                   "median_by_processor": statistics.median(bounds), "load": os.getloadavg()[0],
                   "cores": os.cpu_count(), "machine": platform.machine()}  # fmt: skip
        given.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
