"""Small random Hugging Face directories, with tokenizers and image processors made offline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = tuple(f"w{i}" for i in range(20))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]")
VOCABULARY = len(SPECIAL) + len(WORDS)
LENGTHS = (3, 9, 5, 2, 7, 9, 4, 6, 8, 3, 5, 9)


def texts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[str]:
    """Texts of so many words."""
    g = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (n,), generator=g)) for n in lengths]


def tokenizer(*, around: bool = False, pad: bool = True, **options: Any) -> Any:
    """One token a word; `around`: each text stands between [CLS] and [SEP]."""
    numbers = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    made = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        ends = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {"unk_token": "[UNK]", "eos_token": "[EOS]", **({"pad_token": "[PAD]"} if pad else {})}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named, **options)


def spread(model: nn.Module) -> nn.Module:
    """In float64, with weights that are not special in any way; tied ones stay tied."""
    g = torch.Generator().manual_seed(1)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(generator=g)
                m.running_var.uniform_(0.5, 2, generator=g)
    return model


def _config(kind: str, **options: Any) -> Any:
    small = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
    match kind:
        case "gpt2":
            given = {"vocab_size": VOCABULARY, "n_positions": 12, "n_embd": 8, "n_layer": 3, "n_head": 2,
                     "bos_token_id": 4, "eos_token_id": 4}  # fmt: skip
            return transformers.GPT2Config(**(given | options))
        case "llama":
            given = {**small, "vocab_size": VOCABULARY, "num_key_value_heads": 1, "max_position_embeddings": 16,
                     "bos_token_id": 4, "eos_token_id": 4}  # fmt: skip
            return transformers.LlamaConfig(**(given | options))
        case "bert":
            given = {**small, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "num_labels": 3}
            return transformers.BertConfig(**(given | options))
        case "t5":
            given = {"vocab_size": VOCABULARY, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 3, "num_heads": 2,
                     "decoder_start_token_id": 0}  # fmt: skip
            return transformers.T5Config(**(given | options))
        case "vit":
            given = {**small, "image_size": 8, "patch_size": 4, "num_labels": 3}
            return transformers.ViTConfig(**(given | options))
        case _:
            given = {"embedding_size": 5, "hidden_sizes": [5, 6], "depths": [2, 2], "layer_type": "basic",
                     "num_labels": 3}  # fmt: skip
            return transformers.ResNetConfig(**(given | options))


CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "bert": "BertForSequenceClassification",
    "t5": "T5ForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "resnet": "ResNetForImageClassification",
}


def made(kind: str, name: str = "", **options: Any) -> Any:
    """A model of this kind, with random weights in float64."""
    torch.manual_seed(3)
    return spread(getattr(transformers, name or CLASSES[kind])(_config(kind, **options))).eval()


def directory(place: Path, kind: str, name: str = "", *, model: Any = None, **options: Any) -> Path:
    """A directory with such a model, and its tokenizer or image processor; another class of the kind by `name`."""
    model = made(kind, name, **options) if model is None else model
    copy.deepcopy(model).save_pretrained(place)
    if kind in ("vit", "resnet"):
        transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(place)
    else:
        tokenizer(around=kind == "bert", pad=kind not in ("gpt2", "llama")).save_pretrained(place)
    return place


def lines(place: Path, lengths: tuple[int, ...] = LENGTHS) -> Path:
    """A text file with a text a line."""
    place.write_text("\n".join(texts(lengths)) + "\n")
    return place


def images(place: Path, classes: tuple[str, ...] = (), count: int = 4) -> Path:
    """A folder of small images of noise, in a subfolder for each class where there are classes."""
    g = torch.Generator().manual_seed(5)
    for one in classes or ("",):
        folder = place / one
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = torch.randint(0, 256, (10, 12, 3), generator=g, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return place
