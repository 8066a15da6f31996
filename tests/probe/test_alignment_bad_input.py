"""What cannot be used is said clearly, and the model comes back as it was."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isthmus import InputError
from isthmus.probe import ModelError, align, tangent_eigenpairs, tangent_kernel, tangent_trace


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


class Bad(nn.Module):
    """Gives whatever a function makes of its input and a weight."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 3)
        self.after = nn.Tanh()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.after(self.enter(x)))


X, Y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no targets": ({}, "targets: got none in the data"),
    "one class": ({"targets": torch.zeros(12, dtype=torch.long)}, "targets: got one class"),
    "constant": ({"targets": torch.full((12, 3), 0.1)}, "targets: got the same for every sample"),
    "class too large": ({"targets": Y + 1}, "targets: got 3, expected classes from 0 to 2"),
    "class negative": ({"targets": Y - 1}, "targets: got -1, expected classes"),
    "classes in columns": ({"targets": torch.stack([Y, Y], 1)}, "one class for each"),
    "real of another width": ({"targets": torch.randn(12, 2)}, "the shape of the outputs, \\(12, 3\\)"),
    "real classes": ({"targets": Y.double()}, "classes are to be whole numbers"),
    "targets not finite": ({"targets": torch.full((12, 3), torch.nan)}, "targets: got values that are not finite"),
    "too many targets": ({"targets": torch.arange(13) % 3}, "targets: got 13 rows"),
    "complex targets": ({"targets": torch.randn(12, 3, dtype=torch.complex64)}, "targets: got torch.complex64"),
    "two samples": ({"targets": Y, "max_samples": 2}, "data: got 2 samples, expected at least 3"),
    "glob": ({"targets": Y, "layers": "02"}, "layers: got 02"),
    "container": ({"targets": Y, "layers": "1"}, "layers: got 1, expected a glob that matches a layer with parameters"),
    "no globs": ({"targets": Y, "layers": []}, "layers: got nothing"),
    "method": ({"targets": Y, "method": "fast"}, "method: got fast, expected one of auto, exact, estimate"),
    "probes": ({"targets": Y, "probes": 3}, "probes: got 3"),
    "bootstrap": ({"targets": Y, "bootstrap": 20}, "bootstrap: got 20"),
    "memory": ({"targets": Y, "max_memory": 0}, "max_memory: got 0"),
    "does not fit": ({"targets": Y, "method": "exact", "max_memory": 6000, "bootstrap": 0}, "exact.*max_samples=\\d"),
    "fits nothing": ({"targets": Y, "max_memory": 100}, "max_memory: got .* for an estimate of 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_used_is_said(name: str) -> None:
    arguments, match = CASES[name]
    with pytest.raises(InputError, match=match):
        align(network(), X, progress=False, **arguments)


def test_the_largest_number_of_samples_that_fits_does_fit() -> None:
    with pytest.raises(InputError) as caught:
        align(network(), X, targets=Y, method="exact", max_memory=6000, bootstrap=0, progress=False)
    most = int(caught.value.hint.partition("max_samples=")[2].partition(",")[0])
    assert 3 <= most < 12
    align(network(), X, targets=Y, method="exact", max_memory=6000, bootstrap=0, max_samples=most, progress=False)
    with pytest.raises(InputError, match="method"):
        align(network(), X, targets=Y, method="exact", max_memory=6000, bootstrap=0, max_samples=most + 1,
              progress=False)  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sequences": (lambda: Bad(lambda h: h[:, None]), "outputs of shape \\(3, 1, 3\\)"),
    "mean": (lambda: Bad(lambda h: h.mean()[None, None]), "outputs of shape \\(1, 1\\)"),
    "detached": (lambda: Bad(lambda h: h.detach()), "outputs without a gradient"),
    "batch statistics": (lambda: Bad(lambda h: h - h.mean(0)), "do not influence each other|other outputs"),
    "nan": (lambda: Bad(lambda h: h / 0), "not finite in batch 0 \\(first after \\(model\\)\\)"),
    "nan inside": (lambda: nn.Sequential(Bad(lambda h: h / 0), nn.Linear(3, 3)), "first after 0"),
    "infinite gradient": (lambda: Bad(lambda h: (h - h.detach()).abs().sqrt()), "not finite at enter"),
    "no parameters": (nn.Tanh, "outputs without a gradient|a model with parameters"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["exact", "estimate"])
def test_models_that_have_no_alignment(name: str, method: str) -> None:
    make, match = MODELS[name]
    with pytest.raises(InputError, match=match):
        align(make(), X, targets=Y, method=method, bootstrap=0, progress=False)


def test_kernels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"kind: got full, expected at most .*max_samples=\d+.*fewer layers") as error:
        tangent_kernel(network(), X, kind="full", max_memory=20000)
    most = int(re.findall(r"max_samples=(\d+)", str(error.value))[0])
    assert 3 <= most < len(X)
    tangent_kernel(network(), X, kind="full", max_memory=20000, max_samples=most)
    with pytest.raises(InputError, match="kind: got full"):
        tangent_kernel(network(), X, kind="full", max_memory=20000, max_samples=most + 1)
    with pytest.raises(InputError, match="kind: got half"):
        tangent_kernel(network(), X, kind="half")
    with pytest.raises(InputError, match="from 1 to 36"):
        tangent_eigenpairs(network(), X, 37)


