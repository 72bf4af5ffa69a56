"""Rank correlation: the published numbers, literal oracles, SciPy, the bootstrap's behaviour."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from layerstats.correlation import Correlation, correlate, correlation_table, read_scores
from layerstats.errors import UsageError
from layerstats.stats import LayerStats
from tests.oracles import ranks as oracle

DATA = Path(__file__).parents[1] / "data"
METHODS = {"spearman": oracle.spearman, "kendall": oracle.kendall}

small = st.integers(-4, 4).map(float)


def published() -> dict[str, np.ndarray]:
    alpha = np.loadtxt(DATA / "llama2_7b_alpha_peak.txt").reshape(32, 7).mean(axis=1)
    return {"lod": read_scores(DATA / "llama2_7b_lod_m13_percent.txt")[1], "heavy_tail": -alpha}


def test_llama2_lod_against_heavy_tail() -> None:
    """OwLore's headline observation, on public numbers."""
    [pair] = correlate(published())
    assert pair.rho == pytest.approx(0.775, abs=5e-4)
    assert pair.p_value == pytest.approx(1.9e-7, abs=5e-9)
    assert pair.n == 32
    assert 0.4 < pair.interval[0] < pair.rho < pair.interval[1] < 0.95
    [inner] = correlate(published(), exclude_ends=True)
    assert inner.rho == pytest.approx(0.768, abs=5e-4)
    assert inner.n == 30


@pytest.mark.parametrize("method", METHODS)
@given(pairs=st.lists(st.tuples(small, small), min_size=3, max_size=6))
@settings(max_examples=60, deadline=None)
def test_small_samples_equal_the_definitions(method: str, pairs: list[tuple[float, float]]) -> None:
    x, y = (list(column) for column in zip(*pairs, strict=True))
    [got] = correlate({"x": x, "y": y}, method=method, bootstrap=0)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(got.rho)
        assert "constant" in got.note
        return
    assert got.rho == pytest.approx(METHODS[method](x, y), abs=1e-14)
    assert got.p_value == pytest.approx(oracle.permutation_p_value(x, y, METHODS[method]))


@pytest.mark.parametrize("method", METHODS)
@given(pairs=st.lists(st.tuples(small, small), min_size=9, max_size=25))
@settings(max_examples=40, deadline=None)
def test_larger_samples_equal_scipy(method: str, pairs: list[tuple[float, float]]) -> None:
    x, y = (list(column) for column in zip(*pairs, strict=True))
    if len(set(x)) == 1 or len(set(y)) == 1:
        return
    [got] = correlate({"x": x, "y": y}, method=method, bootstrap=0)
    test = scipy_stats.spearmanr if method == "spearman" else scipy_stats.kendalltau
    theirs = test(x, y)
    assert got.rho == pytest.approx(METHODS[method](x, y), abs=1e-14)
    assert got.p_value == pytest.approx(theirs.pvalue, abs=1e-12)


def test_exact_p_equals_scipys_exact_kendall() -> None:
    x, y = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 8, 5, 7]
    [got] = correlate({"x": x, "y": y}, method="kendall", bootstrap=0)
    theirs = scipy_stats.kendalltau(x, y, method="exact")
    assert got.p_value == pytest.approx(theirs.pvalue, abs=1e-15)


@given(
    x=st.lists(st.floats(-100, 100), min_size=10, max_size=10, unique=True),
    y=st.lists(st.floats(-100, 100), min_size=10, max_size=10, unique=True),
    method=st.sampled_from(sorted(METHODS)),
)
@settings(max_examples=30, deadline=None)
def test_laws(x: list[float], y: list[float], method: str) -> None:
    def run(a: object, b: object) -> Correlation:
        return correlate({"a": a, "b": b}, method=method, bootstrap=200)[0]  # type: ignore[dict-item]

    base = run(x, y)
    turned = run(x, -np.array(y))
    assert turned.rho == pytest.approx(-base.rho, abs=1e-15)
    assert turned.p_value == pytest.approx(base.p_value, abs=1e-12)
    # Only ranks count, in the interval too: any increasing map leaves all of it as it is.
    assert run(scipy_stats.rankdata(x), y) == base
    assert run(y, x).rho == base.rho
    assert -1 <= base.interval[0] <= base.interval[1] <= 1


def test_missing_values_leave_their_pair_only() -> None:
    columns = {"a": [1, 2, math.nan, 4, 5], "b": [1, 2, 3, math.nan, 5], "c": [5, 4, 3, 2, 1]}
    found = {(p.x, p.y): p.n for p in correlate(columns, bootstrap=0)}
    assert found == {("a", "b"): 3, ("a", "c"): 4, ("b", "c"): 4}


def test_too_few_and_constant_give_a_note_and_spare_the_others() -> None:
    columns = {
        "a": [1, 2, 3, 4],
        "b": [1, 2, math.nan, math.nan],
        "c": [7, 7, 7, 7],
        "d": [1, 3, 2, 4],
    }
    found = {(p.x, p.y): p for p in correlate(columns)}
    assert found["a", "b"].note == "only 2 layers with both values; 3 are needed"
    assert found["a", "c"].note == "c is constant: no ranks to compare"
    assert math.isnan(found["a", "c"].rho)
    assert found["a", "d"].rho == pytest.approx(0.8)
    assert found["a", "b"].to_dict() == {
        "x": "a", "y": "b", "method": "spearman", "rho": None, "p_value": None, "n": 2,
        "interval": [None, None], "note": "only 2 layers with both values; 3 are needed",
    }  # fmt: skip


