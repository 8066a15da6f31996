"""Texts and images as batches for a Hugging Face model: cut, padded on the right, with their masks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isthmus._errors import InputError, IsthmusError
from isthmus.probe._batches import IGNORED, Signature
from isthmus.probe._loading_files import listed, said

_MOST_SEQUENCES = 32
_LOGIT_BYTES = 2**28
"""Logits of one batch at most: a backward pass holds several copies of them."""

_TOKENS = 2**13
IMAGES_PER_BATCH = 32


class PretrainedSamples(DataLoader[Any]):
    """Batches of a data set, with what was done to make them.

    Attributes:
        notes: what was decided without being asked (padding, special tokens, truncation, loss).
        record: how the samples were made, for the configuration in a run folder.
    """

    def __init__(
        self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], batch_size: int, notes: Sequence[str],
        record: Mapping[str, Any],
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "a whole number of at least 1")
        super().__init__(dataset, batch_size=batch_size, shuffle=False, collate_fn=collate)
        self.notes, self.record = tuple(notes), dict(record)


class TextRows(Dataset[Any]):
    """Rows that are there already: `(encoded, label or encoded targets or None)`."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token numbers of texts.

    Attributes:
        rows: of each text, the lists that the tokenizer gives (`input_ids`, `token_type_ids`).
        kept: positions of these texts among those given: texts without a token are left out.
        special: number of special tokens among them.
        names: of the special tokens met.
        cut: number of texts that were cut.
        longest: tokens of the longest text before it was cut.
    """

    rows: list[dict[str, list[int]]]
    kept: list[int]
    special: int
    names: list[str]
    cut: int
    longest: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(len(row["input_ids"]) for row in self.rows)


_POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


def positions(model: nn.Module, *, decoder: bool = False) -> int | None:
    """Positions that a model has for its texts, or for what its decoder reads; None where nothing limits them."""
    config: Any = cast("Any", model).config
    two = bool(getattr(config, "is_encoder_decoder", False))
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    own = getattr(config, f"max_{'decoder' if decoder else 'encoder'}_position_embeddings", None)
    limits = [own or getattr(config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        *path, last = name.split(".")
        mine = not two or ("decoder" in path) == decoder
        if last in _POSITION_TABLES and isinstance(module, nn.Embedding) and mine:
            behind = 0 if module.padding_idx is None else module.padding_idx + 1  # numbered from behind it
            limits.append(module.num_embeddings - behind)
    most = min((n for n in limits if isinstance(n, int) and n > 0), default=None)
    window = attention_window(model)
    return most if most is None or decoder or most < window else most - most % window


def attention_window(model: nn.Module) -> int:
    """The number of which a text's length is made a multiple (Longformer, LED), or 1."""
    found: Any = getattr(cast("Any", model).config, "attention_window", None)
    sizes: list[Any] = list(found) if isinstance(found, (list, tuple)) else [found]
    return max((n for n in sizes if isinstance(n, int) and n > 0), default=1)


def length_limit(model: nn.Module, tokenizer: Any, asked: int | None) -> tuple[int | None, str]:
    """Tokens that a text may have, and whose limit that is.

    Raises:
        InputError: a `max_length` that is below 1 or above what the model can take.
    """
    most = positions(model)
    limits: dict[str, int] = {} if most is None else {"the model's positions": most}
    own = getattr(tokenizer, "model_max_length", None)
    if isinstance(own, int) and 0 < own < 10**9:
        limits["the tokenizer's model_max_length"] = own
    if asked is not None:
        if asked < 1 or (most is not None and asked > most):
            expected = "a whole number of at least 1" + ("" if most is None else f" and at most {most}, the model's")
            raise InputError("max_length", asked, expected)
        return asked, "max_length"
    if not limits:
        return None, ""
    whose = min(limits, key=lambda name: limits[name])
    return limits[whose], whose


