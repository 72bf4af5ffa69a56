"""What a run has really taken: the largest memory of this process, or of the CUDA allocator."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from layerstats.calibration.heap import give_back

__all__ = ["HighWater", "tensor_bytes"]


class HighWater:
    """The largest memory since it was made.

    On CUDA what the allocator had given out at most; otherwise the process's resident memory at its
    highest, which counts the interpreter and its libraries too. `measured_by` says which.

    Parameters
    ----------
    device : torch.device
    held : int
        Bytes of tensors that are there now: a model's weights.

    Attributes
    ----------
    base : int
        Bytes that are neither those tensors nor what comes: the interpreter, libraries, data. What
        training took is ``peak - base``. 0 on CUDA.

    Examples
    --------
    >>> mark = HighWater(torch.device("cpu"))
    >>> mark.peak >= mark.base > 0, mark.measured_by
    (True, 'process high-water mark')
    """

    def __init__(self, device: torch.device, held: int = 0) -> None:
        self._device = device
        self.base = 0
        self.measured_by = "process high-water mark"
        if device.type == "cuda":
            self.measured_by = "cuda allocator"
            torch.cuda.reset_peak_memory_stats(device)
        else:
            give_back()  # what loading has freed would otherwise be counted as held
            # Linux sets its mark back on request; elsewhere it is that of the whole process.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.base = max(0, self.peak - held)

    @property
    def peak(self) -> int:
        """Bytes at the highest."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return _of_the_whole_process()


def _of_the_whole_process() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tensor_bytes(tensors: Iterable[object]) -> int:
    """Return the bytes of all tensors among the given things, a shared one once.

    Examples
    --------
    >>> one = torch.zeros(4)
    >>> tensor_bytes([one, one, "no tensor", torch.zeros(2, dtype=torch.bfloat16)])
    20
    """
    return sum({id(one): one.nbytes for one in tensors if isinstance(one, torch.Tensor)}.values())
