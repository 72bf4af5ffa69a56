"""Schedules in the formats of other programs: one file a target, one registration each.

registry.py has what a target is given and gives back, parts.py what several targets need. A target
that cannot express something says so in its notes and in its file's header.
"""

from __future__ import annotations

# Imported for their registration.
from layerstats.schedules.exporters import axolotl as _axolotl
from layerstats.schedules.exporters import lmflow as _lmflow
from layerstats.schedules.exporters import ms_swift as _ms_swift
from layerstats.schedules.exporters import owlore as _owlore
from layerstats.schedules.exporters import peft as _peft
from layerstats.schedules.exporters import sparsity as _sparsity
from layerstats.schedules.exporters import spectrum as _spectrum
from layerstats.schedules.exporters.registry import (
    EXPORTERS,
    Export,
    ExportedFile,
    ExportRequest,
    export,
    exporter,
)

del _axolotl, _lmflow, _ms_swift, _owlore, _peft, _sparsity, _spectrum

__all__ = ["EXPORTERS", "Export", "ExportRequest", "ExportedFile", "export", "exporter"]
