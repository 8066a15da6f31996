"""What a Monitor at its default costs a training: a small transformer, with and without, in turns, on one thread.

Usage: python benchmarks/monitor.py [--steps 2000]

Both trainings begin with the same weights and see the same batches, 50 steps of the one after 50 steps of the other, so
that what else the machine does slows both. The share is of processor time, beside the one that the Monitor says (of the
clock). The weights at the end must be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import isthmus

WIDTH, LAYERS, HEADS, LENGTH, TOKENS, BATCH, CHUNK = 128, 4, 4, 32, 64, 16, 50


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
    """One of the two."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Transformer()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.step = self.loss = 0.0
        self.seconds = 0.0

    def run(self, steps: int, monitor: isthmus.Monitor | None) -> None:
        start = time.process_time()
        for _ in range(steps):
            x, y = text(BATCH, 1000 + int(self.step))
            loss = nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.step += 1
            if monitor is not None:
                monitor.step(loss)
        self.loss = float(loss.detach())
        self.seconds += time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    x, y = text(256, 1)
    plain, watched = Training(), Training()
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        monitor = isthmus.Monitor(watched.model, x, targets=y, out=Path(folder) / "run", progress=False)
        first = time.process_time() - start
        for _ in range(0, steps, CHUNK):
            plain.run(CHUNK, None)
            watched.run(CHUNK, monitor)
        within = len(monitor.steps)
        start = time.process_time()
        monitor.measure_now()
        last = time.process_time() - start
        said, when = monitor.share, monitor.steps
    same = all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True))
    spent = watched.seconds - plain.seconds + first + last
    print(f"{steps} steps of a transformer of {sum(p.numel() for p in plain.model.parameters())} weights, one thread")
    print(f"training alone: {plain.seconds:.1f} s of processor time, {plain.seconds / steps * 1e3:.1f} ms a step; "
          f"loss at the end {plain.loss:.2f}")  # fmt: skip
    print(f"measured {len(when)} times ({within} before the end), at steps {', '.join(map(str, when))}")
    print(f"first measurement {first:.2f} s, last {last:.2f} s")
    print(f"share of the training time: {spent / plain.seconds:.1%} of processor time; the Monitor says {said:.1%}, "
          "of 5% allowed")  # fmt: skip
    print(f"weights the same as without: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
