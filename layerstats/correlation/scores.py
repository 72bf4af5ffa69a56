"""Published scores: a text file with a number a line, or a column of a CSV file.

Here belongs everything between a file that somebody else wrote and a vector over layers.
"""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerstats.errors import CheckpointError, MissingError, UsageError, choices

__all__ = ["read_scores"]

FloatArray = NDArray[np.float64]


def read_scores(path: str | os.PathLike[str]) -> tuple[str, FloatArray]:
    """Read scores that somebody published: a number a line, or a column of a CSV file.

    Parameters
    ----------
    path : str or path
        A text file with one number a line (blank lines and lines that start with # are skipped), or
        ``FILE.csv`` with one column beside `layer`, or ``FILE.csv:COLUMN``. "nan" and empty cells
        are missing values. Where a CSV has a column `layer`, rows without a layer (embedding, head)
        are left out and the rest is put in order of layers.

    Returns
    -------
    name : str
        The file's name without its ending, or the column.
    values : ndarray, shape (num_layers,), float64

    Raises
    ------
    MissingError
        No such file.
    CheckpointError
        A line is not a number; the message names file and line.
    UsageError
        A CSV without the column.
    """
    file, column = locate(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = (
            f"{file}: cannot be read as text ({error.__class__.__name__}); give a text or CSV file"
        )
        raise CheckpointError(msg) from error
    if column is None and file.suffix.lower() not in (".csv", ".tsv"):
        return file.stem, _read_lines(file, text)
    return _read_column(file, text, column)


def locate(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the file that a path of scores names, and the column if one is named.

    Raises
    ------
    MissingError
        Nothing is there.
    """
    file, column = Path(path), None
    if not file.is_file() and ":" in os.fspath(path):
        name, _, column = os.fspath(path).rpartition(":")
        file = Path(name)
    if not file.exists():
        msg = (
            f"{file}: no such file or directory; give a statistics directory, a text file of "
            "scores, or FILE.csv:COLUMN"
        )
        raise MissingError(msg)
    return file, column


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        msg = f"{place}: {shown!r} is not a number; give one number a line, or FILE.csv:COLUMN"
        raise CheckpointError(msg) from None
    if math.isinf(value):
        msg = (
            f"{place}: {text!r} is not a finite number; leave it out or write nan for a missing one"
        )
        raise CheckpointError(msg)
    return value


def _read_lines(file: Path, text: str) -> FloatArray:
    values = [
        _number(line.strip(), f"{file}:{number}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not values:
        msg = f"{file}: has no numbers; give one number a line"
        raise CheckpointError(msg)
    return np.array(values)


def _read_column(file: Path, text: str, column: str | None) -> tuple[str, FloatArray]:
    reader = csv.reader(io.StringIO(text), delimiter="\t" if file.suffix == ".tsv" else ",")
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        msg = f"{file}:{reader.line_num}: is not CSV ({error})"
        raise CheckpointError(msg) from error
    name = _choose(file, header, column)
    place = header.index(name)
    by_layer = header.index("layer") if "layer" in header else None
    found: list[tuple[float, float]] = []
    for line, row in rows:
        if len(row) != len(header):
            msg = f"{file}:{line}: has {len(row)} cells, the header has {len(header)}"
            raise CheckpointError(msg)
        layer = float(len(found))
        if by_layer is not None:
            layer = _number(row[by_layer].strip() or "nan", f"{file}:{line}")
            if math.isnan(layer):
                continue
        found.append((layer, _number(row[place].strip() or "nan", f"{file}:{line}")))
    if not found:
        msg = f"{file}: column {name!r} has no rows; give a table with one row a layer"
        raise CheckpointError(msg)
    if len({layer for layer, _ in found}) < len(found):
        msg = (
            f"{file}: has several rows for a layer; give a table with one row a layer (layers.csv)"
        )
        raise CheckpointError(msg)
    found.sort(key=lambda pair: pair[0])
    for place, (layer, _) in enumerate(found):
        if layer != found[0][0] + place or layer < 0 or layer % 1:
            msg = (
                f"{file}: has a row for layer {layer:g} where {found[0][0] + place:g} is next; "
                "give one row for each layer, numbered without a gap"
            )
            raise CheckpointError(msg)
    return name, np.array([value for _, value in found])


def _choose(file: Path, header: list[str], column: str | None) -> str:
    names = [name for name in header if name and name != "layer"]
    if column is None and len(names) == 1:
        return names[0]
    if column is None:
        msg = f"{file}: choose a column as {file}:COLUMN; available: {', '.join(names) or 'none'}"
        raise UsageError(msg)
    if column not in names:
        raise UsageError(f"{file}: " + choices("column", column, names))
    return column
