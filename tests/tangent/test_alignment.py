from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus.tangent import (
    GradientFeatures,
    OuterFeatures,
    PieceFeatures,
    alignment_estimate,
    bootstrap_weights,
    full_kernel,
    kernel_alignment,
    norm_estimate,
)

# Two ways of summing some 10³ products in float64.
ROUNDING = 1e-11
N, C, P = 9, 3, 5


def centring(n: int) -> Tensor:
    return torch.eye(n) - torch.ones(n, n) / n


def defined(j: Tensor, y: Tensor) -> float:
    """`A_ℓ` from `(I_C ⊗ H) K (I_C ⊗ H)`."""
    outputs, n, _ = j.shape
    h = torch.kron(torch.eye(outputs), centring(n))
    rows = j.flatten(0, 1)
    kernel = h @ rows @ rows.mT @ h
    target = h @ y.mT.flatten()
    return float(target @ kernel @ target / kernel.norm() / target.square().sum())


def weighted(j: Tensor, y: Tensor, w: Tensor) -> tuple[float, float]:
    """The alignment, full and traced, of samples that are there `w` times each."""
    index = torch.repeat_interleave(torch.arange(len(w)), w.long())
    found = kernel_alignment(GradientFeatures(j[:, index]), y[index])
    assert found.alignment is not None
    assert found.alignment_traced is not None
    return found.alignment, found.alignment_traced


def test_alignment_is_that_of_its_definition() -> None:
    j, y = torch.randn(C, N, P) + 1, torch.randn(N, C)
    found = kernel_alignment(GradientFeatures(j), y)
    assert found.alignment == pytest.approx(defined(j, y), rel=ROUNDING)
    assert found.trace == pytest.approx(float(j.square().sum()) / N, rel=ROUNDING)
    assert found.alignment * found.norm * float((y - y.mean(0)).square().sum()) == pytest.approx(found.numerator)


def test_centring_the_whole_matrix_at_once_is_another_number() -> None:
    j, y = torch.randn(C, N, P) + torch.arange(C)[:, None, None], torch.randn(N, C)
    rows = j.flatten(0, 1)
    h = centring(N * C)
    kernel = h @ rows @ rows.mT @ h
    target = (y - y.mean(0)).mT.flatten()
    wrong = float(target @ kernel @ target / kernel.norm() / target.square().sum())
    found = kernel_alignment(GradientFeatures(j), y).alignment
    assert found is not None
    assert abs(found - wrong) > 0.01


def test_alignment_is_one_where_the_kernel_is_a_multiple_of_the_targets() -> None:
    y = torch.randn(N, C)
    centred = y - y.mean(0)
    j = 3 * centred.mT[:, :, None] + torch.randn(C, 1, 1)  # constants of each output are centred away
    found = kernel_alignment(GradientFeatures(j), y)
    assert found.alignment == pytest.approx(1, abs=ROUNDING)
    assert found.alignment_traced == pytest.approx(1, abs=ROUNDING)


def test_known_alignment_of_a_linear_network() -> None:
    # f = B A x, centred orthonormal data (x xᵀ = n I): the last layer's kernel is A x ⊗ I_C; with A of rank 1 along
    # the first coordinate and targets y_c = u_c x_1 it is I_C ⊗ x_1 x_1ᵀ, and A_ℓ = 1/√C, whatever u.
    q = torch.linalg.qr(centring(N) @ torch.randn(N, 3)).Q
    hidden = torch.zeros(N, 4)
    hidden[:, 0] = q[:, 0]
    g = torch.eye(C)[:, None, None, :].expand(C, N, 1, C)
    found = kernel_alignment(OuterFeatures(hidden[:, None], g, bias=False), q[:, :1] * torch.randn(C))
    assert found.alignment == pytest.approx(1 / math.sqrt(C), abs=ROUNDING)
    assert found.alignment_traced == pytest.approx(1, abs=ROUNDING)


def test_order_of_samples_and_scale_do_not_matter() -> None:
    j, y = torch.randn(C, N, P), torch.randn(N, C)
    order = torch.randperm(N)
    one = kernel_alignment(GradientFeatures(j), y).alignment
    assert kernel_alignment(GradientFeatures(j[:, order]), y[order]).alignment == pytest.approx(one, rel=ROUNDING)
    assert kernel_alignment(GradientFeatures(7 * j), 3 * y + 5).alignment == pytest.approx(one, rel=ROUNDING)


def test_replicates_are_alignments_of_repeated_samples() -> None:
    j, y = torch.randn(C, N, P) + 0.5, torch.randn(N, C)
    weights = bootstrap_weights(N, 6, torch.Generator().manual_seed(1))
    found = kernel_alignment(GradientFeatures(j), y, weights=weights)
    for b in range(6):
        full, traced = weighted(j, y, weights[:, b])
        assert float(found.replicates[b]) == pytest.approx(full, rel=1e-9)
        assert float(found.replicates_traced[b]) == pytest.approx(traced, rel=1e-9)


def test_a_kernel_without_variation_has_no_alignment() -> None:
    found = kernel_alignment(GradientFeatures(torch.zeros(C, N, P)), torch.randn(N, C))
    assert found.alignment is None
    assert found.alignment_traced is None


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="a column for each of the 3 outputs"):
        kernel_alignment(GradientFeatures(torch.randn(C, N, P)), torch.randn(N, 2))


