"""A small regression and classification task, and a network to finish on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isthmus import LeakyResNet
from isthmus.probe import measure_path
from isthmus.train import Finish, data_term, finish

RIDGE = 1e-3


def samples(n: int = 60, loss: str = "square") -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(n, 5, generator=g)
    y = torch.tanh(x @ torch.randn(5, 2, generator=g)) @ torch.randn(2, 3, generator=g)
    return x, y if loss == "square" else y.argmax(1)


def net(**changes: Any) -> LeakyResNet:
    settings: dict[str, Any] = {"width": 8, "depth": 6, "effective_depth": 3.0, "seed": 4} | changes
    return LeakyResNet(5, 3, **settings)


def go(model: LeakyResNet, x: Tensor, y: Tensor, iterations: int = 36, **options: Any) -> Finish:
    settings: dict[str, Any] = {"loss": "square", "ridge": RIDGE} | options
    return finish(model, x, y, iterations=iterations, **settings)


def measured(model: LeakyResNet, x: Tensor, y: Tensor, loss: str = "square", ridge: float = RIDGE) -> float:
    found = measure_path(model, x, y, loss=lambda o, t: data_term(loss, o, t), ridge=ridge, jacobian_samples=0)
    assert found.geometry.stationarity is not None
    return float(found.geometry.stationarity.quantile(0.5))
