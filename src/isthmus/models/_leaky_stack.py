"""Any sequence of blocks that keep the shape of their input, as a leaky path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, cast, final, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._errors import InputError
from isthmus.geometry import path_speed
from isthmus.models._steps import Adaptive, LayerSteps, as_steps, checked_steps

_KEEP = "put what changes the shape (strides, pooling, projections) between stacks, not inside one"


@final
class LeakyBlock(nn.Module):
    """One step of a `LeakyStack`: `x ← (1 − ρ_ℓ L̃) x + ρ_ℓ f_ℓ(x)` (arXiv 2405.17573, docs/theory 1.1).

    It is what indexing or iterating a stack gives, and is called like the block inside it: the first argument (or the
    first tensor given by name) is the state `x`, everything else is handed to the block. Of a tuple or list that the
    block returns the first item is its output; the others are passed on. Attributes that it does not have itself are
    those of the block, to read and to set.

    Args:
        block: the block.
        stack: the stack whose steps it has.
        index: which of its blocks it is, from 0.

    Attributes:
        block: the block inside.
        index: `ℓ − 1`.

    Raises:
        InputError: on the call: the block changes the shape or dtype of its state, changes it in place, or gives no
            tensor.
    """

    def __init__(self, block: nn.Module, stack: LeakyStack, index: int) -> None:
        super().__init__()
        self.index = index
        self._owner = (stack,)  # a tuple, so that the stack does not become a part of its own part
        self.block = block  # last: from here on `__setattr__` looks at it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            block = self.__dict__.get("_modules", {}).get("block")
            if block is None:
                raise
            return getattr(block, name)

    def __setattr__(self, name: str, value: Any) -> None:
        block = self.__dict__.get("_modules", {}).get("block")
        own = name.startswith("_") or name in ("block", *self.__dict__) or hasattr(type(self), name)
        if block is None or own or not hasattr(block, name):
            super().__setattr__(name, value)
        else:
            setattr(block, name, value)

    @property
    def stack(self) -> LeakyStack:
        """The stack it belongs to."""
        return self._owner[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The next state, in whatever the block returns."""
        x = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError("x", given, f"a tensor of real numbers as the state of {self._named()}")
        following = not torch.compiler.is_compiling() and not x.is_inference()
        version = x._version if following else 0
        whole: Any = self.block(*args, **kwargs)
        many = isinstance(whole, (tuple, list)) and len(cast("tuple[Any, ...]", whole)) > 0
        first: Any = whole[0] if many else whole
        self._check(x, first)
        if following and x._version != version:
            raise InputError("blocks", f"{self._named()}, which changes its input in place", "blocks that leave their "
                             "input as it is", "set inplace=False, or wrap it in a module that clones")  # fmt: skip
        old, new = self.stack.coefficients(self.index)
        state = old.to(x.device) * x + new.to(x.device) * first  # blocks may stand on several devices
        self.stack.observe(self.index, x, state)
        if not many:
            return state
        items: list[Any] = [state, *whole[1:]]
        if isinstance(whole, list):
            return items
        return type(whole)(*items) if hasattr(whole, "_fields") else tuple(items)

    def _named(self) -> str:
        return f"block {self.index} ({type(self.block).__name__})"

    def _check(self, x: Tensor, first: Any) -> None:
        if not isinstance(first, Tensor):
            raise InputError("blocks", f"{self._named()}, which returns {type(first).__name__}",
                             "blocks that return a tensor, or a tuple with the state first")  # fmt: skip
        if x.is_nested or first.is_nested:
            return
        if first.shape != x.shape:
            raise InputError("blocks", f"{self._named()}, which takes {tuple(x.shape)} to {tuple(first.shape)}",
                             "blocks that keep the shape of the state", _KEEP)  # fmt: skip
        if first.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError("blocks", f"{self._named()}, which takes {x.dtype} to {first.dtype}",
                             "blocks that keep the dtype of the state", "convert all blocks to one dtype")  # fmt: skip


