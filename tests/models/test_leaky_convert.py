from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.models import LeakyBlock, LeakyStack, convert


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.conv(self.act(self.norm(x))))


class Cnn(nn.Sequential):
    """The blocks are part of a sequence with others."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), Residual(), Residual(), Residual(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 3))  # fmt: skip


class Nested(nn.Module):
    """The blocks are a sequence of their own; one of them is used twice."""

    def __init__(self) -> None:
        super().__init__()
        one, self.stem = Residual(), nn.Conv2d(1, 4, 1)
        self.stage = nn.Sequential(Residual(), one, Residual(), one)

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.stem(x)).mean((2, 3))


def encoder(**settings: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **settings)
    nested = not settings.get("norm_first", False)
    return nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=nested)


def decoder() -> nn.TransformerDecoder:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2)


def gpt2() -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=3, n_head=2, n_embd=8, vocab_size=20))


def bert() -> transformers.BertModel:
    config = transformers.BertConfig(num_hidden_layers=3, num_attention_heads=2, hidden_size=8, intermediate_size=16,
                                     vocab_size=20, max_position_embeddings=16)  # fmt: skip
    return transformers.BertModel(config)


def llama() -> transformers.LlamaModel:
    config = transformers.LlamaConfig(num_hidden_layers=3, num_attention_heads=2, hidden_size=8, intermediate_size=16,
                                      vocab_size=20)  # fmt: skip
    return transformers.LlamaModel(config)


TOKENS = {
    "input_ids": torch.arange(12).reshape(2, 6),
    "attention_mask": (torch.arange(6)[None] < torch.tensor([[6], [4]])).long(),
}
IMAGES = torch.linspace(-1, 1, 2 * 5 * 5).reshape(2, 1, 5, 5)
STATES = torch.linspace(-1, 1, 2 * 5 * 8).reshape(2, 5, 8)
PADDED = {"src": STATES, "src_key_padding_mask": torch.arange(5)[None] >= torch.tensor([[5], [3]])}

MODELS: dict[str, tuple[Callable[[], nn.Module], str, str, Any, int]] = {
    "encoder": (encoder, "layers.*", "layers", STATES, 3),
    "encoder, norm first, padded": (lambda: encoder(norm_first=True), "layers.*", "layers", PADDED, 3),
    "decoder": (decoder, "layers.?", "layers", (STATES, STATES), 2),
    "gpt2": (gpt2, "transformer.h.*", "transformer.h", TOKENS, 3),
    "bert": (bert, "encoder.layer.*", "encoder.layer", TOKENS, 3),
    "llama": (llama, "layers.*", "layers", TOKENS, 3),
    "cnn": (Cnn, "[1-3]", "1", IMAGES, 3),
    "part of a cnn": (Cnn, "[23]", "2", IMAGES, 2),
    "stage": (Nested, "stage.*", "stage", IMAGES, 4),
    "sequence": (lambda: nn.Sequential(Residual(), Residual()), "*", "", IMAGES.expand(2, 4, 5, 5), 2),
}


def outputs(model: nn.Module, samples: Any) -> list[Tensor]:
    torch.manual_seed(1)  # of dropout
    if isinstance(samples, dict):
        found: Any = model(**{k: v.clone() for k, v in samples.items()})
    else:
        found = model(*(s.double() for s in samples)) if isinstance(samples, tuple) else model(samples.double())
    if isinstance(found, Tensor):
        return [found]
    return [found[name] for name in ("logits", "last_hidden_state", "pooler_output") if found.get(name) is not None]


def doubled(samples: Any) -> Any:
    if isinstance(samples, dict):
        return {k: v.double() if v.is_floating_point() else v for k, v in samples.items()}
    return tuple(s.double() for s in samples) if isinstance(samples, tuple) else samples.double()


@pytest.mark.parametrize("effective_depth", [0.0, 1.5])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_computes_the_same_at_the_start(name: str, effective_depth: float) -> None:
    make, pattern, where, samples, count = MODELS[name]
    samples = doubled(samples)
    model = make().double()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    made = convert(model, pattern, effective_depth=effective_depth, steps="irregular", samples=samples)
    stack = made.get_submodule(where)
    assert isinstance(stack, LeakyStack)
    assert len(stack) == count
    assert torch.equal(torch.get_rng_state(), state)
    # the user's model is as it was
    assert str(model) == str(before)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *made.modules()))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in made.parameters()}
    # in training, with dropout and batch statistics, and in evaluation
    for training in (True, False):
        for expected, found in zip(
            outputs(model.train(training), samples), outputs(made.train(training), samples), strict=True
        ):
            assert torch.equal(found, expected)
    stack.set_layer_steps(torch.arange(1.0, count + 1) / sum(range(1, count + 1)))
    assert not torch.equal(outputs(made, samples)[0], outputs(model, samples)[0])


def test_nested_tensors_of_a_padded_batch_pass_through() -> None:
    model = encoder(dropout=0.0).eval()
    made, padded = convert(model, "layers.*", effective_depth=1.0), doubled(PADDED)
    with torch.no_grad(), pytest.warns(UserWarning, match="nested tensors"):
        fast = made(**padded)
    kept = ~padded["src_key_padding_mask"]
    assert not bool(fast[~kept].equal(made(**padded)[~kept]))  # so it was another way
    torch.testing.assert_close(fast[kept], made(**padded)[kept])


class Noisy(nn.Linear):
    """Draws random numbers, also in evaluation mode."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0 * torch.rand(())


