"""From a run's log to what is drawn: series by step, active layers by interval. No matplotlib here.

The log's entries come from `layerstats.runs.read_log`; every number is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from layerstats.errors import UsageError
from layerstats.runs import of_kind

__all__ = [
    "Entries",
    "Intervals",
    "Runs",
    "as_runs",
    "byte_unit",
    "intervals_of",
    "of_steps",
    "smoothed",
]

Entries: TypeAlias = Sequence[Mapping[str, Any]]
Runs: TypeAlias = Entries | Mapping[str, Entries]
Array: TypeAlias = npt.NDArray[np.float64]

_UNITS = ((1e9, "GB", "10⁹"), (1e6, "MB", "10⁶"), (1e3, "kB", "10³"))


def as_runs(data: object) -> dict[str, list[dict[str, Any]]]:
    """Return label -> entries; the label of a single run is empty.

    Raises
    ------
    UsageError
        `data` is neither a log nor a mapping of logs, or there is none.
    """
    found: dict[Any, Any] = dict(data) if isinstance(data, Mapping) else {"": data}
    if not found:
        msg = "nothing to plot: no run given; give label -> log entries"
        raise UsageError(msg)
    for entries in found.values():
        listed = isinstance(entries, Sequence) and not isinstance(entries, str)
        if not listed or not all(isinstance(one, Mapping) and "kind" in one for one in entries):
            msg = (
                f"cannot plot a {type(entries).__name__} as a run; give the entries of its log "
                "(layerstats.runs.read_log reads a run directory)"
            )
            raise UsageError(msg)
    return {str(label): [dict(one) for one in entries] for label, entries in found.items()}


def of_steps(entries: Entries, key: str, *, kind: str = "step") -> tuple[Array, Array]:
    """Return steps and values of one key, NaN where an entry has none.

    Parameters
    ----------
    entries
        A log.
    key : str
        Such as "loss", or "memory.peak" for what lies deeper.
    kind : str, default "step"

    Examples
    --------
    >>> of_steps([{"kind": "step", "step": 1, "loss": 2.5}], "loss")
    (array([1.]), array([2.5]))
    """
    chosen = of_kind([dict(one) for one in entries], kind)
    steps = np.array([entry["step"] for entry in chosen], dtype=float)
    return steps, np.array([_value(entry, key) for entry in chosen], dtype=float)


def _value(entry: Mapping[str, Any], key: str) -> float:
    value: Any = entry
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return float("nan") if value is None else float(value)


def smoothed(values: Array, width: int) -> Array:
    """Return the value of a straight line fitted to the `width` steps around each; NaN is left out.

    Inside the run that is the centred mean. Where the window reaches over an end it is cut off, and
    the line, unlike the mean, does not bend a falling curve there.

    Parameters
    ----------
    values : ndarray, shape (steps,)
    width : int
        Steps of the window, odd.

    Examples
    --------
    >>> smoothed(np.array([4.0, 1.0, 1.0, 7.0]), 3).tolist()
    [2.5, 2.0, 3.0, 4.0]
    """
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    at, half = np.arange(len(values)), width // 2
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    number = count[high] - count[low]
    fitted = np.where(number > 0, (total[high] - total[low]) / np.maximum(number, 1), np.nan)
    for step in np.flatnonzero(high - low < 2 * half + 1):
        window = np.arange(low[step], high[step])[known[low[step] : high[step]]]
        if len(window) > 2:
            away = window - window.mean()
            slope = float(away @ values[window]) / float(away @ away)
            fitted[step] += slope * (step - window.mean())
    return np.asarray(fitted)


class Intervals(NamedTuple):
    """Which layers trained in which interval.

    `active` has shape (intervals, layers) with 1 where a layer trained; `numbers` are the intervals
    in order.
    """

    numbers: list[int]
    active: Array


def intervals_of(entries: Entries, num_layers: int | None) -> Intervals:
    """Return the active layers by interval.

    Parameters
    ----------
    entries
        A log.
    num_layers : int, optional
        Without it, as many as the tracked metrics have, or as have been active.

    Raises
    ------
    UsageError
        The run sampled no layers.
    """
    found = of_kind([dict(one) for one in entries], "interval")
    if not found:
        msg = (
            "nothing to plot: the log has no interval, since the run's method samples no layers; "
            "give a run of lisa, lisa-d, owlore-full or owlore"
        )
        raise UsageError(msg)
    if num_layers is None:
        tracked = [
            len(values["layers"])
            for entry in of_kind([dict(one) for one in entries], "track")
            for values in entry["metrics"].values()
        ]
        seen = [layer + 1 for entry in found for layer in entry["active_layers"]]
        num_layers = max([*tracked, *seen], default=1)
    active = np.zeros((len(found), num_layers))
    for row, entry in enumerate(found):
        active[row, list(entry["active_layers"])] = 1.0
    return Intervals([int(entry["interval"]) for entry in found], active)


def byte_unit(largest: float) -> tuple[float, str]:
    """Return the bytes of the unit that suits an amount, and the unit with what it stands for.

    Examples
    --------
    >>> byte_unit(24e9), byte_unit(3e6)
    ((1000000000.0, 'GB = 10⁹ bytes'), (1000000.0, 'MB = 10⁶ bytes'))
    """
    for size, name, power in _UNITS:
        if largest >= 0.1 * size:
            return size, f"{name} = {power} bytes"
    return 1.0, "bytes"
