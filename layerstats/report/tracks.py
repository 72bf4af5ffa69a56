"""Metrics recorded during training: how each layer's changed since the first record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerstats import runs
from layerstats.report.charts import Chart, Series, View
from layerstats.report.page import Part
from layerstats.report.tables import from_records
from layerstats.stats import column_unit

__all__ = ["tracked"]

#: Records that are drawn at most, evenly chosen, the last among them.
_MOST_RECORDS = 6


def tracked(entries: Sequence[runs.Entry]) -> list[Part]:
    """Return one part a metric; none where nothing was recorded twice.

    Examples
    --------
    >>> log = [
    ...     {"kind": "track", "step": s, "metrics": {"stable_rank": {"layers": [4.0, 5.0 + s]}}}
    ...     for s in (0, 10)
    ... ]
    >>> [part] = tracked(log)
    >>> part.tables[0].values["step_10"]
    [0.0, 200.0]
    """
    records = [one for one in runs.of_kind(entries, "track") if one.get("metrics")]
    names = dict.fromkeys(name for one in records for name in one["metrics"])
    parts = [_part(name, [one for one in records if name in one["metrics"]]) for name in names]
    return [part for part in parts if part is not None]


def _part(name: str, records: Sequence[runs.Entry]) -> Part | None:
    if len(records) < 2:
        return None
    first, *later = records
    chosen = _evenly(later)
    start = first["metrics"][name]["layers"]
    rows = [
        {
            "layer": layer,
            **{
                f"step_{one['step']}": _change(before, one["metrics"][name]["layers"][layer])
                for one in chosen
            },
        }
        for layer, before in enumerate(start)
    ]
    if not rows:
        return None
    id = f"track-{name}"
    series = tuple(Series(f"step_{one['step']}", f"step {one['step']}", "line") for one in chosen)
    view = View(name, f"Change since step {first['step']} (%)", series)
    unit = column_unit(name)
    note = f"{name} is in: {unit}." if unit else ""
    chart = Chart(id, f"During training: {name}", "xy", id, (view,), note=note)
    return Part(tables=(from_records(rows, id=id, shown=False),), charts=(chart,))


def _evenly(records: Sequence[runs.Entry]) -> list[runs.Entry]:
    if len(records) <= _MOST_RECORDS:
        return list(records)
    places = [round((one + 1) * len(records) / _MOST_RECORDS) - 1 for one in range(_MOST_RECORDS)]
    return [records[place] for place in places]


def _change(before: Any, after: Any) -> float | None:
    """Return the change in percent; None where a value is missing or nothing can be divided."""
    if before is None or after is None or before == 0:
        return None
    return 100.0 * (float(after) / float(before) - 1.0)
