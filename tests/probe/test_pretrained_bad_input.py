"""What `load_pretrained` refuses, in one clear sentence each; code and pickles in a directory never run."""

from __future__ import annotations

import builtins
import inspect
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import polars as pl
import pytest
import torch
import transformers
from PIL import Image

from isthmus import InputError, IsthmusError
from isthmus.probe import load_pretrained, measure
from pretrained_support import directory, images, lines, made, texts, tokenizer

MODELING = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture(autouse=True)
def _quiet_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("vit"), "vit")


def refused(place: Path, **options: Any) -> str:
    options = options or {"text": ["w1 w2"]}
    with pytest.raises(InputError) as error:
        load_pretrained(place, **options)
    return str(error.value)


def changed(place: Path, name: str = "config.json", **values: Any) -> None:
    file = place / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# --- the directory --------------------------------------------------------------------------------------------------


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    assert "expected a directory with a Hugging Face model (there is none)" in refused(tmp_path / "nothing")
    (tmp_path / "checkpoint-5").mkdir()
    assert "it has no config.json" in refused(tmp_path)
    (tmp_path / "checkpoint-5" / "config.json").write_text("{}")
    assert "there is one in 'checkpoint-5'" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "a readable config.json (JSONDecodeError" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "one JSON object" in refused(tmp_path)


