"""The compiled kernels give bit for bit what the path without numba gives."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.numerics import column_sums, compiled, outliers
from layerstats.numerics.column_sums import column_abs_sums
from layerstats.numerics.outliers import BlockOutliers, block_outliers
from layerstats.numerics.spectrum import MatrixError
from tests.numerics.matrices import student_t
from tests.oracles import outliers as oracle

SHAPES = [(64, 48), (16, 48), (83, 47), (3, 700), (1, 5), (700, 1)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_matrices_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "_LEAST_VALUES", 1)
    yield
    compiled._compile.cache_clear()


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (column_sums, outliers):
        monkeypatch.setattr(module, "kernels_for", lambda _: None)


def any_bits(rng: np.random.Generator, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Every finite value is as likely: denormals, zeros of both signs, the largest."""
    integer = {torch.float32: np.int32, torch.bfloat16: np.int16}[dtype]
    range_ = np.iinfo(integer)
    bits = rng.integers(range_.min, range_.max, shape, dtype=integer, endpoint=True)
    weight = torch.from_numpy(bits).view(dtype)
    return torch.where(weight.isfinite(), weight, torch.zeros((), dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_serve(dtype: torch.dtype) -> None:
    assert compiled.kernels_for(torch.ones(3, 4, dtype=dtype)) is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("multiples", [[7], [7, 3], [0, 0.5, 3, 5, 7, 13], [3] * 9])
def test_a_block_has_the_same_numbers(
    dtype: torch.dtype, multiples: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    weights = [student_t(*shape, seed=i).to(dtype) for i, shape in enumerate(SHAPES)]
    norms = [np.exp(rng.normal(0, 1, shape[1])) for shape in SHAPES]
    found = block_outliers(weights, norms, multiples)
    without_numba(monkeypatch)
    assert found == block_outliers(weights, norms, multiples)
    scores = [oracle.scores(w, x) for w, x in zip(weights, norms, strict=True)]
    for i, m in enumerate(multiples):
        assert [row[i] for row in found.counts] == oracle.outlier_counts(scores, m)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.integers(1, 6))
def test_counts_are_those_of_float64_scores_for_any_bits(
    seed: int, dtype: torch.dtype, count: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = any_bits(rng, (int(rng.integers(1, 40)), int(rng.integers(1, 20))), dtype)
    norms = np.exp(rng.normal(0, 3, weight.shape[1])) * (rng.random(weight.shape[1]) > 0.1)
    scores = oracle.scores(weight, norms)
    thresholds = rng.choice(scores.reshape(-1), count).tolist()  # ties: a score is a threshold
    expected = [int(np.count_nonzero(scores > t)) for t in thresholds]
    kernels = compiled.kernels_for(weight)
    assert kernels is not None
    limits = outliers._largest_not_above(thresholds, norms, dtype)
    assert kernels.count_above(weight, limits) == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from([1, 4, 7, 256]))
def test_sums_add_up_in_the_same_order(seed: int, dtype: torch.dtype, rows_summed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = any_bits(rng, (int(rng.integers(1, 600)), int(rng.integers(1, 20))), dtype)
    total = np.zeros(weight.shape[1])
    magnitudes = weight.float().abs().numpy()
    with np.errstate(over="ignore"):
        for start in range(0, len(magnitudes), rows_summed):
            own = np.zeros(weight.shape[1], dtype=np.float32)
            for row in magnitudes[start : start + rows_summed]:
                own += row
            total += own
    kernels = compiled.kernels_for(weight)
    assert kernels is not None
    np.testing.assert_array_equal(kernels.column_abs_sums(weight, rows_summed), total)
    if rows_summed == 256:
        with pytest.MonkeyPatch.context() as patch:
            without_numba(patch)
            plain = column_sums._column_sums(weight, torch.float32)
        np.testing.assert_array_equal(plain, total)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_outliers_in_a_column_than_sixteen_bits_count(dtype: torch.dtype) -> None:
    found = block_outliers([torch.ones(70_001, 2, dtype=dtype)], [None], [0.5])
    assert found.counts == ((140_002,),)


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_and_non_finite_values_are_handled_alike(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = torch.full((64, 4), 3e38).to(dtype)
    found = column_abs_sums(huge)
    assert np.isfinite(found).all()
    for value in (float("nan"), float("-inf")):
        bad = student_t(20, 30).to(dtype)
        bad[3, 4] = bad[19, 29] = value
        with pytest.raises(MatrixError, match="2 non-finite values"):
            column_abs_sums(bad)
    without_numba(monkeypatch)
    np.testing.assert_array_equal(column_abs_sums(huge), found)


def test_other_types_and_layouts_are_not_served() -> None:
    for weight in (torch.ones(4, 6).T, torch.ones(4, 6).double(), torch.ones(4, 6).half()):
        assert compiled.kernels_for(weight) is None


def test_without_numba_it_is_said_once_and_counted_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights, norms = [student_t(20, 30), student_t(9, 30)], [None, None]
    found = block_outliers(weights, norms, [3, 7])
    assert isinstance(found, BlockOutliers)
    compiled._compile.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.INFO, logger=compiled.__name__):
        assert block_outliers(weights, norms, [3, 7]) == found
    assert caplog.text.count("numba is not installed") == 1


def test_a_numba_that_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object) -> None:
        message = "no machine code today"
        raise RuntimeError(message)

    monkeypatch.setattr(compiled.Kernels, "count_above", broken)
    assert compiled.kernels_for(torch.ones(2, 3)) is None
    assert "no machine code today" in caplog.text
    assert block_outliers([torch.ones(2, 3)], [None], [0.5]).lod_pct == (100.0,)
