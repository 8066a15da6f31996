from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isthmus import InputError
from isthmus.experiments import file_source, is_file, task_from_source

ROWS = "a,b,y\n" + "".join(f"{i},{i * i % 7},{i * 0.5}\n" for i in range(20))


@pytest.mark.parametrize(("name", "expected"), [("digits", False), ("digts", False), ("t.csv", True), ("a/b", True)])
def test_what_is_meant_as_a_path(name: str, expected: bool) -> None:
    assert is_file(name) is expected


def test_a_recorded_source_gives_the_same_samples_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    source = file_source("t.csv", target=["y"], task="regression", inputs=["b"], test_fraction=0.5, seed=3)
    first = task_from_source(source)
    assert first.feature_names == ("b",)
    assert len(first.x_test) == 10
    monkeypatch.chdir("/")
    assert torch.equal(task_from_source(source).x_train, first.x_train)


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(ROWS)
    source = file_source(str(path), target=["y"], task="regression")
    path.write_text(ROWS + "1,2,3\n")
    with pytest.raises(InputError, match="it has changed"):
        task_from_source(source)
