"""A Hugging Face directory to its model, tokenizer and image processor: nothing is fetched, nothing is unpickled."""

from __future__ import annotations

import contextlib
import difflib
import json
import pickle
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from isthmus._errors import InputError, IsthmusError, near_name_hint
from isthmus._random import torch_generator
from isthmus.probe._loading_files import listed, said

SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_IF_TRUSTED = "read it, and only if you trust it give trust_remote_code=True (--trust-remote-code)"
DTYPES = ("auto", "float16", "bfloat16", "float32", "float64")


def transformers_package() -> Any:
    """The optional package.

    Raises:
        IsthmusError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise IsthmusError(f"a Hugging Face model needs transformers ({error}): pip install 'isthmus[hf]'") from error
    return transformers


def checked_directory(directory: str | Path) -> tuple[Path, dict[str, Any]]:
    """A directory that holds a model, and what its `config.json` says."""
    place = Path(directory)
    if not place.is_dir():
        raise InputError("model", str(place), "a directory with a Hugging Face model (there is none)",
                         "nothing is fetched: download the model first")  # fmt: skip
    if (place / "adapter_config.json").is_file():
        raise InputError("model", str(place), "a whole model (adapter_config.json says this is an adapter)",
                         "merge it into its model (peft: merge_and_unload) and save that")  # fmt: skip
    file = place / "config.json"
    if not file.is_file():
        inside = sorted(child.parent.name for child in place.glob("*/config.json"))
        hint = f"there is one in {listed(inside, 3)}" if inside else "save_pretrained writes it"
        raise InputError("model", str(place), "a directory with a Hugging Face model (it has no config.json)", hint)
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("model", str(file), f"a readable config.json ({said(error)})") from error
    if not isinstance(config, dict):
        raise InputError("model", str(file), "a config.json that holds one JSON object")
    if config.get("quantization_config"):
        raise InputError("model", str(place), "a model whose weights are real numbers (this one is quantised)",
                         "measure the model that it was made from")  # fmt: skip
    return place, cast("dict[str, Any]", config)


def _weights_are_safe(place: Path) -> bool:
    """Whether the weights are safetensors rather than a file of torch."""
    if any((place / name).is_file() for name in SAFE_WEIGHTS):
        return True
    if any((place / name).is_file() for name in TORCH_WEIGHTS):
        return False
    raise InputError("model", str(place), f"a directory with weights ({SAFE_WEIGHTS[0]} or {TORCH_WEIGHTS[0]})",
                     "save_pretrained writes them")  # fmt: skip


def _known_class(transformers: Any, name: str) -> type[nn.Module] | None:
    found: Any = getattr(transformers, name, None) if name.isidentifier() else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _chosen_class(transformers: Any, place: Path, config: Mapping[str, Any], trusted: bool) -> tuple[Any, str]:
    """The class that loads the model, and what is to be said of the choice."""
    named: Any = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    own: Any = config.get("auto_map")
    own = cast("Mapping[str, Any]", own) if isinstance(own, Mapping) else {}
    if own and trusted:
        autos = {key: str(value) for key, value in own.items() if key.startswith("AutoModel")}
        fitting = [key for key, value in autos.items() if value.rpartition(".")[2] == architecture]
        key = next(iter(fitting or autos), "")
        if key and hasattr(transformers, key):
            return getattr(transformers, key), f"the model's own code was run ({autos[key]})"
    known = _known_class(transformers, architecture) if architecture else None
    if known is not None:
        return known, "the directory brings code of its own, which was not run" if own else ""
    if own:
        raise InputError("trust_remote_code", False, f"True for {place}, a model whose code is in its own directory "
                         f"({listed(map(str, own.values()), 2)}); that code was not run",
                         _IF_TRUSTED)  # fmt: skip
    if architecture:
        models = [name for name in dir(transformers) if name.endswith(("Model", "Head")) or "For" in name]
        raise InputError("model", str(place), f"a model class that transformers {transformers.__version__} has "
                         f"({architecture} it has not)", _near_class(architecture, models))  # fmt: skip
    return transformers.AutoModel, "config.json names no architecture: the model without a head was loaded"


def _near_class(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    newer = "a newer transformers may have it"
    return f"did you mean {' or '.join(map(repr, close))}? or {newer}" if close else newer


@contextlib.contextmanager
def quiet(transformers: Any) -> Generator[None]:
    """Without progress bars and remarks on stderr; errors are raised all the same."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def open_model(
    place: Path, config: Mapping[str, Any], *, trusted: bool = False, dtype: str = "auto", seed: int = 0
) -> tuple[nn.Module, list[str]]:
    """The model in a directory, in evaluation mode, and notes.

    Weights that the files do not hold are drawn with `seed`, and said.

    Raises:
        InputError: no weights, a class that this transformers lacks, code of its own that is not trusted, or anything
            that transformers cannot load.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", dtype, f"one of {', '.join(DTYPES)}", near_name_hint(dtype, DTYPES))
    transformers = transformers_package()
    loader, note = _chosen_class(transformers, place, config, trusted)
    safe = _weights_are_safe(place)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": safe, "weights_only": True,
                               "output_loading_info": True, "dtype": dtype}  # fmt: skip
    if loader.__name__.startswith("Auto"):
        options["trust_remote_code"] = trusted
    with torch.random.fork_rng(devices=[]), quiet(transformers):
        torch.manual_seed(torch_generator(seed, "baseline").initial_seed())
        try:
            model, info = loader.from_pretrained(str(place), **options)
        except Exception as error:
            raise _unloadable(place, error, safe) from error
    missing = sorted(map(str, info["missing_keys"]))
    if missing and not set(model.state_dict()) - set(missing):
        raise InputError("model", str(place), f"weights of a {type(model).__name__} (the file holds none of them)")
    notes = [note] if note else []
    if missing:
        notes.append(f"{len(missing)} weights are not in the file and were drawn at random: {listed(missing, 3)}")
    unexpected = [name for name in map(str, info["unexpected_keys"]) if not name.endswith("position_ids")]
    if unexpected:
        notes.append(f"{len(unexpected)} weights of the file are not the model's: {listed(sorted(unexpected), 3)}")
    stored = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if stored in (torch.float16, torch.bfloat16):
        name = str(stored).removeprefix("torch.")
        notes.append(f"the model runs in {name}, whose rounding is in every number (dtype='float32' for more digits)")
    return model.eval(), notes


def _unloadable(place: Path, error: Exception, safe: bool) -> InputError:
    unpickled = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
    if not safe and unpickled:
        return InputError("model", str(place), "weights that are tensors alone (pytorch_model.bin is a pickle that may "
                          "run code: refused)", "where it is trusted, save the model as safetensors")  # fmt: skip
    text = said(error)
    hint = "pip install what it names" if isinstance(error, ImportError) else ""
    return InputError("model", str(place), f"a model that transformers can load ({text})", hint)


def open_tokenizer(place: Path, *, trusted: bool = False) -> Any:
    """The tokenizer in a directory.

    Raises:
        InputError: none, or one that cannot be loaded.
    """
    transformers_package()
    known = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", *_PIECES)
    if not any((place / name).is_file() for name in known):
        raise InputError("model", str(place), "a directory with a tokenizer (tokenizer.json, say; there is none)",
                         "save the tokenizer beside the model: tokenizer.save_pretrained(directory)")  # fmt: skip
    return _opened("AutoTokenizer", place, "tokenizer", "tokenizer_config.json", trusted)


def open_image_processor(place: Path, *, trusted: bool = False) -> Any:
    """The image processor in a directory.

    Raises:
        InputError: none, or one that cannot be loaded.
    """
    transformers_package()
    if not any((place / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InputError("model", str(place), "a directory with an image processor (preprocessor_config.json; there is "
                         "none)", "save it beside the model: processor.save_pretrained(directory)")  # fmt: skip
    return _opened("AutoImageProcessor", place, "image processor", "preprocessor_config.json", trusted)


def _opened(loader: str, place: Path, what: str, file: str, trusted: bool) -> Any:
    """What stands beside the model, `file` being where it would name code of its own."""
    transformers = transformers_package()
    try:
        with quiet(transformers):
            return getattr(transformers, loader).from_pretrained(
                str(place), local_files_only=True, trust_remote_code=trusted
            )
    except Exception as error:
        raise _unread(place, what, file, error) from error


def _unread(place: Path, what: str, file: str, error: Exception) -> InputError:
    brings_code = (place / file).is_file() and '"auto_map"' in (place / file).read_text(encoding="utf-8")
    if brings_code or "trust_remote_code" in str(error):
        return InputError("trust_remote_code", False, f"True for {place}, whose {what} is code in its own directory; "
                          "that code was not run",
                          _IF_TRUSTED)  # fmt: skip
    text = said(error)
    pieces = any((place / name).is_file() for name in _PIECES) and not (place / "tokenizer.json").is_file()
    install = pieces or isinstance(error, ImportError)  # without sentencepiece transformers names another package
    brought = "pip install 'isthmus[hf]', which brings sentencepiece, protobuf and Pillow"
    hint = brought if install else f"save the {what} again"
    return InputError("model", str(place), f"a {what} that transformers can load ({text})", hint)
