"""A Hugging Face model on disk and the texts or images it is measured on, ready for `measure`."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from isthmus._errors import InputError
from isthmus.probe._loading_files import listed
from isthmus.probe._measurement import Measurement
from isthmus.probe._pretrained_model import (
    checked_directory,
    open_image_processor,
    open_model,
    open_tokenizer,
    transformers_package,
)
from isthmus.probe._pretrained_rows import as_strings, as_texts, find_images, read_texts
from isthmus.probe._pretrained_samples import (
    IMAGES_PER_BATCH,
    ImageRows,
    PretrainedSamples,
    TextBatches,
    TextRows,
    attention_window,
    check_images,
    check_vocabulary,
    default_batch_size,
    encode,
    image_batch,
    length_limit,
    padding_token,
    positions,
    refuse_other,
    takes,
    text_notes,
)
from isthmus.probe._pretrained_task import Role, chosen_loss, class_numbers, real_numbers, role_of


class Pretrained(NamedTuple):
    """What `measure(model, samples, **options)` needs.

    Attributes:
        model: in evaluation mode, on the CPU.
        samples: batches in the order of the file; `.notes` says what was decided on the way.
        options: the loss, as an option of `measure`.
    """

    model: nn.Module
    samples: PretrainedSamples
    options: dict[str, Any]


def load_pretrained(
    directory: str | Path,
    *,
    text: str | Path | Iterable[str] | None = None,
    images: str | Path | None = None,
    text_column: str | None = None,
    labels: str | Iterable[Any] | None = None,
    loss: str | None = "auto",
    max_length: int | None = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Pretrained:
    """Load a Hugging Face model from a directory, and texts or images as it takes them; nothing is fetched.

    The class is the first of `architectures` in config.json. Texts are encoded by the tokenizer in the directory, with
    the special tokens it adds, cut to what the model allows, and padded on the right within each batch; padding is
    masked and counts nowhere. Images go through the image processor in the directory. Weights are safetensors, or a
    `pytorch_model.bin` of tensors alone.

    The loss is the model's own for language models (each token given those before it) and for an encoder with a
    decoder (the targets, or the text itself), cross-entropy for a classifier with labels and square for a regression,
    and none for others, masked language models included. With a loss, `measure` measures gradients, too.

    Args:
        directory: what `save_pretrained` wrote.
        text: a `.txt` (a sample a line), `.csv`, `.tsv`, `.jsonl` or `.parquet`; or strings: a list, an array, a
            generator, a column of a table.
        images: a folder of images; subfolders are classes.
        text_column: column of the texts; `text`, or the only one of texts, if None.
        labels: column of the labels (for an encoder with a decoder, of the target texts); as many labels
            as texts, where `text` is strings.
        loss: `"auto"` as said above, None for none, or a name that `measure` knows.
        max_length: most tokens of a text; what the model and its tokenizer allow, if None.
        max_samples: samples to take at most, from the start.
        batch_size: samples per batch; chosen by their length and the number of tokens the model knows, if None.
        dtype: precision of the weights: as stored (`"auto"`), `"float32"`, `"float64"`, `"bfloat16"`, `"float16"`,
            or a `torch.dtype`.
        trust_remote_code: run code that the directory brings. Only for a directory that you have read, or trust.
        seed: of weights that are not in the files.

    Raises:
        InputError: no model, tokenizer or image processor there; a class that this transformers lacks; code that would
            have to be trusted; samples or labels that do not fit.
        IsthmusError: transformers or Pillow is not installed.

    Example:
        >>> model, samples, options = load_pretrained("my-gpt2", text="lines.txt")  # doctest: +SKIP
        >>> found = isthmus.measure(model, samples, **options)  # doctest: +SKIP
    """
    if (text is None) == (images is None):
        raise InputError("text", "nothing" if text is None else "beside images", "either text or images")
    max_samples, batch_size = _count("max_samples", max_samples), _count("batch_size", batch_size)
    max_length = _count("max_length", max_length)
    dtype = str(dtype).removeprefix("torch.")
    paths: dict[str, Any] = {"directory": directory} | ({} if images is None else {"images": images})
    for name, path in paths.items():
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(name, path, "a path")
    names: dict[str, Any] = {"text_column": text_column, "loss": loss}
    for name, named in names.items():
        if named is not None and not isinstance(named, str):
            raise InputError(name, named, "a name, or None", "for a loss of your own make the batches yourself, for "
                             "isthmus.measure" if name == "loss" else "")  # fmt: skip
    if images is not None:
        for name, value in (("text_column", text_column), ("max_length", max_length), ("labels", labels)):
            if value is not None:
                raise InputError(name, value if isinstance(value, (str, int)) else "given", "nothing beside images",
                                 "classes are the subfolders of the folder" if name == "labels" else "")  # fmt: skip
    given: Any = text if text is None or isinstance(text, (str, Path)) else as_strings(text)
    place, config = checked_directory(directory)
    model, notes = open_model(place, config, trusted=trust_remote_code, dtype=dtype, seed=seed)
    refuse_other(model, "input_ids" if images is None else "pixel_values")
    made: dict[str, Any] = {"max_samples": max_samples, "batch_size": batch_size, "trusted": trust_remote_code,
                            "loss": loss}  # fmt: skip
    if images is not None:
        samples, used = _images(place, model, images, **made)
    else:
        samples, used = _texts(place, model, given, text_column, labels, max_length, **made)
    samples.notes = (*notes, *samples.notes)
    samples.record |= {"directory": str(directory), "class": type(model).__name__, "dtype": dtype,
                       "trust_remote_code": trust_remote_code, "transformers": transformers_package().__version__,
                       "batch_size": samples.batch_size, "loss": used}  # fmt: skip
    return Pretrained(model, samples, {"loss": used})


def _count(name: str, value: Any) -> int | None:
    try:
        number = None if value is None else operator.index(value)
    except TypeError:
        number = 0
    if number is not None and (number < 1 or isinstance(value, bool)):
        raise InputError(name, value, "a whole number of at least 1, or None")
    return number


def _texts(
    place: Path, model: nn.Module, text: str | Path | list[str], column: str | None, labels: Any,
    max_length: int | None, *, max_samples: int | None, batch_size: int | None, trusted: bool, loss: str | None,
) -> tuple[PretrainedSamples, str | None]:  # fmt: skip
    tokenizer = open_tokenizer(place, trusted=trusted)
    role = role_of(model)
    if isinstance(text, (str, Path)):
        if labels is not None and not isinstance(labels, str):
            raise InputError("labels", type(labels).__name__, "the name of a column, for a file of texts")
        found, source = read_texts(text, column, labels, max_samples), str(text)
    else:
        found, source = as_texts(text, labels, max_samples), f"{len(text)} texts"
    if labels is not None and role in (Role.CAUSAL, Role.MASKED, Role.BARE):
        raise InputError("labels", labels if isinstance(labels, str) else "given", f"none for {role.value}",
                         "they are for classifiers, and for an encoder with a decoder")  # fmt: skip
    used, said = chosen_loss(role, loss, labelled=labels is not None)
    limit, whose = length_limit(model, tokenizer, max_length)
    encoded = encode(tokenizer, found.texts, limit)
    check_vocabulary(model, encoded)
    filling, called = padding_token(model, tokenizer)
    _tell_padding(model, role, filling)
    side = "start" if tokenizer.truncation_side == "left" else "end"
    masked = takes(model, "attention_mask")
    multiple = attention_window(model) if masked else 1
    notes = [*found.notes, *text_notes(encoded, called, limit, whose, side, "texts", multiple=multiple)]
    if len(encoded.kept) < len(found.texts):
        notes.append(f"{len(found.texts) - len(encoded.kept)} texts without a token were left out")
    record: dict[str, Any] = {"text": source, "text_column": column, "labels": labels if isinstance(labels, str) else
                              labels is not None, "samples": len(encoded.rows), "tokens": encoded.tokens,
                              "special_tokens": encoded.special, "cut": encoded.cut, "max_length": limit,
                              "padding": called}  # fmt: skip
    second, start, more = _second(model, tokenizer, role, found.texts, found.labels, encoded.kept, limit, used)
    notes += more
    if not masked and len({len(row["input_ids"]) for row in encoded.rows}) > 1:
        if batch_size not in (None, 1):
            raise InputError("batch_size", batch_size, f"1: {type(model).__name__} takes no attention_mask, so padding "
                             "would count")  # fmt: skip
        batch_size = 1
        notes.append("texts: one at a time, for the model takes no attention_mask")
    longest = max(len(row["input_ids"]) for row in encoded.rows)
    longest = max([longest, *(len(one) for one in second if isinstance(one, list))])
    rows = [
        ({key: value for key, value in row.items() if takes(model, key)}, label)
        for row, label in zip(encoded.rows, second, strict=True)
    ]
    shifted = role is Role.CAUSAL and used is not None
    heads = role in (Role.CAUSAL, Role.MASKED, Role.TEXT_TO_TEXT)
    size = batch_size or default_batch_size(model, longest, logits=heads)
    if shifted and getattr(model, "loss_type", "") is None:  # GPT-2's, and said on stderr where it is not set
        cast("Any", model).loss_type = "ForCausalLM"
    collate = TextBatches(filling, masked, shifted, start, multiple)
    return PretrainedSamples(TextRows(rows), collate, size, [*notes, *([said] if said else [])], record), used


def _tell_padding(model: nn.Module, role: Role, filling: int) -> None:
    """A classifier on top of a decoder looks for the last token that is no padding, and must know which that is."""
    config: Any = cast("Any", model).config
    if role in (Role.CLASSES, Role.NUMBERS) and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = filling


def _second(
    model: nn.Module, tokenizer: Any, role: Role, texts: Sequence[str], labels: list[Any] | None, kept: Sequence[int],
    limit: int | None, loss: str | None,
) -> tuple[list[Any], int | None, list[str]]:  # fmt: skip
    """Labels, or the tokens of the decoder, of every text that is kept; the token before these; and notes."""
    config: Any = cast("Any", model).config
    if role in (Role.CLASSES, Role.NUMBERS):
        if labels is None or loss is None:
            return [None] * len(kept), None, []
        chosen = [labels[i] for i in kept]
        if role is Role.NUMBERS:
            return list(real_numbers(chosen)), None, []
        numbers, said = class_numbers(chosen, config)
        return list(numbers), None, [said] if said else []
    if not (getattr(config, "is_encoder_decoder", False) and takes(model, "decoder_input_ids")):
        return [None] * len(kept), None, []
    if labels is not None:
        odd = next((one for one in labels if not isinstance(one, str)), None)
        if odd is not None:
            raise InputError("labels", odd, f"target texts, for {role.value}")
    room = min((n for n in (limit, positions(model, decoder=True)) if n is not None), default=None)
    targets = encode(tokenizer, [(texts if labels is None else labels)[i] for i in kept], room, targets=True)
    if len(targets.kept) < len(kept):
        raise InputError("labels", "a text without a token", "targets with at least one token")
    own = takes(model, "labels") and loss is not None
    start = None if own else _decoder_start(config)
    what = "the same text" if labels is None else "the targets"
    notes = [f"decoder: it reads {what}, shifted right behind a start token{' by the model itself' if own else ''}"]
    if targets.cut and (labels is not None or room != limit):
        whose = "" if room == limit else " (the decoder's positions)"
        notes.append(f"targets: {targets.cut} of {len(kept)} were cut to {room} tokens{whose}; the longest had "
                     f"{targets.longest}")  # fmt: skip
    return [row["input_ids"] for row in targets.rows], start, notes


def _decoder_start(config: Any) -> int:
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    raise InputError("model", type(config).__name__, "a configuration with a decoder_start_token_id")


def _images(
    place: Path, model: nn.Module, folder: str | Path, *, max_samples: int | None, batch_size: int | None,
    trusted: bool, loss: str | None,
) -> tuple[PretrainedSamples, str | None]:  # fmt: skip
    found = find_images(folder, max_samples)
    check_images(found.files)
    processor = open_image_processor(place, trusted=trusted)
    role, config, notes = role_of(model), cast("Any", model).config, list(found.notes)
    numbers: list[Any] | None = None
    if found.classes is not None and role is Role.CLASSES and loss is not None:
        try:
            numbers, said = class_numbers(found.classes, config)
            notes += [said] if said else []
        except InputError as error:
            if loss != "auto":
                raise
            names = listed(dict.fromkeys(found.classes), 3)
            notes.append(f"the subfolders ({names}) are no classes of the model, so there are no labels ({error})")
    elif found.classes is not None and role is not Role.CLASSES:
        notes.append(f"the subfolders are not used as labels: it is {role.value}")
    used, said = chosen_loss(role, loss, labelled=numbers is not None)
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
    rows = ImageRows(found.files, numbers, processor, mode)
    record: dict[str, Any] = {"images": str(folder), "samples": len(rows), "labels": numbers is not None,
                              "image_processor": type(processor).__name__}  # fmt: skip
    size = batch_size or IMAGES_PER_BATCH
    return PretrainedSamples(rows, image_batch, size, [*notes, *([said] if said else [])], record), used


def with_origin(found: Measurement, data: Any) -> Measurement:
    """A measurement with what is known of its samples, where `load_pretrained` made them."""
    if not isinstance(data, PretrainedSamples):
        return found
    title = f"{data.record['class']} on {Path(data.record.get('text') or data.record['images']).name}"
    return found.with_record(title=title, configuration={"pretrained": dict(data.record)})
