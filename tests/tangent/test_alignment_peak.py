from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isthmus import InputError
from isthmus.tangent import GradientFeatures, bootstrap_weights, find_peak, kernel_alignment, peak_sentence


def drawn(seed: int, n: int, signal: list[float], shared: float = 0.0) -> tuple[Tensor, Tensor]:
    """Alignments of layers that differ by the size of the signal in their gradients, and their replicates."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator)
    y = z[:, :1] + 0.5 * torch.randn(n, 1, generator=generator)
    common = torch.randn(n, 6, generator=generator)
    weights = bootstrap_weights(n, 100, generator)
    values, replicates = list[float](), list[Tensor]()
    for size in signal:
        noise = shared**0.5 * common + (1 - shared) ** 0.5 * torch.randn(n, 6, generator=generator)
        found = kernel_alignment(GradientFeatures(torch.cat([size * z, 0.6 * noise], 1)[None]), y, weights=weights)
        assert found.alignment is not None
        values.append(found.alignment)
        replicates.append(found.replicates)
    return torch.tensor(values), torch.stack(replicates, 1)


@pytest.mark.parametrize(("layers", "shared"), [(2, 0.0), (8, 0.0), (8, 0.9)])
def test_equal_layers_have_a_peak_in_few_cases(layers: int, shared: float) -> None:
    trials = 120
    claimed = sum(find_peak(*drawn(seed, 50, [1.0] * layers, shared)).clear for seed in range(trials))
    # at a true rate of 5% more than 13 of 120 happen once in 200 such tests
    assert claimed <= 13


def test_a_peak_is_found_where_it_is() -> None:
    signal = [0.6, 0.6, 0.8, 1.6, 2.2, 1.6, 0.8, 0.6, 0.6]
    found = [find_peak(*drawn(seed, 120, signal)) for seed in range(20)]
    assert sum(peak.clear for peak in found) >= 18
    # the best layer is outside of the set in 5% of cases: more than 4 of 20 happen once in 400
    assert sum(not peak.first <= 4 <= peak.last for peak in found) <= 4
    assert all(peak.first <= peak.index <= peak.last for peak in found)


def test_a_plateau_over_most_layers_is_no_peak() -> None:
    peak = find_peak(*drawn(0, 200, [3.0, 3.0, 3.0, 3.0, 3.0, 0.2]))
    assert not peak.clear
    assert "cannot be told" in peak.why


def test_standard_errors_are_those_of_new_samples() -> None:
    found = [drawn(seed, 60, [1.0]) for seed in range(150)]
    real = torch.stack([values[0] for values, _ in found]).std()
    said = torch.stack([replicates[:, 0].std() for _, replicates in found]).mean()
    # the real one is known to 1/√(2·150) = 6%; resampling draws samples twice, which changes it by O(1/n)
    assert 0.8 < float(said / real) < 1.25


def test_what_is_said_of_a_peak() -> None:
    values = torch.tensor([0.1, 0.4, 0.41, 0.1, 0.1])
    noise = torch.randn(400, 5) * 0.02
    peak = find_peak(values, values + noise)
    assert (peak.index, peak.first, peak.last, peak.clear) == (2, 1, 2, True)
    assert peak_sentence(list("abcde"), peak) == "b to c align most, 0.41 ± 0.02"
    single = find_peak(torch.tensor([0.1, 0.9, 0.1]), torch.tensor([0.1, 0.9, 0.1]) + noise[:, :3])
    assert peak_sentence(list("abc"), single) == "b aligns most, 0.9 ± 0.02"
    flat = find_peak(torch.full((5,), 0.4) + 0.001 * noise[0], 0.4 + noise)
    assert peak_sentence(list("abcde"), flat).startswith("no clear peak of alignment: the layers differ by no more")
    assert "one layer" in find_peak(values[:1], noise[:, :1]).why


def test_layers_that_are_the_same_have_no_peak() -> None:
    noise = torch.randn(100, 1) * 0.02
    peak = find_peak(torch.full((4,), 0.3), (0.3 + noise).expand(100, 4))
    assert not peak.clear
    assert peak.members == (0, 1, 2, 3)


def test_too_few_replicates_are_refused() -> None:
    with pytest.raises(InputError, match="bootstrap: got 10"):
        find_peak(torch.ones(3), torch.ones(10, 3))
    with pytest.raises(InputError, match="no layers"):
        find_peak(torch.ones(0), torch.ones(100, 0))


def test_bootstrap_weights_are_multinomial() -> None:
    weights = bootstrap_weights(30, 2000, torch.Generator().manual_seed(0))
    assert torch.equal(weights.sum(0), torch.full((2000,), 30.0))
    # variance 1 − 1/n of each count, known to some 3% from 2000 draws of 30
    assert float(weights.var()) == pytest.approx(29 / 30, rel=0.05)
