"""The mean of training losses: of the batches of a step, of the steps between two of a schedule."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from isthmus._errors import InputError


class MeanLoss:
    """Sums losses without waiting for a device."""

    def __init__(self) -> None:
        self._sum: Any = None
        self._n = 0

    def add(self, loss: Any) -> None:
        """The loss of one training step.

        Raises:
            InputError: not one number.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise InputError("loss", f"a tensor of shape {tuple(loss.shape)}", "one number, the mean of the batch")
            value: Any = loss.detach().float()
        else:
            try:
                value = float(loss)
            except (TypeError, ValueError):
                raise InputError("loss", loss, "one number, the mean of the batch") from None
        self._sum, self._n = value if self._sum is None else self._sum + value, self._n + 1

    def take(self) -> tuple[Any, int] | None:
        """The mean of the losses since it was taken last, as a tensor where they were, and their number; or None."""
        if not self._n:
            return None
        mean, n = self._sum / self._n, self._n
        self._sum, self._n = None, 0
        return mean, n
