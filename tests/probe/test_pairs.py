"""Pairs of samples that are tracked while a model trains."""

import copy
import dataclasses
import warnings
import weakref

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from isthmus import InputError, LeakyResNet, track_pairs
from isthmus._records import RunFolder
from isthmus.probe import PairWarning, _pairs_trace, _pairs_tracker
from isthmus.probe._pairs_choice import Inputs
from isthmus.probe._pairs_model import Subject
from isthmus.probe._pairs_trace import Trace


def _mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def _data(n=40, seed=1, features=4):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=draw), torch.randn(n, 3, generator=draw)


def _train(model, x, y, steps, *, each=None, rate=0.05):
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()
        if each is not None:
            each()
    return model


def test_states_are_those_of_a_linear_network_trained_by_hand():
    draw = np.random.default_rng(3)
    x, targets = draw.normal(size=(5, 3)), draw.normal(size=(5, 2))
    first, second = draw.normal(size=(4, 3)), draw.normal(size=(2, 4))
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    pairs, rate = [(0, 3), (4, 1)], 0.02

    def put():
        with torch.no_grad():
            model[0].weight.copy_(torch.from_numpy(first))
            model[1].weight.copy_(torch.from_numpy(second))

    put()
    tracker = track_pairs(model, x, targets, pairs=pairs)
    assert tracker.layers == ("0", "1")
    wanted = []
    for step in range(6):
        hidden = x @ first.T
        outputs = hidden @ second.T
        rows = []
        for i, j in pairs:
            dh, dy, goal = hidden[i] - hidden[j], outputs[i] - outputs[j], targets[i] - targets[j]
            gap = (outputs[i] + outputs[j] - targets[i] - targets[j]) / 2
            rows.append([dh @ dh, dy @ dy, dy @ dy, dy @ dy - dy @ goal, gap @ gap])
        wanted.append(rows)
        if step < 5:
            error = outputs - targets
            first, second = first - rate * second.T @ error.T @ x, second - rate * error.T @ hidden
            put()
            tracker.step()
    expected = np.moveaxis(np.array(wanted), (0, 1, 2), (2, 1, 0))
    traces = tracker.traces
    np.testing.assert_allclose(traces.h, expected[:2], rtol=1e-12)
    np.testing.assert_allclose(np.stack([traces.y, traces.v, traces.m]), expected[2:], rtol=1e-12)
    assert tracker.times.tolist() == [0, 1, 2, 3, 4, 5]


class _Conv(nn.Module):
    """Batch normalisation, dropout and changes in place: everything that a careless look would disturb."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act, self.drop = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = self.act(self.norm(self.one(x)))
        return self.head(self.drop(self.act(self.two(x))).flatten(1))


def _everything(model):
    """Tensors and plain values of all that must not change (Python's own random state is drawn from by beartype)."""
    return [
        *(v.clone() for v in model.state_dict().values()), torch.get_rng_state(),
        *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()),
        torch.tensor([m.training for m in model.modules()]),
        torch.tensor([p.requires_grad for p in model.parameters()]),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
        torch.tensor([len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]),
    ]  # fmt: skip


def _trained_conv(track):
    torch.manual_seed(5)
    model = _Conv()
    model.one.bias.requires_grad_(False)
    model.norm.eval()
    x, y = torch.randn(24, 1, 6, 6), torch.randint(0, 3, (24,))
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tracker = track_pairs(model, x, y, pairs=6, layers="*") if track else None
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
        if tracker is not None:
            before = _everything(model)
            tracker.step()
            assert all(torch.equal(one, other) for one, other in zip(before, _everything(model), strict=True))
    return model, tracker, x


def test_training_is_the_same_with_and_without():
    tracked, tracker, x = _trained_conv(True)
    plain, _, _ = _trained_conv(False)
    for one, other in zip(tracked.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    seen = {}
    for name, module in tracked.named_modules():
        module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out.detach().clone()}))
    tracked.eval()
    with torch.no_grad():
        tracked(x)
    for k, (i, j) in enumerate(tracker.pairs):
        for name in ("one", "two", "norm", "head"):  # `norm` and `two` are changed in place after they are given
            direct = float((seen[name][i] - seen[name][j]).square().sum())
            assert tracker.traces.h[tracker.layers.index(name), k, -1] == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize("length", [0, 3, 511, 512, 1022, 1023, 5000])
