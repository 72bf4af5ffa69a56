"""Give freed memory back to the system, which glibc by itself does late or never.

Blocks come and go in chunks that the C library keeps and, because of their alignment, hardly
reuses: without this the process grows by about one block per block although nothing is alive.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["give_back"]


def give_back() -> None:
    """Return free heap pages to the system; does nothing where the C library is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
