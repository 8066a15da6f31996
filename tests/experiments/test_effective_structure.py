"""Structure experiments of the effective theory's paper: samples, readings against direct computations, claims."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from isthmus._records import Claim, MetricTable, RunFolder
from isthmus.experiments import _effective_structure_images as images
from isthmus.experiments._effective_structure import (
    STRUCTURE,
    OrthogonalSettings,
    StructureSettings,
    TrajectoriesSettings,
    XorSettings,
    orthogonal_figure,
    structure_figure,
    trajectories_figure,
    xor_figure,
)
from isthmus.experiments._effective_structure_images import (
    BASELINES,
    RICH,
    SMOOTHED,
    StructureReading,
    guesses,
    pearson,
    read_structure,
    smoothed_distances,
    structure_claims,
)
from isthmus.experiments._effective_structure_networks import (
    NO_FILE,
    StructureNetwork,
    TrainedStructure,
    distances_of,
    moments,
    pairs_of,
)
from isthmus.experiments._effective_structure_orthogonal import (
    Contexts,
    OrthogonalReading,
    contexts,
    orthogonal_claims,
    scaled_coordinates,
    shuffled_contexts,
)
from isthmus.experiments._effective_structure_tasks import Samples, blob_samples, xor_samples
from isthmus.experiments._effective_structure_trajectories import (
    DIFFERENT,
    Fits,
    chosen_pairs,
    read_fits,
    trajectory_claims,
)
from isthmus.experiments._effective_structure_xor import (
    BETWEEN,
    FITTED,
    LAZY,
    SHALLOW,
    XorReading,
    equal_labels,
    fit_pair,
    read_xor,
    xor_claims,
)
from isthmus.experiments._effective_structure_xor import RICH as RICH_XOR
from isthmus.models import ZooSetting, zoo_network
from isthmus.theory import two_point

TINY = ZooSetting("tiny", activation="relu", gain=1.2, learning_rate=0.05, width=12, hidden_layers=3, watched=1)


def network(task: Any = "xor", setting: ZooSetting = TINY, **more: Any) -> StructureNetwork:
    plain: dict[str, Any] = {"source": {}, "batch": 0, "steps": 30, "times": 10, "spacing": "even", "watched": 4,
                             "seed": 3}  # fmt: skip
    return StructureNetwork(task, setting=setting, **{**plain, **more})


def held(claims: list[Claim]) -> dict[str, str]:
    return {c.name.split("/")[1]: str(c.values["holds"]) for c in claims}


def made_up(folder: Path, one: StructureNetwork, arrays: dict[str, np.ndarray]) -> TrainedStructure:
    """A folder with these records, as training would leave it."""
    run = RunFolder.create(folder / one.name, command="reproduce", configuration={}, seed=0, device="cpu",
                           dtype="float32")  # fmt: skip
    run.write_arrays(arrays)
    run.finish("complete", trained={"loss": 0.0, "steps": 1, "seconds": 0.0, "stopped": "steps"})
    return TrainedStructure.open(one, folder)


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_four_corners_differ_in_their_labels_as_xor_says() -> None:
    samples = xor_samples()
    for (a, b), target, group in zip(samples.x.tolist(), samples.y.tolist(), samples.groups.tolist(), strict=True):
        assert target == [float(bool(a) != bool(b))] == [float(group)]
    same = distances_of(samples.y) == 0
    assert same.tolist() == equal_labels().tolist()
    assert distances_of(samples.x)[FITTED] == 1


def test_blobs_lie_where_they_say_and_the_context_picks_the_target() -> None:
    samples = blob_samples(4)
    assert samples.x.shape == (32, 27)
    pixels = samples.x[:, :25].view(-1, 5, 5)
    torch.testing.assert_close(pixels.sum((1, 2)), torch.ones(32, dtype=torch.float32))
    axis = torch.linspace(-1, 1, 5, dtype=torch.float32)
    where = torch.stack([(pixels.sum(2) * axis).sum(1), (pixels.sum(1) * axis).sum(1)], 1)
    for i in (0, 1):  # means of the pixels grow with the place along each axis, and with nothing else
        order = samples.places[:, i].argsort(stable=True)
        assert bool((where[order, i].diff() > -1e-6).all())
    for i in range(32):
        context = int(samples.groups[i])
        assert samples.x[i, 25:].tolist() == [float(context == 0), float(context == 1)]
        assert float(samples.y[i]) == float(samples.places[i, context])
    assert samples.groups.tolist() == [0] * 16 + [1] * 16
    assert set(map(tuple, samples.places[:16].tolist())) == set(map(tuple, samples.places[16:].tolist()))
    one = torch.exp(-((axis[:, None] + 1) ** 2 + (axis[None] + 1) ** 2) / 2)
    torch.testing.assert_close(pixels[0], one / one.sum())  # the corner (−1, −1)


# ── training and what is recorded ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_records_are_those_of_the_network_as_it_was(tmp_path: Path, optimiser: Any) -> None:
    one = network(setting=dataclasses.replace(TINY, optimiser=optimiser))
    one.train(tmp_path)
    trained = TrainedStructure.open(one, tmp_path)
    samples, arrays = one.samples(), trained.arrays
    assert arrays["track/steps"].tolist() == moments(one)
    assert (arrays["track/steps"][0], arrays["track/steps"][-1]) == (0, 30)
    pairs = list(itertools.combinations(range(4), 2))
    saved = safetensors.torch.load_file(trained.run.path / "model.safetensors")
    for at, name, weights in ((0, "start", None), (-1, "end", saved)):
        model = zoo_network(one.setting, 2, 1, one.seed)
        if weights is not None:
            model.load_state_dict(weights)
        with torch.no_grad():
            hidden, outputs = model.states(samples.x)
        for layer, a in enumerate(hidden):
            np.testing.assert_allclose(arrays[f"{name}/hidden"][layer], a.numpy(), rtol=1e-6)
            wanted = [float((a[i] - a[j]).square().sum()) for i, j in pairs]
            np.testing.assert_allclose(arrays["track/h"][at, layer], wanted, rtol=1e-4)
        dy = torch.stack([outputs[i] - outputs[j] for i, j in pairs])
        dt = torch.stack([samples.y[i] - samples.y[j] for i, j in pairs])
        np.testing.assert_allclose(arrays["track/y"][at], (dy * dy).sum(1).numpy(), rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(arrays["track/v"][at], (dy * (dy - dt)).sum(1).numpy(), rtol=1e-4,
                                   atol=1e-7)  # fmt: skip
        loss = float((outputs - samples.y).square().mean() / 2)
        assert arrays["track/loss"][at] == pytest.approx(loss, rel=1e-5)
    assert arrays["track/loss"][-1] < 0.9 * arrays["track/loss"][0]


def test_a_step_of_training_is_one_of_gradient_descent(tmp_path: Path) -> None:
    one = network(steps=1, times=2)
    one.train(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / one.name / "model.safetensors")
    model = zoo_network(one.setting, 2, 1, one.seed)
    samples = one.samples()
    (0.5 * (model(samples.x) - samples.y).square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(saved[name], parameter.detach() - 0.05 * parameter.grad)


def test_batches_follow_the_seed(tmp_path: Path) -> None:
    made = [network("blobs", source={"grid": 3}, batch=4, watched=0, seed=seed) for seed in (1, 1, 2)]
    ends = []
    for i, one in enumerate(made):
        one.train(tmp_path / str(i))
        ends.append(TrainedStructure.open(one, tmp_path / str(i)).arrays["end/outputs"])
    assert np.array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2])


def test_a_training_that_diverges_keeps_what_came_before(tmp_path: Path) -> None:
    one = network(setting=dataclasses.replace(TINY, learning_rate=1e6))
    one.train(tmp_path)
    trained = TrainedStructure.open(one, tmp_path)
    assert trained.diverged
    assert np.isfinite(trained.arrays["end/hidden"]).all()
    assert math.isfinite(trained.number("loss"))


def test_moments() -> None:
    assert moments(network(steps=8, times=5)) == [0, 2, 4, 6, 8]
    assert moments(network(steps=100, times=4, spacing="geometric")) == [0, 1, 10, 100]


def test_a_name_tells_settings_apart() -> None:
    one = network()
    others = [network(steps=31), network(seed=4), network(setting=dataclasses.replace(TINY, gain=1.3))]
    assert len({one.name, network().name}) == 1
    assert len({one.name, *(other.name for other in others)}) == 4


# ── XOR ──────────────────────────────────────────────────────────────────────────────────────────────────────


def theory_record(folder: Path, eta_h: float, eta_y: float) -> TrainedStructure:
    """Four points whose pairs follow the theory exactly, at every layer."""
    one = network(steps=4000, times=400)
    t = torch.linspace(0, 4000, 400)
    samples = one.samples()
    X, Y = distances_of(samples.x), distances_of(samples.y)
    y0 = torch.full((6,), 1e-3)
    h0 = torch.tensor([0.02, 0.02, 0.03, 0.04, 0.02, 0.03])
    v0 = y0 - 0.2 * (y0 * Y).sqrt()
    path = two_point(t, h0, y0, v0, eta_h=eta_h, eta_y=eta_y, dx2=X, dy2=Y)
    return made_up(folder, one, {
        "track/steps": t.numpy(), "track/loss": t.numpy(), "track/h": path.h.mT[:, None].repeat(1, 3, 1).numpy(),
        "track/y": path.y.mT.contiguous().numpy(), "track/v": path.v.mT.contiguous().numpy(),
        "end/outputs": np.zeros((4, 1)),
    })  # fmt: skip


def test_one_pair_gives_the_ratio_and_the_other_pairs_their_ends(tmp_path: Path) -> None:
    trained = theory_record(tmp_path, 4e-3, 2e-2)
    found = read_xor(trained, fit_pair(trained))
    assert found.ratio == pytest.approx(0.2, rel=1e-4)
    assert found.predicted is not None
    assert found.rich is not None
    different = ~equal_labels()
    np.testing.assert_allclose(found.predicted[different], found.last[different], rtol=1e-3)
    assert found.error(found.predicted) < 0.05  # points with equal labels come to 0 as 1/t only
    np.testing.assert_allclose(found.rich[different], math.sqrt(0.2), rtol=1e-4)
    assert found.error(found.first) > 0.5
    assert held(xor_claims({RICH_XOR: [found]}))["theory-of-the-end"] == "held"


def xor_reading(last: list[float], first: list[float] | None = None, *, off: float = 0.0, seed: int = 0) -> XorReading:
    end = np.array(last)
    start = np.array([1.0, 1.0, 2.0, 2.0, 1.0, 1.0] if first is None else first)
    return XorReading(seed, start, end, end * (1 + off), end, 0.1, 1e-6)


def test_claims_about_four_points_can_come_out_either_way() -> None:
    merged, apart = [1.0, 1.0, 0.05, 0.05, 1.0, 1.0], [1.0, 1.0, 1.5, 1.5, 1.0, 1.0]
    lazy = xor_reading([1.0, 1.0, 2.0, 2.0, 1.0, 1.0])
    good = {
        RICH_XOR: [xor_reading(merged)],
        BETWEEN: [xor_reading(apart)],
        LAZY: [lazy],
        SHALLOW: [xor_reading(merged)],
    }
    assert held(xor_claims(good)) == {
        "equal-labels-merge": "held", "equal-labels-merge-in-one-hidden-layer": "held", "lazy-distances-stay": "held",
        "from-rich-to-lazy": "held", "theory-of-the-end": "held", "trained": "not judged",
    }  # fmt: skip
    bad = {RICH_XOR: [lazy], BETWEEN: [xor_reading(apart, off=0.9)], LAZY: [xor_reading(merged)],
           SHALLOW: [xor_reading([1.0, 1.0, 0.2, 0.2, 1.0, 1.0])]}  # fmt: skip
    assert held(xor_claims(bad)) == {
        "equal-labels-merge": "not", "equal-labels-merge-in-one-hidden-layer": "partly", "lazy-distances-stay": "not",
        "from-rich-to-lazy": "not", "theory-of-the-end": "not", "trained": "not judged",
    }  # fmt: skip
    lost = dataclasses.replace(lazy, predicted=None, rich=None, ratio=None)
    (said,) = [c for c in xor_claims({LAZY: [lost]}) if c.name == "xor/theory-of-the-end"]
    assert said.values["holds"] == "not judged"
    assert "1 could not be fitted" in said.text


def test_the_fitted_pair_does_not_judge_itself() -> None:
    reading = xor_reading([5.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    guess = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 1.5])
    assert reading.error(guess) == pytest.approx(0.5 / math.sqrt(5))


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────


def some_samples(n: int = 7) -> Samples:
    g = torch.Generator().manual_seed(1)
    groups = torch.arange(n) % 3
    return Samples(torch.randn(n, 4, generator=g), torch.eye(3)[groups], groups, torch.empty(n, 0))


@pytest.mark.parametrize("averaged", [False, True])
def test_smoothed_distances_are_products_of_matrices(monkeypatch: pytest.MonkeyPatch, averaged: bool) -> None:
    monkeypatch.setattr(images, "_CHUNK", 3)
    samples = some_samples()
    x, y = samples.x.numpy(), samples.y.numpy()
    D = np.linalg.norm(x[:, None] - x, axis=2) * np.linalg.norm(y[:, None] - y, axis=2) / 1.7
    E = np.exp(-D)
    if averaged:
        E = E / E.sum(1, keepdims=True)
    found = smoothed_distances(samples, 5, unit=1.7, averaged=averaged)
    np.testing.assert_allclose(found.numpy(), (E @ D @ E.T)[:5, :5], rtol=1e-6)


def test_guesses_are_in_the_order_of_pairs() -> None:
    samples = some_samples()
    found = guesses(samples, 5)
    few = Samples(samples.x[:5], samples.y[:5], samples.groups[:5], samples.places[:5])
    for place, (i, j) in enumerate(itertools.combinations(range(5), 2)):
        X = float((samples.x[i] - samples.x[j]).square().sum())
        Y = float((samples.y[i] - samples.y[j]).square().sum())
        assert found["inputs X"][place] == pytest.approx(X)
        assert found["targets Y"][place] == pytest.approx(Y)
        assert found[RICH][place] == pytest.approx(math.sqrt(X * Y), abs=1e-12)
        assert found[SMOOTHED][place] == pytest.approx(float(smoothed_distances(samples, 5)[i, j]))
        assert found["the watched images alone"][place] == pytest.approx(float(smoothed_distances(few, 5)[i, j]))


def test_correlation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    assert pearson(a, b + a) == pytest.approx(np.corrcoef(a, a + b)[0, 1])
    assert math.isnan(pearson(a, np.full(50, 0.3)))


def structure_readings(every: float, others: float, best: float) -> list[StructureReading]:
    made = []
    for seed, shift in enumerate((-0.01, 0.0, 0.01)):
        guess = dict.fromkeys((*BASELINES, *images._VARIANTS), best)
        made.append(StructureReading(seed, {SMOOTHED: every + shift, **guess}, {SMOOTHED: others + shift, **guess},
                                     (every, others), 0.1, 1e-3))  # fmt: skip
    return made


def test_claims_about_distances_between_images() -> None:
    names = ("all-pairs", "different-classes", "beats-baselines-all-pairs", "beats-baselines-different-classes")
    for every, others, best, wanted in (
        (0.9, 0.6, 0.5, ("held", "held", "held", "held")),
        (0.6, 0.3, 0.6, ("partly", "partly", "not", "not")),
        (0.4, 0.1, 0.3, ("not", "not", "held", "not")),
    ):
        said = held(structure_claims(structure_readings(every, others, best)))
        assert tuple(said[name] for name in names) == wanted
    assert held(structure_claims([])) == {"all-pairs": "not judged"}


def test_a_reading_compares_distances_with_every_guess() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(40) % 4 == 0
    found = np.where(same, 0.1, 1.0) + 0.1 * rng.random(40)
    guessed = {SMOOTHED: found.copy(), "targets Y": np.where(same, 0.0, 2.0), "inputs X": rng.random(40)}
    reading = read_structure(guessed, found, same, seed=0, loss=0.0)
    assert reading.every[SMOOTHED] == pytest.approx(1)
    assert reading.others[SMOOTHED] == pytest.approx(1)
    assert reading.every["targets Y"] > 0.9
    assert math.isnan(reading.others["targets Y"])
    assert reading.others["inputs X"] == pytest.approx(pearson(guessed["inputs X"][~same], found[~same]))
    assert reading.merging == pytest.approx(found[same].mean() / found[~same].mean())
    assert reading.roots == pytest.approx((1, 1))


# ── pairs of images during training ──────────────────────────────────────────────────────────────────────────


def test_pairs_are_spread_over_the_nearest_and_the_farthest() -> None:
    inputs = torch.arange(200).double()
    same = torch.arange(200) % 2 == 0
    found = chosen_pairs(inputs, same, 3)
    assert found == {0: [2, 10, 20], 1: [198, 190, 180], 2: [1, 9, 19], 3: [199, 191, 181]}
    few = chosen_pairs(inputs[:6], same[:6], 3)  # pair 0 is at distance 0
    assert few == {0: [2, 4], 1: [4, 2], 2: [1, 3, 5], 3: [5, 3, 1]}


def test_pairs_that_follow_the_theory_are_described(tmp_path: Path) -> None:
    found = read_fits(theory_record(tmp_path, 4e-3, 2e-2), 2)
    assert found.r_squared.shape == (3, 8, 3)
    assert found.r_squared.min() > 0.9999
    assert found.kinds.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    middle = found.all[found.middle * 8 + 4]  # the first pair of different classes, at the watched layer
    assert (middle.eta_h, middle.eta_y) == (pytest.approx(4e-3, rel=1e-4), pytest.approx(2e-2, rel=1e-4))


def made_fits(near: float, far: float, same: float, best: int, shift: float = 0.0) -> Fits:
    r = np.zeros((4, 8, 3))
    for layer in range(4):
        for kind, value in enumerate((same, same, near, far)):
            r[layer, 2 * kind : 2 * kind + 2] = value - (0.05 if layer != best else 0)
    return Fits(0, 2, np.repeat(np.arange(4), 2), r + shift)


def test_claims_about_trajectories() -> None:
    shifts = (-0.005, 0.0, 0.005)
    good = [made_fits(0.99, 0.95 + s, 0.95, 2) for s in shifts]
    assert held(trajectory_claims(good, good)) == {
        "different-classes": "held", "same-class": "held", "near-pairs-better": "held", "best-in-the-middle": "held",
        "with-adam": "not judged",
    }  # fmt: skip
    bad = [made_fits(0.7, 0.78 + s, -3.0, 0) for s in shifts]
    assert held(trajectory_claims(bad, [])) == {
        "different-classes": "not", "same-class": "not", "near-pairs-better": "not", "best-in-the-middle": "not",
    }  # fmt: skip
    unfitted = dataclasses.replace(good[0], r_squared=np.full((4, 8, 3), math.nan))
    assert unfitted.median(DIFFERENT) == -math.inf
    assert held(trajectory_claims([unfitted, unfitted], []))["near-pairs-better"] == "not judged"


# ── two contexts ─────────────────────────────────────────────────────────────────────────────────────────────


def plane(first: Tensor, second: Tensor, samples: Samples) -> np.ndarray:
    """Each context's target along a direction of its own."""
    along = torch.where(samples.groups[:, None] == 0, first, second)
    return (samples.y.double() * along + 3 * samples.groups[:, None]).numpy()