def test_which_steps_are_kept_follows_from_their_number_alone(length):
    trace = Trace()
    trace.add(0, 0.0, np.zeros(1))
    for step in range(1, length + 1):
        if trace.due(step - 1, step):
            trace.add(step, float(step), np.full(1, step))
    stride = 1
    while length // stride + 1 >= 512:  # at 512 kept, every other one goes
        stride *= 2
    assert trace.stride == stride
    assert trace.steps == list(range(0, length + 1, stride))
    assert [float(v) for v in np.array(trace.values)[:, 0]] == [float(s) for s in trace.steps]


def test_steps_that_jump_are_kept_where_a_due_one_was_passed():
    trace = Trace()
    trace.stride = 4
    trace.add(10, 10.0, np.zeros(1))
    assert [(a, b) for a, b in [(10, 13), (13, 14), (14, 17), (17, 19), (10, 30)] if trace.due(a, b)] == [
        (13, 14), (17, 19), (10, 30),
    ]  # fmt: skip


def _run(break_at, steps, tmp_path):
    """A training of so many steps, killed after one of them and resumed from a checkpoint."""
    x, y = _data()
    model = _mlp()
    tracker = track_pairs(model, x, y, pairs=5)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()
        tracker.step(lr=0.1 / step)
        if step == break_at:
            torch.save({"model": model.state_dict(), "pairs": tracker.state_dict()}, tmp_path / "c.pt")
            saved = torch.load(tmp_path / "c.pt", weights_only=True)
            model = _mlp(seed=9)
            model.load_state_dict(saved["model"])
            tracker = track_pairs(model, x, y, pairs=5)
            tracker.load_state_dict(saved["pairs"])
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    return tracker


@pytest.mark.parametrize("break_at", [7, 20, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 8, 9, 26))])
def test_a_resumed_training_records_the_same(break_at, tmp_path, monkeypatch):
    monkeypatch.setattr(_pairs_trace, "MOST", 8)
    whole, broken = _run(0, 26, tmp_path), _run(break_at, 26, tmp_path)
    assert whole.stride == broken.stride == 4
    assert whole.steps == broken.steps
    assert whole.table.equals(broken.table)
    assert whole.run_record() == broken.run_record()
    for name, matrix in whole.matrices.items():
        assert np.array_equal(matrix, broken.matrices[name]), name
    assert whole.times[1] == pytest.approx(sum(0.1 / k for k in range(1, 5)))


def test_the_state_of_other_pairs_is_refused():
    x, y = _data()
    one, other = (track_pairs(_mlp(), x, y, pairs=pairs) for pairs in ([(0, 1)], [(0, 2)]))
    with pytest.raises(InputError, match="state: got 0-1 in"):
        other.load_state_dict(one.state_dict())
    for name, (inputs, targets) in {"inputs": (x + torch.arange(4) * x, y), "targets": (x, 2 * y)}.items():
        other = track_pairs(_mlp(), inputs, targets, pairs=[(0, 1)])
        with pytest.raises(InputError, match=f"state: got that of a tracker of other {name}"):
            other.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match="state: got none with at, time"):
        one.load_state_dict({})


class _Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, labels=None):
        return self.two(torch.tanh(self.one(x.double())))


def test_only_samples_that_come_into_question_are_copied(monkeypatch):
    """Of 3000 samples 512 are looked at where pairs are chosen, and the named ones where they are named."""
    batch = {"x": torch.randint(0, 255, (3000, 4), dtype=torch.uint8), "labels": torch.arange(3000) % 3}
    sizes, of = [], Inputs.of

    def counted(some):
        sizes.append(some.size)
        found = of(some)
        assert found.tokens.shape[1] == 0  # labels are no inputs
        return found

    monkeypatch.setattr(Inputs, "of", counted)
    named = track_pairs(_Pixels(), [batch], "labels", pairs=[(2999, 4), (7, 4)], max_samples=3000)
    assert sizes == [3, 3]
    assert named.pairs == ((2999, 4), (7, 4))
    assert named.kinds == ("as given, across classes", "as given, within a class")
    track_pairs(_Pixels(), [batch], "labels", pairs=4, max_samples=3000)
    assert max(sizes) == 512


