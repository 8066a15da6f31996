"""A `Monitor` inside the training loops of others: a real Trainer of Hugging Face, a real one of Lightning."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from isthmus import InputError, IsthmusError, lightning_callback, measure, trainer_callback
from isthmus._errors import RunFolderError
from isthmus._records import RunFolder
from isthmus.probe import _monitor
from isthmus.probe._monitor import MONITORED

# Lightning 2.6 uses what torch 2.13 deprecates, and asks for more workers on machines with more cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(autouse=True)
def _single_precision() -> None:
    torch.set_default_dtype(torch.float32)  # the frameworks take it to be so


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_monitor, "write_page", lambda path: path)  # tested with the page


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.relu(self.up(x))))


class Net(nn.Module):
    """Called as the Trainer calls a model: inputs and labels by name, the loss in what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks, self.head = nn.Linear(4, 8), nn.Sequential(Block(), Block()), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.blocks(self.enter(x)))
        found = {"logits": logits}
        return found if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **found}


ITEMS = [
    {"x": torch.randn(4, generator=torch.Generator().manual_seed(i), dtype=torch.float32), "labels": i % 3}
    for i in range(48)
]

WORSE = [{**item, "labels": (int(item["labels"]) + 1) % 3} for item in ITEMS]  # what training makes worse


def drawing(items: list[Any]) -> Any:
    """Puts items together, and draws random numbers as a collator that masks tokens does."""
    from transformers import default_data_collator

    _ = torch.rand(3)
    return default_data_collator(items)


def hugging_face(folder: Path, model: nn.Module, callbacks: list[Any], **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=8, max_steps=10, logging_steps=2, save_strategy="steps",
        save_steps=5, report_to=[], disable_tqdm=True, use_cpu=True, seed=1, learning_rate=0.01,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=ITEMS, eval_dataset=WORSE, callbacks=callbacks,
                   data_collator=drawing)  # fmt: skip


def fresh() -> Net:
    torch.manual_seed(7)
    return Net()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def rows_of(run: RunFolder, step: int) -> pl.DataFrame:
    table = run.metrics()
    return table.filter((pl.col("step") == step) & (pl.col("split") != "train")).drop("step")


def measured(model: nn.Module, **options: Any) -> pl.DataFrame:
    return measure(model, **options, metrics=MONITORED, jacobian_samples=0, alignment_samples=32,
                   progress=False).table.drop("step")  # fmt: skip


