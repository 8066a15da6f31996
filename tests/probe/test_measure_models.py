"""Models that nobody here wrote: every number against one computed from stored activations in float64."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isthmus import LeakyResNet, measure
from isthmus._random import torch_generator
from isthmus.probe import Measurement, measure_path
from isthmus.probe._aligned import ALIGNMENT
from isthmus.probe._certified import CERTIFICATE, STABILITY
from isthmus.probe._propagated import SIGNALS

GAMMA0S = (1e-3, 1e-4, 1e-2)
LENGTHS = torch.tensor([7, 4, 7, 2, 5, 7])
TOKENS = torch.arange(7)[None] < LENGTHS[:, None]
DECODED = torch.arange(5)[None] < torch.tensor([5, 3, 5, 5, 1, 4])[:, None]


# --- models ---------------------------------------------------------------------------------------------------------


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class Cnn(nn.Sequential):
    """In-place activations and batch statistics."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3),
        )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        stride = 1 if width == out else 2
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.act = nn.ReLU(inplace=True)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))) + self.skip(x))


class ResidualCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.stage1 = nn.Sequential(Residual(5, 5), Residual(5, 5))
        self.stage2 = nn.Sequential(Residual(5, 6), Residual(6, 6), Residual(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, 2, 1)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.enter(x))
        coarse = torch.relu(self.middle(torch.relu(self.down(fine))))
        return self.leave(torch.cat([torch.relu(self.up(coarse)), fine], 1))


class LstmClassifier(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=batch_first)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        return self.head(hidden[:, -1] if self.lstm.batch_first else hidden[-1])


class PackedClassifier(nn.Module):
    """Padded sequences and their lengths in, a PackedSequence between the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=19, n_positions=12, n_embd=8, n_layer=3, n_head=2, bos_token_id=0,
                                     eos_token_id=0)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=19, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
                                     intermediate_size=12, max_position_embeddings=12, num_labels=3)  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=19, hidden_size=8, intermediate_size=12, num_attention_heads=2,
                                      num_hidden_layers=3, num_key_value_heads=1)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12,
                                    image_size=8, patch_size=4, num_labels=3)  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=5, hidden_sizes=[5, 6], depths=[2, 2], layer_type="basic",
                                       num_labels=3)  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=19, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
                                   decoder_start_token_id=0, dropout_rate=0.1)  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 9, batch_first=True)
    return nn.TransformerEncoder(layer, 3)


def with_key_padding(model: nn.Module, batch: Any) -> Any:
    return model(batch["src"], src_key_padding_mask=batch["attention_mask"] == 0)


def time_first(model: nn.Module, batch: Any) -> Any:
    return model(batch.transpose(0, 1))


def prepared(model: nn.Module) -> nn.Module:
    """In float64, with weights and statistics that are not special in any way."""
    model = model.double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(generator=g)
                m.running_var.uniform_(0.5, 2, generator=g)
    return model.train()


# --- cases ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its data, and what is known of it.

    Attributes:
        make: makes the model.
        data: makes the data.
        blocks: expected labels with `layers="blocks"`.
        readers: some weight layers and whose output they read.
        images: whether representations of 4 dimensions have channels first.
        forward: as given to `measure`.
    """

    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    blocks: tuple[str, ...]
    readers: dict[str, str]
    images: bool = False
    forward: Callable[[nn.Module, Any], Any] | None = None

    def call(self, model: nn.Module, data: Any) -> Any:
        if self.forward is not None:
            return self.forward(model, data)
        if isinstance(data, dict):
            return model(**data)
        return model(*data) if isinstance(data, tuple) else model(data)


def tokens() -> Tensor:
    return torch.randint(0, 19, (6, 7), generator=torch.Generator().manual_seed(2))


def reals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def padded() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "attention_mask": TOKENS.long()}


def chain(first: str, *rest: str) -> tuple[str, ...]:
    return (f"{first} (input)", first, *rest)


