"""`align`, tangent kernels and eigenpairs of whole models: what they are of, and what does not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isthmus.probe import align, tangent_eigenpairs, tangent_kernel, tangent_trace
from isthmus.probe._alignment_estimate import CentredSigns, random_signs
from isthmus.tangent import largest_stable_rate

# The same sums in another order, in float64.
ROUNDING = 1e-9


def network(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, outputs))


def values(found: Any) -> list[float]:
    return [x for one in found.layers for x in (one.alignment, one.alignment_traced, one.trace)]


def test_batches_and_forms_of_data_do_not_matter() -> None:
    model, x, y = network(), torch.randn(20, 4), torch.arange(20) % 3
    right = align(model, x, targets=y, progress=False)
    pairs = TensorDataset(x, y)
    others = [
        align(model, x, targets=y.numpy(), batch_size=6, progress=False),
        align(model, (x, y), batch_size=7, progress=False),
        align(model, DataLoader(pairs, batch_size=3), progress=False),
        align(model, DataLoader(pairs, batch_size=3, shuffle=True), progress=False),
        align(model, iter(DataLoader(pairs, batch_size=9)), progress=False),
        align(model, {"input": x.numpy(), "labels": y.numpy()}, progress=False),
        align(nn.DataParallel(model), torch.cat([x, x + 1]), targets=torch.cat([y, y]), max_samples=20, progress=False),
        align(model, (x, 2 * x, y), forward=lambda m, b: m(b[0]) + 0 * b[1].sum(), progress=False),
    ]
    for found in others:
        assert values(found) == pytest.approx(values(right), rel=ROUNDING)
    assert [one.name for one in right.layers] == ["0", "2", "3", "5"]
    assert (right.n, right.outputs, right.targets) == (20, 3, "classes")
    assert others[0].replicates.equal(others[0].replicates)
    assert torch.allclose(others[0].replicates, right.replicates, rtol=1e-7, atol=0)


def test_classes_are_their_indicators() -> None:
    model, x, y = network(), torch.randn(20, 4), torch.arange(20) % 3
    one = align(model, x, targets=y, bootstrap=0, progress=False)
    other = align(model, x, targets=nn.functional.one_hot(y, 3).double(), bootstrap=0, progress=False)
    assert values(other) == pytest.approx(values(one), rel=ROUNDING)
    assert other.targets == "real"
    single = align(network(1), x, targets=torch.randn(20), bootstrap=0, progress=False)
    for layer in single.layers:  # with one output, both are the same
        assert layer.alignment == pytest.approx(layer.alignment_traced, rel=ROUNDING)


def test_rotations_of_hidden_units_do_not_matter() -> None:
    model, x, y = (
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)),
        torch.randn(15, 4),
        torch.randn(15, 3),
    )
    before = align(model, x, targets=y, bootstrap=0, progress=False)
    q = torch.linalg.qr(torch.randn(6, 6)).Q
    with torch.no_grad():
        model[0].weight.copy_(q @ model[0].weight)
        model[0].bias.copy_(q @ model[0].bias)
        model[1].weight.copy_(model[1].weight @ q.mT)
    assert values(align(model, x, targets=y, bootstrap=0, progress=False)) == pytest.approx(
        values(before), rel=ROUNDING
    )


def test_exact_and_estimate_agree_within_their_errors() -> None:
    model, x, y = network(), torch.randn(40, 4), torch.arange(40) % 3
    right = align(model, x, targets=y, method="exact", progress=False)
    deviations = list[float]()
    for seed in range(6):
        found = align(model, x, targets=y, method="estimate", probes=96, seed=seed, batch_size=16, progress=False)
        for one, other in zip(found.layers, right.layers, strict=True):
            assert one.method == "estimate: 96 probes"
            assert (one.error_from, other.error_from) == ("probes", "samples")
            for estimate, error, exact in ((one.alignment, one.stderr, other.alignment),
                                           (one.alignment_traced, one.stderr_traced, other.alignment_traced),
                                           (one.trace, one.trace_stderr, other.trace)):  # fmt: skip
                deviations.append((estimate - exact) / error)
    z = torch.tensor(deviations)
    # 72 deviations in units of their errors, some of them correlated: no outlier, and a spread near 1
    assert float(z.abs().max()) < 5
    assert 0.6 < float(z.square().mean().sqrt()) < 1.5
    assert abs(float(z.mean())) < 0.6


def test_the_traced_numerator_of_many_outputs_is_estimated() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 12)), torch.randn(30, 4)
    y = torch.randn(30, 12)
    right = align(model, x, targets=y, bootstrap=0, progress=False)
    found = [align(model, x, targets=y, method="estimate", probes=32, seed=s, progress=False) for s in range(8)]
    assert "random signs" in found[0].layers[0].method_traced
    z = torch.tensor([(one.alignment_traced - other.alignment_traced) / one.stderr_traced  # pyright: ignore
                      for r in found for one, other in zip(r.layers, right.layers, strict=True)])  # fmt: skip
    assert float(z.abs().max()) < 5  # 16 deviations; errors from 8 probes are themselves known to a quarter
    assert abs(float(z.mean())) < 1


def test_with_more_outputs_than_probes_traces_are_estimated_and_the_traced_alignment_is_asked_for() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 40)), torch.randn(30, 4)
    y = torch.randn(30, 40)
    right = align(model, x, targets=y, bootstrap=0, progress=False)
    found = [align(model, x, targets=y, method="estimate", probes=32, seed=s, progress=False) for s in range(8)]
    assert all(one.alignment_traced is None and "traced=True" in one.method_traced for one in found[0].layers)
    pairs = [(one, other) for r in found for one, other in zip(r.layers, right.layers, strict=True)]
    z = torch.tensor([(one.trace - other.trace) / one.trace_stderr for one, other in pairs])
    # 16 deviations, of layers that share their probes, in units of errors from 32 probes
    assert float(z.abs().max()) < 5
    assert abs(float(z.mean())) < 1
    assert 0.4 < float(z.square().mean().sqrt()) < 1.6
    near = torch.ones(30, 4) + 1e-3 * x  # nearly all of the trace is of mean gradients
    right_near = align(model, near, targets=y, bootstrap=0, progress=False)
    estimates = [align(model, near, targets=y, method="estimate", probes=32, seed=s, progress=False) for s in range(8)]
    pairs = [(one, other) for r in estimates for one, other in zip(r.layers, right_near.layers, strict=True)]
    z = torch.tensor([(one.trace - other.trace) / one.trace_stderr for one, other in pairs])
    assert 0.4 < float(z.square().mean().sqrt()) < 1.6
    asked = align(model, x, targets=y, method="estimate", probes=32, traced=True, progress=False)
    for one, other in zip(asked.layers, right.layers, strict=True):
        assert abs(one.alignment_traced - other.alignment_traced) < 5 * one.stderr_traced  # pyright: ignore
    few = align(network(), x, targets=y[:, :3], method="estimate", probes=32, traced=False, progress=False)
    assert all(one.alignment_traced is None for one in few.layers)


def test_what_takes_far_longer_than_an_estimate_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus.probe import _tangent_plan as plan

    model, x, y = network(), torch.randn(400, 4), torch.arange(400) % 3
    monkeypatch.setattr(plan, "MOST_MULTIPLICATIONS", 1e5)
    found = align(model, x, targets=y, probes=8, progress=False)
    assert all(one.method == "estimate: 8 probes" and "multiplications" in one.why for one in found.layers)
    # 8 probes take 8 + 1 + 3 + 8·3 + 3·2 passes of 3·400·155 multiplications
    assert "an estimate 7.8e+06" in found.layers[0].why
    monkeypatch.setattr(plan, "MOST_MULTIPLICATIONS", 0)
    few = align(model, x[:5], targets=y[:5], probes=64, bootstrap=0, progress=False)
    assert all(one.method.startswith("exact") for one in few.layers)  # an estimate would take as long
    again = align(model, x, targets=y, method="exact", bootstrap=0, progress=False)
    assert all(one.method.startswith("exact") for one in again.layers)


def test_estimates_depend_on_the_seed_and_not_on_batches_or_random_states() -> None:
    model, x, y = network(), torch.randn(20, 4), torch.arange(20) % 3
    found = list[Any]()
    for batch_size, state, seed in ((20, 0, 5), (6, 1, 5), (20, 0, 6)):
        torch.manual_seed(state)
        one = align(model, x, targets=y, method="estimate", probes=8, batch_size=batch_size, seed=seed, progress=False)
        found.append(values(one))
    assert found[1] == pytest.approx(found[0], rel=ROUNDING)
    assert found[2] != pytest.approx(found[0], rel=1e-3)
    assert set(random_signs(0, "a", 50).tolist()) == {-1.0, 1.0}


def test_random_signs_are_centred_and_the_same_wherever_they_are_cut() -> None:
    n = 1100  # more than two chunks
    whole = CentredSigns(3, "a", 2, n, 4)(0, n)
    assert float(whole.sum(1).abs().max()) < ROUNDING * n
    assert ((whole - whole[:, :1]).abs().round(decimals=9).unique() == torch.tensor([0.0, 2.0])).all()
    for width in (1, 500, 512, 700):
        pieces = [CentredSigns(3, "a", 2, n, 4)(i, min(i + width, n)) for i in range(0, n, width)[:4]]
        cut = torch.cat(pieces, 1)
        assert torch.equal(cut, whole[:, : cut.shape[1]])
    assert abs(float((whole[0] * whole[1]).mean())) < 5 / math.sqrt(4 * n)
    assert abs(float((whole[:, :512] * whole[:, 512:1024]).mean())) < 5 / math.sqrt(2 * 4 * 512)


def test_memory_decides_and_says_so() -> None:
    model, x, y = network(), torch.randn(40, 4), torch.arange(40) % 3
    plenty = align(model, x, targets=y, bootstrap=0, progress=False)
    assert all(one.method.startswith("exact") for one in plenty.layers)
    least = min(one.memory for one in plenty.layers)
    some = align(model, x, targets=y, bootstrap=0, max_memory=least, probes=16, progress=False)
    methods = [one.method.partition(":")[0] for one in some.layers]
    assert set(methods) == {"exact", "estimate"}
    assert all("exact needs" in one.why for one in some.layers if one.method.startswith("estimate"))
    assert some.memory <= least
    assert not some.peak().clear


def test_layers_in_several_passes_are_the_same() -> None:
    model, x, y = network(), torch.randn(40, 4), torch.arange(40) % 3
    right = align(model, x, targets=y, bootstrap=50, progress=False)
    most = max(one.memory for one in right.layers)
    again = align(model, x, targets=y, bootstrap=50, max_memory=most + 1, progress=False)
    assert again.memory <= most + 1 < right.memory
    assert values(again) == pytest.approx(values(right), rel=ROUNDING)


def test_single_precision_models_stay_in_single_precision() -> None:
    model, x, y = network(), torch.randn(20, 4), torch.arange(20) % 3
    right = align(model, x, targets=y, progress=False)
    found = align(model.float(), x.float(), targets=y, progress=False)
    assert next(model.parameters()).dtype == torch.float32
    assert values(found) == pytest.approx(values(right), rel=1e-4)  # eps 6e-8 times depth, and what centring takes away
    assert torch.allclose(found.replicates, right.replicates, rtol=1e-3, atol=1e-5)


def test_half_precision_models_have_alignments() -> None:
    model, x, y = network(), torch.randn(20, 4), torch.arange(20) % 3
    right = align(model, x, targets=y, progress=False)
    found = align(model.bfloat16(), x, targets=y, progress=False)
    for one, other in zip(found.layers, right.layers, strict=True):  # bfloat16 has 8 bits: 0.4% at each step
        assert one.alignment == pytest.approx(other.alignment, rel=0.2)
        assert one.trace == pytest.approx(other.trace, rel=0.05)


def test_the_peak_of_a_network_and_the_layers_by_name() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    y = (x[:, 0] > 0).long()
    found = align(network(2), x, targets=y, progress=False)
    peak = found.peak()
    assert peak.layer in {"0", "2", "3", "5"}
    assert peak.value == max(one.alignment for one in found.layers if one.alignment is not None)
    assert found[peak.layer].stderr == pytest.approx(peak.stderr)
    assert found.peak(traced=True).value == max(one.alignment_traced or 0 for one in found.layers)
    with pytest.raises(KeyError):
        found["none"]
    assert "samples cannot tell" in align(network(2), x, targets=y, bootstrap=0, progress=False).peak().text


def test_globs_choose_layers() -> None:
    model, x, y = network(), torch.randn(12, 4), torch.arange(12) % 3
    found = align(model, x, targets=y, layers=["[25]"], bootstrap=0, progress=False)
    assert [one.name for one in found.layers] == ["2", "5"]
    assert [one.order for one in found.layers] == [1, 3]
    assert list(tangent_kernel(model, x, layers="3").layers) == ["3"]


def test_eigenpairs_of_a_model_are_those_of_its_kernel() -> None:
    model, x = network(2), torch.randn(16, 4)
    kernel = tangent_kernel(model, x, kind="full").total
    found = tangent_eigenpairs(model, x, 3, batch_size=5)
    right = torch.linalg.eigvalsh(kernel).flip(0)[:3]
    assert torch.allclose(found.values, right, rtol=ROUNDING, atol=0)
    top = found.vectors[0].mT.flatten()  # rows of the kernel are outputs first
    assert torch.allclose(kernel @ top, right[0] * top, atol=1e-7 * float(right[0]))
    trace = tangent_trace(model, x, batch_size=5)
    assert trace.total == pytest.approx(float(kernel.trace()), rel=ROUNDING)
    part = tangent_eigenpairs(model, x, 1, layers="5")
    assert float(part.values[0]) == pytest.approx(
        float(torch.linalg.eigvalsh(tangent_kernel(model, x, kind="full", layers="5").total)[-1]), rel=ROUNDING
    )


def test_attention_and_recurrence_have_eigenpairs() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(4, 4, batch_first=True)
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.cells(x)[0]
            return self.out(self.attend(h, h, h, need_weights=False)[0].mean(1))

    model, x = Both(), torch.randn(13, 3, 4)
    found = tangent_eigenpairs(model, x, 1)
    kernel = tangent_kernel(model, x, kind="full").total
    assert float(found.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(kernel)[-1]), rel=ROUNDING)


def test_the_largest_rate_is_where_training_diverges() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2, bias=False)), torch.randn(30, 3)
    y = x @ torch.randn(3, 2)
    top = float(tangent_eigenpairs(model, x, 1).values[0])
    rate = largest_stable_rate(top, 30)
    losses = list[float]()
    for factor in (0.98, 1.02):
        trained = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            trained.weight.zero_()
        for _ in range(400):
            loss = (trained(x) - y).square().sum() / 30
            (g,) = torch.autograd.grad(loss, [trained.weight])
            with torch.no_grad():
                trained.weight -= factor * rate * g
        losses.append(float((trained(x) - y).detach().square().sum()))
    assert losses[0] < 1e-3
    assert losses[1] > 1e3


def test_a_trace_over_samples_is_a_mean_of_squared_gradients() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(8, 4)
    total = 0.0
    for i in range(8):
        for c in range(2):
            grads = torch.autograd.grad(model(x[i : i + 1])[0, c], list(model[0].parameters()))
            total += sum(float(g.square().sum()) for g in grads)
    found = align(model, x, targets=np.arange(8) % 2, bootstrap=0, progress=False)
    assert found["0"].trace == pytest.approx(total / 8, rel=ROUNDING)
    assert math.isclose(tangent_trace(model, x).layers["0"], total, rel_tol=ROUNDING)


def test_a_layer_that_mixes_samples_only_in_later_batches_is_done_again() -> None:
    class Late(nn.Module):
        """Gives a module its samples in another order, where one of them is large."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if bool((x > 50).any()):
                return self.out(torch.tanh(self.inner(x.flip(0)).flip(0)))
            return self.out(torch.tanh(self.inner(x)))

    model, x = Late(), torch.randn(12, 3)
    x[9, 0] = 60.0
    whole = tangent_kernel(model, x, kind="full", batch_size=4)
    parameters, rows = list(model.inner.parameters()), list[Tensor]()
    for c in range(2):
        for i in range(12):
            grads = torch.autograd.grad(model(x[i : i + 1])[0, c], parameters)
            rows.append(torch.cat([g.flatten() for g in grads]))
    j = torch.stack(rows)
    assert torch.allclose(whole.layers["inner"], j @ j.mT, atol=1e-9 * float((j @ j.mT).max()))
    found = align(model, x, targets=torch.arange(12) % 2, batch_size=4, bootstrap=0, progress=False)
    assert "one sample at a time" in found["inner"].why
    assert found["inner"].trace == pytest.approx(float(j.square().sum()) / 12, rel=ROUNDING)
