"""Where correlated columns come from: statistics directories and files of scores, by their paths.

Here belongs what stands between a list of paths, as the command line has it, and `correlate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerstats.correlation.pairs import Correlation, correlate
from layerstats.correlation.scores import locate, read_scores
from layerstats.errors import UsageError
from layerstats.stats import LayerStats

__all__ = ["correlate_sources"]


def correlate_sources(
    sources: Sequence[str | os.PathLike[str]],
    metrics: Sequence[str] | None = None,
    *,
    method: str = "spearman",
    exclude_ends: bool = False,
    bootstrap: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Correlation]:
    """Correlate columns of statistics directories and of files with published scores.

    Parameters
    ----------
    sources : sequence of str or path
        Directories that `layerstats measure` wrote, text files of scores, ``FILE.csv:COLUMN``.
    metrics : sequence of str, optional
        Columns to take from each directory; a file is one column by itself. With several
        directories a column is named ``directory:column``; files of one name go by their paths.
    method, exclude_ends, bootstrap, seed, confidence
        As in `correlate`.

    Returns
    -------
    list of Correlation

    Raises
    ------
    UsageError
        Fewer than two columns, columns of different length, a directory without `metrics`.
    MissingError, CheckpointError
        A source that is not there, or is neither statistics nor scores.
    """
    directories = [path for path in sources if Path(path).is_dir()]
    files = [path for path in sources if not Path(path).is_dir()]
    for file in files:
        locate(file)
    if not sources:
        msg = "nothing to correlate; give a statistics directory or files of scores"
        raise UsageError(msg)
    if metrics and not directories:
        msg = f"metrics are for statistics directories, but {files[0]} is a file; leave them out"
        raise UsageError(msg)
    named: list[tuple[str, str, NDArray[np.float64]]] = []
    for directory in directories:
        stats = LayerStats.load(directory)
        if not metrics:
            msg = f"{directory}: give the metrics to correlate: {', '.join(stats.columns())}"
            raise UsageError(msg)
        for metric in metrics:
            values = np.asarray(stats.layer_column(metric), dtype=np.float64)
            name = metric if len(directories) == 1 else f"{directory}:{metric}"
            named.append((name, f"{directory}:{metric}", values))
    for file in files:
        name, values = read_scores(file)
        named.append((name, os.fspath(file), values))
    short = [name for name, _, _ in named]
    columns = {(name if short.count(name) == 1 else full): values for name, full, values in named}
    if len(columns) < len(named):
        msg = f"the same column is given twice among {', '.join(full for _, full, _ in named)}"
        raise UsageError(msg)
    return correlate(
        columns,
        method=method,
        exclude_ends=exclude_ends,
        bootstrap=bootstrap,
        seed=seed,
        confidence=confidence,
    )
