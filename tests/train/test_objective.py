from __future__ import annotations

import pytest
import torch

from isthmus import InputError, LeakyResNet
from isthmus.train import data_term, objective, score


def test_square_sums_over_outputs_and_averages_over_samples() -> None:
    y, f = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    assert float(data_term("square", f, y)) == pytest.approx((1 + 4 + 9 + 16) / 2)
    assert float(data_term("square", f, y, total=10)) == pytest.approx(30 / 10)


def test_cross_entropy_is_the_mean_surprise() -> None:
    f = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    y = torch.tensor([1, 0])
    expected = -(torch.log(torch.tensor(0.75)) + torch.log(torch.tensor(0.5))) / 2
    assert float(data_term("cross_entropy", f, y)) == pytest.approx(float(expected))


@torch.no_grad()
def test_ridge_term_is_the_theorys() -> None:
    net = LeakyResNet(4, 2, width=5, depth=6, effective_depth=3.0, steps="irregular", seed=1)
    assert net.bias is not None
    net.bias.normal_()
    x, y = torch.randn(7, 4), torch.randn(7, 2)
    cost, ridge = objective(net, "square", 0.01, x, y)
    norms = [float(net.weight[i].square().sum() + net.bias[i].square().sum()) for i in range(6)]
    expected = 0.01 / (2 * 3.0) * sum(float(r) * n for r, n in zip(net.layer_steps, norms, strict=True))
    assert float(ridge) == pytest.approx(expected, rel=1e-13)
    assert float(cost) == pytest.approx(float((y - net(x)).square().sum()) / 7, rel=1e-13)


@torch.no_grad()
def test_ridge_of_a_plain_resnet_has_mu_one() -> None:
    net = LeakyResNet(4, 2, width=5, depth=2, effective_depth=0.0)
    expected = 0.5 * float(net.weight.square().sum()) / 2
    assert float(net.weight_cost()) == pytest.approx(expected, rel=1e-13)


def test_scores() -> None:
    y = torch.tensor([0, 1, 1, 0])
    f = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    assert score("cross_entropy", f, y) == ("accuracy", 0.75)
    targets = torch.tensor([[1.0], [3.0]])
    assert score("square", torch.tensor([[1.0], [2.0]]), targets) == ("r_squared", 0.5)


@pytest.mark.parametrize(
    ("loss", "y", "needle"),
    [
        ("square", torch.zeros(3, 1), "shape of the outputs"),
        ("cross_entropy", torch.zeros(3, 2), "one int64 class number"),
        ("hinge", torch.zeros(3, 2), "loss: got hinge"),
    ],
)
def test_bad_input(loss: str, y: torch.Tensor, needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        data_term(loss, torch.zeros(3, 2), y)
