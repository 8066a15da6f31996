"""Do adaptive steps help a stack of blocks at equal depth? A small transformer and a small CNN, over seeds.

    python benchmarks/leaky_stack.py [--seeds 6] [--jobs 1] [--only NAME …] [--out docs/results/leaky-stacks.json]

Tasks, each with 8 blocks of its own and everything else outside of the stack:

- `words`: a causal transformer (pre-norm, width 32) reads 6 letters, each a permutation of three things, and says
  after every letter what their product so far is. Fresh words in every batch, so that nothing is learned by heart;
  the product of many letters takes depth.
- `digits`: a CNN (pre-norm, 16 channels of 4×4) on scikit-learn's 8×8 digits, 900 for training and 897 for testing.

Arms, equal in blocks, initial weights, batches, optimiser (AdamW, cosine to 0) and epochs, so that differences are
paired by seed:

- `plain`: the blocks one after the other, x + g(x);
- `plain, adaptive`: the same model converted, L̃ = 0, with adaptive steps, which start at `plain`;
- `equidistant`, `irregular`, `adaptive`: a leaky stack with L̃ = 3 and these steps.

Adaptive steps are updated after every epoch. Reported: loss and accuracy on the test samples, and differences with 95%
confidence intervals (Student's t over seeds).
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from isthmus.models import LeakyStack, convert

DEPTH, EFFECTIVE_DEPTH = 8, 3.0
ARMS = ("plain", "plain, adaptive", "equidistant", "irregular", "adaptive")
PAIRS = (
    ("plain, adaptive", "plain"), ("irregular", "equidistant"), ("adaptive", "equidistant"), ("equidistant", "plain"),
)  # fmt: skip
TASKS = ("words", "digits")
LENGTH, WIDTH, HEADS, CHANNELS = 6, 32, 4, 16
EPOCHS, BATCHES, BATCH = 20, 15, 60


class Attending(nn.Module):
    """A transformer block: causal attention and an MLP, each behind a norm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.into, self.back = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.into(self.norm(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.back(found.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Convolving(nn.Module):
    """A residual block: norm, convolution, ReLU, convolution, and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.GroupNorm(4, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Words(nn.Module):
    """Letters to products, by a causal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(6, WIDTH), nn.Parameter(0.5 * torch.randn(LENGTH, WIDTH))
        self.blocks: Any = nn.ModuleList(Attending() for _ in range(DEPTH))
        self.out = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 6))

    def forward(self, x: Tensor) -> Tensor:
        state = self.letters(x) + self.places
        for block in self.blocks:
            state = block(state)
        return self.out(state).flatten(0, 1)


class Digits(nn.Module):
    """Images to digits, by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1)
        self.blocks: Any = nn.ModuleList(Convolving() for _ in range(DEPTH))
        self.out = nn.Sequential(nn.GroupNorm(4, CHANNELS), nn.Flatten(), nn.Linear(16 * CHANNELS, 10))

    def forward(self, x: Tensor) -> Tensor:
        state = self.enter(x)
        for block in self.blocks:
            state = block(state)
        return self.out(state)


def words(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Letters `(count, LENGTH)`, and the products so far, flattened."""
    group = list(itertools.permutations(range(3)))
    table = torch.tensor([[group.index(tuple(a[i] for i in b)) for b in group] for a in group])
    x = torch.randint(6, (count, LENGTH), generator=generator)
    y = torch.empty_like(x)
    y[:, 0] = x[:, 0]
    for place in range(1, LENGTH):
        y[:, place] = table[y[:, place - 1], x[:, place]]
    return x, y.flatten()


def data(task: str, seed: int) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Every batch of the training, in order, and the test samples."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if task == "words":
        test = words(1000, generator)
        return [words(BATCH, generator) for _ in range(EPOCHS * BATCHES)], test
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 8 - 1).float().view(-1, 1, 8, 8), torch.tensor(labels)
    order = torch.randperm(len(x), generator=generator)
    train, test_rows = order[: BATCH * BATCHES], order[BATCH * BATCHES :]
    shuffled = [train[torch.randperm(len(train), generator=generator)] for _ in range(EPOCHS)]
    return [(x[rows], y[rows]) for epoch in shuffled for rows in epoch.split(BATCH)], (x[test_rows], y[test_rows])


