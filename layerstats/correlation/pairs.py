"""Correlations between named columns over layers.

Here belong the choice of columns and pairs and what a result is; the statistics are in ranks.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from layerstats.correlation.ranks import METHODS, bootstrap_interval, coefficients, p_value
from layerstats.errors import UsageError, choices
from layerstats.stats import LayerStats

__all__ = ["Correlation", "correlate", "correlation_table"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """One rank correlation.

    Parameters
    ----------
    x, y : str
        Names of the columns.
    method : str
        "spearman" or "kendall" (tau-b).
    rho : float
        Coefficient in [-1, 1]; NaN when it is not defined (see `note`).
    p_value : float
        Two-sided, of no association; NaN when `rho` is.
    n : int
        Layers with a value in both columns.
    interval : tuple of float
        Lower and upper end of the bootstrap interval; NaN when there is none.
    note : str
        Empty, or why a number is missing.
    """

    x: str
    y: str
    method: str
    rho: float
    p_value: float
    n: int
    interval: tuple[float, float]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON: null for a missing number, `note` only when there is one."""
        rho, p_value, low, high = (
            None if math.isnan(value) else value
            for value in (self.rho, self.p_value, *self.interval)
        )
        result: dict[str, Any] = {"x": self.x, "y": self.y, "method": self.method, "rho": rho}
        result |= {"p_value": p_value, "n": self.n, "interval": [low, high]}
        return result | ({"note": self.note} if self.note else {})


def correlate(
    source: LayerStats | pd.DataFrame | Mapping[str, ArrayLike],
    metrics: Sequence[str] | None = None,
    *,
    method: str = "spearman",
    exclude_ends: bool = False,
    bootstrap: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Correlation]:
    """Correlate metrics over layers, every pair of them.

    Spearman's rho is the product-moment correlation of mid-ranks; Kendall's tau-b counts concordant
    less discordant pairs, corrected for ties. P-values are two-sided: exact over all permutations
    up to 8 layers, ties included; above that SciPy's (exact for Kendall without ties, else by the t
    or normal distribution). The interval is the bias-corrected and accelerated bootstrap over
    layers, in pairs.

    Parameters
    ----------
    source : LayerStats, DataFrame, or mapping of name to vector
        One value a layer, in the order of layers. NaN means missing: such layers are left out of
        that pair.
    metrics : sequence of str, optional
        Two names or more (`heavy_tail` = -alpha_hill for LayerStats). By default every column of a
        DataFrame or mapping.
    method : str
        "spearman" or "kendall".
    exclude_ends : bool
        Leave out the first and the last layer.
    bootstrap : int
        Resamples, 0 for no interval.
    seed : int
        Of the resamples. Pairs with the same n share them, so no pair's interval depends on the
        others asked.
    confidence : float
        Coverage of the interval, between 0 and 1.

    Returns
    -------
    list of Correlation
        Pairs in the order of `metrics`. A column that is constant, or fewer than three layers with
        both values, gives NaN and a note, so that one bad column does not take the others with it.

    Raises
    ------
    UsageError
        Unknown names, vectors of different length, options out of range.

    References
    ----------
    Spearman (1904); Kendall (1945), Biometrika 33; Efron (1987), JASA 82 (bootstrap BCa).

    Examples
    --------
    >>> scores = {"a": [1, 2, 3, 4, 5], "b": [1, 3, 2, 5, 4]}
    >>> [pair] = correlate(scores, bootstrap=0)
    >>> round(pair.rho, 3), round(pair.p_value, 3), pair.n
    (0.8, 0.133, 5)
    """
    if method not in METHODS:
        raise UsageError(choices("method", method, METHODS))
    if not 0 < confidence < 1:
        msg = f"confidence must be between 0 and 1, got {confidence}"
        raise UsageError(msg)
    if bootstrap < 0 or seed < 0:
        msg = f"bootstrap and seed must be 0 or more, got {bootstrap} and {seed}"
        raise UsageError(msg)
    columns = _columns(source, metrics)
    if exclude_ends:
        columns = {name: values[1:-1] for name, values in columns.items()}
    return [
        _pair(x, y, columns[x], columns[y], method, (bootstrap, seed, confidence))
        for x, y in itertools.combinations(columns, 2)
    ]