def test_contexts_on_axes_of_their_own() -> None:
    samples = blob_samples(5)
    group, places = samples.groups.numpy(), samples.places.numpy()
    u, w = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    found = contexts(plane(u, w, samples), group, places)
    assert (found.angle, found.overlap, found.axis) == (pytest.approx(90), pytest.approx(0), pytest.approx(1))
    assert (found.relevant, found.irrelevant) == (pytest.approx(1), pytest.approx(0))
    slanted = contexts(plane(u, torch.tensor([1.0, 1.0, 0.0]), samples), group, places)
    assert (slanted.angle, slanted.overlap) == (pytest.approx(45), pytest.approx(0.5))
    flat = contexts(places @ np.eye(2, 3), group, places)  # both coordinates of both contexts in one plane
    assert (flat.overlap, flat.relevant, flat.irrelevant) == (
        pytest.approx(1), pytest.approx(0.5), pytest.approx(0.5),
    )  # fmt: skip
    shuffled = shuffled_contexts(plane(u, w, samples), group, places)
    assert shuffled.overlap > 0.9
    assert shuffled.angle < 30


def test_scaled_coordinates_keep_distances_in_the_order_of_their_size() -> None:
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(20, 3, generator=g) * torch.tensor([1.0, 5.0, 2.0])
    turned = flat @ torch.linalg.qr(torch.randn(8, 8, generator=g))[0][:3] + 4
    found = torch.from_numpy(scaled_coordinates(turned.numpy(), 3))
    torch.testing.assert_close(distances_of(found), distances_of(flat))
    assert bool((found.var(0).diff() < 0).all())
    distances = torch.cdist(turned, turned).square()  # eigenvalues of the doubly centred matrix
    centre = torch.eye(20) - 1 / 20
    values = torch.linalg.eigvalsh(-centre @ distances @ centre / 2).flip(0)[:3]
    torch.testing.assert_close(found.square().sum(0), values)


