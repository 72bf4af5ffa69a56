"""The kind `weight-norms`: a metric by layer as a run recorded it, its mean or its ends.

The average over a run is what LISA's second figure shows of LoRA and full fine-tuning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerstats.errors import UsageError, choices
from layerstats.plots.canvas import new_axes
from layerstats.plots.logs import Runs, as_runs
from layerstats.plots.norms import layer_norms
from layerstats.plots.registry import plot_kind
from layerstats.plots.style import add_note, outside_legend
from layerstats.runs import of_kind

__all__ = ["weight_norms"]

_WHEN = ("mean", "ends")
#: Letters that fit beside the axis.
_LONGEST_LABEL = 38


@plot_kind("weight-norms")
def weight_norms(
    data: Runs,
    *,
    column: str = "frobenius_norm",
    when: str = "mean",
    yscale: str = "auto",
    title: str | None = None,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    r"""Draw a tracked weight metric by layer, one line a run, embedding and head at the ends.

    .. math:: w^{(l)} = \frac{1}{T} \sum_{t=1}^{T} \|\theta_t^{(l)}\|

    Parameters
    ----------
    data : list of dict, or mapping
        The entries of a run's log (`layerstats.runs.read_log`), or label -> entries.
    column : str, default "frobenius_norm"
        A metric that the runs tracked.
    when : str, default "mean"
        "mean" averages over the T records of a run, "ends" draws the first and the last one.
    yscale, title, ax, **line
        As `layer_norms`.

    Returns
    -------
    Axes
        Lines carry the column's values in its unit, by layer.

    Raises
    ------
    UsageError
        A run did not track the metric.

    References
    ----------
    Pan et al. (2024), LISA, arXiv 2403.17919, section 3.1 and figure 2.

    Examples
    --------
    >>> log = [{"kind": "track", "step": n, "metrics": {"frobenius_norm":
    ...         {"layers": [2.0 + n, 4.0], "embed": 9.0, "head": None}}} for n in (0, 1)]
    >>> [float(y) for y in weight_norms(log).lines[0].get_ydata()]
    [2.5, 4.0]
    """
    if when not in _WHEN:
        raise UsageError(choices("time", when, _WHEN))
    # Taller than layer norms: there may be two lines of notes.
    ax = new_axes(size=(7.0, 3.7)) if ax is None else ax
    tables: dict[str, pd.DataFrame] = {}
    records: dict[str, list[str]] = {}
    for label, entries in as_runs(data).items():
        steps, values = _records(label, entries, column)
        if when == "mean":
            tables[label or "mean over the run"] = _table(column, _mean(values))
        else:
            for at in dict.fromkeys((0, len(steps) - 1)):
                step = f"step {steps[at]}"
                tables[f"{label}, {step}" if label else step] = _table(column, values[at])
        records.setdefault(_spanned(steps), []).append(label)
    ax = layer_norms(tables, columns=column, yscale=yscale, title=title, ax=ax, **line)
    if len(ax.get_ylabel()) > _LONGEST_LABEL:
        ax.set_ylabel(ax.get_ylabel().replace(" (", "\n("))
    if when == "mean":
        listed = (
            said + (f" ({', '.join(labels)})" if len(records) > 1 else "")
            for said, labels in records.items()
        )
        _append_note(ax, f"mean over {'; '.join(listed)}")
    elif len(tables) == 1:
        outside_legend(ax)
    return ax


def _spanned(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"1 record, of step {steps[0]}"
    return f"{len(steps)} records, steps {steps[0]} to {steps[-1]}"


def _append_note(ax: Axes, line: str) -> None:
    """Write a note, under the one about layers without a value if there is one."""
    lines = [line]
    for text in [text for text in ax.texts if text.get_gid() == "note"]:
        lines = [*text.get_text().splitlines(), line]
        text.remove()
    add_note(ax, lines)


def _records(
    label: str, entries: list[dict[str, Any]], column: str
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the steps at which a run recorded a metric and what it recorded."""
    tracked = of_kind(entries, "track")
    found = [entry for entry in tracked if column in entry["metrics"]]
    if not found:
        who = label or "the run"
        names = dict.fromkeys(name for entry in tracked for name in entry["metrics"])
        if names:
            msg = f"{who} did not track {column!r}; it tracked {', '.join(names)}"
        else:
            msg = f"{who} tracked no metric; train with --track {column}"
        raise UsageError(msg)
    return [int(entry["step"]) for entry in found], [entry["metrics"][column] for entry in found]


def _mean(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Average records; a layer without a value in one of them has none."""
    layers = np.array([value["layers"] for value in values], dtype=float).mean(axis=0)
    ends = {
        kind: float(np.array([value[kind] for value in values], dtype=float).mean())
        for kind in ("embed", "head")
    }
    return {"layers": layers.tolist(), **ends}


def _table(column: str, record: dict[str, Any]) -> pd.DataFrame:
    """Return a record as the table of layers that `layer_norms` draws."""
    layers = record["layers"]
    ends = [kind for kind in ("embed", "head") if record[kind] is not None]
    return pd.DataFrame(
        {
            "layer": pd.array([*range(len(layers)), *(pd.NA for _ in ends)], dtype="Int64"),
            "kind": ["block"] * len(layers) + ends,
            column: np.array([*layers, *(record[kind] for kind in ends)], dtype=float),
        }
    )
