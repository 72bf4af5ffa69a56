"""What was asked of a measurement, checked before anything is written: options, device, files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerstats.checkpoint.lora import Adapter
from layerstats.checkpoint.reader import Checkpoint
from layerstats.errors import CheckpointError, UsageError
from layerstats.metrics import METRICS, Metric, MetricOptions

__all__ = [
    "DEFAULT_METRICS",
    "check_adapter",
    "check_checkpoint",
    "check_needs",
    "check_workers",
    "default_metrics",
    "file_identity",
    "metric_options",
    "question",
]

#: What is measured of the weights when nobody says otherwise.
DEFAULT_METRICS = ("frobenius_norm", "mean_abs", "stable_rank", "alpha_hill")

#: Fits that the alpha metrics ask for, and metrics that look at the spectrum itself.
_RULES = {"alpha_hill": "peak", "alpha_mid": "mid", "alpha_ks": "ks"}
_SPECTRAL = frozenset(("spectral_norm", "stable_rank", "noise_edge"))


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint none of whose tensors can be measured, with the first reason."""
    if not checkpoint.layout.matrices:
        lost = [skip for skip in checkpoint.layout.skipped if skip.lost] or list(
            checkpoint.layout.skipped
        )
        msg = (
            f"{checkpoint.path}: no weight matrix that can be measured; "
            f"{lost[0].name}: {lost[0].reason}"
        )
        raise CheckpointError(msg)


def default_metrics(tokens: Any, activations: Any, adapter: Any = None) -> tuple[str, ...]:
    """Return what is measured when nobody says otherwise: more where there is input for more.

    Examples
    --------
    >>> default_metrics("text.txt", None)[-2:]
    ('alpha_hill', 'lod')
    """
    with_text = tokens is not None or activations is not None
    return (
        *DEFAULT_METRICS,
        *(_that_need("adapter") if adapter is not None else ()),
        *(_that_need("activations") if with_text else ()),
    )


def _that_need(what: str) -> list[str]:
    return [name for name, found in METRICS.items() if found.needs == what]


def check_needs(
    metrics: Sequence[Metric],
    adapter: Any,
    *,
    tokens: Any,
    activations: Any,
    save_activations: Any = None,
) -> None:
    """Refuse metrics whose inputs were not given, and inputs that contradict each other or idle."""
    names = {need: found.name for found in metrics if (need := found.needs)}
    if "activations" in names and tokens is None and activations is None:
        msg = (
            f"{names['activations']} needs calibration text or norms: add --tokens FILE or "
            "--activations FILE"
        )
        raise UsageError(msg)
    if tokens is not None and activations is not None:
        msg = "tokens and activations are both given; activation norms come from one of them"
        raise UsageError(msg)
    if "adapter" in names and adapter is None:
        msg_0 = f"{names['adapter']} needs a LoRA adapter: add --adapter DIR"
        raise UsageError(msg_0)
    texts = {"tokens": tokens, "activations": activations, "save-activations": save_activations}
    idle = [f"--{name}" for name, value in texts.items() if value is not None]
    if idle and "activations" not in names:
        msg_1 = (
            f"{' and '.join(idle)} given, but none of the metrics "
            f"{', '.join(found.name for found in metrics)} takes a calibration: add "
            f"{' or '.join(_that_need('activations'))} to --metrics, or leave "
            f"{' and '.join(idle)} out"
        )
        raise UsageError(msg_1)
    if adapter is not None and "adapter" not in names:
        msg_2 = (
            f"--adapter given, but none of the metrics {', '.join(found.name for found in metrics)}"
            f" looks at it: add {' or '.join(_that_need('adapter'))} to --metrics, or leave "
            "--adapter out"
        )
        raise UsageError(msg_2)


def check_workers(workers: int | None) -> int:
    """Return the number of workers: the processors this process may use, if none was given."""
    if workers is None:
        return max(
            1,
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
        )
    if workers < 1:
        msg = f"workers is {workers}; give at least 1"
        raise UsageError(msg)
    return workers


def check_adapter(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Refuse an adapter of which no update fits the checkpoint."""
    names = [matrix.name for matrix in checkpoint.layout.matrices]
    if adapter.pairs and len(adapter.unmatched(names)) == len(adapter.pairs):
        first = next(iter(adapter.pairs))
        msg = (
            f"{adapter.path}: none of its {len(adapter.pairs)} updates fits "
            f"{checkpoint.path}, such as {first}"
        )
        raise UsageError(msg)


def file_identity(file: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """Name an input file so that a resumed run can tell whether it is the same."""
    if file is None:
        return None
    try:
        state = Path(file).stat()
    except OSError:
        return {"path": str(file)}  # the reader of that file reports what is wrong with it
    return {"path": str(file), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def metric_options(
    metrics: Sequence[Metric],
    m: Sequence[float],
    lower_bound: str,
    precision: str,
    *,
    trust: bool,
) -> MetricOptions:
    """Return the parameters of the metrics; a spectrum needed anyway decides the precision."""
    names = {found.name for found in metrics}
    rules = tuple(rule for name, rule in _RULES.items() if name in names)
    try:
        multiples = tuple(dict.fromkeys(float(value) for value in m))
    except (TypeError, ValueError):
        msg = f"m is {m!r}; give a list of numbers, such as [7] or [7, 13]"
        raise UsageError(msg) from None
    options = MetricOptions(multiples, lower_bound, precision, rules)
    # The range of alpha over bins takes the spectrum too.
    exact = bool(names & _SPECTRAL) or not rules or trust
    return dataclasses.replace(options, precision="float64") if exact else options


def question(
    metrics: Sequence[Metric],
    options: MetricOptions,
    adapter: Adapter | None,
    doubts: Mapping[str, int],
    **calibration: Any,
) -> dict[str, Any]:
    """Return what is asked, as the journal keeps it: a resumed run must ask the same."""
    calibrates = any(found.needs == "activations" for found in metrics)
    return {
        "metrics": [found.name for found in metrics],
        "m": list(options.m),
        "lower_bound": options.lower_bound,
        "precision": options.precision,
        "adapter": file_identity(adapter.file) if adapter else None,
        "calibration": calibration if calibrates else None,
        **({"trust": doubts} if doubts else {}),
    }