def test_outer_features_are_sums_of_outer_products() -> None:
    a, g = torch.randn(N, 4, 3), torch.randn(C, N, 4, 2)
    weight = torch.einsum("cnto,nti->cnoi", g, a).flatten(2)
    for has_weight, has_bias in ((True, True), (True, False), (False, True)):
        parts = ([weight] if has_weight else []) + ([g.sum(2)] if has_bias else [])
        explicit = GradientFeatures(torch.cat(parts, 2))
        held = OuterFeatures(a, g, weight=has_weight, bias=has_bias, hold=True)
        assert torch.allclose(full_kernel(held), full_kernel(explicit), rtol=0, atol=ROUNDING * 100)
        outer = OuterFeatures(a, g, weight=has_weight, bias=has_bias)
        assert torch.allclose(full_kernel(outer), full_kernel(explicit), rtol=0, atol=ROUNDING * 100)
        assert torch.allclose(outer.traced(), explicit.traced(), rtol=0, atol=ROUNDING * 100)
        assert torch.allclose(outer.diagonal(), explicit.diagonal(), rtol=0, atol=ROUNDING * 100)
        if has_weight:
            pieces = PieceFeatures(a, g, bias=has_bias)
            assert torch.allclose(full_kernel(pieces), full_kernel(explicit), rtol=0, atol=ROUNDING * 100)
            assert torch.allclose(pieces.traced(), explicit.traced(), rtol=0, atol=ROUNDING * 100)
            assert torch.allclose(pieces.diagonal(), explicit.diagonal(), rtol=0, atol=ROUNDING * 100)
            assert torch.equal(pieces.block(0, 1), pieces.block(1, 0).mT)


def test_gradients_in_pieces_do_not_depend_on_where_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    a, g = torch.randn(70, 4, 3), torch.randn(C, 70, 4, 5)  # 210 rows: several stripes of the symmetric product
    explicit = GradientFeatures(torch.einsum("cnto,nti->cnoi", g, a).flatten(2))
    for rows in (1, 2, 5):
        monkeypatch.setattr("isthmus.tangent._features.PIECE_BYTES", 8 * 210 * 3 * rows)
        pieces = PieceFeatures(a, g, bias=False)
        assert torch.allclose(full_kernel(pieces), full_kernel(explicit), rtol=0, atol=ROUNDING * 100)


def test_one_position_gives_an_exactly_symmetric_kernel_of_any_size() -> None:
    a, g = torch.randn(210, 1, 3), torch.randn(C, 210, 1, 5)
    explicit = GradientFeatures(torch.cat([torch.einsum("cnto,nti->cnoi", g, a).flatten(2), g.sum(2)], 2))
    traced = OuterFeatures(a, g).traced()
    assert torch.equal(traced, traced.mT)
    assert torch.allclose(traced, explicit.traced(), rtol=0, atol=ROUNDING * 100)


def probes(generator: torch.Generator, m: int, n: int) -> Tensor:
    v = 2.0 * torch.randint(0, 2, (m, n), generator=generator) - 1
    return v - v.mean(1, keepdim=True)


def spectrum(n: int, power: float) -> Tensor:
    """A centred kernel with eigenvalues `i^{−power}`."""
    q = torch.linalg.qr(centring(n) @ torch.randn(n, n - 1)).Q
    return (q * torch.arange(1, n).double() ** -power) @ q.mT


def test_the_norm_estimate_has_no_bias_and_its_error_falls_with_probes() -> None:
    kernel, generator, trials = spectrum(30, 0.5), torch.Generator().manual_seed(0), 400
    right = float(kernel.square().sum())
    errors = list[float]()
    for m in (8, 32):
        v = [probes(generator, m, 30) for _ in range(trials)]
        found = torch.tensor([norm_estimate(one @ kernel @ one.mT).value for one in v])
        spread = float(found.std())
        # the mean of 400 is known to a twentieth of the spread: 4 of those
        assert abs(float(found.mean()) - right) < 0.2 * spread
        errors.append(spread)
    # m^{−1/2}: a factor 2 for large m; pairs of few probes add a part that falls like 1/m: up to 4
    assert 1.8 < errors[0] / errors[1] < 4.2


@pytest.mark.parametrize("power", [0.2, 0.7])
def test_intervals_of_the_estimate_cover_the_alignment(power: float) -> None:
    kernel, generator, trials = spectrum(40, power), torch.Generator().manual_seed(0), 300
    y = torch.randn(40)
    y = y - y.mean()
    top, scale = float(y @ kernel @ y), float(y.square().sum())
    right = top / float(kernel.norm()) / scale
    inside, values = 0, list[float]()
    for _ in range(trials):
        v = probes(generator, 48, 40)
        found = alignment_estimate(v @ kernel @ v.mT, top, scale)
        assert found is not None
        inside += abs(found.value - right) <= 1.96 * found.stderr
        values.append(found.value)
    # 95% of 300 with a binomial error of 1.3%; the jackknife is known to err on the side of width
    assert 0.90 <= inside / trials <= 1.0
    mean, spread = float(torch.tensor(values).mean()), float(torch.tensor(values).std())
    assert abs(mean - right) < 4 * spread / math.sqrt(trials) + 0.002 * right  # what is left of the bias is O(1/m²)


def test_the_bias_of_the_root_is_corrected() -> None:
    kernel, generator = spectrum(20, 1.0), torch.Generator().manual_seed(0)
    right = 1 / float(kernel.norm())
    corrected, plain = list[float](), list[float]()
    for _ in range(2000):
        v = probes(generator, 24, 20)
        products = v @ kernel @ v.mT
        found = alignment_estimate(products, 1.0, 1.0)
        assert found is not None
        corrected.append(found.value)
        plain.append(norm_estimate(products).value ** -0.5)
    left, before = (abs(float(torch.tensor(one).mean()) - right) for one in (corrected, plain))
    assert left < before / 2


def test_few_probes_are_refused_and_a_vanishing_norm_has_no_alignment() -> None:
    with pytest.raises(InputError, match="probes: got 3"):
        norm_estimate(torch.ones(3, 3))
    assert alignment_estimate(torch.zeros(5, 5), 1.0, 1.0) is None