CASES = {
    "mlp": Case(Mlp, lambda: reals(40, 5), ("0 (input)", "0", "2", "4"), {"0": "2", "2": "4"}),
    "cnn": Case(Cnn, lambda: reals(6, 2, 6, 6), ("0 (input)", "0", "4", "9"), {"3": "4", "8": "9"}, images=True),
    "residual": Case(
        ResidualCnn, lambda: reals(6, 2, 6, 6),
        chain("stage1.0", "stage1.1", "stage2.0", "stage2.1", "stage2.2"),
        {"stage1.0": "stage1.1.conv1", "stage2.1": "stage2.2.conv1"}, images=True,
    ),
    "unet": Case(Unet, lambda: reals(5, 2, 6, 6), ("enter (input)", "enter", "down", "middle", "up", "leave"),
                 {"down": "middle", "up": "leave"}, images=True),
    "lstm": Case(LstmClassifier, lambda: reals(6, 5, 4), ("lstm (input)", "lstm", "head"), {}),
    "lstm, time first": Case(lambda: LstmClassifier(batch_first=False), lambda: reals(6, 5, 4),
                             ("lstm (input)", "lstm", "head"), {}, forward=time_first),
    "lstm, packed": Case(PackedClassifier, lambda: (reals(6, 7, 4), LENGTHS), ("lstm (input)", "lstm", "head"), {}),
    "encoder": Case(encoder, lambda: {"src": reals(6, 7, 6), "attention_mask": TOKENS.long()},
                    chain("layers.0", "layers.1", "layers.2"), {"layers.0": "layers.1.self_attn"},
                    forward=with_key_padding),
    "gpt2": Case(gpt2, padded, chain(*(f"transformer.h.{i}" for i in range(3))),
                 {"transformer.h.0": "transformer.h.1.attn.c_attn", "transformer.ln_f": "lm_head"}),
    "bert": Case(bert, padded, chain(*(f"bert.encoder.layer.{i}" for i in range(3))),
                 {"bert.encoder.layer.0": "bert.encoder.layer.1.attention.self.query"}),
    "llama": Case(llama, padded, chain(*(f"model.layers.{i}" for i in range(3))),
                  {"model.layers.1": "model.layers.2.self_attn.q_proj"}),
    "vit": Case(vit, lambda: reals(5, 3, 8, 8), chain(*(f"vit.layers.{i}" for i in range(3))),
                {"vit.layers.0": "vit.layers.1.attention.q_proj"}, images=True),
    "resnet": Case(
        resnet, lambda: reals(4, 3, 16, 16),
        chain(*(f"resnet.encoder.stages.{s}.layers.{i}" for s in range(2) for i in range(2))),
        {"resnet.encoder.stages.1.layers.0": "resnet.encoder.stages.1.layers.1.layer.0.convolution"}, images=True,
    ),
    "t5": Case(
        t5, lambda: {**padded(), "decoder_input_ids": tokens()[:, :5], "decoder_attention_mask": DECODED.long()},
        (*chain("encoder.block.0", "encoder.block.1"), *chain("decoder.block.0", "decoder.block.1")),
        {"encoder.block.0": "encoder.block.1.layer.0.SelfAttention.q",
         "decoder.block.0": "decoder.block.1.layer.0.SelfAttention.q"},
    ),
}  # fmt: skip


def measured(case: Case, model: nn.Module, data: Any, **options: Any) -> Measurement:
    few: dict[str, Any] = {"jacobian_samples": 0, "alignment_samples": 3}  # these have tests of their own
    return measure(model, data, forward=case.forward, progress=False, **(few | options))


# --- the oracle: stored activations, dense definitions --------------------------------------------------------------


def first_real(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and value.dim() else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((found for item in items if (found := first_real(item)) is not None), None)


@contextlib.contextmanager
def hooked(model: nn.Module, before: Any, after: Any) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, k, n=name: before(n, a, k), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda m, a, o, n=name: after(n, a, o)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for m, mode in modes:
            m.training = mode


def stored(case: Case, model: nn.Module, data: Any) -> dict[str, list[dict[str, Tensor | None]]]:
    """Input and output of every call of every module, copied when they were met."""
    seen: dict[str, list[dict[str, Tensor | None]]] = {}

    def copy(value: Any) -> Tensor | None:
        found = first_real(value)
        return None if found is None else found.detach().clone()

    waiting: dict[str, list[Tensor | None]] = {}

    def before(name: str, args: Any, kwargs: Any) -> None:
        waiting.setdefault(name, []).append(copy((args, kwargs)))

    def after(name: str, _: Any, output: Any) -> None:
        seen.setdefault(name, []).append({"in": waiting[name].pop(), "out": copy(output)})

    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), hooked(model, before, after):
            case.call(model, data)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return seen


def columns(case: Case, tensor: Tensor, name: str, masks: dict[str, Tensor]) -> Tensor:
    """`A` with one column per observation that is not padding."""
    rows = tensor.movedim(1, -1) if case.images and tensor.dim() == 4 else tensor
    if rows.dim() == 2:
        return rows.mT
    if not masks or rows.shape[0] == 1:
        return rows.flatten(0, -2).mT
    fitting = [mask for mask in masks.values() if mask.shape == rows.shape[:2]]  # lengths of the two differ
    return rows[fitting[0]].mT


def masks_of(data: Any) -> dict[str, Tensor]:
    if not isinstance(data, dict) or "attention_mask" not in data:
        return {}
    encoder = data["attention_mask"] > 0
    return {"encoder": encoder, "decoder": data.get("decoder_attention_mask", encoder) > 0}


def expected_ranks(a: Tensor) -> dict[str, float]:
    """By the definitions of docs/architecture.md, from singular values."""
    s, n = torch.linalg.svdvals(a), a.shape[1]
    c = torch.linalg.svdvals(a - a.mean(1, keepdim=True))
    c = torch.where(c > 1e-12 * s[0], c, 0)  # a constant representation
    p = s.square() / s.square().sum()
    p = p[p > 0]
    return {
        "observations": n,
        "numerical_rank": float((s > 1e-2 * s[0]).sum()),
        "stable_rank": float(s.square().sum() / s[0] ** 2),
        "nuclear_rank": float(s.sum() ** 2 / s.square().sum()),
        "participation_ratio": float(s.square().sum() ** 2 / s.pow(4).sum()),
        "participation_ratio_centred": float(c.square().sum() ** 2 / c.pow(4).sum()) if c[0] > 0 else 0.0,
        "effective_rank": float(torch.exp(-(p * p.log()).sum())),
        "negative_fraction": float(a.clamp(max=0).square().sum() / a.square().sum()),
    }


