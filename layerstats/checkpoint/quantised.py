"""Which stored weights stand for other numbers: 8-bit matrices with a scale, packed integers.

Only the neighbours of a tensor in the file's index tell; the multiplication is `reader.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

from layerstats.checkpoint.entry import TensorEntry
from layerstats.checkpoint.roles import MEASURED_DTYPES

__all__ = ["packed_reason", "scale_name"]

_SCALES = ("_scale_inv", "_scale")
_WITH_ONE_BYTE_SCALED = ("F8_E4M3", "F8_E5M2", "I8")
#: What stands beside packed integers: bitsandbytes' names; a scale where a byte holds two numbers.
_BESIDE_PACKED = (".absmax", ".quant_map", ".nested_absmax", ".SCB")
_BESIDE_FOUR_BITS = ("_scale", "_scale_inv", "_scale_2")


def scale_name(entry: TensorEntry, entries: Mapping[str, TensorEntry]) -> str | None:
    """Name the tensor that an 8-bit matrix must be multiplied with, if the file holds one."""
    if entry.dtype not in _WITH_ONE_BYTE_SCALED:
        return None
    names = (entry.name + end for end in _SCALES)
    return next((name for name in names if name in entries), None)


def packed_reason(entry: TensorEntry, entries: Mapping[str, TensorEntry]) -> str | None:
    """Say why an integer tensor is no matrix of numbers, or return None if it is one."""
    if not entry.dtype.startswith(("I", "U")) or entry.dtype not in MEASURED_DTYPES:
        return None
    base = entry.name.removesuffix(".weight")
    beside = [name + end for name in (entry.name, base) for end in _BESIDE_PACKED]
    if entry.dtype == "U8":
        beside += [entry.name + end for end in _BESIDE_FOUR_BITS]
    if any(name in entries for name in beside):
        return f"quantised weights stored as {entry.dtype}; dequantise the checkpoint first"
    return None
