"""Plans for every combination of settings, each one simulated once.

What does not concern a method is not varied for it: no rank for LISA, no number of layers for full
fine-tuning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layerstats.errors import UsageError, choices
from layerstats.train.config import METHODS
from layerstats.train.memory import MemoryPlan, plan_memory

__all__ = ["Planner", "Row", "sweep"]

_OF_LAYERS = frozenset(
    ("expected_active", "state", "always_active", "sampling", "schedule", "interval_steps", "steps")
)
_OF_GALORE = frozenset(("rank", "rank_per_layer", "projection", "moments"))
_OF_ADAPTERS = frozenset(("rank", "lora_alpha", "lora_dropout", "lora_targets"))
_OF_SOME = _OF_LAYERS | _OF_GALORE | _OF_ADAPTERS

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Row:
    """One combination of the settings that were varied, and its plan."""

    point: Mapping[str, Any]
    plan: MemoryPlan


class Planner:
    """Plans for one model that share fixed settings; what was simulated once is kept.

    Parameters
    ----------
    source : str, Path or transformers config
        See `plan_memory`.
    **settings
        What `plan_memory` takes, for all plans.
    """

    def __init__(self, source: str | Path | Any, **settings: Any) -> None:
        self._source = source
        self._settings = settings
        self._made: dict[tuple[Any, ...], MemoryPlan] = {}

    def plan(self, **settings: Any) -> MemoryPlan:
        """Return the plan for the fixed settings and these, `method` among them."""
        both = {**self._settings, **settings}
        method = both.pop("method")
        if method not in METHODS:
            raise UsageError(choices("method", method, METHODS))
        relevant = {name: one for name, one in both.items() if concerns(method, name)}
        # Methods that differ in their probabilities alone take the same memory.
        kind = METHODS[method]
        key = (kind.who, kind.how, *sorted((name, repr(one)) for name, one in relevant.items()))
        if key not in self._made:
            self._made[key] = plan_memory(self._source, method=method, **relevant)
        return replace(self._made[key], method=method)


def concerns(method: str, setting: str) -> bool:
    """Return whether a setting has a part in a method's memory.

    Examples
    --------
    >>> concerns("lisa", "rank"), concerns("owlore", "rank"), concerns("full", "seq_len")
    (False, True, True)
    """
    kind = METHODS[method]
    return (
        setting not in _OF_SOME
        or (kind.who == "layers" and setting in _OF_LAYERS)
        or (kind.how == "galore" and setting in _OF_GALORE)
        or (kind.who == "adapters" and setting in _OF_ADAPTERS)
    )


def sweep(
    source: str | Path | Any,
    grid: Mapping[str, Sequence[Any]],
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Row]:
    """Plan for every combination of a grid of settings.

    Parameters
    ----------
    source : str, Path or transformers config
        See `plan_memory`.
    grid : mapping of str to sequence
        Setting -> values, `method` may be among them; the last varies fastest. A setting that
        does not concern a method is None in its rows, and the rows are not repeated.
    progress : callable, optional
        Called with a word, plans done and their number.
    **settings
        What `plan_memory` takes, for all rows; `method` here or in the grid.

    Returns
    -------
    list of Row

    Raises
    ------
    UsageError
        The grid is empty, or a setting is not allowed.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> small = LlamaConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4)
    >>> rows = sweep(small, {"expected_active": [1, 4]}, method="lisa", seq_len=16, batch_size=1)
    >>> [row.point for row in rows]
    [{'expected_active': 1}, {'expected_active': 4}]
    >>> rows[0].plan.peak_bytes < rows[1].plan.peak_bytes
    True
    """
    if not grid or not all(grid.values()):
        msg = "nothing to sweep: give settings with values, such as expected_active=1,2,4"
        raise UsageError(msg)
    planner = Planner(source, **settings)
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        method = str(point.get("method", settings.get("method")))
        if method not in METHODS:
            raise UsageError(choices("method", method, METHODS))
        point = {name: one if concerns(method, name) else None for name, one in point.items()}
        points.setdefault(tuple(map(repr, point.values())), point)
    rows = []
    for number, point in enumerate(points.values()):
        if progress is not None:
            progress("simulate", number, len(points))
        given = {name: one for name, one in point.items() if one is not None}
        rows.append(Row(point, planner.plan(**given)))
    return rows
