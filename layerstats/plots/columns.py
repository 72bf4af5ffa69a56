"""From statistics to what is drawn: a column by layer, its label, what to measure if it lacks.

Only looks up and names; every number comes from the statistics as it is. No matplotlib here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
import pandas as pd

from layerstats.errors import UsageError
from layerstats.stats import LOD_NAME, LayerStats, column_unit, lod_column, missing_column

__all__ = [
    "Statistics",
    "as_stats",
    "block_values",
    "end_values",
    "gaps",
    "label_of",
    "lod_columns",
    "matrices_of",
    "short_names",
    "spans",
    "spans_by_series",
    "text_of",
]

Statistics: TypeAlias = LayerStats | pd.DataFrame

# What stands on an axis for a column; the unit is added from `layerstats.stats`.
_TEXTS = {
    "frobenius_norm": "Frobenius norm",
    "mean_abs": "Mean absolute weight",
    "spectral_norm": "Spectral norm",
    "stable_rank": "Stable rank",
    "alpha_hill": "PL_Alpha_Hill",
    "alpha_mid": "Hill alpha at half the spectrum",
    "alpha_ks": "Power-law alpha at the least KS",
    "alpha_weightwatcher": "weightwatcher's alpha",
    "heavy_tail": "Heavy tail",
    "ks_distance": "KS distance of the tail fit",
    "xmin": "Start of the tail, xmin",
    "tail_k": "Size of the tail, k",
    "lora_norm": "LoRA update",
    "lora_updated_norm": "Weights with LoRA update",
    "lora_relative_norm": "LoRA update to weights",
}


def text_of(column: str) -> str:
    """Return the name of a column for a legend, without unit.

    Examples
    --------
    >>> text_of("lod_m7"), text_of("lora_norm"), text_of("my_score")
    ('LOD, M = 7', 'LoRA update', 'my_score')
    """
    if found := LOD_NAME.fullmatch(column):
        return f"LOD, M = {found[1]}"
    return _TEXTS.get(column, column)


def label_of(column: str) -> str:
    """Return the text of an axis for a column, with its unit if that is known.

    Examples
    --------
    >>> label_of("frobenius_norm")
    'Frobenius norm (unit of the weights)'
    >>> label_of("my_score")
    'my_score'
    """
    unit = "% of weights" if LOD_NAME.fullmatch(column) else column_unit(column)
    return f"{text_of(column)} ({unit})" if unit else text_of(column)


def as_stats(data: object) -> LayerStats:
    """Return `data` as LayerStats; a bare table is taken as `.layers`.

    Parameters
    ----------
    data : LayerStats or DataFrame
        A table without a column `kind` holds blocks only, one without `layer` has layer 0..N-1 in
        its rows.

    Raises
    ------
    UsageError
        If `data` is neither.
    """
    if isinstance(data, LayerStats):
        return data
    if not isinstance(data, pd.DataFrame):
        msg = (
            f"cannot plot a {type(data).__name__}; give a LayerStats "
            "(LayerStats.load reads a statistics directory) or its table .layers"
        )
        raise UsageError(msg)
    table = data if "kind" in data else data.assign(kind="block")
    table = table if "layer" in table else table.assign(layer=np.arange(len(table)))
    return LayerStats(matrices=pd.DataFrame(), layers=table, meta={})


def matrices_of(data: Statistics) -> pd.DataFrame:
    """Return the rows of the matrices inside blocks, or an empty table if `data` has none."""
    table = as_stats(data).matrices
    return table[table["layer"].notna()] if "layer" in table else pd.DataFrame()


def block_values(data: Statistics, column: str) -> pd.Series[float]:
    """Return one column of the blocks, by layer 0..N-1; a layer without a row or value is NaN.

    Parameters
    ----------
    data : LayerStats or DataFrame
    column : str
        Name of the column; `heavy_tail` is `alpha_hill` with its sign turned.

    Returns
    -------
    Series of float64, shape (num_layers,)
        In the column's unit.

    Raises
    ------
    UsageError
        If the column is missing: the message names the metric to measure.

    Examples
    --------
    >>> block_values(pd.DataFrame({"layer": [0, 2], "lod_m7": [1.0, 3.0]}), "lod_m7").tolist()
    [1.0, nan, 3.0]
    """
    stats = as_stats(data)
    if column not in stats.columns():
        raise UsageError(_missing(column, stats))
    values = stats.layer_column(column)
    if values.empty:
        msg = f"nothing to plot for {column!r}: the statistics hold no block; measure a checkpoint"
        raise UsageError(msg)
    values = values.reindex(range(int(values.index.max()) + 1))
    return values.where(np.isfinite(values))


def gaps(values: pd.Series[float]) -> list[int]:
    """Return the layers without a value."""
    return [int(layer) for layer in values.index[values.isna()]]


def end_values(data: Statistics, column: str) -> list[tuple[str, float]]:
    """Return (kind, value) of the embedding's and the head's rows that have a value in `column`."""
    table = as_stats(data).layers
    if column not in table:
        return []
    ends = table[table["kind"].isin(["embed", "head"])]
    pairs = zip(ends["kind"].astype(str), ends[column].astype(float), strict=True)
    return [(kind, value) for kind, value in pairs if np.isfinite(value)]


def lod_columns(data: Statistics, m: Iterable[float] | None = None) -> dict[str, str]:
    """Return the LOD columns, smallest M first, as column -> the text of M.

    Parameters
    ----------
    data : LayerStats or DataFrame
    m : iterable of numbers, optional
        Only these M, in this order; all columns `lod_m*` if absent.

    Raises
    ------
    UsageError
        If there is no such column.

    Examples
    --------
    >>> lod_columns(pd.DataFrame({"lod_m13": [0.1], "lod_m7": [0.9]}))
    {'lod_m7': '7', 'lod_m13': '13'}
    """
    stats = as_stats(data)
    hits = [hit for name in stats.columns() if (hit := LOD_NAME.fullmatch(name))]
    found = {hit[0]: hit[1] for hit in sorted(hits, key=lambda hit: float(hit[1]))}
    if m is None and not found:
        raise UsageError(_missing(lod_column(7), stats))
    wanted = list(found) if m is None else [lod_column(one) for one in m]
    for column in wanted:
        if column not in found:
            raise UsageError(_missing(column, stats))
    return {column: found[column] for column in wanted}


def short_names(modules: Iterable[str]) -> dict[str, str]:
    """Return module -> its last part, or the whole name where last parts would coincide.

    Examples
    --------
    >>> short_names(["self_attn.q_proj", "mlp.up_proj"])
    {'self_attn.q_proj': 'q_proj', 'mlp.up_proj': 'up_proj'}
    >>> short_names(["attn.c_proj", "mlp.c_proj"])
    {'attn.c_proj': 'attn.c_proj', 'mlp.c_proj': 'mlp.c_proj'}
    """
    names = list(modules)
    last = [name.rpartition(".")[2] for name in names]
    return {
        name: short if last.count(short) == 1 else name
        for name, short in zip(names, last, strict=True)
    }


def spans(numbers: Iterable[int]) -> str:
    """Return whole numbers as text, neighbours joined.

    Examples
    --------
    >>> spans([3, 7, 8, 9])
    '3, 7-9'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{lo}" if lo == hi else f"{lo}-{hi}" for lo, hi in runs)


def spans_by_series(missing: Mapping[str, list[int]]) -> str:
    """Return the text that names the layers without a value, once if all series lack the same.

    Examples
    --------
    >>> spans_by_series({"base": [3], "LoRA": [3, 4]})
    'layer 3 (base); layers 3-4 (LoRA)'
    """
    words = {
        label: ("layer " if len(layers) == 1 else "layers ") + spans(layers)
        for label, layers in missing.items()
        if layers
    }
    if len(words) == len(missing) and len(set(words.values())) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{text} ({label})" for label, text in words.items())


def _missing(column: str, stats: LayerStats) -> str:
    return missing_column(column, stats.columns(), _TEXTS)
