"""`isthmus measure DIRECTORY`: a Hugging Face model on disk to a run folder, or one clear sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import transformers

from isthmus._records import RunFolder
from isthmus.cli import main
from pretrained_support import directory, images, lines, texts


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def test_a_language_model_and_a_text_file_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory(tmp_path / "gpt2", "gpt2")
    lines(tmp_path / "t.txt")
    words = ["measure", "gpt2", "--text", "t.txt", "--out", "run", "--quiet", "--baseline", "init"]
    assert main([*words, "--max-samples", "8", "--max-length", "6", "--batch-size", "3"]) == 0
    captured = capsys.readouterr()
    assert "page:" in captured.out
    said = " ".join(captured.err.split())
    assert "note: texts: padded on the right with [EOS]" in said
    assert "3 of 8 were cut at the end to 6 tokens (max_length); the longest had 9" in said
    run = RunFolder.open(tmp_path / "run").run
    assert run["title"] == "GPT2LMHeadModel on t.txt"
    assert run["warnings"][0].startswith("texts: padded on the right")
    kept = run["configuration"]
    assert (kept["model"], kept["data"], kept["baseline"]) == ("gpt2", None, "init")
    assert kept["loss"] == "model"
    assert kept["pretrained"]["text"] == "t.txt"
    assert kept["pretrained"]["batch_size"] == 3
    table = RunFolder.open(tmp_path / "run").metrics()
    assert set(table["baseline"]) == {"", "init"}
    assert table.filter(pl.col("metric") == "loss")["status"].to_list() == ["ok"]
    (n,) = table.filter(metric="observations", layer="transformer.h.0", baseline="")["value"]
    assert n == sum(min(6, int(k)) for k in (3, 9, 5, 2, 7, 9, 4, 6))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "padded on the right" in page


def test_labels_of_a_column_and_a_loss_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory(tmp_path / "bert", "bert")
    pl.DataFrame({"review": texts(), "mood": [i % 3 for i in range(12)]}).write_csv(tmp_path / "t.csv")
    words = ["measure", "bert", "--text", "t.csv", "--text-column", "review", "--labels", "mood", "--quiet"]
    assert main([*words, "--out", "one"]) == 0
    assert main([*words, "--out", "two", "--loss", "none", "--dtype", "float32"]) == 0
    one, two = (RunFolder.open(tmp_path / name) for name in ("one", "two"))
    assert one.run["configuration"]["loss"] == "cross_entropy"
    assert one.run["configuration"]["pretrained"]["labels"] == "mood"
    assert not one.metrics().filter(metric="alignment", status="ok").is_empty()
    assert two.metrics().filter(metric="loss")["status"].to_list() == ["skipped"]
    assert two.run["dtype"] == "float32"
    assert "no loss was asked for" in capsys.readouterr().err


def test_images_and_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory(tmp_path / "vit", "vit")
    images(tmp_path / "pictures", ("a", "b", "c"))
    assert main(["measure", "vit", "--images", "pictures", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "samples 12" in said
    assert "numbered in alphabetical order" in said
    assert "nothing was measured or written" in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_tokens_with_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory(tmp_path / "t5", "t5")
    lines(tmp_path / "t.txt")
    assert main(["measure", "t5", "--text", "t.txt", "--dry-run"]) == 0
    assert re.search(r"representations +8, the widest", capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["measure", *words, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error:") == 1
    assert not Path("runs").exists()
    return " ".join(captured.err.split())


def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory(tmp_path / "gpt2", "gpt2")
    lines(tmp_path / "t.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.npz").write_text("")
    text = ("--text", "t.txt")
    assert "it has no config.json" in refused(capsys, "empty", *text)
    assert "texts (--text FILE) or images (--images FOLDER) for gpt2" in refused(capsys, "gpt2")
    assert "data: got x.npz, expected nothing with a Hugging Face directory" in refused(
        capsys, "gpt2", "--data", "x.npz"
    )
    assert "arguments: got {'width': 3}" in refused(capsys, "gpt2", *text, "--arguments", '{"width": 3}')
    assert "text: got t.txt, expected nothing with a factory" in refused(capsys, "nets.py:Net", *text)
    assert "labels: got mood" in refused(capsys, "gpt2", *text, "--labels", "mood")
    assert "max_length: got 13" in refused(capsys, "gpt2", *text, "--max-length", "13")
    assert "its own loss shifts" in refused(capsys, "gpt2", *text, "--loss", "square")
    assert "a file of samples (--data) for a factory" in refused(capsys, "nets.py:Net")
    said = refused(capsys, "gtp2", *text)
    assert "model: got gtp2, expected a directory with a Hugging Face model (there is none); nothing is fetched" in said
    said = refused(capsys, "gtp2")
    assert "the directory of a Hugging Face model (there is no such directory)" in said
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    assert "out: got there" in refused(capsys, "gpt2", *text, "--out", "there")