def test_a_trainer_is_measured_and_trains_as_without(tmp_path: Path) -> None:
    plain, watched = fresh(), fresh()
    hugging_face(tmp_path / "plain", plain, []).train()
    callback = trainer_callback(ITEMS, loss="cross_entropy", out=tmp_path / "run", max_samples=40, progress=False)
    trainer = hugging_face(tmp_path / "watched", watched, [callback])
    trainer.train()
    assert same_weights(plain, watched)
    assert callback.monitor.steps[0] == 0
    assert callback.monitor.steps[-1] == 10
    run = RunFolder.open(tmp_path / "run")
    assert run.run["status"] == "complete"
    batch = {"x": torch.stack([item["x"] for item in ITEMS]), "labels": torch.tensor([i["labels"] for i in ITEMS])}
    for step, model in ((0, fresh()), (10, watched)):
        own = measured(model, data=batch, loss="cross_entropy", max_samples=40, batch_size=32)
        assert rows_of(run, step).equals(own)
    assert "alignment" in own.filter(pl.col("status") == "ok")["metric"]
    losses = run.metrics().filter((pl.col("metric") == "loss") & (pl.col("split") == "train"))
    assert losses["value"].to_list() == [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses["step"].to_list() == [2, 4, 6, 8, 10]


def test_a_trainer_that_resumes_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    def callback() -> Any:
        return trainer_callback(ITEMS, out=tmp_path / "run", schedule=1, progress=False)

    first = callback()
    hugging_face(tmp_path / "hf", fresh(), [first]).train()
    second = callback()
    with pytest.raises(InputError, match="out: got"):  # a training from its beginning does not overwrite
        hugging_face(tmp_path / "hf", fresh(), [second]).train()
    model = fresh()
    trainer = hugging_face(tmp_path / "hf", model, [second])
    trainer.train(resume_from_checkpoint=str(tmp_path / "hf" / "checkpoint-5"))
    run = RunFolder.open(tmp_path / "run")
    steps = run.run["monitor"]["steps"]
    assert steps == sorted(set(steps))
    assert {0, 5, 10} <= set(steps)
    assert second.monitor.steps == steps
    assert rows_of(run, 10).equals(measured(model, data=_stacked(), targets=None, max_samples=256, batch_size=32))


def _stacked() -> dict[str, Tensor]:
    return {"x": torch.stack([item["x"] for item in ITEMS]), "labels": torch.tensor([i["labels"] for i in ITEMS])}


def test_the_last_weights_are_measured_not_the_best(tmp_path: Path) -> None:
    last: dict[str, Any] = {}
    model = fresh()
    callback = trainer_callback(ITEMS, out=tmp_path / "run", progress=False)
    trainer = hugging_face(tmp_path / "hf", model, [callback], eval_strategy="steps", eval_steps=5,
                           load_best_model_at_end=True, metric_for_best_model="eval_loss")  # fmt: skip

    class Keep(type(callback).__mro__[1]):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            last["model"] = copy.deepcopy(kwargs["model"])

    trainer.add_callback(Keep())
    trainer.train()
    assert not same_weights(model, last["model"])
    run = RunFolder.open(tmp_path / "run")
    assert rows_of(run, 10).equals(measured(last["model"], data=_stacked(), max_samples=256, batch_size=32))


class Columns:
    """A data set with columns, of which the Trainer takes away those that the model does not name."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items
        self.column_names = list(items[0])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def remove_columns(self, names: list[str]) -> Columns:
        return Columns([{name: item[name] for name in item if name not in names} for item in self.items])


class Classifier(nn.Module):
    """Reads tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(12, 8), Net()
        self.net.enter = nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        weights = attention_mask[..., None].float()
        return self.net((self.embed(input_ids) * weights).sum(1) / weights.sum(1), labels)


TOKENS = Columns([
    {"text": "a" * (2 + i % 3), "input_ids": [1 + i % 7] * (2 + i % 3), "attention_mask": [1] * (2 + i % 3),
     "label": i % 3} for i in range(48)
])  # fmt: skip


def padding() -> Any:
    """The collator of a tokeniser: it pads what it is given, and cannot make a tensor of a text."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

    tokeniser = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    return DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=tokeniser, pad_token="<pad>"))


def train_on_columns(folder: Path, data: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments, trainer

    monkeypatch.setattr(trainer, "is_datasets_available", lambda: True)
    monkeypatch.setattr(trainer, "datasets", SimpleNamespace(Dataset=Columns, __version__="5.2.0"), raising=False)
    callback = trainer_callback(data, loss="cross_entropy", out=folder / "run", max_samples=20, progress=False)
    torch.manual_seed(3)
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"), max_steps=4, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    Trainer(model=Classifier(), args=arguments, train_dataset=TOKENS, data_collator=padding(),
            callbacks=[callback]).train()  # fmt: skip
    return callback.monitor


def test_columns_that_the_trainer_drops_do_not_reach_its_collator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monitor = train_on_columns(tmp_path, TOKENS, monkeypatch)
    assert monitor.steps[-1] == 4
    first = monitor.table.filter((pl.col("step") == 0) & (pl.col("split") != "train"))
    assert first.filter(pl.col("metric") == "observations")["value"].max() == 20
    torch.manual_seed(3)
    batch = padding()(TOKENS.remove_columns(["text"]).items[:20])
    own = measured(Classifier(), data=dict(batch), loss="cross_entropy", max_samples=20)
    assert rows_of(RunFolder.open(tmp_path / "run"), 0).equals(own)


@pytest.mark.parametrize("keeps", [True, False])
def test_items_that_the_collator_cannot_take_are_said_in_one_sentence(
    keeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that the trainer is told to keep, or one where numbers should be."""
    if keeps:
        monkeypatch.setattr(TOKENS, "remove_columns", lambda _: TOKENS)
        data, keys = TOKENS, "text, input_ids, attention_mask, label"
    else:
        data, keys = Columns([{**item, "attention_mask": "no"} for item in TOKENS.items]), "input_ids, attention_mask"
    with pytest.raises(InputError, match=rf"probe_data: got items with the keys {keys}.*\(\w+Error: .*batches") as said:
        train_on_columns(tmp_path, data, monkeypatch, remove_unused_columns=not keeps)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "run").exists()