def test_what_has_no_second_derivative_has_no_eigenpairs_but_a_kernel() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad

    model = Bad(Cube.apply)  # pyright: ignore
    with pytest.raises(InputError, match="second derivative"):
        tangent_eigenpairs(model, X, 2)
    assert float(tangent_kernel(model, X).total.trace()) > 0


class Beast(nn.Module):
    """Every kind of state that a pass could disturb."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.leave = nn.Linear(6, 3)
        self.fail = fail
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        _ = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        self.calls += 1
        if self.fail and bool((x > 50).any()):
            raise KeyError("on purpose")
        h = self.drop(self.norm(self.enter(x)))[:, None]
        return self.leave(self.attend(h, h, h)[0][:, 0])


def state(model: nn.Module) -> list[Any]:
    return [
        [t.detach().clone() for t in model.state_dict().values()],
        [p.requires_grad for p in model.parameters()],
        [torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        torch.get_rng_state(), np.random.rand(),  # noqa: NPY002 - Python's own is used by beartype, under pytest
        torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(),
    ]  # fmt: skip


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "exact": lambda m, x: align(m, x, targets=Y, method="exact", batch_size=5, progress=False),
    "estimate": lambda m, x: align(m, x, targets=Y, method="estimate", probes=8, batch_size=5, progress=False),
    "kernel": lambda m, x: tangent_kernel(m, x, batch_size=5),
    "trace": lambda m, x: tangent_trace(m, x, batch_size=5),
    "eigenpairs": lambda m, x: tangent_eigenpairs(m, x, 2, batch_size=5),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fail", [False, True])
def test_the_model_and_all_random_states_come_back(call: str, fail: bool) -> None:
    model = Beast(fail).train()
    model.norm.eval()
    model.enter.weight.requires_grad_(False)
    model(torch.randn(8, 4)).sum().backward()
    model.enter.register_forward_hook(lambda m, a, o: o * 1.5)
    x = X.clone()
    x[-1] = 60.0  # met in the last batch
    given = x.clone()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    before = state(model)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    if fail:
        with pytest.raises(ModelError, match="on purpose"):
            CALLS[call](model, x)
    else:
        CALLS[call](model, x)
    after = state(model)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(x, given)


def test_hooks_of_the_user_and_inference_mode_are_respected() -> None:
    model = network()
    model[0].register_forward_hook(lambda m, a, o: o * 1.5)
    doubled = network()
    doubled.load_state_dict(model.state_dict())
    with torch.no_grad():
        doubled[0].weight *= 1.5
        doubled[0].bias *= 1.5
    with torch.inference_mode():
        one, other = tangent_kernel(model, X), tangent_kernel(doubled, X)
    assert one.methods["0"] == "exact: Grams"  # of the module's own output, before the hook
    assert torch.allclose(one.layers["0"], 1.5**2 * other.layers["0"], rtol=1e-10)
    assert torch.allclose(one.layers["2"], other.layers["2"], rtol=1e-10)
    with torch.inference_mode():
        made = network()
    with pytest.raises(InputError, match="inference_mode"):
        tangent_kernel(made, X)
