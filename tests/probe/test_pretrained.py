"""Hugging Face models on disk: what `measure` finds against `output_hidden_states`, sample by sample, unpadded."""

from __future__ import annotations

import copy
import inspect
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import polars as pl
import pytest
import torch
import transformers
from torch import Tensor

from isthmus import InputError
from isthmus._records import RunFolder
from isthmus.probe import Measurement, load_pretrained, measure
from isthmus.probe._pretrained_rows import read_texts
from isthmus.probe._pretrained_samples import positions
from pretrained_support import (
    CLASSES,
    LENGTHS,
    VOCABULARY,
    directory,
    images,
    lines,
    made,
    spread,
    texts,
    tokenizer,
)

TEXT = ("gpt2", "llama", "bert", "t5")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def _quiet_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def measured(place: Path, *, layers: Any = "blocks", **options: Any) -> Measurement:
    model, samples, chosen = load_pretrained(place, **options)
    return measure(model, samples, **chosen, layers=layers, progress=False, jacobian_samples=0, alignment_samples=0)


def value_of(found: Measurement, metric: str, layer: str) -> float:
    (value,) = found.table.filter(metric=metric, layer=layer, baseline="")["value"].to_list()[:1]
    return value


# --- the oracle: each sample alone, without padding -----------------------------------------------------------------


def one_by_one(kind: str, model: Any, place: Path) -> Iterator[dict[str, Tensor]]:
    """Inputs of each text alone, by the tokenizer itself."""
    words = transformers.AutoTokenizer.from_pretrained(place)
    for text in texts():
        row = words(text, return_tensors="pt", truncation=True, max_length=12)
        given = {"input_ids": row["input_ids"]}
        if kind != "bert":
            given["labels"] = row["input_ids"].clone()
        yield given


def states(model: Any, given: dict[str, Tensor], *, decoder: bool = False) -> tuple[Tensor, ...]:
    out = model(**given, output_hidden_states=True)
    if decoder:
        return out.decoder_hidden_states
    return out.encoder_hidden_states if "encoder_hidden_states" in out else out.hidden_states


def ranks(a: Tensor) -> dict[str, float]:
    """By the definitions of docs/architecture.md, from singular values; `a` has a row per observation."""
    s, c = torch.linalg.svdvals(a), torch.linalg.svdvals(a - a.mean(0))
    p = s.square() / s.square().sum()
    return {
        "observations": a.shape[0],
        "numerical_rank": float((s > 1e-2 * s[0]).sum()),
        "stable_rank": float(s.square().sum() / s[0] ** 2),
        "participation_ratio": float(s.square().sum() ** 2 / s.pow(4).sum()),
        "participation_ratio_centred": float(c.square().sum() ** 2 / c.pow(4).sum()),
        "effective_rank": float(torch.exp(-(p * p.log()).sum())),
        "negative_fraction": float(a.clamp(max=0).square().sum() / a.square().sum()),
    }


BLOCKS = {
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "bert": "bert.encoder.layer",
    "t5": "encoder.block",
    "t5 decoder": "decoder.block",
}