@final
class LeakyStack(nn.Module):
    """`x_ℓ = (1 − ρ_ℓ L̃) x_{ℓ−1} + ρ_ℓ f_ℓ(x_{ℓ−1})` of any blocks (arXiv 2405.17573, docs/theory 1.1 and 1.3).

    A residual MLP, convolution or transformer as a leaky path: each step `ρ_ℓ > 0` of the unit of depth
    (`Σ ρ_ℓ = 1`) belongs to a block of your own. Called, it hands the state from block to block, with all further
    arguments (a mask, say) for each; the last block's further outputs are passed on. It can also stand where a model
    has an `nn.ModuleList` that it goes through itself: it has a length, items (`LeakyBlock`) and slices.

    | | `f_ℓ(x)` |
    |---|---|
    | `residual=False` | `block_ℓ(x)`: the branch alone |
    | `residual=True` | `block_ℓ(x) − x`: the block adds its input itself |
    | and `plain_start=True` | `(block_ℓ(x) − x)/ρ⁰_ℓ + c_ℓ x`, `ρ⁰` the first steps |

    With `plain_start` a step is `x_ℓ = x + (ρ_ℓ/ρ⁰_ℓ)(block_ℓ(x) − x) − ρ_ℓ (L̃ − c_ℓ) x`. At first that is
    `block_ℓ(x)`, to the last bit. Where a step changes, the branch of its block is scaled by `ρ_ℓ/ρ⁰_ℓ`. The gain `c_ℓ`
    makes up for the leak. It starts at `L̃` and is trained, so that the leak acts through the weight decay: to keep the
    state costs weight. At `L̃ = 0` there is no gain.

    Args:
        blocks: the modules, in order; they are used, not copied.
        effective_depth: `L̃ ≥ 0`.
        steps: `equidistant`, `irregular`, `adaptive`, or a `LayerSteps` with its own settings.
        residual: whether the blocks add their input themselves.
        plain_start: whether to start as the blocks without a leak; needs `residual=True`.

    Attributes:
        depth: `L`, number of blocks.
        effective_depth: `L̃`.
        steps: the `LayerSteps` rule.
        layer_steps: `ρ`, a buffer `(L,)` (so it is in the state dict); change it with `set_layer_steps`.
        carry: `c`, a parameter `(L,)`, or None.

    Raises:
        InputError: no blocks, something that is no module, a negative effective depth, too few blocks for it, an
            unknown rule, or `plain_start` without `residual`.

    Example:
        >>> blocks = [torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(16, 16)) for _ in range(6)]
        >>> stack = LeakyStack(blocks, effective_depth=2.0, steps="irregular")
        >>> stack(torch.randn(5, 16)).shape, len(stack)
        (torch.Size([5, 16]), 6)
    """

    layer_steps: Tensor
    first_steps: Tensor

    def __init__(
        self,
        blocks: Iterable[nn.Module] | Any,
        *,
        effective_depth: float | int,
        steps: str | LayerSteps = "equidistant",
        residual: bool = False,
        plain_start: bool = False,
    ) -> None:
        super().__init__()
        found: list[Any] = list(cast("Iterable[Any]", blocks)) if isinstance(blocks, Iterable) else []
        if not found or not all(isinstance(block, nn.Module) for block in found):
            shown = ", ".join(type(block).__name__ for block in found) or type(blocks).__name__
            raise InputError("blocks", shown, "at least one torch.nn.Module, in a list, ModuleList or Sequential")
        if plain_start and not residual:
            raise InputError("plain_start", plain_start, "False where the blocks are branches without a skip of their "
                             "own", "give residual=True if a block adds its input itself")  # fmt: skip
        self.depth = len(found)
        self.steps = as_steps(steps)
        try:
            rho = self.steps.initial(self.depth, effective_depth)
        except InputError as error:
            if error.argument != "depth":
                raise
            hint = "use more blocks, or a smaller effective_depth"
            raise InputError("blocks", f"{self.depth} of them", error.expected, hint) from None
        self.effective_depth = float(effective_depth)
        self.residual, self.plain_start = residual, plain_start
        for index, block in enumerate(found):
            self.add_module(str(index), LeakyBlock(block, self, index))
        like = next((p for p in self.parameters() if p.is_floating_point()), None)
        dtype = torch.promote_types(torch.get_default_dtype() if like is None else like.dtype, torch.float32)
        rho = rho.to(None if like is None else like.device, dtype)
        self.register_buffer("layer_steps", rho)
        if plain_start:
            self.register_buffer("first_steps", rho.clone())
        leaks = plain_start and self.effective_depth > 0
        self.carry = nn.Parameter(torch.full_like(rho, self.effective_depth)) if leaks else None
        self._moves: dict[int, Tensor] = {}
        self._watched = False

    def __len__(self) -> int:
        return self.depth

    def __iter__(self) -> Iterator[LeakyBlock]:
        # By name: a parametrisation, say, makes a part of the stack that is no block.
        return (cast("LeakyBlock", self._modules[str(index)]) for index in range(self.depth))

    @overload
    def __getitem__(self, index: int) -> LeakyBlock: ...
    @overload
    def __getitem__(self, index: slice) -> list[LeakyBlock]: ...
    def __getitem__(self, index: int | slice) -> LeakyBlock | list[LeakyBlock]:
        return list(self)[index]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The last state, in whatever the last block returns; see `LeakyBlock` for what is checked."""
        result: Any = x
        for block in self:
            result = block(result[0] if isinstance(result, (tuple, list)) else result, *args, **kwargs)
        return result

    def coefficients(self, index: int) -> tuple[Tensor, Tensor]:
        """What the state and what the block's output are multiplied by in one step."""
        rho = self.layer_steps[index]
        if not self.plain_start:
            return 1 - rho * (self.effective_depth + self.residual), rho
        new = rho / self.first_steps[index]  # exactly 1 at the start
        old = 1 - new
        return (old if self.carry is None else old - rho * (self.effective_depth - self.carry[index])), new

    def reset_parameters(self) -> None:
        """Put the gains `c` back to `L̃`; steps and blocks stay as they are."""
        if self.carry is not None:
            nn.init.constant_(self.carry, self.effective_depth)

    def set_layer_steps(self, rho: Float[Tensor, ...]) -> None:
        """Replace the layer steps.

        Args:
            rho: `L` positive numbers that sum to 1, to the rounding of their dtype or the stack's.

        Raises:
            InputError: anything else.
        """
        self.layer_steps.copy_(checked_steps(rho, self.depth, self.layer_steps.dtype))

    @torch.no_grad()
    def observe(self, index: int, before: Tensor, after: Tensor) -> None:
        """Add one move to those that `update_steps` goes by: in training with adaptive steps, not otherwise."""
        if not (self._watched or (self.training and self.steps.adaptive)):
            return
        exact = torch.promote_types(after.dtype, torch.float32)
        moved = torch.stack([(after.to(exact) - before.to(exact)).square().sum(), after.to(exact).square().sum()])
        if index not in self._moves:
            self._moves[index] = torch.zeros(2, dtype=exact, device=after.device)
        self._moves[index] += moved.to(self._moves[index])

    def update_steps(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Float[Tensor, " depth"]:
        """One damped update of adaptive steps, by the speeds `c_ℓ = ‖A_ℓ − A_{ℓ−1}‖ / (ρ_ℓ ‖A_ℓ‖)` (docs/theory 1.3).

        Called without a batch, once per epoch say, it goes by all states in training mode since the last update: sums
        that are not in the state dict, and that count padding, too. The caller decides when: the `interval` of the
        rule is not looked at. Weights stay with their blocks; see `Adaptive.update` for the formula.

        Args:
            x: a batch of states at the start of the stack, to go by it alone; it is run in evaluation mode, without
                gradients.
            args: further arguments of the blocks, with `x`.
            kwargs: the same by name.

        Returns:
            The new steps, float64 on the CPU.

        Raises:
            InputError: steps that are not adaptive, a block without states, or states that are not finite or vanish.
        """
        rule = self.steps
        if not isinstance(rule, Adaptive):
            raise InputError("steps", rule.name, "'adaptive', for an update", "make the stack with steps='adaptive'")
        if x is not None:
            self._run(x, *args, **kwargs)
        missing = [str(index) for index in range(self.depth) if index not in self._moves]
        if missing:
            found = "no states" if len(missing) == self.depth else f"no states of block {', '.join(missing)}"
            raise InputError("x", found, "a batch, or forward passes in training mode since the last update, through "
                             "every block", "call update_steps after an epoch, or give it a batch")  # fmt: skip
        moves = torch.stack([self._moves[index].to("cpu", torch.float64) for index in range(self.depth)])
        self._moves = {}
        if not bool(torch.isfinite(moves).all()):
            raise InputError("x", "states that are not finite", "finite states", "the training may have diverged")
        moved, norm_sq = moves.unbind(1)
        rho = self.layer_steps.to("cpu", torch.float64)
        speed = path_speed(moved, torch.cat([norm_sq.new_zeros(1), norm_sq]), rho)
        if not bool(torch.isfinite(speed).all()):
            vanished = ", ".join(str(index) for index, c in enumerate(speed.tolist()) if math.isinf(c))
            raise InputError("x", f"states that are 0 after block {vanished}", "states that do not vanish",
                             "look at this block, and at its step")  # fmt: skip
        new = rule.update(rho, speed, self.effective_depth)
        self.set_layer_steps(new)
        return new

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Replace the sums by those of a batch; a batch that fails leaves them as they were."""
        modes = [(module, module.training) for module in self.modules()]
        kept, self._moves = self._moves, {}
        try:
            self.eval()
            self._watched = True
            with torch.no_grad():
                self(x, *args, **kwargs)
        except BaseException:
            self._moves = kept
            raise
        finally:
            self._watched = False
            for module, mode in modes:
                module.training = mode

    def extra_repr(self) -> str:
        """Sizes and rules, for printing."""
        kind = f", residual={self.residual}, plain_start={self.plain_start}"
        return f"depth={self.depth}, effective_depth={self.effective_depth:g}, steps={self.steps}{kind}"
