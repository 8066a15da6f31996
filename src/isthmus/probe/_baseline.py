"""The same architecture with fresh weights, to be measured beside a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from isthmus._errors import InputError
from isthmus._random import torch_generator

INIT = "init"


def fresh_model(
    model: nn.Module, baseline: str | nn.Module | Callable[[], nn.Module], seed: int
) -> nn.Module:  # fmt: skip
    """A freshly initialised model: by its own `reset_parameters`, by its configuration, or as given.

    Args:
        model: the model; nothing of it is changed.
        baseline: `"init"`, a model, or a callable that makes one.
        seed: of the initial weights.

    Raises:
        InputError: not one of these, or a module with parameters that does not say how it starts.
    """
    if isinstance(baseline, nn.Module):
        return baseline
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(torch_generator(seed, "baseline").initial_seed())  # no model the user seeded alike
        if callable(baseline):
            made: Any = baseline()
            if not isinstance(made, nn.Module):
                raise InputError("baseline", type(made).__name__, "a callable that makes a torch.nn.Module")
        elif baseline == INIT:
            made = _initialised(model)
        else:
            raise InputError("baseline", baseline, "'init', a model, a callable that makes one, or None")
    return made if like is None else made.to(like.device, like.dtype)


def _initialised(model: nn.Module) -> nn.Module:
    config = getattr(model, "config", None)
    if config is not None and hasattr(type(model), "from_pretrained"):  # Hugging Face: made from its configuration
        return type(model)(copy.deepcopy(config))
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise InputError("baseline", INIT, f"modules that can start anew ({name or 'the model'}, a "
                             f"{type(module).__name__}, has parameters and no reset_parameters)",
                             "give baseline=a fresh model, or a callable that makes one")  # fmt: skip
    return made
