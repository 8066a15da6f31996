"""The processes that train one network: each computes its part of every batch, and all take the same step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus._together import Together

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from isthmus.models import LeakyResNet

Value = TypeVar("Value")


class Alone:
    """One process: nothing to share, nobody to ask."""

    size = 1
    first = True

    def fabric(self, precision: str, device: torch.device, scaler: torch.amp.GradScaler) -> Fabric:
        """Lightning Fabric in the precision asked for; the scaler is that of half precision."""
        from lightning_fabric import Fabric  # takes seconds to import
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment

        accelerator = "cpu" if device.type == "cpu" else "auto"
        # with a plain environment given, Fabric does not look for a cluster's, whose settings are not about this
        plugins: list[Any] = [LightningEnvironment(), *_precision(precision, device, scaler)]
        return Fabric(accelerator=accelerator, devices=1, plugins=plugins)

    def module(self, fabric: Fabric, model: LeakyResNet) -> nn.Module:
        """What the model is called by."""
        return model

    def part(self, rows: Tensor) -> Tensor:
        """Which rows of a batch this process computes."""
        return rows

    def all(self, fine: bool) -> bool:
        """Whether it is so on every process."""
        return fine

    def on_first(self, function: Callable[[], Value]) -> Value:
        """What the first process finds out, on all of them; the others wait."""
        return function()

    def lead(self, model: LeakyResNet, function: Callable[[], Value]) -> Value:
        """The same of what changes the model on the first process: all have its weights and layer steps then."""
        return function()

    def agree(self, said: Callable[[], dict[str, str]]) -> None:
        """Raises `InputError` where the processes were not given the same."""

    def check_samples(self, n: int) -> None:
        """Raises `InputError` for fewer samples than processes."""


class Team(Alone):
    """This process among those of the default group of `torch.distributed`."""

    def __init__(self, together: Together) -> None:
        self._together = together
        self.rank, self.size = together.rank, together.size
        self.first = together.rank == 0

    def agree(self, said: Callable[[], dict[str, str]]) -> None:
        """Raises `InputError` where the processes were not given the same."""
        found = self._together.meet(said())
        for rank, other in enumerate(found[1:], start=1):
            for name, value in found[0].items():
                if other[name] != value:
                    raise InputError(name, f"another on process {rank} than on process 0", "the same on all processes",
                                     "give each process all samples and settings; fit shares the work")  # fmt: skip

    def check_samples(self, n: int) -> None:
        """Raises `InputError` for fewer samples than processes."""
        if n < self.size:
            raise InputError("x", f"{n} samples to train on", f"at least one for each of {self.size} processes")

    def fabric(self, precision: str, device: torch.device, scaler: torch.amp.GradScaler) -> Fabric:
        """Fabric with DistributedDataParallel over the processes that are there."""
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        # every process has one device and its own network on it: there is nothing for Fabric to place or to start
        strategy = DDPStrategy(parallel_devices=[device] * self.size, cluster_environment=_environment(self),
                               **_buffers_stay())  # fmt: skip
        # nor to launch, which would also set the number of threads
        return Fabric(strategy=strategy, plugins=_precision(precision, device, scaler))

    def module(self, fabric: Fabric, model: LeakyResNet) -> nn.Module:
        """The model under DistributedDataParallel, which gives all processes the weights of the first."""
        return fabric.strategy.setup_module(model)

    def part(self, rows: Tensor) -> Tensor:
        """A part as large as the others', or by one larger."""
        return rows.tensor_split(self.size)[self.rank]

    def all(self, fine: bool) -> bool:
        """Whether it is so on every process."""
        return all(self._together.meet(fine))

    def on_first(self, function: Callable[[], Value]) -> Value:
        """What the first process finds out, on all of them; the others wait. An error there is one on all."""
        return self._together.on_first(function)

    def lead(self, model: LeakyResNet, function: Callable[[], Value]) -> Value:
        """The same of what changes the model on the first process: all have its weights and layer steps then."""
        made = self.on_first(function)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        return made


@contextmanager
def team_of(distributed: bool) -> Generator[Alone]:
    """The processes of the default group, or this one alone.

    Raises:
        InputError: `distributed` without a process group.
    """
    if not distributed:
        yield Alone()
        return
    with Together.meeting("distributed") as together:
        yield Team(together)


def _precision(precision: str, device: torch.device, scaler: torch.amp.GradScaler) -> list[Any]:
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    if precision == "true":
        return []
    half = precision == "16-mixed"  # with a scaler of its own, Fabric would scale a loss that is scaled already
    return [MixedPrecision("16-mixed" if half else "bf16-mixed", device.type, scaler if half else None)]


def _environment(team: Team) -> Any:
    """What Fabric asks about processes that somebody else has started."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    class Started(LightningEnvironment):
        @property
        def creates_processes_externally(self) -> bool:
            return True

        def world_size(self) -> int:
            return team.size

        def global_rank(self) -> int:
            return team.rank

        def local_rank(self) -> int:
            return team.rank  # of one device each

        def node_rank(self) -> int:
            return 0

    return Started()


def _buffers_stay() -> dict[str, Any]:
    """Fixed maps and layer steps are the same on all processes already: they are not sent before every batch."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