def encode(tokenizer: Any, texts: Sequence[str], limit: int | None, *, targets: bool = False) -> Encoded:
    """Token numbers, with the special tokens that the tokenizer adds, cut by the tokenizer to `limit`.

    Args:
        tokenizer: of the model.
        texts: to encode.
        limit: most tokens of a text.
        targets: whether a decoder is to write them: some tokenizers mark those in another way.

    Raises:
        InputError: a limit that leaves no room beside the special tokens, or no token in any text.
    """
    added = int(tokenizer.num_special_tokens_to_add())
    if limit is not None and limit <= added:
        raise InputError("max_length", limit, f"more than the {added} special tokens of every text")
    given = "text_target" if targets else "text"
    plain: dict[str, Any] = {"padding": False, "return_attention_mask": False, "return_special_tokens_mask": True,
                             "verbose": False}  # fmt: skip
    found: Mapping[str, Any] = tokenizer(**{given: list(texts)}, truncation=False, **plain)
    lists: dict[str, list[list[int]]] = {key: [list(row) for row in value] for key, value in found.items()}
    lengths = [len(row) for row in lists["input_ids"]]
    over = [] if limit is None else [i for i, length in enumerate(lengths) if length > limit]
    if over:
        few = {given: [texts[i] for i in over]}
        again: Mapping[str, Any] = tokenizer(**few, truncation=True, max_length=limit, **plain)
        for key, value in again.items():
            for i, row in zip(over, value, strict=True):
                lists[key][i] = list(row)
    special = lists.pop("special_tokens_mask")
    numbers = {t for row, flags in zip(lists["input_ids"], special, strict=True)
               for t, flag in zip(row, flags, strict=True) if flag}  # fmt: skip
    kept = [i for i, row in enumerate(lists["input_ids"]) if row]
    if not kept:
        raise InputError("text", f"{len(lengths)} texts", "at least one text with a token in it")
    rows = [{key: value[i] for key, value in lists.items()} for i in kept]
    names = [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(numbers))]
    return Encoded(rows, kept, sum(map(sum, special)), names, len(over), max(lengths))


def padding_token(model: nn.Module, tokenizer: Any) -> tuple[int, str]:
    """The token that fills short texts up, and how it is called in a sentence."""
    config: Any = cast("Any", model).config
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id), f"{tokenizer.pad_token} (the tokenizer's)"
    number = getattr(config, "pad_token_id", None)
    if isinstance(number, int) and number >= 0:
        return number, f"token {number} (of config.json)"
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id), f"{tokenizer.eos_token} (the end-of-text token: there is none for padding)"
    return 0, "token 0 (the tokenizer has none for padding)"


def default_batch_size(model: nn.Module, longest: int, *, logits: bool) -> int:
    """Sequences per batch, so that a batch and its logits stay small."""
    tokens = _TOKENS
    if logits:
        words = int(cast("Any", model).get_input_embeddings().weight.shape[0])
        tokens = min(tokens, max(_LOGIT_BYTES // (4 * words), 1))
    return max(1, min(_MOST_SEQUENCES, tokens // max(longest, 1)))


def _padded(rows: Sequence[Sequence[int]], filling: int, multiple: int = 1) -> Tensor:
    width = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows], dtype=torch.long)


@dataclasses.dataclass(frozen=True)
class TextBatches:
    """Makes a batch of rows `(encoded, label or encoded targets or None)`.

    Attributes:
        filling: number of the padding token.
        masked: whether the model takes an attention mask.
        shifted: the labels are the texts themselves (a causal language model).
        start: the token before the decoder's inputs, where the model does not make these itself.
        multiple: number of which the width is a multiple, where the model would pad to that by itself.
    """

    filling: int
    masked: bool
    shifted: bool = False
    start: int | None = None
    multiple: int = 1

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        """The batch, padded on the right to its longest row, or to the next multiple."""
        encoded: list[dict[str, list[int]]] = [row for row, _ in rows]
        labels: list[Any] = [label for _, label in rows]
        batch = {
            key: _padded([row[key] for row in encoded], self.filling if key == "input_ids" else 0, self.multiple)
            for key in encoded[0]
        }
        real = _padded([[1] * len(row["input_ids"]) for row in encoded], 0, self.multiple)
        if self.masked:
            batch["attention_mask"] = real
        if self.shifted:  # nothing predicts the first token: with it ignored, what counts is what the loss is a mean of
            known = batch["input_ids"].masked_fill(real == 0, IGNORED)
            known[:, 0] = IGNORED
            batch["labels"] = known
        elif isinstance(labels[0], list):
            batch |= self._decoder([cast("list[int]", label) for label in labels])
        elif labels[0] is not None:
            batch["labels"] = torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)
        return batch

    def _decoder(self, targets: list[list[int]]) -> dict[str, Tensor]:
        mask = {"decoder_attention_mask": _padded([[1] * len(row) for row in targets], 0)}
        if self.start is None:
            return {"labels": _padded(targets, IGNORED), **mask}
        return {"decoder_input_ids": _padded([[self.start, *row[:-1]] for row in targets], self.filling), **mask}


class ImageRows(Dataset[Any]):
    """Images of files as `(pixel_values, label or None)`, opened when they are needed."""

    def __init__(self, files: Sequence[Path], labels: Sequence[Any] | None, processor: Any, mode: str) -> None:
        self._files, self._labels, self._processor, self._mode = files, labels, processor, mode

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        with _opened(self._files[index]) as image:
            whole = image.convert(self._mode)
        pixels: Tensor = self._processor(images=whole, return_tensors="pt")["pixel_values"][0]
        return pixels, None if self._labels is None else self._labels[index]


@contextlib.contextmanager
def _opened(file: Path) -> Generator[Any]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise IsthmusError(f"images need Pillow ({error}): pip install 'isthmus[hf]'") from error
    try:
        with Image.open(file) as image:
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError("images", str(file), f"a readable image ({said(error)})") from error


def check_images(files: Sequence[Path]) -> None:
    """Reads the head of every image, so that one that cannot be used is found before the first is measured.

    Raises:
        InputError: an image that cannot be read, has more than 8 bits per channel, or has several pages.
    """
    for file in files:
        with _opened(file) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):  # `convert` clips these to white
                raise InputError("images", str(file), f"an image of 8 bits per channel (its mode is {image.mode})",
                                 "save it as 8 bit, scaled as the images that the model was trained on")  # fmt: skip
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # the others of an MPO, of a camera, are previews of the first
                raise InputError("images", str(file), f"an image of one page (it has {pages})",
                                 "save the page you want as a file of its own")  # fmt: skip