def model_of(task: str, arm: str, seed: int) -> Any:
    """The same weights in every arm."""
    torch.manual_seed(seed)
    model = Words() if task == "words" else Digits()
    if arm == "plain, adaptive":
        return convert(model, "blocks.*", steps="adaptive")
    if arm != "plain":
        model.blocks = LeakyStack(model.blocks, effective_depth=EFFECTIVE_DEPTH, steps=arm, residual=True)
    return model


def one(task: str, arm: str, seed: int, rate: float) -> dict[str, Any]:
    """One network, trained and tested."""
    torch.set_num_threads(1)
    started = time.process_time()
    batches, (x, y) = data(task, seed)
    model = model_of(task, arm, seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(batches))
    for number, (xb, yb) in enumerate(batches, start=1):
        optimiser.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        optimiser.step()
        schedule.step()
        if number % BATCHES == 0 and "adaptive" in arm:
            model.blocks.update_steps()
    model.eval()
    with torch.no_grad():
        outputs = model(x)
        found = {
            "loss": float(F.cross_entropy(outputs, y)),
            "accuracy": float((outputs.argmax(1) == y).double().mean()),
        }
    rho = model.blocks.layer_steps.tolist() if isinstance(model.blocks, LeakyStack) else [1 / DEPTH] * DEPTH
    rho = [round(step, 4) for step in rho]
    seconds = round(time.process_time() - started, 2)
    return {"task": task, "arm": arm, "seed": seed, "rate": rate, **found, "steps": rho, "seconds": seconds}


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return float(values.mean()), half


def lines(runs: list[dict[str, Any]]) -> list[str]:
    """Tables in Markdown."""
    found: list[str] = []
    for task in dict.fromkeys(run["task"] for run in runs):
        mine = [run for run in runs if run["task"] == task]
        seeds = sorted({run["seed"] for run in mine})

        def of(arm: str, what: str, mine: list[dict[str, Any]] = mine) -> np.ndarray:
            return np.array([run[what] for run in sorted(mine, key=lambda run: run["seed"]) if run["arm"] == arm])

        found += ["", f"{task}, {len(seeds)} seeds, rate {mine[0]['rate']:g}", ""]
        found += ["| arm | test loss | test accuracy | steps, mean over seeds |", "|---|---|---|---|"]
        for arm in ARMS:
            loss, accuracy = interval(of(arm, "loss")), interval(of(arm, "accuracy"))
            steps = " ".join(f"{step:.3f}" for step in of(arm, "steps").mean(0))
            found.append(f"| {arm} | {loss[0]:.4f} ± {loss[1]:.4f} | {accuracy[0]:.4f} ± {accuracy[1]:.4f} | {steps} |")
        found += ["", "| difference, paired | test loss | test accuracy |", "|---|---|---|"]
        for left, right in PAIRS:
            loss, accuracy = (interval(of(left, what) - of(right, what)) for what in ("loss", "accuracy"))
            found.append(
                f"| {left} − {right} | {loss[0]:+.4f} ± {loss[1]:.4f} | {accuracy[0]:+.4f} ± {accuracy[1]:.4f} |"
            )
    return found


def main() -> None:
    """Train, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    todo = [(task, arm, seed) for seed, task, arm in itertools.product(seeds, options.only, options.arms)]
    calls = (joblib.delayed(one)(task, arm, seed, options.rate) for task, arm, seed in todo)
    runs: list[dict[str, Any]] = []
    for run in joblib.Parallel(n_jobs=options.jobs, return_as="generator")(calls):
        runs.append(run)
        numbers = f"loss {run['loss']:.4f}, accuracy {run['accuracy']:.4f}, {run['seconds']} s"
        print(f"{run['task']:7} {run['arm']:16} seed {run['seed']}: {numbers}", flush=True)
        if options.out is not None:
            versions = {"python": platform.python_version(), "torch": torch.__version__}
            rows = ",\n".join(json.dumps(run) for run in runs)
            head = f'{{"versions": {json.dumps(versions)}, "runs": ['
            options.out.write_text(f"{head}\n{rows}\n]}}\n", encoding="utf-8")
    if options.seeds > 1 and set(options.arms) == set(ARMS):
        print("\n".join(lines(runs)))
    print(f"\n{sum(run['seconds'] for run in runs) / 60:.1f} core-minutes")


if __name__ == "__main__":
    main()
