"""What the check of annotations during the tests finds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

CODE = """
from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jaxtyping import Float, Int
from torch import Tensor


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], *, turned: bool = False) -> Float[Tensor, "n m"]:
    return (a @ b).mT if turned else a @ b


def within(a: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    product(a.mT, a)
    return a


def either(a: Float[Tensor, "n d"] | Int[Tensor, " n"], b: Float[Tensor, " n"]) -> int:
    return len(a)


def longer(a: Sequence[Float[Tensor, " n"]]) -> Float[Tensor, " n+1"]:
    return a[0].new_zeros(len(a[0]) + len(a))


def pieces(a: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, " d"]]:
    yield from a


def plain(a: float, b: str = "") -> str:
    return b or a


def adding(k: int):
    def add(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], more: int = 0) -> Float[Tensor, "n d"]:
        return (a + b + k + more).mT if k < 0 else a + b + k + more

    return add


def keeping(weights: Tensor):
    def held(n: int) -> int:
        return n * len(weights) // 2

    return held


def count(k: int) -> int:
    def down(n: int) -> int:
        return 0 if n == 0 else 1 + down(n - 1)

    return down(k)


@dataclasses.dataclass
class Held:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]

    def both(self, c: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        return self.a + c
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import importlib

    from typechecked import check_annotations

    folder: Path = tmp_path_factory.mktemp("checked")
    (folder / "package_for_checks.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        check_annotations("package_for_checks")
        yield importlib.import_module("package_for_checks")


def test_a_local_function_is_not_kept(checked: Any) -> None:
    weights = zeros(2, 2)
    seen = weakref.ref(weights)
    assert checked.keeping(weights)(1) == 1
    del weights
    gc.collect()
    assert seen() is None


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


def test_what_fits_passes(checked: Any) -> None:
    assert checked.product(zeros(2, 3), zeros(3, 4)).shape == (2, 4)
    assert checked.product(zeros(2, 3), b=zeros(3, 2), turned=True).shape == (2, 2)
    assert checked.product(zeros(5, 1), zeros(1, 2)).shape == (5, 2)  # sizes of one call are none of the next
    assert checked.within(zeros(2, 3)).shape == (2, 3)
    assert checked.either(zeros(2, 3), zeros(2)) == checked.either(torch.arange(2), zeros(2)) == 2
    assert checked.longer([zeros(3)]).shape == (4,)
    assert [len(row) for row in checked.pieces(zeros(2, 3))] == [3, 3]
    assert checked.plain(1.0, "b") == "b"
    one, ten = checked.adding(1), checked.adding(10)  # two functions of one `def`
    assert [float(f(zeros(2, 3), b=zeros(2, 3)).max()) for f in (one, ten, one)] == [1, 10, 1]
    assert ten(zeros(1, 1), zeros(1, 1), more=5) == 15
    assert checked.count(5) == 5
    assert checked.Held(zeros(2), zeros(2)).both(zeros(2)).shape == (2,)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.product(zeros(2, 3), zeros(4, 2)),  # arguments that disagree
        lambda m: m.product(zeros(2, 3), b=zeros(4, 2)),
        lambda m: m.product(zeros(2, 3), zeros(3, 4), turned=True),  # a result that does not fit the arguments
        lambda m: m.product(zeros(2, 3), zeros(3)),
        lambda m: m.product(zeros(2, 3).long(), zeros(3, 2).long()),
        lambda m: m.product(zeros(2, 3), zeros(3, 2), turned=1),
        lambda m: m.either(zeros(2, 3), zeros(3)),  # the shape that did not fit leaves no sizes behind
        lambda m: m.either(torch.arange(2), zeros(3)),
        lambda m: m.longer([zeros(3), zeros(3)]),
        lambda m: list(m.pieces(zeros(2))),
        lambda m: (m.adding(1)(zeros(2, 3), zeros(2, 3)), m.adding(2)(zeros(2, 3), zeros(3, 3))),
        lambda m: m.adding(-1)(zeros(2, 3), zeros(2, 3)),
        lambda m: m.adding(1)(zeros(2, 3), zeros(2, 3), more="1"),
        lambda m: m.count(2.0),
        lambda m: m.plain(1),
        lambda m: m.plain(1.0),
        lambda m: m.Held(zeros(2), zeros(3)),
        lambda m: m.Held(zeros(2), zeros(2)).both(zeros(2, 2)),
        lambda m: m.Held(zeros(2), zeros(2)).both(zeros(1)),
    ],
)
def test_what_does_not_fit_is_refused(checked: Any, call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeCheckError):
        call(checked)