def image_batch(rows: list[Any]) -> dict[str, Tensor]:
    """One batch of `ImageRows`.

    Raises:
        InputError: the image processor gives images of several shapes.
    """
    shapes = sorted({tuple(pixels.shape) for pixels, _ in rows})
    if len(shapes) > 1:
        raise InputError("images", f"shapes {shapes[0]} and {shapes[1]}", "images that are processed to one shape",
                         "give batch_size=1, or images of one size")  # fmt: skip
    batch = {"pixel_values": torch.stack([pixels for pixels, _ in rows])}
    labels = [label for _, label in rows]
    if labels[0] is not None:
        batch["labels"] = torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)
    return batch


def check_vocabulary(model: nn.Module, encoded: Encoded) -> None:
    """Raises `InputError` where the tokenizer knows more tokens than the model."""
    words = int(cast("Any", model).get_input_embeddings().weight.shape[0])
    most = max(itertools.chain.from_iterable(row["input_ids"] for row in encoded.rows))
    if most >= words:
        raise InputError("model", f"token {most}", f"a tokenizer of the model's {words} tokens",
                         "save the tokenizer that the model was trained with beside it")  # fmt: skip


def text_notes(
    encoded: Encoded, filling: str, limit: int | None, whose: str, side: str, what: str, *, multiple: int = 1
) -> list[str]:
    """What is said of padding, special tokens and truncation."""
    count = len(encoded.rows)
    notes: list[str] = []
    lengths = {len(row["input_ids"]) for row in encoded.rows}
    if len(lengths) > 1 or max(lengths) % multiple:
        to = f", to multiples of {multiple} tokens (the model's attention_window)" if multiple > 1 else ""
        notes.append(f"{what}: padded on the right with {filling}{to}; padding counts nowhere")
    if encoded.special:
        notes.append(f"{what}: {encoded.special} of {encoded.tokens} positions are special tokens "
                     f"({', '.join(encoded.names[:6])}), which count like any other")  # fmt: skip
    if encoded.cut:
        notes.append(f"{what}: {encoded.cut} of {count} were cut at the {side} to {limit} tokens ({whose}); the "
                     f"longest had {encoded.longest}")  # fmt: skip
    return notes


def takes(model: nn.Module, name: str) -> bool:
    """Whether a model's `forward` names an argument."""
    return name in Signature.of(model).names


def refuse_other(model: nn.Module, given: str) -> None:
    """Raises `InputError` where a model takes something else than what was given (`input_ids` or `pixel_values`)."""
    own = str(getattr(model, "main_input_name", given))
    if own == given:
        return
    wanted = {"input_ids": "text", "pixel_values": "images"}
    name = type(model).__name__
    if own in wanted:
        raise InputError(wanted[given], "given", f"{wanted[own]} for {name}", f"it takes {own}")
    raise InputError("model", name, f"a model of {listed(wanted.values())} (it takes {own})",
                     "make its batches yourself, for isthmus.measure")  # fmt: skip