def identity_cost(a: Tensor, s: Tensor, gamma0: float) -> float:
    """`Tr[A (SᵀS + γI)⁻¹ Aᵀ]`, N × N."""
    gamma = gamma0 * torch.linalg.matrix_norm(s, 2) ** 2
    inverse = torch.linalg.inv(s.mT @ s + gamma * torch.eye(s.shape[1], dtype=s.dtype))
    return float(torch.trace(a @ inverse @ a.mT))


def residual(a: Tensor, s: Tensor) -> float:
    _, values, v = torch.linalg.svd(s, full_matrices=False)
    kept = v[values > 1e-7 * values[0]]
    return float(torch.linalg.norm(a - a @ kept.mT @ kept) / torch.linalg.norm(a))


Key = tuple[str, str, str]


def rows_of(found: Measurement) -> dict[Key, dict[str, Any]]:
    """Rows by layer, metric and `gamma0=…`."""
    rows: dict[Key, dict[str, Any]] = {}
    for row in found.table.iter_rows(named=True):
        gamma0 = row["note"].partition(";")[0] if row["note"].startswith("gamma0=") else ""
        if not row["baseline"]:
            rows[row["layer"], row["metric"], gamma0] = row
    return rows


def split_label(label: str) -> tuple[str, int, str]:
    """Module, number of the call, and whether its input or output is meant."""
    name, _, tail = label.partition(" (")
    call = int(tail.removeprefix("call ").partition(")")[0]) - 1 if tail.startswith("call") else 0
    return name, call, "in" if tail.startswith("input") else "out"


def check_numbers(
    case: Case, model: nn.Module, data: Any, found: Measurement, *, exact: float, batches: int = 2
) -> int:  # fmt: skip
    """Every number of every row against the oracle; `exact` is the tolerance of the well-conditioned ones."""
    seen, masks, rows = stored(case, model, data), masks_of(data), rows_of(found)
    checked = 0
    for layer in found.layers:
        label = layer["name"]
        name, number, end = split_label(label)
        tensor = seen[name][number][end]
        assert tensor is not None, label
        a = columns(case, tensor.double(), name, masks)
        assert layer["width"] == a.shape[0], label
        for metric, value in expected_ranks(a).items():
            # singular values below √eps of the first are lost in a Gram matrix (1e-8, float32: 3e-4); their sum sees it
            tolerance = (1e-6 if exact < 1e-6 else 2e-3) if metric == "nuclear_rank" else exact
            if metric == "observations" and tensor.shape[0] == 1:
                value *= batches  # the same for every sample (positions): met once per batch
            assert rows[label, metric, ""]["value"] == pytest.approx(value, rel=tolerance, abs=tolerance), (
                label,
                metric,
            )
            checked += 1
        before = seen[name][number]["in"]
        move = rows[label, "relative_move", ""]
        if move["status"] == "ok":
            assert before is not None
            start = columns(case, before.double(), name, masks)
            value = float(torch.linalg.norm(a - start) / torch.linalg.norm(a))
            assert move["value"] == pytest.approx(value, rel=exact, abs=exact), label
            checked += 1
        for gamma0 in GAMMA0S:
            row = rows.get((label, "cost_of_identity", f"gamma0={gamma0:g}"))
            if row is None:
                assert rows[label, "cost_of_identity", ""]["note"], label
                continue
            reader = row["note"].partition("input of ")[2]
            own = model.get_submodule(reader.removesuffix(" and 1")).named_parameters(recurse=False)
            bias = any("bias" in parameter for parameter, _ in own)
            called = seen[reader.removesuffix(" and 1")]
            again = end == "out" and reader.removesuffix(" and 1") == name
            taken = called[number + 1]["in"] if again else called[0]["in"]
            assert taken is not None
            s = columns(case, taken.double(), reader, masks)
            s = torch.cat([s, torch.ones_like(s[:1])]) if bias else s
            expected = identity_cost(a, s, gamma0)
            # rounding of S Sᵀ counts relative to γ
            assert row["value"] == pytest.approx(expected, rel=exact * max(1, 1e-3 / gamma0)), (label, gamma0)
            left = rows[label, "identity_residual", ""]["value"]
            assert left == pytest.approx(residual(a, s), abs=max(1e-6, 20 * exact**0.5)), label
            checked += 1
    return checked


@pytest.mark.parametrize("name", CASES)
def test_every_number_equals_its_definition_on_stored_activations(name: str) -> None:
    case = CASES[name]
    model, data = prepared(case.make()), case.data()
    found = measured(case, model, data, layers="*", batch_size=4)
    # float64 throughout: what differs is the order of sums
    assert check_numbers(case, model, data, found, exact=1e-8) > 10 * len(found.layers) / 2
    rows = rows_of(found)
    for layer, reader in case.readers.items():
        note = rows[layer, "cost_of_identity", "gamma0=0.001"]["note"]
        assert note.partition("input of ")[2].removesuffix(" and 1") == reader, layer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layers", ["blocks", "*"])
