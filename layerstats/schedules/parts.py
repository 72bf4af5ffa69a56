"""The small parts of a schedule: the model it is for, low-rank gradients, where it comes from."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["LowRank", "ModelRef", "Provenance", "created_by"]


def created_by() -> str:
    """Return the name and version of this program, as schedules record it."""
    try:
        version = importlib.metadata.version("layerstats")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        version = "unknown"
    return f"layerstats {version}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model a schedule is for.

    Parameters
    ----------
    id : str or None
        Name or path of the checkpoint.
    num_layers : int
        Number of blocks, at least 1.
    layers_path : str or None
        Dotted path of the block list, such as ``model.layers``.
    """

    id: str | None
    num_layers: int
    layers_path: str | None = None


@dataclass(frozen=True, slots=True)
class LowRank:
    """Gradient low-rank projection (GaLore) of the active blocks' matrices.

    Parameters
    ----------
    rank : int
    update_interval : int
        Optimizer steps between two projections.
    scale : float
        Factor on the projected update, above 0.
    """

    rank: int = 128
    update_interval: int = 200
    scale: float = 1.0

    def __post_init__(self) -> None:
        # NumPy's numbers become Python's, which JSON takes.
        for name in ("rank", "update_interval", "scale"):
            value = getattr(self, name)
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a schedule comes from: program, statistics, parameters (JSON values only)."""

    created_by: str = field(default_factory=created_by)
    stats: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
