"""`isthmus measure DIRECTORY`: a Hugging Face model on disk, and the texts or images it is measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus._errors import InputError

if TYPE_CHECKING:
    from isthmus.probe import Pretrained

_OF_A_FACTORY = ("data", "weights", "arguments", "inputs", "targets")
_OF_A_DIRECTORY = ("text", "images", "text_column", "labels", "max_length", "dtype", "trust_remote_code")


@dataclasses.dataclass(frozen=True)
class DirectoryOptions:
    """What is asked of a directory: None, or False, where nothing is."""

    text: Path | None
    images: Path | None
    text_column: str | None
    labels: str | None
    max_length: int | None
    dtype: str | None
    trust_remote_code: bool

    def load(self, directory: str, *, loss: str | None, max_samples: int | None, batch_size: int | None,
             seed: int) -> Pretrained:  # fmt: skip
        """The model, its samples, and the options of `measure` that go with them."""
        from isthmus import probe

        if self.text is None and self.images is None:
            raise InputError("text", "nothing", f"texts (--text FILE) or images (--images FOLDER) for {directory}",
                             "--data holds samples of a factory: package.module:factory")  # fmt: skip
        return probe.load_pretrained(
            directory, text=self.text, images=self.images, text_column=self.text_column, labels=self.labels,
            max_length=self.max_length, dtype=self.dtype or "auto", trust_remote_code=self.trust_remote_code,
            loss=None if loss == "none" else loss or "auto", max_samples=max_samples, batch_size=batch_size, seed=seed,
        )  # fmt: skip


def check_belongs(directory: bool, given: dict[str, Any]) -> None:
    """Raises `InputError` for an option of the one kind of model that was given with the other."""
    wrong = next((name for name in (_OF_A_FACTORY if directory else _OF_A_DIRECTORY) if given.get(name)), None)
    if wrong is None:
        return
    value: object = given[wrong]
    shown = str(value) if isinstance(value, Path) else value
    if directory:
        hint = "give --text FILE or --images FOLDER" if wrong == "data" else ""
        raise InputError(wrong, shown, "nothing with a Hugging Face directory (it is for a factory)", hint)
    raise InputError(wrong, shown, "nothing with a factory (it is for the directory of a Hugging Face model)",
                     "give the samples with --data")  # fmt: skip