def context_reading(gain: float, angle: float, overlap: float, left: float, seed: int) -> OrthogonalReading:
    whole = Contexts(5.0, 0.99, 0.5, 0.5, 0.5)
    end = Contexts(angle, overlap, 0.9, 0.9, left)
    return OrthogonalReading(gain, seed, whole, end, whole, (whole, end), 0.5, 1e-4)


def test_claims_about_contexts() -> None:
    names = ("orthogonal-contexts", "training-makes-it", "what-does-not-matter-is-forgotten", "only-with-small-weights")
    for angle, overlap, left, high, wanted in (
        (85.0, 0.01, 0.02, 20.0, ("held", "held", "held", "held")),
        (65.0, 0.3, 0.2, 80.0, ("partly", "held", "partly", "not")),
        (30.0, 0.995, 0.6, 29.0, ("not", "not", "not", "held")),
    ):
        found = {2.0: [context_reading(2.0, high, 0.5, 0.4, s) for s in range(3)],
                 0.3: [context_reading(0.3, angle + 0.1 * s, overlap, left, s) for s in range(3)]}  # fmt: skip
        said = held(orthogonal_claims(found))
        assert tuple(said[name] for name in names) == wanted
    assert held(orthogonal_claims({})) == {"orthogonal-contexts": "not judged"}


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────

