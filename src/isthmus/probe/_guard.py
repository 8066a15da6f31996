"""A model comes back exactly as it was, whatever happens in between."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_WAITING = ("broadcast_buffers", "require_backward_grad_sync", "require_forward_param_sync")
"""What lets a `DistributedDataParallel` wait for other processes, which need not be measuring, or not as often."""


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Generator[list[RemovableHandle]]:
    """Evaluation mode with fixed random states, everything restored at the end, also after an error or an interrupt.

    Restored: the mode of every submodule, hooks (those appended to the list this yields are removed), buffers,
    gradients, `requires_grad`, random states of Python, NumPy and torch on every device, and the attention fast path.
    Parts that are wrapped for data parallelism wait for no other process inside.

    Args:
        model: the model.
        seed: of the random states inside.

    Yields:
        A list that takes the handles of hooks.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, buffer, buffer.detach().clone())
               for module in model.modules() for name, buffer in module.named_buffers(recurse=False)]  # fmt: skip
    wanted = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    waiting = [(module, name, getattr(module, name)) for module in model.modules()
               if isinstance(module, nn.parallel.DistributedDataParallel) for name in _WAITING]  # fmt: skip
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what must be kept
    fast = torch.backends.mha.get_fastpath_enabled()
    handles: list[RemovableHandle] = []
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.inference_mode(False), torch.random.fork_rng(devices=devices), _uncompiled():
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.backends.mha.set_fastpath_enabled(False)  # it would run past the hooks of its parts
            model.eval()
            for module, name, _ in waiting:
                setattr(module, name, False)
            yield handles
        finally:
            for module, name, before in waiting:
                setattr(module, name, before)
            for handle in handles:
                handle.remove()
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, before in buffers:
                if module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer
                if not _same(buffer, before):
                    with torch.no_grad():
                        buffer.copy_(before)
            for parameter, requires, gradient in wanted:
                parameter.requires_grad_(requires)
                parameter.grad = gradient
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            torch.backends.mha.set_fastpath_enabled(fast)


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Compiled parts run as they were written: compiled code runs past hooks, or stumbles over them."""
    stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    return contextlib.nullcontext() if stance is None else stance("force_eager")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))