def test_perfect_and_nearly_constant_columns_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [perfect] = correlate({"a": range(10), "b": range(10)})
        assert perfect.rho == 1
        assert perfect.interval == (1, 1)
        [lonely] = correlate({"a": [0] * 9 + [1], "b": range(10)})
        assert lonely.interval[0] <= lonely.rho <= lonely.interval[1]
        [short] = correlate({"a": [1, 1, 2], "b": [1, 2, 2]}, confidence=0.999)
        assert short.n == 3
        [wild] = correlate({"a": [1, math.inf, 3, -math.inf], "b": [1, 4, 3, 2]}, method="kendall")
        assert wild.rho == pytest.approx(2 / 3)


def test_intervals_are_deterministic_and_independent_of_the_company() -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=20) for name in "abc"}
    alone = correlate(columns, ["a", "c"])[0]
    assert alone == correlate(columns, ["a", "b", "c"])[1]
    assert correlate(columns, ["a", "c"], seed=1)[0].interval != alone.interval
    wide = correlate(columns, ["a", "c"], confidence=0.99)[0].interval
    assert wide[0] < alone.interval[0] < alone.interval[1] < wide[1]


def test_intervals_cover_the_truth() -> None:
    """Bivariate normal, rho_s = 6/pi asin(rho/2): 95 % in 150 samples, minus 4 standard errors."""
    rng = np.random.Generator(np.random.Philox(1))
    truth, hits = 6 / math.pi * math.asin(0.35), 0
    for trial in range(150):
        x = rng.normal(size=30)
        y = 0.7 * x + math.sqrt(1 - 0.49) * rng.normal(size=30)
        low, high = correlate({"x": x, "y": y}, bootstrap=300, seed=trial)[0].interval
        hits += low <= truth <= high
    assert 150 * 0.95 - 4 * math.sqrt(150 * 0.05 * 0.95) <= hits < 150


def test_sources() -> None:
    frame = pd.DataFrame(
        {"layer": [0, 1, 2], "kind": "block", "alpha_hill": [2.0, 3.0, 4.0], "b": [3.0, 1.0, 2.0]}
    )
    stats = LayerStats(matrices=pd.DataFrame(), layers=frame, meta={})
    [pair] = correlate(stats, ["heavy_tail", "b"], bootstrap=0)
    assert (pair.x, pair.y, pair.rho) == ("heavy_tail", "b", 0.5)
    [pair] = correlate(frame, ["alpha_hill", "b"], bootstrap=0)
    assert pair.rho == -0.5
    table = correlation_table([pair])
    assert table.loc[0, ["x", "y", "rho", "n"]].tolist() == ["alpha_hill", "b", -0.5, 3]
    nullable = pd.DataFrame({"a": pd.array([1, None, 3, 4], dtype="Int64"), "b": [1, 2, 3, 4]})
    assert correlate(nullable, bootstrap=0)[0].n == 3


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ({"a": [1, 2, 3], "b": [1, 2]}, {}, r"differ in length \(a 3, b 2\)"),
        ({"a": [1, 2, 3]}, {}, "two or more different metrics"),
        ({"a": [1, 2, 3], "b": ["x", "y", "z"]}, {}, "column 'b' is not a list of numbers"),
        ({"a": [1, 2, 3], "b": [[1, 2, 3]]}, {}, "column 'b' has shape"),
        ({"a": [1], "b": [1]}, {"metrics": ["a", "c"]}, "unknown column 'c'"),
        ({"a": [1], "b": [1]}, {"metrics": ["a", "a"]}, "different metrics"),
        ({"a": [1], "b": [1]}, {"metrics": "a"}, "list of names"),
        ({"a": [1], "b": [1]}, {"method": "pearson"}, "unknown method 'pearson'"),
        ({"a": [1], "b": [1]}, {"confidence": 95}, "confidence must be between 0 and 1"),
        ({"a": [1], "b": [1]}, {"bootstrap": -1}, "0 or more"),
    ],
)
def test_bad_arguments(source: dict[str, object], options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        correlate(source, **options)  # type: ignore[arg-type]


def test_statistics_need_names() -> None:
    frame = pd.DataFrame({"layer": [0], "kind": "block", "mean_abs": [2.0]})
    with pytest.raises(UsageError, match="give the metrics to correlate; measured: mean_abs"):
        correlate(LayerStats(matrices=pd.DataFrame(), layers=frame, meta={}))


def test_columns_may_be_called_by_numbers() -> None:
    [pair] = correlate(pd.DataFrame({0: [1, 2, 3, 4], 1: [1, 2, 4, 3]}))
    assert (pair.x, pair.y, pair.rho) == ("0", "1", pytest.approx(0.8))
