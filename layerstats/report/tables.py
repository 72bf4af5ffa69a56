"""Tables as the page keeps them: by column, every number in full, null where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from layerstats.stats import column_unit

__all__ = ["Column", "Table", "from_frame", "from_records"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `kind` is "text", "whole", "number" or "bool"; `unit` may be empty."""

    name: str
    kind: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page.

    Parameters
    ----------
    id, title : str
    columns : tuple of Column
    values : dict
        Column -> values of all rows; None where there is none.
    note : str
        Said above it.
    shown : bool
        Whether a reader sees it; charts draw from hidden ones too.
    headline : tuple of str
        Columns that say the most about a layer in one line.
    """

    id: str
    title: str
    columns: tuple[Column, ...]
    values: dict[str, list[Any]]
    note: str = ""
    shown: bool = True
    headline: tuple[str, ...] = field(default=())

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.values.values()), []))


def from_frame(
    frame: pd.DataFrame, *, id: str, title: str, note: str = "", headline: Sequence[str] = ()
) -> Table:
    """Take a table of `LayerStats` as it is, every row and every column.

    Examples
    --------
    >>> table = from_frame(pd.DataFrame({"layer": [0], "lod_m7": [0.5]}), id="layers", title="")
    >>> table.columns[1], table.values["lod_m7"]
    (Column(name='lod_m7', kind='number', unit='percent'), [0.5])
    """
    columns = tuple(
        Column(str(name), _kind(frame[name]), column_unit(str(name))) for name in frame.columns
    )
    values = {str(name): _values(frame[name]) for name in frame.columns}
    return Table(id, title, columns, values, note, True, tuple(headline))


def from_records(
    records: Sequence[dict[str, Any]],
    *,
    id: str,
    title: str = "",
    units: dict[str, str] | None = None,
    **more: Any,
) -> Table:
    """Make a table of rows that all have the same keys; more goes to `Table`."""
    names = list(records[0]) if records else []
    values = {name: [record[name] for record in records] for name in names}
    columns = tuple(
        Column(name, _kind_of(values[name]), (units or {}).get(name, "")) for name in names
    )
    return Table(id, title, columns, values, **more)


def _kind(series: pd.Series[Any]) -> str:
    if pd.api.types.is_bool_dtype(series):
        return "bool"
    if pd.api.types.is_integer_dtype(series):
        return "whole"
    return "number" if pd.api.types.is_numeric_dtype(series) else "text"


def _kind_of(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return "bool"
    if known and all(isinstance(value, int) for value in known):
        return "whole"
    return "text" if any(isinstance(value, str) for value in known) else "number"


def _values(series: pd.Series[Any]) -> list[Any]:
    return [None if pd.isna(value) else value for value in series.tolist()]