def test_large_representations_are_not_held_between_records(monkeypatch):
    x, y = _data()
    small = track_pairs(_mlp(), x, y, pairs=3)
    monkeypatch.setattr(_pairs_tracker, "_LARGE", 100)
    model = _mlp()
    large = track_pairs(model, x, y, pairs=3)

    records, alive, see = [], [], Subject.see

    def seen(self):
        alive.append(sum(record() is not None for record in records))
        found = see(self)
        records.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Subject, "see", seen)
    _train(model, x, y, 4, each=large.step)
    assert alive == [0] * 4
    assert records[-1]() is None
    _train(small._model, x, y, 4, each=small.step)
    for name, matrix in small.matrices.items():
        assert np.array_equal(matrix, large.matrices[name]), name
    assert large.run_record()["matrices"] == {"first": 0, "last": 4}


def test_records_of_many_pairs_are_fewer(monkeypatch):
    x, y = _data()
    monkeypatch.setattr(_pairs_trace, "NUMBERS", 5 * 3 * 10)
    monkeypatch.setattr(_pairs_tracker, "NUMBERS", 5 * 3 * 10)
    monkeypatch.setattr(_pairs_trace, "FEWEST", 6)
    monkeypatch.setattr(_pairs_tracker, "FEWEST", 6)
    model = _mlp()
    tracker = track_pairs(model, x, y, pairs=3)  # two layers: five numbers of each pair
    _train(model, x, y, 30, each=tracker.step)
    assert (tracker.stride, tracker.steps) == (4, list(range(0, 29, 4)))
    with pytest.raises(InputError, match="pairs: got 6 pairs in 2 layers, expected at most 5 pairs in so many layers"):
        track_pairs(model, x, y, pairs=6)


def test_of_many_samples_some_are_drawn_and_pairs_keep_their_numbers():
    x, _ = _data(n=3000)
    labels = torch.arange(3000) % 3
    tracker = track_pairs(_mlp(), x, labels, pairs=8, max_samples=3000)
    assert any("512 of the 3000 samples" in note for note in tracker.notes)
    assert max(tracker.samples) > 1000
    apart = {kind: [] for kind in ("near", "far")}
    for (i, j), kind in zip(tracker.pairs, tracker.kinds, strict=True):
        assert (labels[i] == labels[j]) == ("within a class" in kind)
        apart["near" if "near" in kind else "far"].append(float((x[i] - x[j]).square().sum()))
    assert max(apart["near"]) < min(apart["far"])
    record = {one["pair"]: one["dx2"] for one in tracker.run_record()["pairs"]}
    assert record == pytest.approx({f"{i}-{j}": float((x[i] - x[j]).square().sum()) for i, j in tracker.pairs})


def test_pairs_of_every_kind_are_chosen_by_the_seed():
    x, _ = _data(60)
    x[7], x[9] = x[3], x[3]
    labels = torch.arange(60) % 3
    one, again, other = (track_pairs(_mlp(), x, labels, pairs=16, seed=s) for s in (1, 1, 2))
    assert one.pairs == again.pairs
    assert one.pairs != other.pairs
    counts = {kind: one.kinds.count(kind) for kind in one.kinds}
    assert counts == dict.fromkeys(
        ("near, across classes", "far, across classes", "near, within a class", "far, within a class"), 4
    )
    assert not {7, 9} & {end for pair in one.pairs for end in pair}
    assert any("2 of 60 samples repeat the inputs" in note for note in one.notes)
    assert any("unit vectors" in note for note in one.notes)
    dx2 = {kind: [p["dx2"] for p in one.run_record()["pairs"] if p["kind"] == kind] for kind in counts}
    for side in ("across classes", "within a class"):
        assert max(dx2[f"near, {side}"]) < min(dx2[f"far, {side}"])
    for (i, j), kind in zip(one.pairs, one.kinds, strict=True):
        assert (labels[i] == labels[j]) == ("within" in kind)
    assert len(one.samples) == 32  # samples that no pair has yet come first


