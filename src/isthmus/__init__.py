"""Isthmus shows, predicts and controls where a deep network learns its features.

Public names are loaded on first use (PEP 562), so that reading a run folder or building a page needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus._errors import InputError as InputError
    from isthmus._errors import IsthmusError as IsthmusError
    from isthmus.estimators import LeakyResNetClassifier as LeakyResNetClassifier
    from isthmus.estimators import LeakyResNetRegressor as LeakyResNetRegressor
    from isthmus.experiments import SavedModel as SavedModel
    from isthmus.experiments import load as load
    from isthmus.models import LeakyResNet as LeakyResNet
    from isthmus.probe import Measurement as Measurement
    from isthmus.probe import Monitor as Monitor
    from isthmus.probe import PairTracker as PairTracker
    from isthmus.probe import lightning_callback as lightning_callback
    from isthmus.probe import measure as measure
    from isthmus.probe import track_pairs as track_pairs
    from isthmus.probe import trainer_callback as trainer_callback

_PUBLIC = {
    "IsthmusError": "isthmus._errors",
    "InputError": "isthmus._errors",
    "LeakyResNet": "isthmus.models",
    "LeakyResNetClassifier": "isthmus.estimators",
    "LeakyResNetRegressor": "isthmus.estimators",
    "SavedModel": "isthmus.experiments",
    "load": "isthmus.experiments",
    "Measurement": "isthmus.probe",
    "Monitor": "isthmus.probe",
    "PairTracker": "isthmus.probe",
    "lightning_callback": "isthmus.probe",
    "measure": "isthmus.probe",
    "track_pairs": "isthmus.probe",
    "trainer_callback": "isthmus.probe",
}

__all__ = [
    "IsthmusError",
    "InputError",
    "LeakyResNet",
    "LeakyResNetClassifier",
    "LeakyResNetRegressor",
    "Measurement",
    "Monitor",
    "PairTracker",
    "SavedModel",
    "lightning_callback",
    "load",
    "measure",
    "track_pairs",
    "trainer_callback",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'isthmus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
