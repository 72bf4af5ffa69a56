"""The text that ships with layerstats."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

__all__ = ["calibration_text"]


def calibration_text() -> Path:
    """Return the text that ships with layerstats: Moby-Dick, chapters 1-43, 412 kB, public domain.

    Examples
    --------
    >>> calibration_text().read_text(encoding="utf-8")[:20]
    'CHAPTER 1. Loomings.'
    """
    return Path(str(importlib.resources.files("layerstats").joinpath("data", "moby_dick.txt")))