def test_every_module_has_a_row_or_a_reason(name: str, layers: str) -> None:
    case = CASES[name]
    model = prepared(case.make())
    found = measured(case, model, case.data(), layers=layers)
    if layers == "blocks":
        assert tuple(layer["name"] for layer in found.layers) == case.blocks
    rows = {label: row for (label, metric, _), row in rows_of(found).items() if metric == "observations"}
    have = {split_label(label)[0] for label in rows if "(input)" not in label}
    assert have == {n for n, _ in model.named_modules() if n}
    for label, row in rows.items():
        assert (row["value"] is not None) == (row["status"] == "ok"), label
        assert row["status"] == "ok" or row["note"], label
    silent = found.table.filter((found.table["status"] != "ok") & (found.table["note"] == ""))
    assert silent.is_empty()


@pytest.mark.parametrize("name", ["mlp", "residual", "gpt2"])
def test_numbers_of_a_float32_model(name: str) -> None:
    case = CASES[name]
    model, data = prepared(case.make()).float(), case.data()
    data = data if isinstance(data, dict) else data.float()
    found = measured(case, model, data, layers="*", batch_size=4)
    # the oracle stores the same float32 activations; products of a batch in float32 (6e-8) over some hundred rows
    assert check_numbers(case, model, data, found, exact=1e-4) > 50


# --- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "encoder"])
def test_padding_counts_for_nothing(name: str) -> None:
    case = CASES[name]
    model, data = prepared(case.make()), case.data()
    key = "src" if "src" in data else "input_ids"
    first = measured(case, model, data, batch_size=4)
    rows = rows_of(first)
    assert rows[first.layers[0]["name"], "observations", ""]["value"] == int(LENGTHS.sum())

    other = dict(data)  # other tokens at the padded positions
    noise = reals(6, 7, 6).flip(0) if key == "src" else (tokens() + 1 + tokens().flip(0)) % 19
    other[key] = torch.where(TOKENS[..., None] if noise.dim() == 3 else TOKENS, data[key], noise)
    assert not torch.equal(other[key], data[key])
    second = measured(case, model, other, batch_size=4)
    one_by_one = [{k: v[i : i + 1, :n] for k, v in data.items()} for i, n in enumerate(LENGTHS.tolist())]
    third = measured(case, model, one_by_one)
    for found in (second, third):
        for where, row in rows_of(found).items():
            if where[0] in {layer["name"] for layer in first.layers}:
                # attention adds exp(−large) = 0 for padding; batches are summed in another order
                # (the residual of A outside the row space of S is the root of a difference)
                tolerance = 1e-6 if where[1] == "identity_residual" else 1e-7
                assert close(row["value"], rows[where]["value"], tolerance), where


# --- backward -------------------------------------------------------------------------------------------------------


def shifted_loss(case: Case, model: nn.Module, data: Any, loss: Callable[[Any], Tensor],
                 labels: list[str]) -> tuple[float, dict[str, Tensor]]:  # fmt: skip
    """`C` on the whole data in one batch, and `∂C/∂A` as the derivative by a shift added to each representation."""
    shifts: dict[str, Tensor] = {}
    counts: dict[tuple[str, str], int] = {}
    wanted = {split_label(label): label for label in labels}

    def shift(value: Tensor, label: str) -> Tensor:
        shifts[label] = torch.zeros_like(value, requires_grad=True)
        return value + shifts[label]

    def meant(name: str, end: str) -> str | None:
        number = counts[name, end] = counts.get((name, end), -1) + 1
        return wanted.get((name, number, end))

    def before(name: str, args: Any, kwargs: Any) -> Any:
        label = meant(name, "in")
        if label is None:
            return None
        if args:
            return (shift(args[0], label), *args[1:]), kwargs
        key = next(k for k, v in kwargs.items() if isinstance(v, Tensor) and v.is_floating_point())
        return args, {**kwargs, key: shift(kwargs[key], label)}

    def after(name: str, args: Any, output: Any) -> Any:
        label = meant(name, "out")
        if label is None:
            return None
        if isinstance(output, dict):
            return None  # holds tensors of its parts, which have rows of their own
        return shift(output, label) if isinstance(output, Tensor) else (shift(output[0], label), *output[1:])

    torch.backends.mha.set_fastpath_enabled(False)
    with hooked(model, before, after):
        value = loss(case.call(model, data))
        found = torch.autograd.grad(value, list(shifts.values()), allow_unused=True, materialize_grads=True)
    torch.backends.mha.set_fastpath_enabled(True)
    return float(value.detach()), dict(zip(shifts, found, strict=True))