def correlation_table(pairs: Iterable[Correlation]) -> pd.DataFrame:
    """Return correlations as a table, one row a pair; the interval is interval_lo, interval_hi.

    Examples
    --------
    >>> pairs = correlate({"a": [1, 2, 3], "b": [3, 2, 1]}, bootstrap=0)
    >>> correlation_table(pairs)["rho"].tolist()
    [-1.0]
    """
    rows = [
        (p.x, p.y, p.method, p.rho, p.p_value, p.n, p.interval[0], p.interval[1], p.note)
        for p in pairs
    ]
    names = ["x", "y", "method", "rho", "p_value", "n", "interval_lo", "interval_hi", "note"]
    return pd.DataFrame(rows, columns=names)


def _columns(
    source: LayerStats | pd.DataFrame | Mapping[str, ArrayLike], metrics: Sequence[str] | None
) -> dict[str, FloatArray]:
    if isinstance(metrics, str):
        msg = f"metrics must be a list of names, got the text {metrics!r}; give two or more names"
        raise UsageError(msg)
    if metrics is None and isinstance(source, LayerStats):
        msg = f"give the metrics to correlate; measured: {', '.join(source.columns())}"
        raise UsageError(msg)
    given: Iterable[Any] = source if metrics is None else metrics  # type: ignore[assignment]
    names = [str(name) for name in given]
    if len(names) < 2 or len(set(names)) != len(names):
        msg = f"give two or more different metrics to correlate, got {', '.join(names) or 'none'}"
        raise UsageError(msg)
    columns: dict[str, FloatArray] = {}
    keys: dict[str, Any] = (
        {} if isinstance(source, LayerStats) else {str(key): key for key in source}
    )
    for name in names:
        if isinstance(source, LayerStats):
            columns[name] = np.asarray(source.layer_column(name), dtype=np.float64)
        elif name not in keys:
            raise UsageError(choices("column", name, keys))
        else:
            columns[name] = _vector(name, source[keys[name]])
    lengths = {name: values.size for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        msg = f"columns differ in length ({listed}); give one value a layer of the same model"
        raise UsageError(msg)
    return columns


def _vector(name: str, values: Any) -> FloatArray:
    try:
        if isinstance(values, pd.Series):
            values = values.to_numpy(np.float64, na_value=np.nan)
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        msg = f"column {name!r} is not a list of numbers; choose a column of numbers"
        raise UsageError(msg) from None
    if vector.ndim != 1:
        msg = f"column {name!r} has shape {vector.shape}; give one number a layer"
        raise UsageError(msg)
    return vector


def _pair(
    x: str,
    y: str,
    first: FloatArray,
    second: FloatArray,
    method: str,
    options: tuple[int, int, float],
) -> Correlation:
    present = ~(np.isnan(first) | np.isnan(second))
    first, second = first[present], second[present]
    n = int(first.size)
    problem = ""
    if n < 3:
        problem = f"only {n} layers with both values; 3 are needed"
    else:
        constant = [name for name, v in ((x, first), (y, second)) if np.all(v == v[0])]
        if constant:
            problem = f"{' and '.join(constant)} is constant: no ranks to compare"
    if problem:
        return Correlation(x, y, method, math.nan, math.nan, n, (math.nan, math.nan), problem)
    # Only ranks matter from here on, and they are finite where a value may be infinite.
    first, second = stats.rankdata(first), stats.rankdata(second)
    rho = float(coefficients(first[None], second[None], method)[0])
    resamples, seed, confidence = options
    interval, note = bootstrap_interval(
        first, second, method, resamples=resamples, seed=seed, confidence=confidence
    )
    return Correlation(x, y, method, rho, p_value(first, second, method), n, interval, note)