def test_samples_leave_the_random_numbers_as_they_were() -> None:
    model = nn.Sequential(Noisy(4, 4), Noisy(4, 4))
    state = torch.get_rng_state()
    convert(model, "*", samples=ROWS)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_are_checked_without_gradients_too() -> None:
    model = encoder(dropout=0.0).eval()
    with torch.no_grad():
        convert(model, "layers.*", samples=doubled(PADDED))
        assert not torch.is_grad_enabled()


def test_modes_of_single_modules_are_kept() -> None:
    model = Cnn()
    model[2].norm.eval()  # type: ignore[union-attr]
    made = convert(model, "[1-3]", samples=IMAGES.double())
    modes = {name.replace(".block", ""): module.training for name, module in made[1].named_modules()}
    assert [name for name, training in modes.items() if not training] == ["1.norm"]
    assert not any(module.training for module in convert(model.eval(), "[1-3]").modules())


def test_a_converted_language_model_generates_trains_and_adapts() -> None:
    model = gpt2()
    made = convert(model, "transformer.h.*", steps="adaptive", samples=TOKENS)
    prompt = TOKENS["input_ids"][:1, :3]
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(made.generate(prompt, **settings), model.generate(prompt, **settings))  # with its cache
    made.train()
    optimiser = torch.optim.AdamW(made.parameters(), 1e-2)
    made(**TOKENS, labels=TOKENS["input_ids"]).loss.backward()
    optimiser.step()
    rho = made.transformer.h.update_steps()
    assert float(rho.max() - rho.min()) > 1e-3
    assert all(p.grad is not None for p in made.transformer.h.parameters())


# --- bad input ------------------------------------------------------------------------------------------------------