def test_pairs_of_numbers_are_near_and_far_in_target():
    x, y = _data(50)
    tracker = track_pairs(_mlp(), x, y, pairs=12)
    dy2 = {side: [p["dy2"] for p in tracker.run_record()["pairs"] if p["kind"].endswith(side)]
           for side in ("targets near", "targets far")}  # fmt: skip
    assert len(dy2["targets near"]) == len(dy2["targets far"]) == 6
    assert max(dy2["targets near"]) < min(dy2["targets far"])
    i, j = tracker.pairs[0]
    assert tracker.run_record()["pairs"][0]["dx2"] == pytest.approx(float((x[i] - x[j]).square().sum()), rel=1e-12)
    few = track_pairs(_mlp(), x[:3], y[:3], pairs=16)
    assert sorted(few.pairs) == [(0, 1), (0, 2), (1, 2)]
    assert any("there are no more" in note for note in few.notes)


@dataclasses.dataclass
class _Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class _Texts(nn.Module):
    """An encoder of tokens with a mask, whose output names its predictions, as those of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask, labels=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=attention_mask == 0)
        kept = attention_mask[..., None]
        return _Output(None, self.head((x * kept).sum(1) / kept.sum(1)))


def _texts(n=12):
    draw = torch.Generator().manual_seed(4)
    mask = (torch.arange(7) < torch.randint(3, 8, (n, 1), generator=draw)).long()
    ids = torch.randint(1, 20, (n, 7), generator=draw) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(n) % 4}


def test_a_transformer_without_its_padding():
    torch.manual_seed(0)
    model, data = _Texts(), _texts()
    tracker = track_pairs(model, data, pairs=5)
    assert tracker.layers == ("blocks.0 (input)", "blocks.0", "blocks.1", "blocks.2")
    own = track_pairs(model, data, pairs=tracker.pairs, forward=lambda m, b: m(**b), targets="labels")
    np.testing.assert_array_equal(tracker.traces.h, own.traces.h)
    ids, mask = data["input_ids"], data["attention_mask"]
    embedded = model.embed.weight.detach()[ids] * mask[..., None]
    for k, (i, j) in enumerate(tracker.pairs):
        assert tracker.traces.h[0, k, 0] == pytest.approx(float((embedded[i] - embedded[j]).square().sum()), rel=1e-12)
        assert tracker.run_record()["pairs"][k]["dx2"] == 2 * int((ids[i] != ids[j]).sum())
        assert tracker.run_record()["pairs"][k]["dy2"] == (0.0 if (i - j) % 4 == 0 else 2.0)


def test_a_leaky_resnet_is_tracked_along_its_path():
    x, y = _data()
    model = LeakyResNet(4, 3, width=6, depth=5, effective_depth=2.0, seed=1)
    tracker = track_pairs(model, x, y, pairs=4)
    with torch.no_grad():
        path = model.path(x)
    assert tracker.layers[-1] == "representation.5"
    for name, h in zip(tracker.layers, tracker.traces.h, strict=True):
        node = path[int(name.removeprefix("representation."))]
        i, j = tracker.pairs[2]
        assert h[2, 0] == pytest.approx(float((node[i] - node[j]).square().sum()), rel=1e-9)
    i, j = tracker.pairs[1]
    outputs = model(x).detach()
    assert tracker.traces.y[1, 0] == pytest.approx(float((outputs[i] - outputs[j]).square().sum()), rel=1e-9)


def test_a_folder_holds_everything(tmp_path):
    x, y = _data()
    model = _mlp()
    tracker = track_pairs(model, x, y, pairs=[(3, 17), (2, 8)])
    start = copy.deepcopy(model)
    _train(model, x, y, 5, each=tracker.step)
    run = RunFolder.open(tracker.save(tmp_path / "run").path)
    assert (run.run["command"], run.run["status"]) == ("pairs", "complete")
    said = run.run["pairs"]
    assert said["samples"] == [2, 3, 8, 17]
    assert [p["pair"] for p in said["pairs"]] == ["3-17", "2-8"]
    assert said["layers"] == ["0", "2"]
    assert said["time"] == "step"
    assert said["matrices"] == {"first": 0, "last": 5}
    assert "times" not in said
    rows = run.metrics()
    assert rows.filter(pl.col("metric") == "pair_h").height == 6 * 2 * 2
    for k, name in enumerate(("y", "v", "m")):
        part = rows.filter((pl.col("metric") == ("pair_y", "pair_v", "pair_mean")[k]) & (pl.col("pair") == "2-8"))
        assert part["value"].to_list() == getattr(tracker.traces, name)[1].tolist()
        assert part["layer"].unique().to_list() == [""]
    h = rows.filter((pl.col("metric") == "pair_h") & (pl.col("layer") == "2") & (pl.col("pair") == "3-17"))
    assert h["value"].to_list() == tracker.traces.h[1, 0].tolist()
    assert h["step"].to_list() == [0, 1, 2, 3, 4, 5]
    arrays = run.arrays()
    four = x[[2, 3, 8, 17]]
    for when, net in (("first", start), ("last", model)):
        outputs = net(four).detach()
        np.testing.assert_allclose(arrays[f"pairs/outputs/{when}"], torch.cdist(outputs, outputs) ** 2, rtol=1e-9)
        hidden = net[0](four).detach()
        np.testing.assert_allclose(arrays[f"pairs/hidden/0/{when}"], torch.cdist(hidden, hidden) ** 2, rtol=1e-9)
    np.testing.assert_allclose(arrays["pairs/inputs"], torch.cdist(four, four) ** 2, rtol=1e-9)
    assert arrays["pairs/targets"].shape == (4, 4)


def test_the_last_step_is_recorded_where_a_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_pairs_trace, "MOST", 8)
    x, y = _data()
    model = _mlp()
    tracker = track_pairs(model, x, y, pairs=2)
    _train(model, x, y, 17, each=tracker.step)
    assert tracker.steps == [0, 4, 8, 12, 16]
    tracker.save(tmp_path / "run")
    assert tracker.steps == [0, 4, 8, 12, 16, 17]
    _train(model, x, y, 3, each=tracker.step)
    assert tracker.steps == [0, 4, 8, 12, 16, 20]


def test_records_that_are_not_finite_are_null_and_training_goes_on(tmp_path):
    x, y = _data()
    model = _mlp()
    tracker = track_pairs(model, x, y, pairs=3)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[2].weight.fill_(torch.inf)
    with pytest.warns(PairWarning, match="not finite at step 1"):
        tracker.step()
    model[1].forward = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.step()  # said once
    del model[1].forward
    model.load_state_dict(kept)
    tracker.step()
    assert np.isnan(tracker.traces.y[:, 1]).all()
    assert np.isfinite(tracker.traces.h[0, :, 1]).all()
    assert np.isnan(tracker.traces.h[:, :, 2]).all()
    table = tracker.table
    assert table.filter(pl.col("value").is_nan()).is_empty()
    bad = table.filter(pl.col("status") == "failed")
    assert set(bad["step"]) == {1, 2}
    assert "not a finite number" in bad["note"][0]
    assert "NoneType" in bad.filter(pl.col("step") == 2)["note"][0]
    assert tracker.run_record()["matrices"]["last"] == 3


def test_records_are_in_the_precision_of_the_weights():
    x, y = _data()
    model = _mlp()
    plain = track_pairs(model, x, y, pairs=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = track_pairs(model, x, y, pairs=3)
    np.testing.assert_array_equal(plain.traces.h, inside.traces.h)
    half = track_pairs(_mlp().to(torch.bfloat16), x, y, pairs=3)
    np.testing.assert_allclose(half.traces.h, plain.traces.h, rtol=0.1)
    assert any("cast from float64" in note for note in half.notes)


def test_other_processes_of_a_training_record_nothing(monkeypatch, tmp_path):
    x, y = _data()
    of_rank_0 = track_pairs(_mlp(), x, y)
    monkeypatch.setattr(_pairs_tracker, "rank_of_process", lambda: 1)
    tracker = track_pairs(_mlp(), x, y)
    tracker.step()
    assert tracker.last_step == 1
    with pytest.raises(InputError, match="rank 0"):
        tracker.traces  # noqa: B018
    assert tracker.save(tmp_path / "run") is None
    assert not (tmp_path / "run").exists()
    again = track_pairs(_mlp(), x, y)
    again.load_state_dict({**of_rank_0.state_dict(), "at": 7})  # every process loads the checkpoint of rank 0
    assert again.last_step == 7
    again.load_state_dict(tracker.state_dict())
    assert again.last_step == 1
    with pytest.raises(InputError, match="state: got none with pairs, layers, trace"):
        of_rank_0.load_state_dict(tracker.state_dict())


_X, _Y = _data(10)
_TWICE = _X.clone()
_TWICE[4] = _TWICE[2]


@pytest.mark.parametrize(
    ("samples", "targets", "options", "said"),
    [
        (_X, _Y, {"pairs": [(0, 10)]}, r"pairs: got \(0, 10\), expected two samples, from 0 to 9"),
        (_X, _Y, {"pairs": [(3, 3)]}, r"pairs: got \(3, 3\), expected two different samples"),
        (_X, _Y, {"pairs": [(0, 1), (1, 0)]}, "every pair once"),
        (_X, _Y, {"pairs": [(0, -1)]}, "two sample numbers, from 0"),
        (_X, _Y, {"pairs": [(0, 1, 2)]}, "two sample numbers, from 0"),
        (_X, _Y, {"pairs": 0}, "pairs: got 0, expected a number of pairs"),
        (_X, _Y, {"pairs": []}, "expected a number of pairs"),
        (_TWICE, _Y, {"pairs": [(0, 1), (2, 4)]}, r"pairs: got \(2, 4\), expected two samples whose inputs differ"),
        (_X[:1], _Y[:1], {}, "samples: got 1 sample, expected at least 2"),
        (_X[:1].repeat(5, 1), _Y[:5], {}, "samples: got 1 with inputs that differ, expected at least 2"),
        (_X, _Y[:7], {}, "targets: got 7 rows, expected one row for each of the 10"),
        (_X, _Y[:, :2], {}, r"targets: got targets of shape \(10, 2\)|targets of shape"),
        (_X, torch.arange(10), {}, "targets: got .*expected class numbers from 0 to 2"),
        (_X, None, {}, "targets: got none in the data"),
        (_X, torch.where(_Y > 2, torch.nan, _Y) * torch.nan, {}, "targets: got values that are not finite"),
        (torch.full_like(_X, torch.nan), _Y, {}, "samples: got values that are not finite"),
        (_X[:, :3], _Y, {}, "samples: got inputs of shape"),
        (_X, _Y, {"layers": "nothing"}, "layers: got nothing"),
        (_X, _Y, {"layers": ["1"], "forward": lambda m, b: m(b)[0]}, "forward: got outputs of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(samples, targets, options, said):
    with pytest.raises(InputError, match=said):
        track_pairs(_mlp(), samples, targets, **options)


def test_steps_and_learning_rates_that_do_not_go_together_are_refused():
    x, y = _data()
    tracker = track_pairs(_mlp(), x, y, pairs=2)
    tracker.record(5)
    with pytest.raises(InputError, match="step: got 5, expected a step after 5"):
        tracker.record(5)
    tracker.step()
    assert tracker.steps == [0, 5, 6]
    with pytest.raises(InputError, match=r"lr: got .*expected a learning rate at every step"):
        tracker.step(lr=0.1)


def test_records_made_by_hand_have_their_sum_of_learning_rates():
    x, y = _data()
    tracker = track_pairs(_mlp(), x, y, pairs=2)
    tracker.step(lr=0.5)
    tracker.record(4, lr=torch.tensor(0.75))
    tracker.step(lr=np.float32(0.25))
    assert tracker.times.tolist() == [0, 0.5, 1.25, 1.5]
    with pytest.raises(InputError, match="lr: got None, expected a learning rate at every step"):
        tracker.record(9)
    assert tracker.last_step == 5
    for wrong in ("a", "0.1", [0.1], True, -1, float("nan"), float("inf"), torch.ones(2)):
        with pytest.raises(InputError, match=r"lr: got .*expected a finite number of at least 0"):
            tracker.step(lr=wrong)
    assert tracker.steps[-1] == tracker.last_step == 5
    tracker.count(6, lr=0.5)
    with pytest.raises(InputError, match=r"lr: got 0\.5, expected none"):
        tracker.record(6, lr=0.5)
    tracker.record(6)
    assert tracker.times[-1] == 2.0


def test_where_steps_jump_half_of_the_records_go():
    """Strides of 7 are merged only where stretches are longer than that; they stay as far apart as they are."""
    trace = Trace()
    trace.most = 16
    for step in range(0, 7 * 100, 7):
        if trace.due(step - 7, step) or not step:
            trace.add(step, float(step), np.zeros(1))
    assert len(trace.steps) < 16
    assert trace.steps[0] == 0
    gaps = np.diff(trace.steps)
    assert gaps.max() <= trace.stride + 7
    assert gaps.min() >= trace.stride - 7
