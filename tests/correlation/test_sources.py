"""Correlations between directories and files, by their paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from layerstats.correlation import correlate, correlate_sources
from layerstats.errors import MissingError, UsageError
from layerstats.stats import LayerStats

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    table = {
        "layer": [0, 1, 2, 3],
        "kind": "block",
        "lod_m7": [4.0, 3, 1, 2],
        "alpha_hill": [2.0, 3, 4, 5],
    }
    meta = {"format": "layerstats-stats", "version": 1}
    stats = LayerStats(pd.DataFrame({"layer": [0], "kind": ["block"]}), pd.DataFrame(table), meta)
    return stats.save(tmp_path / "stats")


def test_two_files_give_the_published_number(tmp_path: Path) -> None:
    alpha = np.loadtxt(DATA / "llama2_7b_alpha_peak.txt").reshape(32, 7).mean(axis=1)
    np.savetxt(tmp_path / "heavy_tail.txt", -alpha)
    lod = DATA / "llama2_7b_lod_m13_percent.txt"
    [pair] = correlate_sources([str(lod), str(tmp_path / "heavy_tail.txt")])
    assert (pair.x, pair.y) == ("llama2_7b_lod_m13_percent", "heavy_tail")
    assert pair.rho == pytest.approx(0.775, abs=5e-4)


def test_a_directory_and_its_metrics(directory: Path) -> None:
    [pair] = correlate_sources([directory], ["lod_m7", "heavy_tail"], bootstrap=100)
    assert [pair] == correlate(LayerStats.load(directory), ["lod_m7", "heavy_tail"], bootstrap=100)
    assert pair.rho == pytest.approx(0.8)


def test_a_directory_beside_a_file(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("1\n2\n3\n4\n")
    [pair] = correlate_sources([tmp_path / "other.txt", directory], ["lod_m7"], bootstrap=0)
    assert (pair.x, pair.y, pair.n) == ("lod_m7", "other", 4)


def test_names_that_clash_become_paths(directory: Path, tmp_path: Path) -> None:
    paths = [tmp_path / part / "scores.txt" for part in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("1\n2\n3\n")
    [pair] = correlate_sources(paths, bootstrap=0)
    assert (pair.x, pair.y) == (str(paths[0]), str(paths[1]))
    again = LayerStats.load(directory).save(tmp_path / "again")
    [pair] = correlate_sources([directory, again], ["lod_m7"], bootstrap=0)
    assert (pair.x, pair.y, pair.rho) == (f"{directory}:lod_m7", f"{again}:lod_m7", 1)


def test_what_cannot_be_correlated(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("1\n2\n3\n")
    with pytest.raises(UsageError, match="give the metrics to correlate: lod_m7"):
        correlate_sources([directory])
    with pytest.raises(UsageError, match="leave them out"):
        correlate_sources([file, file], ["lod_m7"])
    with pytest.raises(UsageError, match="given twice"):
        correlate_sources([file, file])
    with pytest.raises(UsageError, match="two or more different"):
        correlate_sources([file])
    with pytest.raises(UsageError, match="differ in length"):
        correlate_sources([file, directory], ["lod_m7"])
    with pytest.raises(MissingError, match="no such file"):
        correlate_sources([file, tmp_path / "none.txt"])


def test_a_source_that_is_not_there_is_said_to_be_missing(directory: Path, tmp_path: Path) -> None:
    gone, there = tmp_path / "gone", tmp_path / "scores.txt"
    there.write_text("1\n2\n3\n4\n")
    for sources in ([gone], [there, gone], [directory, gone], [f"{gone}.csv:alpha"]):
        with pytest.raises(MissingError, match="no such file or directory; give a statistics"):
            correlate_sources(sources, ["lod_m7", "heavy_tail"])
    with pytest.raises(UsageError, match=f"but {there} is a file"):
        correlate_sources([there], ["lod_m7", "heavy_tail"])


def test_a_column_of_lod_that_was_not_measured(directory: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'lod_m3' .*--metrics lod --m 3 --tokens TEXT"):
        correlate_sources([directory], ["lod_m3", "heavy_tail"])


def test_no_sources_at_all() -> None:
    with pytest.raises(UsageError, match="nothing to correlate"):
        correlate_sources([], ["lod_m7"])
