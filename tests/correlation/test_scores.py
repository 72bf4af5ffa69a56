"""Published scores: text files, CSV columns, and lines that are no numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from layerstats.correlation import read_scores
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError

DATA = Path(__file__).parents[1] / "data"


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_the_published_file() -> None:
    name, values = read_scores(DATA / "llama2_7b_lod_m13_percent.txt")
    assert name == "llama2_7b_lod_m13_percent"
    assert values.shape == (32,)
    assert values[1] == 2.952778277619514946e-01


def test_text(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", "\ufeff# LOD\n1\n\n 2.5 \r\nnan\n-3e1\n")
    name, values = read_scores(str(file))
    assert name == "a"
    assert np.array_equal(values, [1, 2.5, math.nan, -30], equal_nan=True)


def test_csv_columns(tmp_path: Path) -> None:
    text = "layer,name,lod\n1,b1,0.5\n,embed,9\n0,b0,\n2,b2,0.25\n"
    file = write(tmp_path, "layers.csv", text)
    name, values = read_scores(f"{file}:lod")
    assert name == "lod"
    assert np.array_equal(values, [math.nan, 0.5, 0.25], equal_nan=True)
    outside = write(tmp_path, "outside.csv", "layer,score\nnan,9\n1,5\n0,4\n")
    assert read_scores(outside)[1].tolist() == [4, 5]
    only = write(tmp_path, "one.csv", "layer,score\n0,3\n1,4\n")
    assert read_scores(only)[1].tolist() == [3, 4]
    tabs = write(tmp_path, "t.tsv", "a\tb\n1\t2\n")
    assert read_scores(f"{tabs}:b")[1].tolist() == [2]
    plain = write(tmp_path, "t.txt", 'a,"b, too"\n1,2\n')
    assert read_scores(f"{plain}:b, too")[1].tolist() == [2]


def test_a_file_with_a_colon_in_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, "a:b.txt", "1\n")
    assert read_scores(file)[0] == "a:b"


@pytest.mark.parametrize(
    ("name", "text", "column", "error", "words"),
    [
        ("a.txt", "1\nx\n", "", CheckpointError, "a.txt:2: 'x' is not a number"),
        ("a.txt", "1 2\n", "", CheckpointError, "a.txt:1: '1 2' is not a number"),
        ("a.txt", "inf\n", "", CheckpointError, "a.txt:1: 'inf' is not a finite number"),
        ("a.txt", "# only\n", "", CheckpointError, "has no numbers"),
        (
            "a.csv",
            "a,b\n1,2\n",
            "",
            UsageError,
            r"choose a column as .*a.csv:COLUMN; available: a, b",
        ),
        ("a.csv", "a,b\n1,2\n", ":c", UsageError, "unknown column 'c'"),
        ("a.csv", "a,b\n1,x\n", ":b", CheckpointError, "a.csv:2: 'x' is not a number"),
        ("a.csv", "a,b\n1\n", ":b", CheckpointError, "a.csv:2: has 1 cells, the header has 2"),
        ("a.csv", "a,b\n", ":b", CheckpointError, "has no rows"),
        ("a.csv", "", "", UsageError, "available: none"),
        ("a.csv", "layer,b\n0,1\n0,2\n", "", CheckpointError, "several rows for a layer"),
        ("a.csv", "layer,b\nx,1\n", "", CheckpointError, "a.csv:2: 'x' is not a number"),
        ("a.csv", "layer,b\n0,1\n2,2\n", "", CheckpointError, "layer 2 where 1 is next"),
        ("a.csv", "layer,b\n-1,1\n0,2\n", "", CheckpointError, "layer -1"),
        ("a.csv", "layer,b\n0.5,1\n1.5,2\n", "", CheckpointError, "layer 0.5"),
    ],
)
def test_errors_name_file_and_line(
    name: str, text: str, column: str, error: type[LayerstatsError], words: str, tmp_path: Path
) -> None:
    file = write(tmp_path, name, text)
    with pytest.raises(error, match=words) as caught:
        read_scores(f"{file}{column}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_scores(tmp_path / "none.txt")
    with pytest.raises(MissingError, match=r"none\.csv: no such file"):
        read_scores(f"{tmp_path}/none.csv:lod")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        read_scores(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read as text"):
        read_scores(tmp_path / "b.txt")
