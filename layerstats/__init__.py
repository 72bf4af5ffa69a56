"""layerstats: per-layer statistics of LLM checkpoints, and layer-sampling schedules made from them.

>>> import layerstats as ls
>>> schedule = ls.schedule("lisa", num_layers=32, expected_active=2)
>>> schedule.probabilities[0]
0.0625

The names below are imported when first used, so that `import layerstats` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerstats.calibration import ActivationNorms as ActivationNorms
    from layerstats.calibration import calibrate as calibrate
    from layerstats.checkpoint.layout import Layout as Layout
    from layerstats.checkpoint.layout import Matrix as Matrix
    from layerstats.checkpoint.lora import open_adapter as open_adapter
    from layerstats.checkpoint.reader import Checkpoint as Checkpoint
    from layerstats.checkpoint.reader import Layer as Layer
    from layerstats.checkpoint.reader import LayerReader as LayerReader
    from layerstats.checkpoint.reader import open_checkpoint as open_checkpoint
    from layerstats.correlation import Correlation as Correlation
    from layerstats.correlation import correlate as correlate
    from layerstats.errors import LayerstatsError as LayerstatsError
    from layerstats.measurement import measure as measure
    from layerstats.schedules import Schedule as Schedule
    from layerstats.schedules import schedule as schedule
    from layerstats.stats import LayerStats as LayerStats

_HOME = {
    "ActivationNorms": "layerstats.calibration",
    "Checkpoint": "layerstats.checkpoint.reader",
    "Correlation": "layerstats.correlation",
    "Layer": "layerstats.checkpoint.reader",
    "LayerReader": "layerstats.checkpoint.reader",
    "LayerStats": "layerstats.stats",
    "LayerstatsError": "layerstats.errors",
    "Layout": "layerstats.checkpoint.layout",
    "Matrix": "layerstats.checkpoint.layout",
    "Schedule": "layerstats.schedules",
    "calibrate": "layerstats.calibration",
    "correlate": "layerstats.correlation",
    "measure": "layerstats.measurement",
    "open_adapter": "layerstats.checkpoint.lora",
    "open_checkpoint": "layerstats.checkpoint.reader",
    "schedule": "layerstats.schedules",
}

__all__ = [
    "ActivationNorms",
    "Checkpoint",
    "Correlation",
    "Layer",
    "LayerReader",
    "LayerStats",
    "LayerstatsError",
    "Layout",
    "Matrix",
    "Schedule",
    "calibrate",
    "correlate",
    "measure",
    "open_adapter",
    "open_checkpoint",
    "schedule",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("layerstats")
    msg = f"module 'layerstats' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