class Break:
    """Ends a training at a step, as a fault in it does."""

    def __init__(self, step: int) -> None:
        from transformers import TrainerCallback

        def on_step_begin(own: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise ZeroDivisionError

        self.callback = type("Breaking", (TrainerCallback,), {"on_step_begin": on_step_begin})()


def test_a_trainer_that_broke_off_is_closed_when_the_next_training_begins(tmp_path: Path) -> None:
    callback = trainer_callback(ITEMS, schedule=1, progress=False, out=tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        hugging_face(tmp_path / "hf", fresh(), [callback, Break(7).callback]).train()
    assert RunFolder.open(tmp_path / "run").run["status"] == "running"
    with pytest.raises(
        RunFolderError, match=r"out: got .*run, expected a folder .* step 0; make .* another out, or res"
    ):
        hugging_face(tmp_path / "hf", fresh(), [callback]).train()
    run = RunFolder.open(tmp_path / "run").run
    assert run["status"] == "interrupted"
    assert run["monitor"]["last_step"] == 7
    hugging_face(tmp_path / "hf", fresh(), [callback]).train(resume_from_checkpoint=str(tmp_path / "hf/checkpoint-5"))
    run = RunFolder.open(tmp_path / "run").run
    assert run["status"] == "complete"
    assert run["monitor"]["last_step"] == 10


def test_a_trainer_that_broke_off_is_closed_when_it_is_let_go(tmp_path: Path) -> None:
    callback: Any = trainer_callback(ITEMS, progress=False, out=tmp_path / "run")
    with contextlib.suppress(ZeroDivisionError):  # pytest.raises would keep the callback
        hugging_face(tmp_path / "hf", fresh(), [callback, Break(3).callback]).train()
    assert RunFolder.open(tmp_path / "run").run["status"] == "running"
    del callback
    gc.collect()
    assert RunFolder.open(tmp_path / "run").run["status"] == "interrupted"


BREAKS_OFF = """
import sys
from transformers import TrainingArguments, TrainerControl, TrainerState
import torch
from isthmus import trainer_callback

callback = trainer_callback(torch.ones(8, 4), out=sys.argv[1], progress=False)
state = TrainerState()
arguments = TrainingArguments(sys.argv[1] + "-hf", report_to=[], use_cpu=True)
callback.on_train_begin(arguments, state, TrainerControl(), model=torch.nn.Linear(4, 4))
raise ZeroDivisionError
"""


@pytest.mark.slow
def test_a_trainer_that_broke_off_is_closed_when_the_program_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BREAKS_OFF, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.stderr.rstrip().endswith("ZeroDivisionError"), done.stderr
    assert RunFolder.open(tmp_path / "run").run["status"] == "interrupted"
    assert (tmp_path / "run" / "report.html").exists()


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


def module_of(lightning: Any) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = fresh()
            self.seen: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)["logits"]

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch["x"]), batch["labels"])
            self.seen.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Module()


def fit(lightning: Any, folder: Path, callbacks: list[Any], *, epochs: int = 2, checkpoint: Path | None = None,
        **options: Any) -> Any:  # fmt: skip
    torch.manual_seed(2)
    module = module_of(lightning)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=callbacks,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(ITEMS, batch_size=8, shuffle=True)
    trainer.fit(module, loader, ckpt_path=None if checkpoint is None else str(checkpoint))
    return trainer