def test_a_directory_without_weights_tokenizer_or_processor(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert")
    for file in place.glob("token*"):
        file.unlink()
    assert "a directory with a tokenizer (tokenizer.json, say; there is none)" in refused(place)
    (place / "model.safetensors").unlink()
    assert "a directory with weights (model.safetensors or pytorch_model.bin)" in refused(place)
    place = directory(tmp_path / "v", "vit")
    (place / "preprocessor_config.json").unlink()
    assert "a directory with an image processor" in refused(place, images=images(tmp_path / "i"))


def test_broken_weights_and_weights_of_another_model(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert")
    (place / "model.safetensors").write_bytes(b"\x00" * 64)
    assert "a model that transformers can load" in refused(place)
    place = directory(tmp_path / "n", "bert")
    changed(place, hidden_size=16)
    assert "a model that transformers can load" in refused(place)
    place = directory(tmp_path / "o", "bert")
    changed(place, architectures=["GPT2Model"], model_type="gpt2")
    assert "weights of a GPT2Model (the file holds none of them)" in refused(place)


def test_a_class_that_this_transformers_lacks(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert")
    changed(place, architectures=["BertForSequenceClasification"])
    said = refused(place)
    assert f"transformers {transformers.__version__} has" in said
    assert "did you mean 'BertForSequenceClassification'" in said
    changed(place, architectures=["pipeline"])
    assert "(pipeline it has not)" in refused(place)
    changed(place, architectures=[], model_type="unheard-of")
    assert "unheard-of" in refused(place)


def test_adapters_and_quantised_models(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "gpt2")
    changed(place, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "this one is quantised" in refused(place)
    (place / "adapter_config.json").write_text("{}")
    assert "merge it into its model" in refused(place)


# --- code and pickles -----------------------------------------------------------------------------------------------


def with_own_code(place: Path, marker: Path) -> Path:
    directory(place, "bert", "BertModel")
    (place / "modeling_own.py").write_text(MODELING.format(marker=str(marker)))
    changed(place, architectures=["OwnModel"], model_type="own",
            auto_map={"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"})  # fmt: skip
    return place


def test_code_in_a_directory_never_runs_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    place = with_own_code(tmp_path / "own", marker)
    said = refused(place)
    assert said.startswith("trust_remote_code: got False")
    assert "'modeling_own.OwnConfig'" in said
    assert "that code was not run" in said
    assert not marker.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    model, samples, options = load_pretrained(place, text=texts(), trust_remote_code=True)
    assert marker.read_text() == "ran"
    assert type(model).__name__ == "OwnModel"
    assert any("own code was run (modeling_own.OwnModel)" in note for note in samples.notes)
    found = measure(model, samples, **options, progress=False, jacobian_samples=0)
    assert found.record["configuration"]["pretrained"]["trust_remote_code"] is True


def test_code_beside_a_known_class_is_not_run_and_said(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    place = with_own_code(tmp_path / "own", marker)
    changed(place, architectures=["BertModel"], model_type="bert")
    model, samples, _ = load_pretrained(place, text=texts())
    assert type(model) is transformers.BertModel
    assert "the directory brings code of its own, which was not run" in samples.notes
    assert not marker.exists()


def test_code_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    place = directory(tmp_path / "m", "bert")
    code = f"import pathlib\npathlib.Path({str(marker)!r}).write_text('ran')\nclass Own: pass\n"
    (place / "tokenization_own.py").write_text(code)
    changed(place, "tokenizer_config.json", tokenizer_class="Own",
            auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})  # fmt: skip
    for file in (place / "tokenizer.json", place / "special_tokens_map.json"):
        file.unlink(missing_ok=True)
    assert "whose tokenizer is code in its own directory; that code was not run" in refused(place)
    assert not marker.exists()


class Runs:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (exec, (f"import pathlib; pathlib.Path({str(self.marker)!r}).write_text('ran')",))


def test_a_pickle_among_the_weights_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    model = made("bert")
    place = directory(tmp_path / "m", "bert", model=model)
    (place / "model.safetensors").unlink()
    torch.save(model.state_dict() | {"more": Runs(marker)}, place / "pytorch_model.bin")
    assert "a pickle that may run code: refused" in refused(place)
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(marker)))
    refused(place)
    assert not marker.exists()
    pickle.loads((place / "pytorch_model.bin").read_bytes())  # it would have run
    assert marker.exists()


# --- samples --------------------------------------------------------------------------------------------------------


def test_texts_or_images_and_not_both(bert: Path, tmp_path: Path) -> None:
    assert "either text or images" in refused(bert, text=None)
    assert "either text or images" in refused(bert, text=["w1"], images=tmp_path)
    assert "nothing beside images; classes are the subfolders" in refused(bert, images=tmp_path, labels="mood")
    assert "max_length: got 5" in refused(bert, images=tmp_path, max_length=5)


def test_data_of_the_wrong_kind(bert: Path, vit: Path, tmp_path: Path) -> None:
    said = refused(bert, images=images(tmp_path / "i"))
    assert said.startswith("images: got given, expected text for BertForSequenceClassification")
    assert "expected images for ViTForImageClassification" in refused(vit, text=["w1"])
    place = tmp_path / "hubert"
    config = transformers.HubertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                                       conv_dim=(4,), conv_stride=(2,), conv_kernel=(2,), num_feat_extract_layers=1,
                                       num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)  # fmt: skip
    transformers.HubertModel(config).save_pretrained(place)
    assert "it takes input_values" in refused(place)


def test_files_of_texts(bert: Path, tmp_path: Path) -> None:
    assert "text: got" in refused(bert, text=tmp_path / "nothing.txt")
    (tmp_path / "t.doc").write_text("w1")
    assert "a file of a known type (.txt, .csv, .tsv, .jsonl, .parquet)" in refused(bert, text=tmp_path / "t.doc")
    (tmp_path / "t.txt").write_text("\n \n")
    assert "at least one text" in refused(bert, text=tmp_path / "t.txt")
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\xff")
    assert "in UTF-8" in refused(bert, text=tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("w1\n")
    assert "every line is a sample" in refused(bert, text=tmp_path / "t.txt", labels="mood")
    assert "every line is a sample" in refused(bert, text=tmp_path / "t.txt", text_column="text")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    assert "a readable .parquet file" in refused(bert, text=tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"text": "w1"}\n{"text"')
    assert "a readable .jsonl file" in refused(bert, text=tmp_path / "t.jsonl")
    assert "text: got no texts" in refused(bert, text=[])


def test_columns(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    pl.DataFrame({"review": ["w1", "w2"], "title": ["w1", "w1"], "mood": [0, 1], "gap": [1, None]}).write_csv(file)
    assert "texts are in 'review', 'title'" in refused(bert, text=file)
    assert "did you mean 'review'?" in refused(bert, text=file, text_column="reviw")
    assert "a column of texts (it holds Int64)" in refused(bert, text=file, text_column="mood")
    assert "did you mean 'mood'?" in refused(bert, text=file, text_column="review", labels="modo")
    assert "another column than that of the texts" in refused(bert, text=file, text_column="review", labels="review")
    said = refused(bert, text=file, text_column="review", labels="gap")
    assert "without missing values (row 2 has none)" in said
    file.write_text("review,gap\n,1\nw1,1\nw2,\n")
    assert "without missing values (row 3 has none)" in refused(bert, text=file, labels="gap")
    file.write_text("review,gap\n,1\n,2\n")
    assert "at least one text (there is none)" in refused(bert, text=file, text_column="review", labels="gap")


def test_labels(bert: Path, gpt2: Path, tmp_path: Path) -> None:
    two = ["w1", "w2"]
    assert "class numbers from 0 to 2, of this model of 3 classes" in refused(bert, text=two, labels=[0, 3])
    assert "labels: got 1.5" in refused(bert, text=two, labels=[0, 1.5])
    assert "one for each of the 2 texts" in refused(bert, text=two, labels=[0])
    assert "a sequence with a label for each text" in refused(bert, text=two, labels="mood")
    assert "3 classes without names: give their numbers" in refused(bert, text=two, labels=["bad", "good"])
    assert "none for a language model" in refused(gpt2, text=two, labels=[0, 1])
    named = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}, "num_labels": 2}
    place = directory(tmp_path / "m", "bert", **named)
    assert "did you mean 'good'?" in refused(place, text=two, labels=["bad", "goood"])
    place = directory(tmp_path / "t", "t5")
    assert "target texts" in refused(place, text=two, labels=[0, 1])
    assert "targets with at least one token" in refused(place, text=two, labels=["w1", ""])


def test_losses(bert: Path, gpt2: Path, tmp_path: Path) -> None:
    assert "its own loss shifts the labels by one" in refused(gpt2, text=["w1"], loss="cross_entropy")
    assert "none where there are no labels" in refused(bert, text=["w1"], loss="cross_entropy")
    assert "did you mean 'cross_entropy'?" in refused(bert, text=["w1"], loss="cross_entrpy")
    assert "cross_entropy or model, for a classifier" in refused(bert, text=["w1"], labels=[0], loss="square")
    place = directory(tmp_path / "m", "bert", "BertForMaskedLM")
    assert "it is a masked language model" in refused(place, text=["w1"], loss="model")


def test_lengths_and_sizes(bert: Path) -> None:
    assert "max_length: got 0, expected a whole number of at least 1" in refused(bert, text=["w1"], max_length=0)
    assert "max_length: got 17, expected a whole number of at least 1 and at most 16" in refused(
        bert, text=["w1"], max_length=17
    )
    assert "more than the 2 special tokens of every text" in refused(bert, text=["w1 w2"], max_length=2)
    assert "batch_size: got 0" in refused(bert, text=["w1"], batch_size=0)
    assert "max_samples: got 0" in refused(bert, text=["w1"], max_samples=0)
    assert "dtype: got float23" in refused(bert, text=["w1"], dtype="float23")


def test_values_of_another_type(bert: Path, vit: Path) -> None:
    unchecked = inspect.unwrap(load_pretrained)  # as it is installed: the types are checked in tests only

    def said(place: Any = bert, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            unchecked(place, **({} if "images" in options else {"text": ["w1", "w2"]}) | options)
        return str(error.value)

    whole = "expected a whole number of at least 1, or None"
    assert said(max_samples="3") == f"max_samples: got 3, {whole}"
    assert said(max_length=2.5) == f"max_length: got 2.5, {whole}"
    assert said(batch_size=True) == f"batch_size: got True, {whole}"
    assert said(None) == "directory: got None, expected a path"
    assert said(images=5) == "images: got 5, expected a path"
    assert said(dtype=torch.int8).startswith("dtype: got int8, expected one of auto, float16")
    assert said(loss=len).startswith("loss: got <built-in function len>, expected a name, or None; for a loss of")
    assert said(text_column=1) == "text_column: got 1, expected a name, or None"
    assert said(text=5) == "text: got a int, expected a path, or a sequence of strings"
    assert said(text={"text": ["w1"]}).endswith(
        "got a dict, expected a path, or a sequence of strings; give one column of it"
    )
    assert "got a DataFrame" in said(text=pl.DataFrame({"text": ["w1"]}))
    assert "got a set" in said(text={"w1", "w2"})
    assert "got a NoneType at 1" in said(text=["w1", None])
    assert "got a ndarray at 0" in said(text=numpy.array([["w1"]]))
    assert "labels: got a ndarray, expected a sequence with one label" in said(labels=numpy.eye(2))
    assert "labels: got a int, expected a sequence with one label" in said(labels=5)
    assert "labels: got a dict" in said(labels={0: 1, 1: 2})


def test_a_tokenizer_of_more_tokens_than_the_model_knows(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert", vocab_size=10)
    assert "a tokenizer of the model's 10 tokens" in refused(place, text=["w19"])


def test_folders_of_images(vit: Path, tmp_path: Path) -> None:
    assert "a folder of images" in refused(vit, images=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "a folder with images (" in refused(vit, images=tmp_path / "empty")
    both = images(tmp_path / "both", ("cat",))
    images(both)
    assert "not both; subfolders with images: 'cat'" in refused(vit, images=both)
    named = images(tmp_path / "named", ("train", "test"))
    assert "3 classes without names" in refused(vit, images=named, loss="cross_entropy")
    broken = images(tmp_path / "broken")
    (broken / "1.png").write_text("no image")
    assert "1.png, expected a readable image (UnidentifiedImageError" in refused(vit, images=broken)


def test_an_image_that_ends_too_early(vit: Path, tmp_path: Path) -> None:
    folder = images(tmp_path)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:200])
    model, samples, options = load_pretrained(vit, images=folder)
    with pytest.raises(InputError, match=r"images: got .*1\.png, expected a readable image"):
        measure(model, samples, **options, progress=False, jacobian_samples=0)


@pytest.mark.parametrize(
    ("name", "dtype", "mode"),
    [("x.png", "uint16", "I;16"), ("x.tif", ">u2", "I;16B"), ("x.tif", "int32", "I"), ("x.tif", "float32", "F")],
)
def test_images_of_more_than_8_bits(vit: Path, tmp_path: Path, name: str, dtype: str, mode: str) -> None:
    Image.fromarray((numpy.arange(80).reshape(8, 10) * 700).astype(dtype)).save(images(tmp_path) / name)
    said = refused(vit, images=tmp_path)
    assert f"{name}, expected an image of 8 bits per channel (its mode is {mode}); save it as 8 bit" in said
    load_pretrained(vit, images=tmp_path, max_samples=4)  # `x` is the fifth, and not taken


@pytest.mark.parametrize("name", ["x.gif", "x.tif"])
def test_images_of_several_pages(vit: Path, tmp_path: Path, name: str) -> None:
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    pages[0].save(images(tmp_path) / name, save_all=True, append_images=pages[1:])
    assert f"{name}, expected an image of one page (it has 3)" in refused(vit, images=tmp_path)
    pages[0].save(tmp_path / name)
    pages[0].save(tmp_path / "y.jpg", format="MPO", save_all=True, append_images=pages[1:])
    _, samples, _ = load_pretrained(vit, images=tmp_path)
    assert samples.record["samples"] == 6


def test_a_model_without_an_attention_mask_reads_one_text_at_a_time(tmp_path: Path) -> None:
    config = transformers.FNetConfig(vocab_size=25, hidden_size=8, num_hidden_layers=2, intermediate_size=12,
                                     max_position_embeddings=16, tpu_short_seq_length=16)  # fmt: skip
    transformers.FNetModel(config).save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    _, samples, _ = load_pretrained(tmp_path / "m", text=texts())
    assert samples.batch_size == 1
    assert any("takes no attention_mask" in note for note in samples.notes)
    assert "would count" in refused(tmp_path / "m", text=texts(), batch_size=4)


def test_without_transformers_it_says_what_to_install(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(IsthmusError, match=r"pip install 'isthmus\[hf\]'"):
        load_pretrained(bert, text=["w1"])


def test_a_tokenizer_of_sentencepiece_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sentencepiece

    place = directory(tmp_path / "m", "t5", vocab_size=300)
    for file in place.glob("token*"):
        file.unlink()
    lines = ["the narrow land between two seas", "deep networks carry many dimensions"] * 20
    options: dict[str, Any] = {"vocab_size": 30, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    with (place / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, **options)
    _, samples, _ = load_pretrained(place, text=["narrow seas"])
    assert samples.record["special_tokens"] == 1
    assert int(next(iter(samples))["input_ids"][0, -1]) == 1
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "pip install 'isthmus[hf]', which brings sentencepiece" in refused(place)


def test_the_lines_of_a_file_are_those_of_a_list(bert: Path, tmp_path: Path) -> None:
    by_file, by_list = (load_pretrained(bert, text=one) for one in (lines(tmp_path / "t.txt"), texts()))
    one, other = next(iter(by_file.samples)), next(iter(by_list.samples))
    assert all(torch.equal(one[key], other[key]) for key in one)
