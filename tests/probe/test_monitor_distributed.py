"""A monitored training of two processes: rank 0 measures, nobody waits for anything, the weights stay the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isthmus._records import RunFolder

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
import isthmus

rank, folder, watched = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "watched"
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{watched}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 3))
wrapped = nn.parallel.DistributedDataParallel(net)
optimiser = torch.optim.AdamW(wrapped.parameters())
x, y = torch.randn(64, 5), torch.arange(64) % 3
if watched:
    monitor = isthmus.Monitor(wrapped, x, targets=y, out=f"{folder}/run", schedule=2, budget=1, progress=False)
for _ in range(6):
    loss = nn.functional.cross_entropy(wrapped(x[rank::2]), y[rank::2])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if watched:
        monitor.step(loss)
if watched:
    monitor.finish()
    print(rank, monitor.steps[:1], monitor.steps[-1:])
torch.save(net.state_dict(), f"{folder}/{watched}-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_rank_0_of_two_processes_measures(tmp_path: Path) -> None:
    import torch

    said: list[str] = []
    for kind in ("watched", "plain"):
        command = [sys.executable, "-c", SCRIPT]
        running = [
            subprocess.Popen([*command, str(rank), str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        said += [process.communicate(timeout=240)[0].strip() for process in running]
        assert [process.returncode for process in running] == [0, 0]
    assert said == ["0 [0] [6]", "1 [] []", "", ""]
    assert RunFolder.open(tmp_path / "run").run["status"] == "complete"
    for rank in range(2):
        watched, plain = (
            torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for kind in (True, False)
        )  # fmt: skip
        assert all(torch.equal(value, plain[name]) for name, value in watched.items())
