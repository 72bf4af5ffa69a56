"""Timing that holds on a shared machine: CPU seconds, one thread, candidates in turn, medians."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

__all__ = ["Row", "interleaved", "machine", "single_thread"]


@dataclass(frozen=True)
class Row:
    """One line of results.md: a measured ratio beside what was promised."""

    what: str
    measured: str
    target: str
    met: bool | None
    note: str = ""
    why: str = ""  # told under the table when the row is missed


def single_thread() -> threadpool_limits:
    """Limit BLAS and torch to one thread; use as a context."""
    torch.set_num_threads(1)
    return threadpool_limits(1)


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int = 3
) -> tuple[dict[str, float], dict[str, Any]]:
    """Run the candidates in turn; return each one's median CPU seconds and its last result.

    A first round is not counted: it pays for imports, page faults and thread pools.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            if number == 0 and name.endswith("(slow)"):
                continue
            start = time.process_time()
            results[name] = run()
            if number:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def gemm_rate(dtype: type = np.float64, size: int = 1536) -> float:
    """Measure the floating-point operations per CPU second of a matrix product, best of five."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        a @ a.copy()
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best


def read_rate(nbytes: int = 400_000_000) -> float:
    """Measure the bytes per CPU second of summing an array that is larger than any cache."""
    values = np.ones(nbytes // 8, dtype=np.int64)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        values.sum()
        best = min(best, time.process_time() - start)
    return nbytes / best


def machine() -> str:
    """Name the processor and the libraries, for the head of results.md."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = f"{models[0]} ({len(models)} threads)" if models else platform.processor()
    libraries = f"torch {torch.__version__}, numpy {np.__version__}"
    return f"{model}, Python {platform.python_version()}, {libraries}"
