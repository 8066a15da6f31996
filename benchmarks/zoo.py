"""Narrow networks trained together against one after the other: `python benchmarks/zoo.py`.

The zoo's setting `narrow` (20 layers of width 50, two points, every layer recorded at every step), with one seed for
each member. Both ways take turns, so that a busy machine slows both; times are those of the process, medians over
rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch

from isthmus.experiments._effective_networks import Member, PairNetworks
from isthmus.models import ZOO


def seconds(groups: list[PairNetworks]) -> float:
    """Processor time of training all groups in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        for group in groups:
            group.train(Path(folder))
        return time.process_time() - begun


def main() -> None:
    """Print times and their ratio for several numbers of members."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = ZOO["narrow"]
    for count in options.members:
        members = tuple(Member("narrow", setting.gain, setting.learning_rate, seed) for seed in range(count))
        together = PairNetworks(setting, members, options.steps)
        alone = [dataclasses.replace(together, members=(one,)) for one in members]
        times = [(seconds([together]), seconds(alone)) for _ in range(options.rounds)]
        batched, single = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(s / b for b, s in times)
        print(f"{count:3d} networks, {options.steps} steps: together {batched:.2f} s, one by one {single:.2f} s, "
              f"{ratio:.1f} times as fast")  # fmt: skip


if __name__ == "__main__":
    main()