def check_gradients(
    case: Case, model: nn.Module, data: Any, found: Measurement, loss: Callable[[Any], Tensor], exact: float = 1e-9
) -> int:  # fmt: skip
    rows = rows_of(found)
    labels = [layer["name"] for layer in found.layers]
    value, gradients = shifted_loss(case, model, data, loss, labels)
    # float64, other order of sums
    assert rows["model", "loss", ""]["value"] == pytest.approx(value, rel=exact)
    checked = 0
    for label in labels:
        row = rows[label, "backward_norm", ""]
        module = model.get_submodule(split_label(label)[0])
        if label not in gradients or isinstance(module, nn.Identity) or label.endswith("self_attn (input)"):
            continue  # a tensor that others read, too: the row is of all of them, the shift of one
        g = columns(case, gradients[label], split_label(label)[0], masks_of(data))
        if not bool(g.any()):
            assert row["value"] in (None, 0.0), label
            continue
        s = torch.linalg.svdvals(g)
        assert row["value"] == pytest.approx(float(torch.linalg.norm(g)), rel=exact), label
        ratio = rows[label, "backward_participation_ratio", ""]["value"]
        assert ratio == pytest.approx(float(s.square().sum() ** 2 / s.pow(4).sum()), rel=100 * exact), label
        checked += 1
    return checked


@pytest.mark.parametrize(
    ("batch_size", "name"),
    [
        pytest.param(size, name, marks=pytest.mark.slow if size == 1 and name in ("residual", "resnet", "vit") else [])
        for size in (1, 4, 64)
        for name in ("mlp", "cnn", "residual", "lstm", "lstm, time first", "resnet", "vit")
    ],
)
def test_backward_norms_are_those_of_the_whole_data_in_one_batch(name: str, batch_size: int) -> None:
    case = CASES[name]
    model, data = prepared(case.make()), case.data()
    shape = case.call(model.eval(), data)
    y = torch.arange(len(getattr(shape, "logits", shape))) % 3
    found = measured(case, model, data, layers="*", batch_size=batch_size, targets=y, loss="cross_entropy")

    def loss(out: Any) -> Tensor:
        return nn.functional.cross_entropy(getattr(out, "logits", out), y[: len(data)])

    assert check_gradients(case, model, data, found, loss) >= 2


@pytest.mark.parametrize("name", ["encoder", "unet"])
def test_backward_of_square_and_own_losses(name: str) -> None:
    case = CASES[name]
    model, data = prepared(case.make()), case.data()
    y = reals(6, 7, 6) if name == "encoder" else reals(5, 2, 6, 6)
    n = len(y)
    found = measured(case, model, data, layers="*", batch_size=2, targets=y)  # real targets: square

    def square(out: Tensor) -> Tensor:
        return (out - y).square().sum() / n

    assert check_gradients(case, model, data, found, square) >= 5

    def fourth(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).pow(4).sum() / len(targets)

    own = measured(case, model, data, layers="*", batch_size=2, targets=y, loss=fourth)
    assert check_gradients(case, model, data, own, lambda out: fourth(out, y)) >= 5


def test_the_models_own_loss() -> None:
    case = CASES["gpt2"]
    model = prepared(case.make())
    data = {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens()), "labels": tokens()}
    found = measured(case, model, data, batch_size=4, loss="model")
    # (the library takes the loss of a language model in float32)
    assert check_gradients(case, model, data, found, lambda out: out.loss, exact=1e-5) >= 4
    vit_case = CASES["vit"]
    model = prepared(vit_case.make())
    named = {"pixel_values": vit_case.data(), "labels": torch.arange(5) % 3}
    found = measured(vit_case, model, named, batch_size=2, loss="model")
    assert check_gradients(vit_case, model, named, found, lambda out: out.loss) >= 4


