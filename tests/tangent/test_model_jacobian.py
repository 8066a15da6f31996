from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus import InputError
from isthmus.tangent import _model_jacobian as module
from isthmus.tangent import map_jacobian

# Two ways of computing the same derivative in float64 differ by rounding: eps (2e-16) times depth and width.
ROUNDING = 1e-11


def dense(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Singular values per sample by torch.func, one sample in a batch of one at a time."""
    rows = [torch.func.jacrev(lambda v: function(v[None])[0].flatten())(row).flatten(1) for row in x]
    return torch.stack([torch.linalg.svdvals(row) for row in rows])


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size)).Q


class Cube(torch.autograd.Function):
    """`x³`, with a backward and no jvp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad.view(-1).view_as(x)  # asks for a gradient that can be viewed


class OneWay(torch.autograd.Function):
    """`2x`, with a jvp and no backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore
        raise NotImplementedError("no backward")

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # pyright: ignore
        return 2 * tangent


@pytest.mark.parametrize(("inputs", "outputs", "mode"), [(7, 4, "reverse"), (4, 7, "forward"), (5, 5, "reverse")])
def test_a_linear_map_has_its_own_singular_values(inputs: int, outputs: int, mode: str) -> None:
    k = min(inputs, outputs)
    s = torch.tensor([3.0, 2.0, 0.5, 1e-5, 1e-7])[:k]  # two (or one) below 1% of the largest
    matrix = orthogonal(outputs)[:, :k] @ torch.diag(s) @ orthogonal(inputs)[:k]
    found = map_jacobian(lambda x: x @ matrix.T + 1, torch.randn(6, inputs))
    assert found.mode == mode
    assert found.passes == k
    assert found.s.dtype == torch.float64
    assert torch.allclose(found.s, s.expand(6, k), rtol=0, atol=ROUNDING)
    assert (found.n, found.inputs, found.outputs) == (6, inputs, outputs)
    assert (found.rank.mean, found.rank.stderr) == (3.0, 0.0)
    assert found.log_pseudodet.mean == pytest.approx(float(torch.tensor(3.0).log()), abs=ROUNDING)  # 3 · 2 · 0.5
    assert found.log_pseudodet.stderr == pytest.approx(0, abs=ROUNDING)
    assert found.log_singular.mean.exp().tolist() == pytest.approx(s.tolist(), abs=ROUNDING)


def test_the_tolerance_decides_what_counts() -> None:
    matrix = torch.diag(torch.tensor([2.0, 0.1, 0.001]))
    x = torch.randn(3, 3)
    ranks = {t: map_jacobian(lambda x: x @ matrix, x, tolerance=t).rank.mean for t in (0, 1e-3, 1e-2, 0.1)}
    assert ranks == {0: 3.0, 1e-3: 2.0, 1e-2: 2.0, 0.1: 1.0}
    assert map_jacobian(lambda x: x @ matrix, x).tolerance == 1e-2
    assert map_jacobian(lambda x: 100 * x @ matrix, x).rank.mean == 2.0  # relative to the largest


def test_the_default_tolerance_is_that_of_the_geometry() -> None:
    from isthmus.geometry import DEFAULT_RANK_TOLERANCE

    assert module.DEFAULT_TOLERANCE == DEFAULT_RANK_TOLERANCE


def test_through_k_neurons_the_rank_is_k() -> None:
    first, last = torch.randn(9, 2), torch.randn(2, 8)
    found = map_jacobian(lambda x: torch.tanh(x @ first / 3) @ last, torch.randn(10, 9))
    assert found.rank.mean == 2.0
    assert float((found.s[:, 2] / found.s[:, 0]).max()) < 1e-14  # rounding


def test_statistics_over_samples_have_their_closed_form() -> None:
    # f(x) = (x_1²/2, 5x_2): J = diag(x_1, 5), so log |J|_+ = log 5x_1, or log 5 where x_1 is below 5% of 1
    x = torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, 1.0], [0.001, 1.0]])
    found = map_jacobian(lambda x: torch.stack([x[:, 0] ** 2 / 2, 5 * x[:, 1]], 1), x)
    logs = torch.tensor([5.0, 10.0, 20.0, 5.0]).log()
    assert found.rank.mean == pytest.approx(7 / 4)
    assert found.rank.stderr == pytest.approx(0.5 / 2)  # deviations (¼, ¼, ¼, −¾): √(¾/3) over √4
    assert found.log_pseudodet.mean == pytest.approx(float(logs.mean()))
    assert found.log_pseudodet.stderr == pytest.approx(float(logs.std()) / 2)
    second = torch.tensor([1.0, 2.0, 4.0, 0.001]).log()
    assert found.log_singular.mean[1] == pytest.approx(float(second.mean()))
    assert found.log_singular.stderr[1] == pytest.approx(float(second.std()) / 2)
    assert found.log_singular.n == 4


def test_a_zero_jacobian_has_rank_0_and_an_empty_product() -> None:
    found = map_jacobian(lambda x: torch.relu(x) * torch.tensor([1.0, 2.0]), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert found.rank.mean == 1.0  # 0 and 2
    assert found.log_pseudodet.mean == pytest.approx(float(torch.tensor(2.0).log()) / 2)
    assert found.log_singular.mean.tolist() == [-float("inf")] * 2
    assert found.log_singular.stderr.isnan().all()


@pytest.mark.parametrize("widths", [(8, 20, 20, 5), (5, 20, 20, 8)])
def test_a_relu_network_agrees_with_torch_func(widths: tuple[int, ...]) -> None:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(12, widths[0])
    found = map_jacobian(model, x)
    assert found.mode == ("reverse" if widths[0] > widths[-1] else "forward")
    assert torch.allclose(found.s, dense(model, x), rtol=0, atol=ROUNDING)


def test_a_convolutional_network_with_batch_norm_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(16, 3))  # fmt: skip
    for _ in range(3):
        model(torch.randn(16, 2, 6, 6) * 2 + 1)  # statistics that are not 0 and 1
    model.eval()
    x = torch.randn(5, 2, 6, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = map_jacobian(model, x)
    assert (found.inputs, found.outputs, found.mixed_batch) == (72, 3, False)
    assert torch.allclose(found.s, dense(model, x), rtol=0, atol=ROUNDING)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_outputs_of_any_shape_and_finite_differences() -> None:
    weight = torch.randn(6, 2, 3)

    def function(x: Tensor) -> Tensor:
        return torch.einsum("nab,abop->nop", torch.sin(x), weight.reshape(2, 3, 2, 3)[:, :, :, :2])

    x = torch.randn(4, 2, 3)
    step = 1e-6  # central differences: error step² plus rounding/step, about 1e-10
    rows = [[(function((r + step * e.view(2, 3))[None]) - function((r - step * e.view(2, 3))[None])).flatten()
             / (2 * step) for e in torch.eye(6)] for r in x]  # fmt: skip
    expected = torch.stack([torch.linalg.svdvals(torch.stack(row, -1)) for row in rows])
    assert torch.allclose(map_jacobian(function, x).s, expected, atol=1e-8)
    one = map_jacobian(lambda x: function(x).sum((1, 2)), x)  # a scalar per sample
    assert one.s.shape == (4, 1)


def test_rotations_of_inputs_and_outputs_change_nothing() -> None:
    first, last = torch.randn(6, 30), torch.randn(30, 4)
    x, u, v = torch.randn(5, 6), orthogonal(4), orthogonal(6)

    def function(x: Tensor) -> Tensor:
        return torch.relu(x @ first) @ last

    plain = map_jacobian(function, x)
    turned = map_jacobian(lambda z: function(z @ v.T) @ u, x @ v)
    assert torch.allclose(plain.s, turned.s, rtol=0, atol=ROUNDING)
    assert plain.log_pseudodet.mean == pytest.approx(turned.log_pseudodet.mean, abs=ROUNDING)


@pytest.mark.parametrize("wide", [True, False])
def test_operations_in_place_and_control_flow(wide: bool) -> None:
    weight = torch.randn(3, 7) if wide else torch.randn(7, 3)
    x = torch.randn(8, weight.shape[0])
    large = (2 * x.clamp(min=0)).sum(1) > 3
    assert set(large.tolist()) == {True, False}

    def function(x: Tensor) -> Tensor:
        x *= 2  # on the very tensor that is given
        x.relu_()
        rows = [row.exp() if float(row.detach().sum()) > 3 else row * 3 for row in x]
        out = torch.stack(rows) @ weight
        out += 1
        return out

    kept = x.clone()
    found = map_jacobian(function, x)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert found.mode == ("forward" if wide else "reverse")
    slopes = torch.where(large[:, None], (2 * x).exp(), 3.0) * 2 * (x > 0)
    expected = torch.linalg.svdvals(slopes[:, :, None] * weight)
    assert torch.allclose(found.s, expected, rtol=1e-12, atol=ROUNDING)


def test_without_forward_derivatives_reverse_mode_is_used_and_said() -> None:
    weight = torch.randn(2, 5)
    x = torch.randn(4, 2)
    found = map_jacobian(lambda x: Cube.apply(x) @ weight, x)
    assert found.mode == "reverse (an operation has no forward derivative)"
    assert found.passes == 5
    expected = torch.stack([torch.linalg.svdvals(torch.diag(3 * row**2) @ weight) for row in x])
    assert torch.allclose(found.s, expected, rtol=0, atol=ROUNDING)


def test_a_custom_backward_is_given_an_ordinary_gradient() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    found = map_jacobian(Cube.apply, x)
    assert torch.allclose(found.s, torch.tensor([[12.0, 3.0], [27.0, 12.0]]), rtol=0, atol=ROUNDING)


def test_without_reverse_derivatives_forward_mode_still_works() -> None:
    weight = torch.randn(2, 5)
    found = map_jacobian(lambda x: OneWay.apply(x) @ weight, torch.randn(4, 2))
    assert found.mode == "forward"
    assert torch.allclose(found.s, 2 * torch.linalg.svdvals(weight).expand(4, 2), rtol=0, atol=ROUNDING)


def test_a_no_grad_block_is_a_constant_in_both_shapes() -> None:
    # dual numbers pass through torch.no_grad, backward passes do not: the function's own meaning is a constant
    weight = torch.randn(2, 5)

    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.norm(dim=1, keepdim=True)
        return (x * scale) @ weight

    x = torch.randn(4, 2)
    found = map_jacobian(function, x)
    assert found.mode == "reverse (forward mode gives another derivative)"
    expected = torch.stack([row.norm() * torch.linalg.svdvals(weight) for row in x])
    assert torch.allclose(found.s, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("outputs", [3, 6])
def test_samples_that_influence_each_other_are_evaluated_alone(outputs: int) -> None:
    weight = torch.randn(4, outputs)
    x = torch.randn(5, 4)
    # f of a batch of one: x − x.mean(0) = 0, so the derivative of tanh(x + 2(x − mean)) is that of tanh(x)
    found = map_jacobian(lambda x: torch.tanh(x + 2 * (x - x.mean(0))) @ weight, x)
    assert found.mixed_batch
    expected = torch.stack([torch.linalg.svdvals(torch.diag(1 - torch.tanh(r) ** 2) @ weight) for r in x])
    assert torch.allclose(found.s, expected, rtol=0, atol=ROUNDING)
    assert found.passes == min(4, outputs)


@pytest.mark.parametrize("mix", [lambda x: x.cumsum(0), lambda x: x.flip(0).cumsum(0).flip(0)])
def test_influence_in_one_direction_is_found(mix: Callable[[Tensor], Tensor]) -> None:
    found = map_jacobian(lambda x: mix(x**2), torch.randn(4, 3))
    assert found.mixed_batch


def test_rounding_that_depends_on_the_batch_size_is_no_influence() -> None:
    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(128, 128), nn.Tanh())], nn.Linear(128, 2))
    model = model.float()
    found = map_jacobian(model, torch.randn(33, 128, dtype=torch.float32))
    assert not found.mixed_batch


def test_small_singular_values_survive_float32() -> None:
    s = torch.tensor([1.0, 1e-3, 1e-5])  # the Gram matrix would hold 1e-10, below float32's 6e-8
    u, v = orthogonal(3), orthogonal(3)
    first, last = u.float(), (torch.diag(s) @ v).float()
    found = map_jacobian(lambda x: x @ first @ last, torch.randn(4, 3, dtype=torch.float32), tolerance=0)
    assert found.s.dtype == torch.float64
    # float32 rounding of the entries, 6e-8 each: relative to 1e-5 about 1e-2
    assert torch.allclose(found.s, s.expand(4, 3), rtol=0, atol=3e-7)
    assert found.rank.mean == 3.0


def test_chunks_change_nothing_and_bound_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    x = torch.randn(11, 6)
    whole, seen = map_jacobian(model, x), list[int]()
    monkeypatch.setattr(module, "_CHUNK_BYTES", 8 * 6 * 4 * 3)

    def function(batch: Tensor) -> Tensor:
        seen.append(batch.shape[0])
        return model(batch)

    parts = map_jacobian(function, x)
    assert max(seen) == 3
    assert torch.allclose(parts.s, whole.s, rtol=0, atol=ROUNDING)
    assert parts.s.shape == (11, 4)


def test_gradients_of_parameters_and_of_the_samples_stay_as_they_were() -> None:
    model = nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    x = torch.randn(4, 3, requires_grad=True)
    map_jacobian(model, x)
    assert torch.equal(model.weight.grad, torch.ones(2, 3))
    assert model.bias.grad is None
    assert x.grad is None


@pytest.mark.parametrize("outputs", [2, 5])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(outputs: int, mode: Callable[[], Any]) -> None:
    weight = torch.randn(3, outputs)
    with mode():
        x = torch.randn(4, 3)
        found = map_jacobian(lambda x: torch.sin(x) @ weight, x)
        assert not torch.is_grad_enabled()
    assert torch.allclose(found.s, dense(lambda x: torch.sin(x) @ weight, x.clone()), rtol=0, atol=ROUNDING)


def test_a_model_made_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(InputError, match=r"outside torch\.inference_mode") as caught:
        map_jacobian(model, torch.randn(4, 3))
    assert caught.value.argument == "function"


def test_a_function_that_takes_gradients_inside() -> None:
    # the force −∂E/∂x of E = Σ x⁴/4 is −x³, with Jacobian −3x² on the diagonal
    def force(x: Tensor) -> Tensor:
        x = x.requires_grad_()
        energy = (x**4 / 4).sum()
        return -torch.autograd.grad(energy, x, create_graph=True)[0]

    x = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    assert map_jacobian(force, x).s.tolist() == [pytest.approx([12.0, 3.0]), pytest.approx([27.0, 3.0])]


def refused(function: Callable[[Tensor], Any], x: Tensor, argument: str, match: str, **options: Any) -> str:
    with pytest.raises(InputError, match=match) as caught:
        map_jacobian(function, x, **options)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_that_cannot_be_used() -> None:
    refused(lambda x: x, torch.randn(1, 2), "x", "at least 2 samples")
    refused(lambda x: x, torch.tensor(1.0), "x", "at least 2 samples")
    refused(lambda x: x, torch.randn(3, 0), "x", "at least one coordinate")
    message = refused(lambda x: x, torch.tensor([[1, 2], [3, 4]]), "x", "floating-point")
    assert "torch.int64" in message
    assert "tokens" in message
    assert "embeddings" in message


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_out_of_range(tolerance: float) -> None:
    refused(lambda x: x, torch.randn(3, 2), "tolerance", r"\[0, 1\)", tolerance=tolerance)


def test_too_many_passes_say_how_many_and_what_to_do() -> None:
    weight = torch.randn(6, 9)
    message = refused(lambda x: x @ weight, torch.randn(3, 6), "max_passes", "at least 6", max_passes=5)
    assert "max_passes=6" in message
    assert "fewer outputs" in message
    assert map_jacobian(lambda x: x @ weight, torch.randn(3, 6), max_passes=6).passes == 6
    # forward mode would be cheap enough; without it 9 passes are needed
    message = refused(lambda x: Cube.apply(x) @ weight, torch.randn(3, 6), "max_passes", "at least 9", max_passes=6)
    assert "no forward derivative" in message
    refused(lambda x: x, torch.randn(3, 2), "max_passes", "at least 1", max_passes=0)


def test_outputs_that_are_no_rows_of_numbers() -> None:
    x = torch.randn(3, 2)
    assert "lambda" in refused(lambda x: (x, x), x, "function", "type tuple")
    refused(lambda x: x.sum(), x, "function", "3 rows")
    refused(lambda x: x.T, x, "function", "3 rows")
    refused(lambda x: x[:, :0], x, "function", "3 rows")
    refused(lambda x: x.argmax(1), x, "function", "torch.int64")
    refused(lambda x: torch.complex(x, x), x, "function", "real floating-point")


@pytest.mark.parametrize("outputs", [1, 4])
def test_outputs_without_a_gradient(outputs: int) -> None:
    parameter = nn.Parameter(torch.ones(outputs))
    x = torch.randn(3, 2)
    refused(lambda x: x[:, :1].detach().repeat(1, outputs), x, "function", "depends on x")
    refused(lambda x: x[:, :1].detach() * parameter, x, "function", "depends on x")  # a gradient, of something else


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_derivative_that_is_not_finite_is_placed(outputs: int) -> None:
    x = torch.tensor([[1.0, 1.0], [4.0, 1.0], [0.0, 1.0]])
    message = refused(lambda x: x.sqrt()[:, :1].repeat(1, outputs), x, "function", "not finite")
    assert "at sample 2" in message


def test_the_place_of_a_bad_derivative_counts_from_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 8 * 2)
    x = torch.tensor([[1.0, 1.0], [4.0, 1.0], [0.0, 1.0]])
    assert "at sample 2" in refused(lambda x: x.sqrt()[:, :1], x, "function", "not finite")


def test_functions_that_change_from_call_to_call() -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5), nn.Linear(20, 2))
    assert "model.eval()" in refused(model, torch.randn(6, 4), "function", "second call")
    assert map_jacobian(model.eval(), torch.randn(6, 4)).n == 6


def test_functions_of_one_batch_size() -> None:
    x = torch.randn(4, 6)
    assert "model.eval()" in refused(nn.BatchNorm1d(6), x, "function", "batch of one")
    refused(lambda x: (x @ torch.ones(6, 1)).squeeze(), x, "function", r"batch of any size.*shape \(\)")
    refused(lambda x: x.repeat(1, x.shape[0]), x, "function", "one output shape")


def test_an_error_of_the_function_itself_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"must have the same dtype|expected m1 and m2"):
        map_jacobian(nn.Linear(3, 2).float(), torch.randn(4, 3))