@pytest.mark.parametrize("case", BLOCKS)
def test_ranks_are_those_of_the_hidden_states_of_the_unpadded_texts(case: str, tmp_path: Path) -> None:
    kind = case.split()[0]
    model = made(kind)
    place = directory(tmp_path / "m", kind, model=model)
    found = measured(place, text=lines(tmp_path / "t.txt"), batch_size=5)
    with torch.no_grad():
        seen = [states(model, one, decoder=case == "t5 decoder") for one in one_by_one(kind, model, place)]
    first = BLOCKS[case]
    for number, label in enumerate((f"{first}.0 (input)", f"{first}.0", f"{first}.1")):  # the last state is normalised
        for metric, value in ranks(torch.cat([one[number][0] for one in seen])).items():
            assert value_of(found, metric, label) == pytest.approx(value, rel=1e-8), (label, metric)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_the_loss_is_the_models_own_on_the_unpadded_texts(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    place = directory(tmp_path / "m", kind, model=model)
    found = measured(place, text=lines(tmp_path / "t.txt"), batch_size=5)
    counts = [n - (kind != "t5") for n in LENGTHS]  # nothing predicts the first token, except behind a start token
    with torch.no_grad():
        losses = [float(model(**one).loss) for one in one_by_one(kind, model, place)]
    expected = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert value_of(found, "loss", "model") == pytest.approx(expected, rel=1e-6)  # the models take it in float32
    (note,) = found.table.filter(metric="loss")["note"]
    assert note == f"model, mean over {sum(counts)} labels"


def test_gradients_are_those_of_the_mean_loss_over_all_tokens(tmp_path: Path) -> None:
    model = made("gpt2")
    place = directory(tmp_path / "m", "gpt2", model=model)
    found = measured(place, text=lines(tmp_path / "t.txt"), batch_size=5)
    total = sum(n - 1 for n in LENGTHS)
    sums = [0.0] * 3
    for given, n in zip(one_by_one("gpt2", model, place), LENGTHS, strict=True):
        out = model(**given, output_hidden_states=True)
        share = out.loss * ((n - 1) / total)
        for i, g in enumerate(torch.autograd.grad(share, out.hidden_states[:3])):
            sums[i] += float(g.square().sum())
    for label, squared in zip(("transformer.h.0 (input)", "transformer.h.0", "transformer.h.1"), sums, strict=True):
        assert value_of(found, "backward_norm", label) == pytest.approx(squared**0.5, rel=1e-6)


@pytest.mark.parametrize("kind", TEXT)
def test_padding_changes_no_number(kind: str, tmp_path: Path) -> None:
    place, file = directory(tmp_path / "m", kind), lines(tmp_path / "t.txt")
    alone, together = (measured(place, text=file, batch_size=n).table for n in (1, 8))
    keys = ["metric", "layer", "index", "status"]
    notes = pl.when(pl.col("metric") == "cost_of_identity").then(pl.col("note")).otherwise(pl.lit("")).alias("at")
    one, other = (t.with_columns(notes).sort([*keys, "at"]) for t in (alone, together))
    assert one.select(keys).equals(other.select(keys))
    for metric, layer, a, b in zip(one["metric"], one["layer"], one["value"], other["value"], strict=True):
        assert (a is None) == (b is None)
        if a is not None:  # the models themselves take norms, softmax and loss in float32; a residual of 0 is rounding
            assert a == pytest.approx(b, rel=1e-5, abs=1e-7), (metric, layer)


def test_padding_would_be_seen(tmp_path: Path) -> None:
    """The test above can fail: without the mask, the same batches give other numbers."""
    place, file = directory(tmp_path / "m", "llama"), lines(tmp_path / "t.txt")
    model, samples, _ = load_pretrained(place, text=file, batch_size=8)
    batches = [{"input_ids": batch["input_ids"]} for batch in samples]
    careless = measure(model, batches, progress=False, jacobian_samples=0)
    right = measured(place, text=file, batch_size=8)
    name = "model.layers.1"
    assert value_of(careless, "observations", name) > value_of(right, "observations", name) == sum(LENGTHS)
    assert abs(value_of(careless, "stable_rank", name) / value_of(right, "stable_rank", name) - 1) > 1e-3


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_images_in_class_folders(kind: str, tmp_path: Path) -> None:
    model = made(kind, id2label={0: "cat", 1: "dog", 2: "Eel"}, label2id={"cat": 0, "dog": 1, "Eel": 2})
    place = directory(tmp_path / "m", kind, model=model)
    folder = images(tmp_path / "i", ("dog", "eel", "cat"))
    (folder / "dog" / "about.txt").write_text("no image")
    found = measured(place, images=folder, batch_size=5)
    assert "1 files of the folder are no images and were left out" in found.notes
    processor = transformers.AutoImageProcessor.from_pretrained(place)
    from PIL import Image

    names = ("cat", "dog", "eel")
    files = [folder / name / f"{i}.png" for i in range(4) for name in names]
    pixels = torch.cat([processor(images=Image.open(f), return_tensors="pt")["pixel_values"].double() for f in files])
    labels = torch.tensor([names.index(f.parent.name) for f in files])
    with torch.no_grad():
        out = model(pixel_values=pixels, output_hidden_states=True)
    expected = float(torch.nn.functional.cross_entropy(out.logits, labels))
    assert value_of(found, "loss", "model") == pytest.approx(expected, rel=1e-7)  # pixels come in float32
    if kind == "vit":
        state, label = out.hidden_states[1].flatten(0, 1), "vit.layers.0"
    else:
        state, label = out.hidden_states[1].movedim(1, -1).flatten(0, -2), "resnet.encoder.stages.0.layers.1"
    for metric, value in ranks(state).items():
        assert value_of(found, metric, label) == pytest.approx(value, rel=1e-5), metric


def test_folders_that_are_no_classes_give_no_labels_and_say_so(tmp_path: Path) -> None:
    names = {"id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}
    place = directory(tmp_path / "m", "vit", **names)
    _, samples, options = load_pretrained(place, images=images(tmp_path / "i", ("train", "test")))
    assert options == {"loss": None}
    (note,) = [note for note in samples.notes if "no classes of the model" in note]
    assert "'test', 'train'" in note
    assert "labels" not in next(iter(samples))


def test_the_first_images_are_of_all_classes(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "vit")
    _, samples, _ = load_pretrained(place, images=images(tmp_path / "i", ("a", "b", "c")), max_samples=6, batch_size=6)
    assert next(iter(samples))["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert any("numbered in alphabetical order" in note for note in samples.notes)


# --- what is chosen, and said ---------------------------------------------------------------------------------------


def test_batches_are_padded_on_the_right_and_nothing_predicts_the_first_token(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "gpt2")
    tokenizer(pad=False, padding_side="left").save_pretrained(place)
    _, samples, options = load_pretrained(place, text=["w0 w1 w2", "w3"], batch_size=2)
    assert options == {"loss": "model"}
    batch = next(iter(samples))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 4, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    (note,) = samples.notes
    assert note.startswith("texts: padded on the right with [EOS] (the end-of-text token")


def test_special_tokens_and_truncation_are_said_and_recorded(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert")
    found = measured(place, text=[*texts((3, 20, 15)), "", "w1 w2"])
    assert any("10 of 43 positions are special tokens ([CLS], [SEP])" in note for note in found.notes)
    assert any("2 of 5 were cut at the end to 16 tokens (the model's positions); the longest had 22" in note
               for note in found.notes)  # fmt: skip
    name = "bert.encoder.layer.0"
    assert value_of(found, "observations", name) == 5 + 16 + 16 + 2 + 4
    run = found.save(tmp_path / "run")
    kept = RunFolder.open(run.path).run["configuration"]["pretrained"]
    assert (kept["tokens"], kept["special_tokens"], kept["cut"], kept["max_length"]) == (43, 10, 2, 16)
    assert kept["class"] == "BertForSequenceClassification"
    assert kept["directory"] == str(place)


def test_texts_without_a_token_are_left_out_with_their_labels(tmp_path: Path) -> None:
    model = made("gpt2", "GPT2ForSequenceClassification", num_labels=3)
    place = directory(tmp_path / "m", "gpt2", model=model)
    loaded = load_pretrained(place, text=["w1 w2", "", "w3", "w4 w5 w6"], labels=[0, 1, 2, 0], batch_size=4)
    assert next(iter(loaded.samples))["labels"].tolist() == [0, 2, 0]
    assert any("1 texts without a token were left out" in note for note in loaded.samples.notes)
    found = measure(loaded.model, loaded.samples, **loaded.options, progress=False, alignment_samples=0)
    with torch.no_grad():  # the classifier reads the last token of each text, not the padding behind it
        rows = [model(input_ids=torch.tensor([r])).logits for r in ([6, 7], [8], [9, 10, 11])]
    expected = torch.nn.functional.cross_entropy(torch.cat(rows), torch.tensor([0, 2, 0]))
    assert value_of(found, "loss", "model") == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_texts_with_labels(suffix: str, tmp_path: Path) -> None:
    names = ["bad", "good", "mixed"]
    given = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    model = made("bert", **given)
    place = directory(tmp_path / "m", "bert", model=model)
    chosen = [names[i % 3] for i in range(len(LENGTHS))]
    frame = pl.DataFrame({"id": range(len(LENGTHS)), "review": texts(), "mood": chosen})
    file = tmp_path / f"t{suffix}"
    match suffix:
        case ".parquet":
            frame.write_parquet(file)
        case ".jsonl":
            frame.write_ndjson(file)
        case _:
            frame.write_csv(file, separator="\t" if suffix == ".tsv" else ",")
    found = measured(place, text=file, text_column="review", labels="mood", batch_size=5)
    with torch.no_grad():
        logits = torch.cat([model(**one).logits for one in one_by_one("bert", model, place)])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([names.index(n) for n in chosen]))
    assert value_of(found, "loss", "model") == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("kind", ["generator", "array", "polars", "pandas", "filtered", "tensor"])
def test_texts_and_labels_of_whatever_can_be_gone_through(kind: str, tmp_path: Path) -> None:
    place, words, classes = directory(tmp_path / "m", "bert"), ["w1", "w2 w3", "w4"], [2, 0, 1]
    frame = pl.DataFrame({"text": words, "class": classes})
    pandas = frame.to_pandas()
    given: dict[str, Any] = {
        "generator": ((word for word in words), (one for one in classes)),
        "array": (numpy.array(words), numpy.array(classes)),
        "polars": (frame["text"], frame["class"]),
        "pandas": (pandas["text"], pandas["class"]),
        "filtered": (pandas[pandas["class"] != 2]["text"], pandas[pandas["class"] != 2]["class"]),
        "tensor": (tuple(words), torch.tensor(classes)),
    }
    text, labels = given[kind]
    options: Any = {"dtype": torch.float32, "batch_size": numpy.int64(3)} if kind == "array" else {"batch_size": 3}
    unchecked = inspect.unwrap(load_pretrained)
    model, samples, _ = unchecked(place, text=text, labels=labels, **options)
    (batch,) = samples
    left = slice(1 if kind == "filtered" else 0, None)
    assert batch["labels"].tolist() == classes[left]
    assert batch["input_ids"].tolist() == [[2, 6, 3, 0], [2, 7, 8, 3], [2, 9, 3, 0]][left]
    assert samples.record["text"] == f"{len(words[left])} texts"
    assert samples.record["dtype"] == ("float32" if kind == "array" else "auto")
    assert next(model.parameters()).dtype == (torch.float32 if kind == "array" else torch.float64)
    json.dumps(samples.record)


def test_blank_lines_and_rows_without_a_text_are_left_out_and_said(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert")
    (tmp_path / "t.txt").write_text("w1\n\n  \t\nw2 w3\n\nw4\n")
    (tmp_path / "t.csv").write_text('text,class\nw1,2\n,0\n"  ",\nw2 w3,0\n"",1\nw4,1\n')
    for name, what in (("t.txt", "blank lines"), ("t.csv", "rows without a text")):
        labels = "class" if name == "t.csv" else None
        _, samples, _ = load_pretrained(place, text=tmp_path / name, labels=labels)
        (batch,) = samples
        assert batch["input_ids"].tolist() == [[2, 6, 3, 0], [2, 7, 8, 3], [2, 9, 3, 0]]
        assert samples.notes[0] == f"3 {what} of {name} were left out"
        if labels is not None:
            assert batch["labels"].tolist() == [2, 0, 1]
        _, samples, _ = load_pretrained(place, text=tmp_path / name, max_samples=2)
        assert samples.record["samples"] == 2
        assert samples.notes[0] == f"2 {what} of {name} were left out"  # those it came past
    _, samples, _ = load_pretrained(place, text=lines(tmp_path / "t.txt"))
    assert "left out" not in " ".join(samples.notes)


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text('text\tclass\nw1 "w2\t0\n"w1\t1\n"w3 w4"\t2\n')
    found = read_texts(file, None, "class", None)
    assert found.texts == ['w1 "w2', '"w1', '"w3 w4"']
    assert found.labels == [0, 1, 2]
    (note,) = found.notes
    assert note.startswith("1 texts of t.tsv stand in quotes, which were kept as they are")
    (tmp_path / "t.csv").write_text('text,class\n"w1 ""w2",0\n"w3 w4",2\n')
    found = read_texts(tmp_path / "t.csv", None, "class", None)
    assert (found.texts, found.labels, found.notes) == (['w1 "w2', "w3 w4"], [0, 2], [])


def test_a_classifier_with_labels_has_an_alignment(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert")
    model, samples, options = load_pretrained(place, text=texts(), labels=[i % 3 for i in range(len(LENGTHS))])
    found = measure(model, samples, **options, progress=False, metrics=["alignment"])
    rows = found.table.filter(metric="alignment", status="ok")
    assert "classifier" in rows["layer"].to_list()


def test_a_regression_has_the_square_loss(tmp_path: Path) -> None:
    model = made("bert", num_labels=1)
    place = directory(tmp_path / "m", "bert", model=model)
    numbers = [0.5 * i for i in range(len(LENGTHS))]
    found = measured(place, text=texts(), labels=numbers, batch_size=4)
    with torch.no_grad():
        out = torch.cat([model(**one).logits[:, 0] for one in one_by_one("bert", model, place)])
    assert value_of(found, "loss", "model") == pytest.approx(float((out - torch.tensor(numbers)).square().mean()))


def test_a_column_of_targets_for_an_encoder_and_decoder(tmp_path: Path) -> None:
    model = made("t5")
    place = directory(tmp_path / "m", "t5", model=model)
    goals = texts(tuple(reversed(LENGTHS)), seed=7)
    file = tmp_path / "t.csv"
    pl.DataFrame({"text": texts(), "goal": goals}).write_csv(file)
    found = measured(place, text=file, labels="goal", batch_size=5)
    assert any("decoder: it reads the targets, shifted right behind a start token by the model itself" in note
               for note in found.notes)  # fmt: skip
    words = tokenizer()
    with torch.no_grad():
        outs = [
            model(input_ids=words(a, return_tensors="pt")["input_ids"],
                  labels=words(b, return_tensors="pt")["input_ids"], output_hidden_states=True)
            for a, b in zip(texts(), goals, strict=True)
        ]  # fmt: skip
    expected = sum(n * float(o.loss) for n, o in zip(reversed(LENGTHS), outs, strict=True)) / sum(LENGTHS)
    assert value_of(found, "loss", "model") == pytest.approx(expected, rel=1e-6)
    for first, side in (("encoder", "encoder_hidden_states"), ("decoder", "decoder_hidden_states")):
        state = torch.cat([getattr(o, side)[1][0] for o in outs])
        for metric, value in ranks(state).items():
            assert value_of(found, metric, f"{first}.block.0") == pytest.approx(value, rel=1e-8), (first, metric)


@pytest.mark.parametrize("name", ["T5Model", "T5EncoderModel", "T5ForConditionalGeneration"])
def test_encoders_and_decoders_without_a_loss(name: str, tmp_path: Path) -> None:
    model = made("t5", name)
    place = directory(tmp_path / "m", "t5", model=model)
    found = measured(place, text=lines(tmp_path / "t.txt"), batch_size=5, loss=None)
    words = [tokenizer()(t, return_tensors="pt")["input_ids"] for t in texts()]
    for first in ("encoder", "decoder") if name != "T5EncoderModel" else ("encoder",):
        with torch.no_grad():
            shifted = [torch.cat([torch.zeros(1, 1, dtype=torch.long), w[:, :-1]], 1) for w in words]
            more = [{} if name == "T5EncoderModel" else {"decoder_input_ids": w} for w in shifted]
            outs = [model(input_ids=w, **m, output_hidden_states=True) for w, m in zip(words, more, strict=True)]
        key = "hidden_states" if name == "T5EncoderModel" else f"{first}_hidden_states"
        state = torch.cat([getattr(o, key)[1][0] for o in outs])
        assert value_of(found, "stable_rank", f"{first}.block.0") == pytest.approx(ranks(state)["stable_rank"])
    assert found.table.filter(metric="loss")["status"].to_list() == ["skipped"]


@pytest.mark.parametrize(("name", "said"), [("BertForMaskedLM", "a masked language model"), ("BertModel", "a head")])
def test_models_without_a_usual_loss_say_so(name: str, said: str, tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert", name)
    _, samples, options = load_pretrained(place, text=texts())
    assert options == {"loss": None}
    (note,) = [note for note in samples.notes if note.startswith("no loss")]
    assert said in note


def test_a_directory_that_names_no_class_gives_the_model_without_a_head(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert", "BertModel")
    config = json.loads((place / "config.json").read_text())
    del config["architectures"]
    (place / "config.json").write_text(json.dumps(config))
    model, samples, _ = load_pretrained(place, text=texts())
    assert type(model).__name__ == "BertModel"
    assert any("names no architecture" in note for note in samples.notes)


def test_weights_that_are_not_in_the_file_are_said_and_the_same_every_time(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "bert", "BertModel")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    (one, samples, _), (other, _, _) = (load_pretrained(place, text=texts()) for _ in range(2))
    assert any("2 weights are not in the file and were drawn at random: 'classifier.bias', 'classifier.weight'" in note
               for note in samples.notes)  # fmt: skip
    assert torch.equal(one.classifier.weight, other.classifier.weight)  # type: ignore[union-attr]


def test_weights_are_those_of_the_files(tmp_path: Path) -> None:
    model = made("gpt2")
    place = directory(tmp_path / "m", "gpt2", model=model)
    loaded, _, _ = load_pretrained(place, text=texts())
    for name, p in loaded.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
    (place / "model.safetensors").unlink()
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    again, _, _ = load_pretrained(place, text=texts(), dtype="float32")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.get_parameter("transformer.wte.weight"), model.transformer.wte.weight.float())
    state = torch.random.get_rng_state()
    load_pretrained(place, text=texts())
    assert torch.equal(state, torch.random.get_rng_state())


def test_positions_numbered_from_behind_the_padding_leave_less_room(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, pad_token_id=0,
                                        num_attention_heads=2, intermediate_size=12, max_position_embeddings=12,
                                        bos_token_id=2, eos_token_id=3)  # fmt: skip
    model = transformers.RobertaModel(config)
    model.save_pretrained(tmp_path / "m")
    tokenizer(around=True).save_pretrained(tmp_path / "m")
    found = measured(tmp_path / "m", text=texts((20, 3)))
    assert any("1 of 2 were cut at the end to 11 tokens" in note for note in found.notes)


def led(place: Path) -> Any:
    torch.manual_seed(3)
    config = transformers.LEDConfig(vocab_size=VOCABULARY, d_model=8, encoder_layers=2, decoder_layers=2,
                                    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=12,
                                    decoder_ffn_dim=12, max_encoder_position_embeddings=19, attention_window=4,
                                    max_decoder_position_embeddings=7, pad_token_id=0,
                                    decoder_start_token_id=4)  # fmt: skip
    model = spread(transformers.LEDForConditionalGeneration(config)).eval()
    copy.deepcopy(model).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return model


def test_texts_and_targets_are_cut_to_the_positions_of_encoder_and_decoder(tmp_path: Path) -> None:
    model, given = led(tmp_path / "m"), texts((25, 3, 13))
    found = measured(tmp_path / "m", text=given, batch_size=3)
    notes = " / ".join(found.notes)
    assert "to multiples of 4 tokens (the model's attention_window); padding counts nowhere" in notes
    assert "1 of 3 were cut at the end to 16 tokens (the model's positions); the longest had 25" in notes
    assert "targets: 2 of 3 were cut to 7 tokens (the decoder's positions); the longest had 25" in notes
    words, outs = tokenizer(), []
    for text in given:
        row = words(text, return_tensors="pt")["input_ids"][:, :16]
        with torch.no_grad():
            outs.append(model(input_ids=row, labels=row[:, :7], output_hidden_states=True))
    expected = sum(n * float(out.loss) for n, out in zip((7, 3, 7), outs, strict=True)) / 17
    assert value_of(found, "loss", "model") == pytest.approx(expected, rel=1e-6)
    for side in ("encoder", "decoder"):
        state = torch.cat([out[f"{side}_hidden_states"][1][0] for out in outs])
        for metric, value in ranks(state).items():
            assert value_of(found, metric, f"led.{side}.layers.0") == pytest.approx(value, rel=1e-6), (side, metric)
    assert "targets" not in " ".join(load_pretrained(tmp_path / "m", text=given, max_length=7).samples.notes)
    with pytest.raises(InputError, match="max_length: got 17, expected a whole number of at least 1 and at most 16"):
        load_pretrained(tmp_path / "m", text=given, max_length=17)


def test_texts_are_padded_to_the_attention_window(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.LongformerConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, pad_token_id=0,
                                           num_attention_heads=2, intermediate_size=12, attention_window=[4, 8],
                                           max_position_embeddings=28, num_labels=3)  # fmt: skip
    model = spread(transformers.LongformerForSequenceClassification(config)).eval()
    copy.deepcopy(model).save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    given = texts((*LENGTHS, 40))
    found = measured(tmp_path / "m", text=given, batch_size=5)
    assert any("1 of 13 were cut at the end to 24 tokens" in note for note in found.notes)
    with torch.no_grad():
        rows = [tokenizer()(text, return_tensors="pt")["input_ids"][:, :24] for text in given]
        state = torch.cat([model(input_ids=row, output_hidden_states=True).hidden_states[1][0] for row in rows])
    for metric, value in ranks(state).items():
        assert value_of(found, metric, "longformer.encoder.layer.0") == pytest.approx(value, rel=1e-6), metric


def test_a_table_of_positions_limits_texts_where_the_configuration_does_not(tmp_path: Path) -> None:
    model = made("gpt2")
    place = directory(tmp_path / "m", "gpt2", model=model)
    loaded, _, _ = load_pretrained(place, text=texts())
    assert positions(loaded) == 12
    loaded.config.n_positions = 99  # type: ignore[union-attr]
    assert positions(loaded) == 12


def test_half_precision_is_said(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "llama", model=made("llama").bfloat16())
    model, samples, _ = load_pretrained(place, text=texts())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert any("runs in bfloat16" in note for note in samples.notes)


# --- tied embeddings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "first", "others"),
    [
        ("gpt2", "transformer.wte.weight", {"lm_head.weight"}),
        ("t5", "encoder.embed_tokens.weight", {"shared.weight", "decoder.embed_tokens.weight", "lm_head.weight"}),
    ],
)
def test_a_tied_embedding_counts_once_and_says_so(kind: str, first: str, others: set[str], tmp_path: Path) -> None:
    model = made(kind, tie_word_embeddings=True)
    place = directory(tmp_path / "m", kind, model=model)
    found = measured(place, text=lines(tmp_path / "t.txt"))
    rows = found.table.filter((pl.col("metric") == "weight_norm_sq") & (pl.col("status") == "ok"))
    names = rows["layer"].to_list()
    assert names[0] == first
    assert not set(names) & others
    model.requires_grad_(False)
    exact = float(model.get_input_embeddings().weight.square().sum())
    assert rows["value"].to_list()[0] == pytest.approx(exact, rel=1e-12)
    counted = [p for n, p in model.named_parameters() if p.dim() > 1 or (n.endswith(".bias") and "ln_" not in n)]
    assert rows["value"].sum() == pytest.approx(sum(float(p.square().sum()) for p in counted), rel=1e-12)
    for note in found.table.filter(layer=first)["note"]:
        if "shared with" in note:
            assert set(note.partition("shared with ")[2].split(", ")) == others
    (note,) = found.table.filter(layer=first, metric="numerical_rank")["note"]
    assert note.startswith("tol=0.01; shared with")
    assert found.record["measured"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_tied_weight_asked_for_by_its_other_name_is_found(tmp_path: Path) -> None:
    place = directory(tmp_path / "m", "gpt2")
    found = measured(place, text=lines(tmp_path / "t.txt"), layers=["lm_head", "transformer.h.*.mlp"])
    rows = found.table.filter((pl.col("metric") == "weight_norm_sq") & (pl.col("layer") == "lm_head.weight"))
    assert rows["note"].to_list() == ["shared with transformer.wte.weight"]


def test_every_class_was_tested() -> None:
    assert set(CLASSES) == {*TEXT, "vit", "resnet"}
