"""Experiments of the alignment paper: claims on made-up readings, networks, and the pipeline on tiny sizes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import scipy.stats
import torch

from isthmus._errors import InputError, RunFolderError
from isthmus._records import Claim, RunFolder
from isthmus.cli import main
from isthmus.experiments import _paper, plan_equilibrium, reproduce_equilibrium
from isthmus.experiments._aligned_models import LayerStack
from isthmus.experiments._aligned_networks import AlignedNetwork, TrainedAligned, track_steps, train_aligned_networks
from isthmus.experiments._aligned_profiles import END, START, Profile
from isthmus.experiments._equilibrium_depth import exponent_holds, place_claims, shape_claims
from isthmus.experiments._equilibrium_others import architecture_claims, control_claims, lower_holds, moved_holds
from isthmus.experiments._equilibrium_presets import PRESETS, EquilibriumPreset
from isthmus.experiments._equilibrium_reading import Interval, Reading, over_groups, rank_correlation, share_holds
from isthmus.experiments._equilibrium_training import Course, Setting, course_claims, goes_with, rate_claims
from isthmus.experiments._images import image_file, image_task
from isthmus.experiments._ridge_reading import Slope
from isthmus.probe import align
from isthmus.report import save_charts
from isthmus.tangent import forward_loss
from isthmus.theory import propagate_signal

TINY = EquilibriumPreset(
    "quick", "seconds", needs_file=False, seeds=(0, 1), side=4, n=(60, 40), samples=(30, 50), width=12,
    depths=(2, 3, 4), decay=1.2, epochs=4, tracked=((2, 3), 1.6), grid=(10, 2), rates=(0.01, 0.05), batches=(20,),
    channels=(3, 3, 3, 2), random=(30, 3), controls=3,
)  # fmt: skip
FIGURES = ("depth", "trajectories", "rates", "architectures", "controls")


def profile(top: float, depth: int, *, clear: bool = True, first: int | None = None, ends: float = 0.3) -> Profile:
    """Alignments with a peak of 0.5 at `top`, and `ends` of that at both ends."""
    where = tuple(float(i) for i in range(depth + 1))
    values = [0.4] * (depth + 1)
    values[0] = values[-1] = 0.5 * ends
    values[round(top)] = 0.5
    inside = round(top) if first is None else first
    return Profile("end", "train", 9, 0.01, where, tuple(values), (0.01,) * (depth + 1), float(top), 0.2, inside,
                   round(top), clear, "")  # fmt: skip


def reading(depth: int, place: float, *, seed: int = 0, crossing: float | None = None, **more: Any) -> Reading:
    end = profile(place, depth, **more)
    start = profile(depth - 1, depth, clear=False)
    return Reading(depth, seed, crossing, start, None, end, end, 0.01, 0.1, trained=True)


def held(claims: list[Claim]) -> dict[str, str]:
    return {c.name.split("/")[1]: str(c.values["holds"]) for c in claims}


# ── claims, each of which can come out either way ────────────────────────────────────────────────────────────


def test_the_shape_of_alignment_is_judged_by_peaks_and_ends() -> None:
    good = [reading(10, 4, seed=s) for s in range(4)]
    assert held(shape_claims(good)) == {"interior-maximum": "held", "low-at-both-ends": "held",
                                        "made-by-training": "held", "trained": "not judged"}  # fmt: skip
    half = [*good[:2], *(reading(10, 4, clear=False, ends=0.9) for _ in range(2))]
    assert held(shape_claims(half))["interior-maximum"] == "partly"
    assert held(shape_claims(half))["made-by-training"] == "partly"
    bad = [reading(10, 4, first=0, ends=0.9) for _ in range(4)]  # the first layer cannot be told from the largest
    assert set(list(held(shape_claims(bad)).values())[:3]) == {"not"}
    assert held(shape_claims([])) == {"interior-maximum": "not judged"}


@pytest.mark.parametrize(
    ("share", "near", "middle", "law"),
    [(0.3, "held", "held", "held"), (0.5, "partly", "not", "partly"), (0.95, "not", "not", "not")],
)
def test_predictions_are_judged_by_their_misses(share: float, near: str, middle: str, law: str) -> None:
    """The crossing is put at .35 L; peaks at .3 L are nearer to it than to the middle, those at .95 L are not."""
    found = [
        reading(depth, round(share * depth) + shift, seed=seed, crossing=0.35 * depth)
        for depth in (10, 20, 40)
        for seed, shift in enumerate((0, 0, -1))
    ]
    said = held(place_claims(found))
    assert (said["near-the-crossing"], said["beats-the-middle"], said["beats-the-power-law"]) == (near, middle, law)


def test_an_exponent_is_that_of_the_places_of_clear_peaks() -> None:
    places = {10: (4, 5, 4), 20: (7, 8, 7), 40: (13, 12, 13)}
    found = [
        reading(d, p, seed=s, crossing=0.4 * d**0.8 * 2.5 / 2) for d, ps in places.items() for s, p in enumerate(ps)
    ]
    unclear = [reading(d, d - 1, seed=9, crossing=1.0, clear=False) for d in places]
    (said,) = [c for c in place_claims([*found, *unclear]) if c.name == "depth/exponent"]
    assert isinstance(said.values["exponent"], float)
    assert said.values["exponent"] == pytest.approx(math.log(12.67 / 4.33) / math.log(4), abs=0.1)
    assert said.values["predicted"] == pytest.approx(0.8, abs=1e-9)
    assert held([said]) == {"exponent": "held"}
    assert [exponent_holds(Slope(v, e, 0.0), 0.8) for v, e in ((0.7, 0.06), (0.7, 0.02), (0.8, 0.3), (0.4, 0.3))] == [
        "held", "partly", "partly", "not",
    ]  # fmt: skip


def test_networks_that_are_not_trained_are_left_out_of_one_row() -> None:
    trained = [reading(d, 0.4 * d // 1, seed=s, crossing=0.4 * d) for d in (10, 20, 40) for s in (0, 1)]
    lost = [dataclasses.replace(reading(d, d - 1, seed=2, crossing=0.4 * d), trained=False) for d in (10, 20, 40)]
    (said,) = [c for c in place_claims([*trained, *lost]) if c.name == "depth/only-trained-networks"]
    assert "Only the 6 networks" in said.text
    assert "place 4.0, 8.0, 16.0" in said.text
    (said,) = [c for c in place_claims([*trained[:1], *lost, *lost]) if c.name == "depth/only-trained-networks"]
    assert "too few" in said.text


def test_too_few_clear_peaks_are_not_judged() -> None:
    found = [reading(d, 3, crossing=2.0, clear=False) for d in (10, 20)]
    assert held(place_claims(found)) == {"beats-the-middle": "not judged"}
    assert held(place_claims([reading(10, 3, crossing=None), reading(20, 3, crossing=None)])) == {
        "beats-the-middle": "not judged"
    }
    two = [reading(d, 3, seed=s, crossing=2.0) for d in (10, 20) for s in (0, 1)]
    assert held(place_claims(two))["exponent"] == "not judged"


@pytest.mark.parametrize(("last", "rises", "settles"), [(4, "held", "held"), (1, "not", "not")])
def test_trajectories(last: int, rises: str, settles: str) -> None:
    values = np.full((8, 6), 0.05)
    values[:, 3] = 0.1 * (1 + np.arange(8) * (last - 1) / 7)
    if last == 1:
        values[-1, 5] = 0.11  # jumps at the end
    found = [Course(5, tuple(range(8)), tuple(map(float, range(6))), values)]
    assert held(course_claims(found)) == {"alignment-rises": rises, "the-peak-settles": settles}


def test_alignment_against_the_test_error() -> None:
    made = [Setting(0.01 * i, 32, 0.1 + 0.01 * i, 0.1 + 0.01 * i, 0.3 - 0.01 * i, trained=True) for i in range(8)]
    assert held(rate_claims(made))["alignment-and-test-error"] == "held"
    turned = [dataclasses.replace(s, test_error=0.5 - s.test_error) for s in made]
    assert held(rate_claims(turned))["alignment-and-test-error"] == "not"
    untrained = [dataclasses.replace(s, trained=i > 2) for i, s in enumerate(made)]
    assert held(rate_claims(untrained)) == {"alignment-and-test-error": "not judged"}
    assert goes_with(Interval(-0.3, -0.8, 0.2)) == "partly"


def test_architectures_and_controls() -> None:
    good, bad = [reading(10, 4, crossing=4.5)], [reading(10, 9, crossing=4.5, first=0)]
    assert set(held(architecture_claims({"vgg": good})).values()) == {"held"}
    assert set(held(architecture_claims({"vgg": bad})).values()) == {"not"}
    assert held(architecture_claims({"resnet": [reading(10, 4)], "vgg": []})) == {
        "resnet-interior-maximum": "held", "resnet-near-the-crossing": "not judged",
        "vgg-interior-maximum": "not judged",
    }  # fmt: skip
    weak = dataclasses.replace(reading(10, 4, crossing=4.0), end=dataclasses.replace(
        profile(4, 10), values=tuple(v / 3 for v in profile(4, 10).values)))  # fmt: skip
    near, far = reading(10, 5, crossing=9.0), reading(10, 8, crossing=9.0)
    groups = {"true labels": good, "random labels": [weak], "ReLU": good, "tanh": [far]}
    assert held(control_claims(groups)) == {
        "random-labels-align-less": "held", "random-labels-interior": "not judged",
        "tanh-interior-maximum": "held", "the-peak-moves-with-the-crossing": "held",
    }  # fmt: skip
    turned = {**groups, "true labels": [weak], "random labels": good, "tanh": [near]}
    assert held(control_claims(turned))["random-labels-align-less"] == "not"
    assert held(control_claims(turned))["the-peak-moves-with-the-crossing"] == "partly"
    assert (
        held(control_claims({**groups, "tanh": [reading(10, 4)]}))["the-peak-moves-with-the-crossing"] == "not judged"
    )
    assert [lower_holds(v) for v in ([0.5, 0.9], [0.5, 1.2], [1.2, 1.1])] == ["held", "partly", "not"]
    assert [moved_holds(v, -4.0) for v in ([-2.0, -5.0], [-1.0, -3.0], [1.0, 2.0])] == ["held", "partly", "not"]
    assert [share_holds(v) for v in ([True] * 3 + [False], [True, False], [False], [])] == [
        "held", "partly", "not", "not",
    ]  # fmt: skip


# ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interval_over_groups_is_student_s() -> None:
    a = np.random.default_rng(0).normal(size=7)
    wanted = scipy.stats.ttest_1samp(a, 0).confidence_interval(0.95)
    found = over_groups([a.tolist()])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((a.mean(), wanted.low, wanted.high), rel=1e-10)
    shifted = over_groups([a.tolist(), (a + 100).tolist()])  # distance between groups is no error
    assert shifted is not None
    assert shifted.high - shifted.low < found.high - found.low
    assert over_groups([[1.0], [2.0]]) is None


def test_the_rank_correlation_is_spearman_s() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 12)).round(1)  # with ties
    found = rank_correlation(a.tolist(), b.tolist())
    assert found.mean == pytest.approx(float(scipy.stats.spearmanr(a, b).statistic), rel=1e-10)
    assert found.low < found.mean < found.high
    assert rank_correlation([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]).mean == pytest.approx(-1)


def test_track_steps() -> None:
    assert track_steps(1.15, 12) == [0, *sorted({round(5 * 1.15**i) for i in range(7)})]
    assert track_steps(0.0, 100) == [0]


# ── networks ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ["dense", "vgg", "resnet"])
def test_signals_are_activations_and_derivatives(architecture: Any) -> None:
    model = LayerStack(architecture, (1, 8, 8), 3, width=5, depth=4, seed=1).double()
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    activations, derivatives = model.signals(x)
    assert len(activations) == len(derivatives) == model.depth + 1
    assert len(model.names) == len(model.positions) == len(align(model, x, targets=torch.arange(6) % 3,
                                                                 bootstrap=0, progress=False).layers)  # fmt: skip
    torch.testing.assert_close(model.output(activations[-1].flatten(1)), model(x))
    # outputs are linear in the last activation; homogeneous of degree 1 in each, since biases are 0
    for a, d in zip(activations, derivatives, strict=True):
        torch.testing.assert_close(torch.einsum("nc...,n...->nc", d, a), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["vgg", "resnet"])
def test_convolutional_layers_are_what_the_docstring_says(architecture: Any) -> None:
    model = LayerStack(architecture, (1, 8, 8), 3, width=5, depth=4, seed=1).double()
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    state = model.state_dict()
    residual = architecture == "resnet"
    a = torch.conv2d(x, state["stem.weight"], padding=1) if residual else x
    for i in range(4):
        inner = torch.conv2d(a.relu() if residual else a, state[f"layers.{i}.weight"], padding=1)
        a = a + inner if residual else inner.relu()
        if i in (1, 2):  # after a third and two thirds of the layers
            a = (a[:, :, ::2, ::2] + a[:, :, 1::2, ::2] + a[:, :, ::2, 1::2] + a[:, :, 1::2, 1::2]) / 4
    torch.testing.assert_close(model(x).detach(), a.flatten(1) @ state["output.weight"].mT)


def test_weights_are_kaiming_s_and_no_layer_is_another() -> None:
    model = LayerStack("dense", (1, 20, 20), 10, width=200, depth=3, seed=0)
    assert model.weight_variance == pytest.approx(2, abs=0.05)
    assert LayerStack("dense", (1, 8, 8), 10, width=200, depth=3, activation="tanh").weight_variance == pytest.approx(
        25 / 9, abs=0.06
    )
    assert LayerStack("resnet", (1, 8, 8), 10, width=40, depth=3).weight_variance == pytest.approx(0.5, abs=0.02)
    assert len({p.data_ptr() for p in model.parameters()}) == 8
    other = LayerStack("dense", (1, 20, 20), 10, width=200, depth=3, seed=1)
    assert not torch.equal(model.output.weight, other.output.weight)
    assert float(torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "bias" in n]).abs().max()) == 0


def test_images_are_averaged_down_scaled_and_drawn_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(120, 6, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=rng.permutation(np.arange(120) % 3) + 7)
    file = image_file(tmp_path / "a.npz")
    task = image_task(file, {"side": 3, "n_train": 80, "n_test": 40, "seed": 0})
    assert task.x_train.shape == (80, 3, 3, 2)
    assert task.classes == 3
    assert float(task.x_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(task.x_train.std()) == pytest.approx(1, abs=1e-5)
    whole = torch.cat([task.x_train, task.x_test]).double()
    # every image is there once: averages of 2 × 2 pixels, up to the scaling
    means = torch.from_numpy(images).double().mean((1, 2, 3))
    ours = whole.mean((1, 2, 3))
    scale, shift = np.polyfit(np.sort(means.numpy()), np.sort(ours.numpy()), 1)
    np.testing.assert_allclose(np.sort(ours.numpy()), scale * np.sort(means.numpy()) + shift, atol=1e-5)
    other = image_task(file, {"side": 3, "n_train": 80, "n_test": 40, "seed": 1})
    assert not torch.equal(task.y_train, other.y_train)
    few = image_task(file, {"side": 99, "n_train": 1000, "n_test": 200, "seed": 0})
    assert (len(few.y_train), len(few.y_test)) == (100, 20)
    assert few.x_train.shape[2:] == (6, 4)


def test_a_network_s_name_changes_with_every_setting_but_not_with_where_the_file_lies() -> None:
    network = TINY.dense(image_file(None), 3, 0)
    names = {network.name}
    fields = [f.name for f in dataclasses.fields(AlignedNetwork) if f.name not in ("file", "source")]
    for name in fields:
        value: Any = getattr(network, name)
        other = {bool: True, int: 77, float: 0.77, str: "vgg" if name == "architecture" else "x"}[type(value)]
        names.add(dataclasses.replace(network, **{name: other}).name)
    names.add(dataclasses.replace(network, source={**network.source, "side": 3}).name)
    names.add(dataclasses.replace(network, file=dataclasses.replace(network.file, sha256="ab")).name)
    assert len(names) == len(fields) + 3
    moved = dataclasses.replace(network, file=dataclasses.replace(network.file, path="/elsewhere/others.npz"))
    assert moved.name == network.name


@pytest.mark.parametrize("name", ["quick", "paper", "full"])
def test_every_preset_has_the_networks_of_its_figures(name: str) -> None:
    preset = PRESETS[name]
    groups = preset.networks(FIGURES, image_file(None))
    assert preset.controls in preset.depths
    assert set(preset.tracked[0]) <= set(preset.depths)
    assert {n.name for n in groups["trajectories"]} <= {n.name for n in groups["depth"]}
    assert all(n.growth > 1 for n in groups["trajectories"])
    assert preset.rate(10) == 0.005
    if name != "quick":
        assert set(preset.depths) >= {10, 20, 40, 70, 100}
        assert len(preset.seeds) >= 3
        assert len(groups["depth"]) == len(preset.depths) * len(preset.seeds)


# ── the pipeline ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", TINY)
        # three formats of every chart take long; the other formats are tested with their own
        patch.setattr(_paper, "save_charts", lambda run, folder: save_charts(run, folder, formats=("svg",)))
        out = tmp_path_factory.mktemp("paper") / "run"

        def stop(done: int, total: int, name: str) -> None:
            if done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reproduce_equilibrium(out, progress=stop)
        assert RunFolder.open(out).run["status"] == "interrupted"
        kept = {p.parent.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("networks/*/model.safetensors")}
        assert len(kept) == 2
        again = next(iter(kept))
        record = json.loads((out / "networks" / again / "run.json").read_text())
        (out / "networks" / again / "run.json").write_text(json.dumps({**record, "status": "running"}))
        (out / "networks" / again / "model.safetensors").unlink()  # as a kill leaves it
        run = reproduce_equilibrium(out)
        yield run, kept, again


def test_a_killed_network_is_made_again_the_same_and_the_others_are_kept(made: Any) -> None:
    run, kept, again = made
    for name, (written, content) in kept.items():
        path = run.path / "networks" / name / "model.safetensors"
        assert (path.stat().st_mtime_ns == written) == (name != again)
        assert path.read_bytes() == content


def test_every_figure_has_charts_data_and_judged_claims(made: Any) -> None:
    run = made[0]
    assert run.run["status"] == "complete"
    assert [f["key"] for f in run.run["reproduction"]["figures"]] == list(FIGURES)
    for figure in run.run["reproduction"]["figures"]:
        data = pl.read_csv(run.path / "figures" / f"{figure['key']}.csv")
        assert set(data["panel"]) == {panel["key"] for panel in figure["panels"]}
        for panel in figure["panels"]:
            assert (run.path / "charts" / f"fig-{figure['key']}-{panel['key']}.svg").stat().st_size > 1000
    claims = run.verdict()
    assert {c.name.split("/")[0] for c in claims} == set(FIGURES)
    assert all(word not in c.text for c in claims for word in ("nan", "inf ", "None"))
    assert (run.path / "report.html").stat().st_size > 100_000
    frame = run.metrics()
    for c in claims:
        assert set(frame[list(c.rows)]["metric"]) <= {"alignment"}


def test_figures_show_what_the_kept_weights_say(made: Any) -> None:
    """The network rebuilt from its file alone, and measured again."""
    run = made[0]
    network = TINY.dense(image_file(None), 3, 1)
    t = TrainedAligned.open(network, run.path / "networks")
    task = network.task()
    model = network.new(task)
    correlation = 1 - forward_loss(task.x_train).value
    assert t.correlation == pytest.approx(correlation, rel=1e-9)
    assert t.prediction == propagate_signal("relu", depth=3, weight_variance=model.weight_variance,
                                            correlation=correlation).equilibrium  # fmt: skip
    for at in (START, END):
        if at == END:
            model.load_state_dict(safetensors.torch.load_file(t.run.path / "model.safetensors"))
        found = align(model, task.x_train[:30], targets=task.y_train[:30], batch_size=30, bootstrap=50, seed=1,
                      progress=False)  # fmt: skip
        ours = t.profile(at)
        assert ours is not None
        np.testing.assert_allclose(ours.values, [found[name].alignment for name in model.names], rtol=1e-4)
        assert ours.top == ours.positions[int(np.argmax(ours.values))]
        assert ours.clear == found.peak().clear
    data = pl.read_csv(run.path / "figures" / "depth.csv").filter((pl.col("panel") == "place") & (pl.col("x") == 3))
    both = [TrainedAligned.open(TINY.dense(image_file(None), 3, s), run.path / "networks") for s in (0, 1)]
    tops = [p.top for one in both if (p := one.profile(END)) is not None]
    row = data.filter(pl.col("series") == "found, training samples")
    assert row["y"][0] == pytest.approx(np.mean(tops))
    assert data.filter(pl.col("series") == "middle layer")["y"][0] == 1.5


def test_random_labels_are_those_of_other_samples() -> None:
    true, random = (TINY.labelled(image_file(None), 0, random=r).task() for r in (False, True))
    assert torch.equal(true.x_train, random.x_train)
    assert torch.equal(true.y_test, random.y_test)
    assert not torch.equal(true.y_train, random.y_train)
    assert torch.equal(true.y_train.sort().values, random.y_train.sort().values)


def test_a_network_that_diverges_is_kept_and_left_out(made: Any, tmp_path: Path) -> None:
    del made
    network = dataclasses.replace(TINY.dense(image_file(None), 2, 0), rate=1e30)
    (t,) = train_aligned_networks([network], tmp_path)
    assert t.stopped == "diverged"
    assert t.profile(END) is None
    state = safetensors.torch.load_file(t.run.path / "model.safetensors")
    assert all(bool(v.isfinite().all()) for v in state.values())


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("words", "arrays", "said"),
    [
        (["equilibrum"], None, "paper: got equilibrum"),
        (["equilibrium", "--figure", "width"], None, "figure: got width, expected one of depth"),
        (["equilibrium", "--preset", "papers"], None, "preset: got papers"),
        (["equilibrium", "--preset", "paper"], None, "data: got nothing, expected a file .npz"),
        (["equilibrium", "--data", "nowhere.npz"], None, "data: got nowhere.npz"),
        (["equilibrium", "--data", "table.csv"], None, "expected a file .npz"),
        (["bottleneck", "--data", "a.npz"], None, "data: got a.npz, expected no file"),
        (["equilibrium"], {"pictures": np.zeros((200, 4, 4))}, "no images and no labels"),
        (["equilibrium"], {"images": np.zeros((200, 4, 4))}, "no labels"),
        (["equilibrium"], {"images": np.zeros((200, 4, 4)), "labels": np.zeros(200, int)}, "at least 2 classes"),
        (["equilibrium"], {"images": np.zeros((60, 4, 4)), "labels": np.arange(60) % 2}, "at least 100 images"),
        (["equilibrium"], {"images": np.zeros((200, 4, 4)), "labels": np.arange(200)}, "10 for each class"),
        (["equilibrium"], {"images": np.zeros((200, 4)), "labels": np.arange(200) % 2}, "images of real numbers"),
        (["equilibrium"], {"images": np.zeros((200, 4, 4)), "labels": np.zeros(200)}, "labels of whole numbers"),
        (["equilibrium"], {"images": np.full((200, 4, 4), np.nan), "labels": np.arange(200) % 2}, "without NaN"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(
    words: list[str], arrays: dict[str, Any] | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if arrays is None else ["--data", save(tmp_path / "given.npz", **arrays)]
    assert main(["reproduce", *words, *given, "--out", str(tmp_path / "run")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_data_is_left_alone(made: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = save(tmp_path / "b.npz", images=rng.normal(size=(100, 4, 4)), labels=np.arange(100) % 2)
    with pytest.raises(RunFolderError, match="the same data"):
        reproduce_equilibrium(made[0].path, data=data)
    assert plan_equilibrium("quick", ["depth"], data=data) == len(TINY.depths) * len(TINY.seeds)
    with pytest.raises(InputError, match="jobs"):
        reproduce_equilibrium(tmp_path / "run", jobs=0)
    assert not (tmp_path / "run").exists()