def test_lightning_is_measured_and_trains_as_without(tmp_path: Path, lightning: Any) -> None:
    plain = fit(lightning, tmp_path, []).lightning_module
    batch = _stacked()
    callback = lightning_callback(batch["x"], targets=batch["labels"], out=tmp_path / "run", progress=False)
    assert isinstance(callback, lightning.Callback)
    trainer = fit(lightning, tmp_path, [callback])
    watched = trainer.lightning_module
    assert same_weights(plain, watched)
    assert callback.monitor.steps[0] == 0
    assert callback.monitor.steps[-1] == trainer.global_step == 12
    run = RunFolder.open(tmp_path / "run")
    assert run.run["status"] == "complete"
    for step, model in ((0, module_of(lightning)), (12, watched)):
        own = measured(model, data=batch["x"], targets=batch["labels"], max_samples=256)
        assert rows_of(run, step).equals(own)
    losses = run.metrics().filter((pl.col("metric") == "loss") & (pl.col("split") == "train"))
    assert losses["n"].sum() == 12


def test_the_loss_of_accumulated_batches_is_their_mean(tmp_path: Path, lightning: Any) -> None:
    callback = lightning_callback(_stacked()["x"], schedule=1, out=tmp_path / "run", progress=False)
    seen = fit(lightning, tmp_path, [callback], accumulate_grad_batches=4).lightning_module.seen
    assert len(seen) == 12
    steps = (seen[0:4], seen[4:6], seen[6:10], seen[10:12])  # the last step of an epoch takes what is left
    losses = callback.monitor.table.filter((pl.col("metric") == "loss") & (pl.col("split") == "train"))
    assert losses["step"].to_list() == [1, 2, 3, 4]
    assert losses["n"].to_list() == [1, 1, 1, 1]
    assert losses["value"].to_list() == pytest.approx([sum(step) / len(step) for step in steps], rel=1e-6)


def test_lightning_that_resumes_goes_on_in_the_same_folder(tmp_path: Path, lightning: Any) -> None:
    def callback() -> Any:
        return lightning_callback(_stacked()["x"], out=tmp_path / "run", schedule=1, progress=False)

    first = fit(lightning, tmp_path, [callback()], epochs=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    second = callback()
    fit(lightning, tmp_path, [second], epochs=2, checkpoint=tmp_path / "one.ckpt")
    steps = RunFolder.open(tmp_path / "run").run["monitor"]["steps"]
    assert steps == sorted(set(steps))
    assert {0, 6, 12} <= set(steps)
    assert second.monitor.steps == steps


def test_a_training_that_breaks_off_says_so(tmp_path: Path, lightning: Any) -> None:
    class Broken(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("the loader is gone")

    callback = lightning_callback(_stacked()["x"], out=tmp_path / "run", progress=False)
    with pytest.raises(RuntimeError, match="gone"):
        fit(lightning, tmp_path, [callback, Broken()])
    assert RunFolder.open(tmp_path / "run").run["status"] == "failed"


def test_a_lightning_callback_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(lightning_callback(torch.ones(4, 4), out="there", budget=0.1)))  # our own
    assert again.__reduce__()[1][1] == {"out": "there", "budget": 0.1}


@pytest.mark.parametrize("make", [trainer_callback, lightning_callback])
def test_options_are_judged_when_the_callback_is_made(make: Any) -> None:
    with pytest.raises(InputError, match=r"bugdet: got 0.1, expected an option of Monitor; did you mean 'budget'"):
        make(torch.ones(4, 4), bugdet=0.1)
    with pytest.raises(InputError, match="resume: got True"):
        make(torch.ones(4, 4), resume=True)
    with pytest.raises(InputError, match="budget: got 2"):
        make(torch.ones(4, 4), budget=2)
    with pytest.raises(InputError, match="schedule"):
        make(torch.ones(4, 4), schedule=[])


def test_data_that_do_not_fit_are_said_before_training(tmp_path: Path) -> None:
    model = fresh()
    callback = trainer_callback([{"x": torch.ones(2, 5), "labels": torch.zeros(2, 1)}], out=tmp_path / "run")
    with pytest.raises(InputError, match="data: got inputs of shape"):
        hugging_face(tmp_path / "hf", model, [callback]).train()
    assert same_weights(model, fresh())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("make", "package", "extra"), [
    (trainer_callback, "transformers", "hf"), (lightning_callback, "lightning", "lightning"),
])  # fmt: skip
def test_what_is_missing_is_named(make: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] in (package, "pytorch_lightning"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("transformers", "lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(IsthmusError, match=rf"pip install 'isthmus\[{extra}\]'"):
        make(torch.ones(4, 4))
