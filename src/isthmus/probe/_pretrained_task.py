"""What a Hugging Face model is for, and the loss and labels that go with it."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from isthmus._errors import InputError, near_name_hint
from isthmus.probe._batches import Signature
from isthmus.probe._loading_files import listed
from isthmus.probe._losses import LOSSES


class Role(enum.Enum):
    """What a model is for, as far as its loss depends on it."""

    CAUSAL = "a language model"
    MASKED = "a masked language model"
    TEXT_TO_TEXT = "an encoder and decoder with a language head"
    CLASSES = "a classifier"
    NUMBERS = "a regression"
    BARE = "a model without a head, or with one for another task"


def role_of(model: nn.Module) -> Role:
    """The role of a model, by its class and its configuration."""
    from transformers.models.auto import modeling_auto as auto

    name, config = type(model).__name__, cast("Any", model).config
    known: dict[str, set[str]] = {
        key: {str(one) for one in getattr(auto, f"MODEL_FOR_{key}_MAPPING_NAMES", {}).values()}
        for key in ("CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION")
    }
    classifies = name.endswith(("ForSequenceClassification", "ForImageClassification"))
    if classifies or name in known["SEQUENCE_CLASSIFICATION"] | known["IMAGE_CLASSIFICATION"]:
        regression = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
        return Role.NUMBERS if regression else Role.CLASSES
    takes_labels = "labels" in Signature.of(model).names
    if getattr(config, "is_encoder_decoder", False):
        return Role.TEXT_TO_TEXT if takes_labels and _has_language_head(model) else Role.BARE
    if name.endswith("ForMaskedLM") or (name in known["MASKED_LM"] and name not in known["CAUSAL_LM"]):
        return Role.MASKED
    if takes_labels and (name.endswith(("ForCausalLM", "LMHeadModel")) or name in known["CAUSAL_LM"]):
        return Role.CAUSAL
    return Role.BARE


def _has_language_head(model: nn.Module) -> bool:
    head: Any = cast("Any", model).get_output_embeddings()
    return head is not None


def chosen_loss(role: Role, loss: str | None, *, labelled: bool) -> tuple[str | None, str]:
    """The loss by name, and what is to be said of the choice.

    Args:
        role: of the model.
        loss: as given: `"auto"`, None for none, or a name.
        labelled: whether there are labels.

    Raises:
        InputError: a loss that this model, or these data, cannot have.
    """
    if loss is not None and loss not in (*LOSSES, "auto"):
        raise InputError("loss", loss, f"auto, none, or one of {', '.join(LOSSES)}", near_name_hint(loss, LOSSES))
    language = role in (Role.CAUSAL, Role.TEXT_TO_TEXT)
    if loss == "auto":
        usual = {Role.CAUSAL: "model", Role.TEXT_TO_TEXT: "model", Role.CLASSES: "cross_entropy",
                 Role.NUMBERS: "square"}.get(role)  # fmt: skip
        if usual and (language or labelled):
            return usual, ""
        why = "there are no labels" if usual else f"it is {role.value}"
        return None, f"no loss: {why}; so no gradients and no alignment"
    if loss is None:
        return None, "no loss was asked for: no gradients and no alignment"
    if role in (Role.MASKED, Role.BARE):
        raise InputError("loss", loss, f"none (it is {role.value})", "make the batches yourself, for isthmus.measure")
    if language and loss != "model":
        raise InputError("loss", loss, f"model, for {role.value}: its own loss shifts the labels by one")
    if not language and not labelled:
        raise InputError("loss", loss, "none where there are no labels", "name their column with labels")
    if role is Role.CLASSES and loss == "square":
        raise InputError("loss", loss, f"cross_entropy or model, for {role.value}")
    if role is Role.NUMBERS and loss == "cross_entropy":
        raise InputError("loss", loss, f"square or model, for {role.value}")
    return loss, ""


def class_numbers(values: Sequence[Any], config: Any) -> tuple[list[int], str]:
    """Labels as the numbers of the model's classes, and what is to be said of it.

    Whole numbers are class numbers; names are those of the model's configuration. Where it names none and the data
    have as many names as the model has classes, they are numbered in alphabetical order.

    Raises:
        InputError: a number that is no class, or names that are not the model's.
    """
    count = int(config.num_labels)
    if config.problem_type == "multi_label_classification":
        raise InputError("labels", "one column", "none for a model of several labels per sample",
                         "make the batches yourself, for isthmus.measure")  # fmt: skip
    if all(isinstance(v, int) for v in values):
        wrong = next((v for v in values if not 0 <= v < count), None)
        if wrong is not None:
            raise InputError("labels", wrong, f"class numbers from 0 to {count - 1}, of this model of {count} classes")
        return [int(v) for v in values], ""
    if not all(isinstance(v, str) for v in values):
        odd = next((v for v in values if not isinstance(v, (str, int))), values[0])
        raise InputError("labels", odd, "class numbers or class names", "numbers to fit need a model of one label")
    known = {str(name): int(number) for name, number in cast("Mapping[Any, Any]", config.label2id or {}).items()}
    folded = {name.casefold(): number for name, number in known.items()}
    names = sorted(set(values))
    unknown = [name for name in names if name.casefold() not in folded]
    if not unknown:
        return [known.get(v, folded[v.casefold()]) for v in values], ""
    if all(name.isdecimal() and int(name) < count for name in names):
        return [int(v) for v in values], ""
    unnamed = all(name.startswith("LABEL_") for name in known)
    if unnamed and len(names) == count:
        said = f"the model names no classes: those of the data are numbered in alphabetical order ({listed(names, 4)})"
        return [names.index(v) for v in values], said
    hint = f"the model has {count} classes without names: give their numbers" if unnamed else ""
    raise InputError("labels", unknown[0], "a class of the model", hint or near_name_hint(unknown[0], known))


def real_numbers(values: Sequence[Any]) -> list[float]:
    """Labels of a regression.

    Raises:
        InputError: something that is no number.
    """
    odd = next((v for v in values if isinstance(v, str) or not isinstance(v, (int, float))), None)
    if odd is not None:
        raise InputError("labels", odd, "numbers, for a model of one label")
    return [float(v) for v in values]
