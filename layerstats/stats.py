"""What a measurement is: two tables and a page of metadata, in memory and on disk.

`LayerStats` holds `.layers` (one row a block, and one each for embedding and head), `.matrices`
(one row a weight matrix, experts too) and `.meta`. The names of all columns and their units are
fixed here; everything that names a column asks this module.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from layerstats.errors import CheckpointError, MissingError, UsageError, choices

__all__ = [
    "LAYER_COLUMNS",
    "LOD_NAME",
    "MATRIX_COLUMNS",
    "WHOLE_COLUMNS",
    "LayerStats",
    "column_unit",
    "is_whole",
    "lod_column",
    "missing_column",
    "replace_file",
    "strict_json",
    "whole_numbers",
]

FORMAT = "layerstats-stats"
VERSION = 1

#: What identifies a row, before the metrics.
LAYER_COLUMNS = ("layer", "name", "kind", "num_matrices", "parameters")
MATRIX_COLUMNS = (
    "layer",
    "name",
    "module",
    "expert",
    "kind",
    "rows",
    "cols",
    "dtype",
    "parameters",
)

#: Unit of each metric column; `lod_m*` and its share have theirs in `column_unit`.
UNITS = {
    "frobenius_norm": "unit of the weights",
    "mean_abs": "unit of the weights",
    "spectral_norm": "unit of the weights",
    "lora_norm": "unit of the weights",
    "lora_updated_norm": "unit of the weights",
    "lora_relative_norm": "ratio",
    "stable_rank": "dimensionless, 1 to min(rows, cols)",
    "alpha_hill": "exponent; lower = heavier tail",
    "alpha_hill_lo": "exponent",
    "alpha_hill_hi": "exponent",
    "alpha_trust_lo": "exponent",
    "alpha_trust_hi": "exponent",
    "alpha_mid": "exponent",
    "alpha_mid_xmin": "squared unit of the weights",
    "alpha_mid_ks_distance": "0 to 1",
    "alpha_ks": "exponent",
    "alpha_ks_xmin": "squared unit of the weights",
    "alpha_ks_tail_k": "number of eigenvalues",
    "alpha_ks_distance": "0 to 1",
    "alpha_weightwatcher": "exponent",
    "heavy_tail": "minus alpha_hill",
    "xmin": "squared unit of the weights",
    "tail_k": "number of eigenvalues",
    "ks_distance": "0 to 1",
    "alpha_precision": "float64, or float32 where certified",
    "mp_edge": "unit of the weights",
    "num_spikes": "number of singular values",
    "snr": "ratio of energies above and below the edge",
    "alpha_flag": "flags of a matrix; in layers.csv the number of flagged matrices",
    "tokens": "tokens the matrix saw in calibration",
}
#: Columns of whole numbers.
WHOLE_COLUMNS = frozenset(
    (
        "layer",
        "expert",
        "rows",
        "cols",
        "parameters",
        "num_matrices",
        "tail_k",
        "alpha_ks_tail_k",
        "tokens",
        "alpha_flag",
    )
)
#: The name of a column of LOD; the group is M.
LOD_NAME = re.compile(r"lod_m(\d+(?:\.\d+)?)")
_TEXT_COLUMNS = ("name", "module", "kind", "dtype", "status", "alpha_flag", "alpha_precision")


def lod_column(m: float) -> str:
    """Name the LOD column of a threshold M.

    Examples
    --------
    >>> lod_column(7), lod_column(2.5)
    ('lod_m7', 'lod_m2.5')
    """
    return f"lod_m{np.format_float_positional(m, trim='-')}"


def missing_column(column: str, have: Sequence[str], known: Container[str] = ()) -> str:
    """Return the one-line message for a column that is not there: what there is, what to measure.

    Parameters
    ----------
    column
        The name asked for.
    have
        The columns there are.
    known
        Names that can be measured, beside LOD and what comes with an adapter or a fit.

    Examples
    --------
    >>> missing_column("lod_m3", ["alpha_hill"])[:70]
    "no column 'lod_m3' in these statistics (they have alpha_hill); measure"
    """
    held = f"they have {', '.join(have)}" if have else "they have no metric"
    if found := LOD_NAME.fullmatch(column):
        how = f"measure it with --metrics lod --m {found[1]} --tokens TEXT"
    elif column.startswith("lora_"):
        how = "measure it with --adapter LORA_DIR"
    elif column in ("heavy_tail", "ks_distance", "xmin", "tail_k"):
        how = "measure it with --metrics alpha_hill"
    elif column in ("mp_edge", "num_spikes", "snr"):
        how = "measure it with --metrics noise_edge"
    elif column.startswith(("alpha_mid_", "alpha_ks_", "alpha_hill_")):
        how = f"measure it with --metrics {'_'.join(column.split('_')[:2])}"
    elif column in known:
        how = f"measure it with --metrics {column}"
    else:
        how = "choose one of these"
    return f"no column {column!r} in these statistics ({held}); {how}"


def column_unit(column: str) -> str:
    """Return the unit of a metric column, as `meta.json` states it."""
    if column.startswith("lod_m"):
        return (
            "fraction of the block's outliers, 0 to 1" if column.endswith("_share") else "percent"
        )
    return UNITS.get(column, "")


@dataclass(frozen=True)
class LayerStats:
    """Statistics of a checkpoint by layer.

    Attributes
    ----------
    matrices
        One row a weight matrix: `layer`, `name`, `module`, `expert`, `kind`, `rows`, `cols`,
        `dtype`, `parameters`, the metrics, `status` ("ok" or why a value is missing).
    layers
        One row a block (`kind` "block", `layer` 0 to N-1), and one for embedding and head (`layer`
        missing).
    meta
        Checkpoint identity, metric parameters, calibration, versions, units: strict JSON.

    Examples
    --------
    >>> layers = pd.DataFrame({"layer": [0, 1], "kind": "block", "alpha_hill": [3.0, 2.5]})
    >>> stats = LayerStats(matrices=pd.DataFrame(), layers=layers, meta={})
    >>> stats.layer_column("heavy_tail").tolist()
    [-3.0, -2.5]
    """

    matrices: pd.DataFrame
    layers: pd.DataFrame
    meta: dict[str, Any]

    @property
    def blocks(self) -> pd.DataFrame:
        """The rows of `layers` that are blocks, indexed by layer."""
        rows = self.layers[self.layers["kind"] == "block"]
        return rows.set_index(rows["layer"].astype(int)).sort_index()

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return int((self.layers["kind"] == "block").sum())

    def columns(self) -> list[str]:
        """Names that `layer_column` accepts: numeric metrics, `heavy_tail` with alpha_hill."""
        names = [
            str(name)
            for name in self.layers.columns
            if name not in LAYER_COLUMNS and pd.api.types.is_numeric_dtype(self.layers[name])
        ]
        return names + (["heavy_tail"] if "alpha_hill" in names else [])

    def layer_column(self, name: str) -> pd.Series[float]:
        """Return one metric by block.

        Parameters
        ----------
        name
            A metric column of layers.csv, or `heavy_tail` = -alpha_hill (OwLore reverses alpha the
            same way).

        Returns
        -------
        Series
            float64, indexed by layer 0 to N-1, NaN where the layer has no value.

        Raises
        ------
        UsageError
            The column was not measured.
        """
        if name not in self.columns():
            if LOD_NAME.fullmatch(name) or name in UNITS:
                raise UsageError(missing_column(name, self.columns(), UNITS))
            raise UsageError(choices("metric", name, self.columns()))
        source = "alpha_hill" if name == "heavy_tail" else name
        values = self.blocks[source].astype(float)
        return (-values if name == "heavy_tail" else values).rename(name)

    def verdicts(self) -> dict[str, Any]:
        """Return the page of verdicts: which rankings of layers can be told from noise.

        Raises
        ------
        UsageError
            The measurement was made without `trust`.
        """
        page = self.meta.get("trust")
        if not isinstance(page, dict):
            msg = "these statistics were measured without --trust; measure again with it"
            raise UsageError(msg)
        return page

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write layers.csv, matrices.csv and meta.json, each beside its place and then renamed."""
        folder = Path(directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"{folder}: cannot be a directory ({error.strerror}); give another"
            raise UsageError(msg) from error
        for name, table in (("matrices.csv", self.matrices), ("layers.csv", self.layers)):
            replace_file(folder / name, table.to_csv(index=False, lineterminator="\n"))
        replace_file(folder / "meta.json", strict_json(self.meta, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> LayerStats:
        """Read a directory that `save` or `layerstats measure` wrote.

        Raises
        ------
        MissingError
            The directory or one of its files is not there.
        CheckpointError
            A file is damaged or of a later major version.
        """
        folder = Path(directory)
        if not (folder / "meta.json").is_file():
            unfinished = (folder / "journal.jsonl").is_file()
            hint = (
                "the measurement is not finished: run it again with --resume"
                if unfinished
                else ("give a directory that `layerstats measure --out` wrote")
            )
            msg = f"{folder}: no meta.json; {hint}"
            raise MissingError(msg)
        meta = _load_meta(folder / "meta.json")
        return cls(_load_table(folder / "matrices.csv"), _load_table(folder / "layers.csv"), meta)


def _load_meta(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{file}: not valid JSON ({error}); measure again"
        raise CheckpointError(msg) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
        found = (
            f"{meta.get('format')} {meta.get('version')}" if isinstance(meta, dict) else "no object"
        )
        msg = f"{file}: expected {FORMAT} {VERSION}, found {found}; measure again with this version"
        raise CheckpointError(msg)
    return meta


def _load_table(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        if "kind" not in table.columns or "layer" not in table.columns:
            msg = "it has no columns 'layer' and 'kind'"
            raise ValueError(msg)
        # In layers.csv alpha_flag is a count, in matrices.csv a word.
        words = set(_TEXT_COLUMNS) - (set() if "module" in table.columns else {"alpha_flag"})
        for column in set(table.columns) - words:
            table[column] = _numbers(table[column], whole=is_whole(column, table))
    except FileNotFoundError as error:
        msg_0 = f"{file}: missing; measure again"
        raise MissingError(msg_0) from error
    except (ValueError, UnicodeDecodeError) as error:
        msg_0 = f"{file}: not a readable table ({error}); measure again"
        raise CheckpointError(msg_0) from error
    return table


def is_whole(column: str, table: pd.DataFrame) -> bool:
    """Tell whether a column counts; in layers.csv the tail sizes are means over matrices."""
    return column in WHOLE_COLUMNS and ("module" in table.columns or not column.endswith("tail_k"))


def _numbers(texts: pd.Series[str], *, whole: bool) -> pd.Series[Any]:
    """Turn texts into numbers to the last bit, which not every version of pandas.read_csv does."""
    values = [float(text) if text else float("nan") for text in texts]
    return whole_numbers(pd.Series(values)) if whole else pd.Series(values, dtype="float64")


def whole_numbers(values: pd.Series[Any]) -> pd.Series[Any]:
    """Give a column of whole numbers its type: int64, or Int64 where some are missing."""
    missing = values.isna().any()
    return values.astype("Int64" if missing else "int64")


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Write JSON that every reader accepts: null for NaN and Infinity, numpy's numbers as numbers.

    Examples
    --------
    >>> strict_json({"a": float("nan"), "b": np.float64(0.5)})
    '{"a": null, "b": 0.5}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return str(value) if isinstance(value, Path) else value


def replace_file(file: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it, so that nobody ever reads half of it."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    beside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        msg = f"{file}: cannot be written ({error.strerror}); free space or choose another place"
        raise UsageError(msg) from error