class Between(nn.Module):
    """Something happens between its blocks, or they run in another order."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layers = what, nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.named, self.stage = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "reversed":
            for layer in reversed(list(self.layers)):
                x = layer(x)
        if self.what == "between":
            for layer in self.layers:
                x = layer(x) + 1
        if self.what == "twice":
            for layer in (*self.layers, self.layers[2]):
                x = layer(x)
        if self.what == "class":
            for layer in self.layers:
                x = layer(x) if isinstance(layer, nn.Linear) else layer(x) + 1e-9
        if self.what == "nothing":
            for layer in self.layers:
                x = layer(x)
            return "a string"  # type: ignore[return-value]
        if self.what == "items":
            return {str(i): layer(x) for i, layer in enumerate(self.layers)}  # type: ignore[return-value]
        return x


def called() -> nn.Module:
    """A model that holds a tensor with a gradient of its own, as weight_norm leaves one."""
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].kept = model[0].weight * 2  # type: ignore[assignment]
    return model


@dataclasses.dataclass
class Output:
    state: Tensor
    choice: Tensor


class Telling(nn.Module):
    """Gives a dataclass, from which it can be told that it was converted."""

    def __init__(self, state: float, choice: int) -> None:
        super().__init__()
        self.layers, self.state, self.choice = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), state, choice

    def forward(self, x: Tensor) -> Output:
        for layer in self.layers:
            x = layer(x)
        was = isinstance(self.layers, nn.ModuleList)
        x = x.clone()
        x[0, 0] = torch.nan  # as attention gives where everything is masked
        x[1, 1] += 0.0 if was else self.state
        return Output(x, torch.tensor(0 if was else self.choice))


@pytest.mark.parametrize(("state", "choice"), [(1e-3, 0), (float("nan"), 0), (float("inf"), 0), (0.0, 1)])
def test_outputs_are_compared_wherever_they_are(state: float, choice: int) -> None:
    convert(Telling(0.0, 0), "layers.*", samples=ROWS)
    with pytest.raises(InputError, match="samples: got outputs that differ by"):
        convert(Telling(state, choice), "layers.*", samples=ROWS)


ROWS = torch.ones(2, 4, dtype=torch.float64)
BAD: list[tuple[str, Callable[[], object]]] = [
    (r"pattern: got layer\.\*, expected.*did you mean 'layers", lambda: convert(Between(""), "layer.*")),
    (r"pattern: got layers, .*try layers\.\*", lambda: convert(Between(""), "layers")),
    (r"pattern: got \*\.\*, which matches in layers, stage", lambda: convert(Between(""), "*.*")),
    (r"pattern: got named, which matches in a Between.*own code", lambda: convert(Between(""), "named")),
    (r"matches 2 of 3 blocks, expected all blocks of layers", lambda: convert(Between(""), "layers.[01]")),
    (r"matches 1, 3, expected blocks that follow one another", lambda: convert(Cnn(), "[13]")),
    (
        r"called in the order layers.2, layers.1, layers.0, expected each called once, in the order layers.0",
        lambda: convert(Between("reversed"), "layers.*", samples=ROWS),
    ),
    (r"layers.2, layers.2, expected each called once", lambda: convert(Between("twice"), "layers.*", samples=ROWS)),
    (r"\(none is called\)", lambda: convert(Between(""), "layers.*", samples=ROWS)),
    (r"layers.1, which is given something else", lambda: convert(Between("between"), "layers.*", samples=ROWS)),
    (r"samples: got outputs that differ by", lambda: convert(Between("class"), "layers.*", samples=ROWS)),
    (r"samples: got a model that gives no tensors", lambda: convert(Between("nothing"), "layers.*", samples=ROWS)),
    (
        r"samples: got inputs at which the model fails \(RuntimeError: mat1",
        lambda: convert(Between("between"), "layers.*", samples=ROWS[:, :3]),
    ),
    (r"which matches in a LeakyStack.*converted already", lambda: convert(convert(Cnn(), "[1-3]"), "1.*")),
    (r"model: got a scripted module", lambda: convert(torch.jit.script(nn.Sequential(nn.ReLU())), "*")),
    (
        r"matches in a RecursiveScriptModule",
        lambda: convert(nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU()))), "0.*"),
    ),
    (r"model: got a Sequential that cannot be copied \(RuntimeError: Only Tensors", lambda: convert(called(), "*")),
    (r"0, which takes \(2, 1, 5, 5\) to \(2, 4, 5, 5\)", lambda: convert(Cnn(), "[0-3]", samples=IMAGES.double())),
    (r"effective_depth: got -1", lambda: convert(Cnn(), "[1-3]", effective_depth=-1.0)),
    (r"blocks: got 3 of them, .*effective_depth 3", lambda: convert(Cnn(), "[1-3]", effective_depth=3.0)),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_says_what_to_try(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_the_items_of_a_stack_are_leaky_blocks() -> None:
    made = convert(encoder(), "layers.*")
    assert all(isinstance(block, LeakyBlock) for block in made.layers)
    assert next(name for name, _ in made.layers.named_parameters()).startswith("0.block.self_attn")