def test_gradients_reach_what_does_not_depend_on_the_input() -> None:
    class Queries(nn.Module):
        """A table of learned vectors, read as it is."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5))

        def forward(self) -> Tensor:
            return self.weight

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.mix, self.head = Queries(), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.mix(self.queries()).tanh().mean(0))

    model, x, y = Attending(), reals(12, 5), torch.arange(12) % 3
    case = Case(Attending, lambda: x, (), {})
    found = measured(case, model, x, layers="*", batch_size=12, targets=y, loss="cross_entropy")
    assert check_gradients(case, model, x, found, lambda out: nn.functional.cross_entropy(out, y)) >= 3
    assert not model.queries.weight._backward_hooks


# --- the form of the data, and options ------------------------------------------------------------------------------


def assert_same(one: Measurement, other: Measurement, tolerance: float, *without: str,
                without_layers: tuple[str, ...] = ()) -> None:  # fmt: skip
    first, second = (
        {key: row["value"] for key, row in rows_of(found).items()
         if key[1] not in without and key[0] not in without_layers}
        for found in (one, other)
    )  # fmt: skip
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert close(second[key], value, tolerance), (key, second[key], value)


def close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return one == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt2", "t5", "lstm, packed"])
def test_batch_size_does_not_matter(name: str) -> None:
    case = CASES[name]
    model, data = prepared(case.make()), case.data()
    whole = measured(case, model, data, layers="*", batch_size=100)
    for size in (1, 4):
        other = measured(case, model, data, layers="*", batch_size=size)
        # sums in another order; singular values at the edge of what a Gram matrix holds (1e-8) come and go
        # what is the same for every sample (embedded positions) is met once per batch
        assert_same(whole, other, 1e-6, without_layers=("transformer.wpe",))


def test_the_form_of_the_data_does_not_matter() -> None:
    class Named(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, x, y = Named().double(), reals(23, 5), torch.arange(23) % 3
    options: dict[str, Any] = {"loss": "cross_entropy", "progress": False, "jacobian_samples": 4}
    base = measure(model, x, targets=y, batch_size=5, **options)
    pairs = TensorDataset(x, y)
    forms: dict[str, Any] = {
        "tuple": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "dict": {"x": x, "y": y},
        "data set": pairs,
        "loader": DataLoader(pairs, batch_size=5),
        "shuffled loader": DataLoader(pairs, batch_size=4, shuffle=True),
        "generator": ((x[i : i + 6], y[i : i + 6]) for i in range(0, 23, 6)),
        "list of dicts": [{"x": x[i : i + 6], "labels": y[i : i + 6]} for i in range(0, 23, 6)],
        "list of lists": [[x[:20], y[:20]], [x[20:], y[20:]]],
    }
    for name, data in forms.items():
        found = measure(model, data, **options)
        without = [m for m in found.table["metric"].unique() if "jacobian" in m] if "shuffled" in name else []
        without += ["bottleneck_rank", *CERTIFICATE] if "shuffled" in name else []  # of the first samples
        if name == "generator":  # gone after the first pass; alignment takes another
            kernels = {*ALIGNMENT, *STABILITY, *SIGNALS}
            rows = found.table.filter(pl.col("metric").is_in(kernels))
            assert set(rows["metric"]) == kernels
            assert all("read only once" in note for note in rows["note"])
            without += kernels
        assert_same(base, found, 1e-7, *without)  # sums in another order
    keyed = measure(model, {"x": x, "wanted": y}, targets="wanted", **options)
    assert_same(base, keyed, 1e-7)
    at = measure(model, [(y, x)], targets=0, **options)
    assert_same(base, at, 1e-7)


def test_at_most_max_samples() -> None:
    model, x = Mlp().double(), reals(50, 5)
    few = measure(model, x[:17], progress=False, jacobian_samples=5)
    for data in (x, [x[:8], x[8:30], x[30:]], DataLoader(TensorDataset(x), batch_size=6)):
        found = measure(model, data, max_samples=17, progress=False, jacobian_samples=5)
        assert found.record["measured"]["samples"] == 17
        assert_same(few, found, 1e-7)
    assert measure(model, x, max_samples=1000, progress=False).record["measured"]["samples"] == 50


def test_baseline() -> None:
    model, x = prepared(Mlp()), reals(40, 5)
    found = measure(model, x, baseline="init", seed=3, progress=False)
    fresh = Mlp().double()
    torch.manual_seed(torch_generator(3, "baseline").initial_seed())
    for module in fresh:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    expected = measure(fresh, x, progress=False, jacobian_samples=0)
    own = {
        (r["layer"], r["metric"], r["note"]): r for r in found.table.iter_rows(named=True) if r["baseline"] == "init"
    }
    for row in expected.table.iter_rows(named=True):
        if row["layer"] == "model" or (row["layer"], row["metric"], row["note"]) not in own:
            assert row["layer"] in ("model", "1", "3"), row  # of the whole model, and modules left out
            continue
        assert close(own[row["layer"], row["metric"], row["note"]]["value"], row["value"], 1e-12), row
    assert len(own) > 80
    assert_same(measure(model, x, progress=False), found, 0.0)  # the model's own rows stay as they are
    for given in (fresh, lambda: fresh):
        again = measure(model, x, baseline=given, progress=False)
        rows = again.table.filter(again.table["baseline"] != "")
        assert rows["value"].to_list() == [own[k]["value"] for k in own]


def test_baseline_of_a_hugging_face_model() -> None:
    case = CASES["gpt2"]
    model, data = prepared(case.make()), case.data()
    found = measured(case, model, data, baseline="init", seed=1)
    torch.manual_seed(torch_generator(1, "baseline").initial_seed())
    expected = measured(case, case.make().double(), data)
    own = {(r["layer"], r["metric"], r["note"]): r["value"] for r in expected.table.iter_rows(named=True)}
    fresh = found.table.filter((found.table["baseline"] == "init") & (found.table["metric"] == "stable_rank"))
    assert len(fresh) > 10
    for row in fresh.iter_rows(named=True):
        assert row["value"] == pytest.approx(own[row["layer"], row["metric"], row["note"]], rel=1e-9), row["layer"]


def test_only_metrics_asked_for() -> None:
    found = measure(Mlp(), reals(20, 5), metrics=["stable_rank", "cost_of_identity"], progress=False)
    assert set(found.table["metric"]) == {"stable_rank", "cost_of_identity", "observations"}


def test_a_module_called_twice_has_two_rows() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.again, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.again(torch.relu(self.again(self.enter(x))))))

    model, x = Twice().double(), reals(30, 5)
    case = Case(Twice, lambda: x, (), {})
    found = measured(case, model, x, layers="*", batch_size=7)
    assert [layer["name"] for layer in found.layers][1:] == ["enter", "again (call 1)", "again (call 2)", "head"]
    check_numbers(case, model, x, found, exact=1e-8)
    rows = rows_of(found)
    assert rows["again (call 1)", "cost_of_identity", "gamma0=0.001"]["note"].endswith("input of again and 1")


def test_the_reader_of_a_branch_is_not_the_next_layer_but_the_one_that_reads_it() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 6), nn.Linear(5, 6)
            self.of_left, self.of_right = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
            return self.of_right(right) + self.of_left(left)

    model, x = Branches().double(), reals(30, 5)
    case = Case(Branches, lambda: x, (), {})
    found = measured(case, model, x, layers="*", batch_size=7)
    check_numbers(case, model, x, found, exact=1e-8)
    rows = rows_of(found)
    for name in ("left", "right"):
        assert rows[name, "cost_of_identity", "gamma0=0.001"]["note"].endswith(f"input of of_{name} and 1")


def test_blocks_that_change_their_input_in_place_have_moved_it() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x += 0.3 * torch.tanh(self.linear(x))
            return x

    model, x = nn.Sequential(nn.Linear(5, 5), Step(), Step()).double(), reals(30, 5)
    case = Case(Step, lambda: x, (), {})
    found = measured(case, model, x, layers="*", batch_size=7)
    check_numbers(case, model, x, found, exact=1e-8)
    rows = rows_of(found)
    for name in "12":
        assert rows[name, "relative_move", ""]["value"] > 0.01


def test_a_model_that_names_its_path() -> None:
    class Walk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

        def path(self, x: Tensor) -> list[Tensor]:
            nodes = [x]
            for step in self.steps:
                nodes.append(nodes[-1] + 0.3 * torch.tanh(step(nodes[-1])))
            return nodes

        def forward(self, x: Tensor) -> Tensor:
            return self.path(x)[-1]

    model, x = Walk().double(), reals(30, 5)
    found = measure(model, x, batch_size=8, progress=False)
    assert [layer["name"] for layer in found.layers] == [f"path.{i}" for i in range(4)]
    nodes = [node.detach().mT for node in model.path(x)]
    rows = rows_of(found)
    for i, a in enumerate(nodes):
        for metric, value in expected_ranks(a).items():
            assert rows[f"path.{i}", metric, ""]["value"] == pytest.approx(value, rel=1e-6), (i, metric)
        if i:
            move = float(torch.linalg.norm(a - nodes[i - 1]) / torch.linalg.norm(a))
            assert rows[f"path.{i}", "relative_move", ""]["value"] == pytest.approx(move, rel=1e-9)
    named = measure(model, x, path="path", batch_size=8, progress=False)
    assert_same(found, named, 1e-7)
    modules = measure(model, x, path=False, progress=False)
    assert [layer["name"] for layer in modules.layers] == ["steps.0 (input)", "steps.0", "steps.1", "steps.2"]


def test_a_leaky_resnet_is_measured_along_its_path() -> None:
    net = LeakyResNet(5, 2, width=6, depth=4, effective_depth=2.0)
    x, y = reals(20, 5), reals(20, 2)

    def square(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(1).mean()

    expected = measure_path(net, x, y, loss=square, ridge=0.05, jacobian_samples=8)
    found = measure(net, (x, y), loss="square", ridge=0.05, jacobian_samples=8, progress=False, batch_size=7)
    arrays = expected.arrays()
    assert found.arrays.keys() == arrays.keys()
    for key, value in arrays.items():
        assert found.arrays[key] == pytest.approx(value, rel=1e-12, nan_ok=True), key
    hamiltonian = found.table.filter(found.table["metric"] == "hamiltonian")["value"].to_list()
    assert len(hamiltonian) == 4
    assert all(value is not None for value in hamiltonian)
    assert [layer["name"] for layer in found.layers] == [f"representation.{i}" for i in range(5)]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_jacobian_rows(name: str) -> None:
    case = CASES[name]
    model, data = prepared(case.make()), case.data()
    n = 5
    found = measure(model, data, jacobian_samples=n, progress=False)
    model.eval()

    def one(x: Tensor) -> Tensor:
        return model(x.clone()[None])[0]  # a clone: activations in place

    jacobian = torch.stack([torch.func.jacrev(one)(x).detach().flatten(1) for x in data[:n]])
    s = torch.linalg.svdvals(jacobian)
    table = found.table.filter(found.table["layer"] == "model")
    logs = table.filter(table["metric"] == "jacobian_log_singular_value").sort("index")
    assert logs["value"].to_list() == pytest.approx(s.log().mean(0).tolist(), abs=1e-9)
    assert logs["stderr"].to_list() == pytest.approx((s.log().std(0) / n**0.5).tolist(), abs=1e-9)
    rows = {r["metric"]: r for r in table.iter_rows(named=True)}
    tolerance = float(rows["jacobian_rank"]["note"].partition("tol=")[2].partition(";")[0])
    kept = s > tolerance * s[:, :1]
    assert rows["jacobian_rank"]["value"] == pytest.approx(float(kept.sum(1).double().mean()))
    expected = float(torch.where(kept, s.log(), 0.0).sum(1).mean())
    assert rows["jacobian_log_pseudodet"]["value"] == pytest.approx(expected, abs=1e-9)
    assert all(rows[m]["n"] == n for m in ("jacobian_rank", "jacobian_log_pseudodet"))


def test_weight_matrices() -> None:
    model = prepared(Unet())
    found = measure(model, reals(5, 2, 6, 6), progress=False)
    rows = rows_of(found)
    for name in ("enter", "down", "middle", "up", "leave"):
        weight, bias = (p.detach() for p in model.get_submodule(name).parameters())
        matrix = (weight.transpose(0, 1) if name == "up" else weight).flatten(1)
        s = torch.linalg.svdvals(matrix)
        label = f"{name}.weight"
        assert rows[label, "stable_rank", ""]["value"] == pytest.approx(float(s.square().sum() / s[0] ** 2), rel=1e-9)
        assert rows[label, "nuclear_rank", ""]["value"] == pytest.approx(
            float(s.sum() ** 2 / s.square().sum()), rel=1e-6
        )
        norm = float(weight.square().sum() + bias.square().sum())
        assert rows[label, "weight_norm_sq", ""]["value"] == pytest.approx(norm, rel=1e-9)
        assert rows[label, "bias_norm_sq", ""]["value"] == pytest.approx(float(bias.square().sum()), rel=1e-12)


def test_padding_of_a_cross_attention_is_the_encoders() -> None:
    """Encoder and decoder of one length, so that shapes cannot tell whose mask belongs to keys and values."""
    config = transformers.T5Config(vocab_size=19, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2,
                                   decoder_start_token_id=0)  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    long = torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 6])
    short = torch.tensor([[1] * 3 + [0] * 3, [1] * 2 + [0] * 4, [1] * 4 + [0] * 2])
    data = {
        "input_ids": torch.randint(0, 19, (3, 6)),
        "attention_mask": long,
        "decoder_input_ids": torch.randint(0, 19, (3, 6)),
        "decoder_attention_mask": short,
    }
    found = measure(model, data, layers="*", progress=False)
    rows = found.table.filter(pl.col("metric") == "observations", pl.col("status") == "ok")
    counted = dict(zip(rows["layer"], rows["value"], strict=True))
    attention = "decoder.block.0.layer.1.EncDecAttention"
    assert counted[f"{attention}.k"] == counted[f"{attention}.v"] == int(long.sum())
    assert counted[f"{attention}.q"] == int(short.sum())
    assert counted["encoder.block.0"] == int(long.sum())
    assert counted["decoder.block.0"] == int(short.sum())


def test_ignored_labels_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(7, 5, 4).double(), torch.randint(0, 3, (7, 5))
    y[torch.rand(7, 5) < 0.4] = -100
    y[3] = -100  # a batch of this sample alone has nothing to learn from
    whole = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    for size in (1, 3, 7):
        found = measure(model, (x, y), loss="cross_entropy", batch_size=size, progress=False)
        loss = found.table.filter(pl.col("metric") == "loss")["value"].item()
        assert loss == pytest.approx(float(whole.detach()), rel=1e-12)
        norms = found.table.filter(pl.col("metric") == "backward_norm", pl.col("layer") == "0")["value"].item()
        start = model[0](x).detach().requires_grad_()
        after = torch.nn.functional.cross_entropy(model[2](model[1](start)).flatten(0, 1), y.flatten())
        (gradient,) = torch.autograd.grad(after, start)
        assert norms == pytest.approx(float(gradient.norm()), rel=1e-10)


def test_the_jacobian_is_taken_at_samples_of_several_batches() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double(), torch.randn(12, 5).double()
    name = "jacobian_log_pseudodet"
    values = []
    for size in (1, 5, 12):
        found = measure(model, x, batch_size=size, jacobian_samples=8, progress=False)
        row = found.table.filter(pl.col("metric") == name)
        assert row["n"].item() == 8
        values.append(row["value"].item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_stages_that_only_chain_blocks_are_replaced_by_them() -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[5, 6], depths=[2, 2], layer_type="basic")
    found = measure(transformers.ResNetModel(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, progress=False)
    names = [layer["name"] for layer in found.layers if layer["kind"] == "block"]
    assert names == [f"encoder.stages.{i}.layers.{j}" for i in (0, 1) for j in (0, 1)]


def test_positions_that_stand_twice_are_not_guessed() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3 * 4)
            self.softmax = nn.Softmax(-1)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            heads = self.inner(x).unflatten(-1, (3, 4)).movedim(2, 1)
            return self.softmax(heads @ heads.mT)

    data = {"x": torch.randn(5, 3, 4), "attention_mask": torch.tensor([[1, 1, 0]] * 5)}
    found = measure(Scores(), data, layers="*", progress=False)
    row = found.table.filter(pl.col("metric") == "observations", pl.col("layer") == "softmax")
    assert "stand twice" in row["note"].item()
