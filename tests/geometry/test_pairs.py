"""The state of pairs of samples, and all their distances."""

import pytest
import torch

from isthmus import InputError
from isthmus.geometry import pair_distances, pair_states, squared_distances
from isthmus.theory import two_point

PAIRS = [(0, 1), (4, 2), (3, 5)]


def _by_hand(hidden, outputs, targets, i, j):
    """The state of one pair, number by number, as section 2.1 writes it."""
    dh, dy, wanted = hidden[i] - hidden[j], outputs[i] - outputs[j], targets[i] - targets[j]
    error = (outputs[i] + outputs[j]) / 2 - (targets[i] + targets[j]).flatten() / 2
    y = sum(float(a) ** 2 for a in dy.flatten())
    return (
        sum(float(a) ** 2 for a in dh.flatten()), y,
        y - sum(float(a) * float(b) for a, b in zip(dy.flatten(), wanted.flatten(), strict=True)),
        sum(float(a) ** 2 for a in error.flatten()),
    )  # fmt: skip


def test_state_is_that_of_the_definition_and_gives_the_loss():
    draw = torch.Generator().manual_seed(1)
    hidden, outputs = (torch.randn(6, *shape, generator=draw) for shape in ((3, 4, 2), (5,)))
    targets = torch.randn(6, 5, 1, generator=draw)
    state = pair_states(hidden, outputs, targets, PAIRS)
    for k, (i, j) in enumerate(PAIRS):
        expected = _by_hand(hidden, outputs, targets, i, j)
        assert torch.stack([part[k] for part in state]) == pytest.approx(list(expected), rel=1e-12)
        wanted = float((targets[i] - targets[j]).square().sum())
        loss = 0.25 * (2 * state.m[k] + state.v[k] + 0.5 * (wanted - state.y[k]))
        own = 0.5 * ((outputs[[i, j]] - targets[[i, j], :, 0]).square().sum(1)).mean()
        assert float(loss) == pytest.approx(float(own), rel=1e-12)


def test_a_two_layer_linear_network_of_one_hidden_neuron_follows_the_theory():
    """One hidden neuron trained by small gradient steps is exactly the theory of 2.1, with rates from the step size."""
    x, targets = torch.tensor([[-1.0], [0.0]]), torch.tensor([[0.4], [1.2]])
    w, u, c = torch.tensor([[0.3]]), torch.tensor([[0.2]]), torch.tensor([0.5])
    rate, steps = 1e-3, 4000

    def state(w, u, c):
        hidden = x @ w.T
        return pair_states(hidden, (hidden - hidden.mean(0)) @ u.T + c, targets, [(0, 1)])

    start = state(w, u, c)
    for _ in range(steps):  # d = dx w, dy = u d; loss of the difference alone, by hand
        dh = float(w) * 1.0
        error = float(u) * dh - 0.8
        w, u = w - rate * float(u) * error * 1.0, u - rate * error * dh
    end = state(w, u, c)
    path = two_point(torch.tensor([rate * steps]), h0=start.h, y0=start.y, v0=start.v, dx2=1.0, dy2=0.64, eta_h=2.0,
                     eta_y=2.0)  # fmt: skip
    assert float(end.h) == pytest.approx(float(path.h[-1]), rel=2e-3)
    assert float(end.v) == pytest.approx(float(path.v[-1]), rel=2e-2)
    assert float(end.y) == pytest.approx(float(path.y[-1]), rel=2e-3)


def test_distances_are_exact_far_from_the_origin():
    rows = torch.tensor([[1e8, 1.0], [1e8 + 0.5, 1.0], [1e8, 3.0]])
    assert squared_distances(rows).tolist() == [[0.0, 0.25, 4.0], [0.25, 0.0, 4.25], [4.0, 4.25, 0.0]]
    assert pair_distances(rows, [(0, 1), (2, 1)]).tolist() == [0.25, 4.25]
    half = torch.tensor([[300.0], [-0.125]], dtype=torch.float16)  # neither this difference nor its square fits
    assert pair_distances(half, [(0, 1)]).tolist() == [90075.015625]
    assert squared_distances(half)[0, 1] == pytest.approx(90075.015625, rel=1e-15)
    assert squared_distances(torch.zeros(3, 0)).tolist() == [[0.0] * 3] * 3


def test_all_distances_agree_with_those_of_pairs():
    rows = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(2))
    pairs = [(i, j) for i in range(7) for j in range(7)]
    whole = squared_distances(rows)
    torch.testing.assert_close(whole.flatten(), pair_distances(rows, pairs), rtol=1e-14, atol=0)
    assert torch.equal(whole, whole.T)


@pytest.mark.parametrize(
    ("outputs", "targets", "pairs", "said"),
    [
        ((4, 2), (4, 2), [(0, 4)], r"pairs: got \(0, 4\), expected pairs of row numbers from 0 to 3"),
        ((4, 2), (4, 2), [(-1, 2)], "pairs: got"),
        ((4, 2), (4, 2), [], "pairs: got none"),
        ((4, 2), (4, 3), [(0, 1)], "targets: got"),
        ((3, 2), (4, 2), [(0, 1)], "hidden: got 4 rows, 3 of outputs"),
    ],
)
def test_what_does_not_belong_together_is_refused(outputs, targets, pairs, said):
    with pytest.raises(InputError, match=said):
        pair_states(torch.zeros(4, 3), torch.zeros(outputs), torch.zeros(targets), pairs)
