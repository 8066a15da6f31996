"""What a Monitor at its default costs a training: a small transformer, with and without, in turns, on one thread.

Usage: python benchmarks/monitor.py [--steps 2000]

Trainings begin with the same weights and see the same batches, and take turns of ten steps, so that what else the
machine does slows all of them. One is watched and two are not: the difference between those two is what the comparison
cannot see. Times are of the processor, and the Monitor is given a clock of its own training's processor time, which
stands still while the others have their turn. The weights at the end must be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import isthmus
from isthmus.probe import _monitor_schedule

WIDTH, LAYERS, HEADS, LENGTH, TOKENS, BATCH, CHUNK = 128, 4, 4, 32, 64, 16, 10


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, WIDTH))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places(places))))


def text(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences in which a token is the sum of the two before it, or, once in ten times, any."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randint(0, TOKENS, (n, LENGTH + 1), generator=draw)
    noise = torch.rand(n, LENGTH + 1, generator=draw) < 0.1
    for i in range(2, LENGTH + 1):
        found[:, i] = torch.where(noise[:, i], found[:, i], (found[:, i - 1] + found[:, i - 2]) % TOKENS)
    return found[:, :-1], found[:, 1:]


class Training:
    """One of the three."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Transformer()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.step = self.loss = 0.0
        self.seconds = self.measuring = 0.0
        self.started = time.process_time()

    def clock(self) -> float:
        """Processor time of this training and its measurements alone."""
        return self.seconds + time.process_time() - self.started

    def run(self, steps: int, monitor: isthmus.Monitor | None) -> None:
        self.started = time.process_time()
        for _ in range(steps):
            x, y = text(BATCH, 1000 + int(self.step))
            loss = nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.step += 1
            if monitor is not None:
                before = time.process_time()
                monitor.step(loss)
                self.measuring += time.process_time() - before
        self.loss = float(loss.detach())
        self.seconds = self.clock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    x, y = text(256, 1)
    plain, again, watched = Training(), Training(), Training()
    plain.run(5, None)
    plain = Training()  # warm
    watch = isthmus.Monitor  # imported before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        _monitor_schedule.clock = watched.clock
        start = watched.started = time.process_time()
        monitor = watch(watched.model, x, targets=y, out=Path(folder) / "run", progress=False)
        first = watched.seconds = time.process_time() - start
        for _ in range(0, steps, CHUNK):
            for training in (plain, watched, again):
                training.run(CHUNK, monitor if training is watched else None)
        within = len(monitor.steps)
        start = watched.started = time.process_time()
        monitor.measure_now()
        last = time.process_time() - start
        said, when = monitor.share, monitor.steps
    same = all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True))
    alone = (plain.seconds + again.seconds) / 2
    print(f"{steps} steps of a transformer of {sum(p.numel() for p in plain.model.parameters())} weights, one thread")
    print(f"training alone: {alone:.1f} s, {alone / steps * 1e3:.1f} ms a step; loss at the end {plain.loss:.2f}")
    print(f"measured {len(when)} times ({within} before the end), at steps {', '.join(map(str, when))}")
    print(f"first measurement {first:.2f} s, last {last:.2f} s, all calls of step() together {watched.measuring:.2f} s")
    print(f"share of the training time, from those: {(first + last + watched.measuring) / alone:.1%}")
    print(f"share from the difference of whole trainings: {(watched.seconds - alone + last) / alone:+.1%}; two "
          f"without a Monitor differ by {abs(plain.seconds - again.seconds) / alone:.1%}")  # fmt: skip
    print(f"the Monitor says {said:.1%}, of {monitor.budget:.0%} allowed")
    print(f"weights the same as without: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