PLAIN = StructureSettings((0, 1), 4, 60, 20, dataclasses.replace(TINY, activation="leaky_relu"), 20, 40, 12)
ADAM = dataclasses.replace(PLAIN, setting=dataclasses.replace(PLAIN.setting, optimiser="adam", learning_rate=0.01))
WILD = dataclasses.replace(TINY, name=LAZY, learning_rate=1e6)
FIGURES: dict[str, tuple[Any, Any]] = {
    "xor": (xor_figure, XorSettings((0, 1), 20, ((dataclasses.replace(TINY, name=RICH_XOR), 60), (WILD, 60)))),
    "structure": (structure_figure, ADAM),
    "trajectories": (trajectories_figure, TrajectoriesSettings(1, PLAIN, ADAM)),
    "orthogonal": (orthogonal_figure, OrthogonalSettings((0, 1), 3, 6, ((TINY, 30), (
        dataclasses.replace(TINY, gain=0.4), 30)), (dataclasses.replace(TINY, activation="tanh"), 30))),
}  # fmt: skip


@pytest.mark.parametrize("key", FIGURES)
def test_a_figure_from_its_networks(tmp_path: Path, key: str) -> None:
    make, settings = FIGURES[key]
    networks = settings.networks(NO_FILE, "cpu")
    assert settings.reads_images == (key in ("structure", "trajectories"))
    for one in networks:
        one.train(tmp_path)
    table = MetricTable()
    figure = make(settings, networks, tmp_path, table)
    assert figure.key == key
    panels = {panel.key for panel in figure.panels}
    assert {row.panel for row in figure.rows} == panels
    assert all(math.isfinite(row.x) and math.isfinite(row.y) for row in figure.rows)
    assert all(c.name.startswith(f"{key}/") and "nan" not in c.text for c in figure.claims)
    assert figure.seconds > 0
    assert ("lazy, seed 0" in figure.note) == (key == "xor")
    frame = table.frame()
    assert set(frame["metric"]) == {"loss"}
    assert len(frame) == len(networks) - (2 if key == "xor" else 0)


def test_presets_share_the_networks_of_both_figures_of_images() -> None:
    for preset in STRUCTURE.values():
        shared = {one.name for one in preset.structure.networks(NO_FILE, "cpu")}
        assert shared < {one.name for one in preset.trajectories.networks(NO_FILE, "cpu")}
        assert [s.watched for s, _ in preset.xor.trained] == [s.hidden_layers // 2 for s, _ in preset.xor.trained]
    published = {s.name: (s.gain, s.learning_rate / 2) for s, _ in STRUCTURE["paper"].xor.trained}
    assert published == {RICH_XOR: (0.85, 0.015), BETWEEN: (1.25, 0.002), LAZY: (2.0, 3e-9), SHALLOW: (0.0015, 0.03)}


def test_entries_above_the_diagonal_row_after_row() -> None:
    assert pairs_of(torch.arange(9.0).view(3, 3)).tolist() == [1, 2, 5]
