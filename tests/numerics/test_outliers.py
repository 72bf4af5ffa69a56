from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.numerics import blocks, outliers
from layerstats.numerics.column_sums import column_abs_sums
from layerstats.numerics.outliers import block_outliers
from layerstats.numerics.spectrum import MatrixError
from tests.numerics.matrices import student_t
from tests.oracles import outliers as oracle

SHAPES = [(64, 48), (16, 48), (80, 48), (48, 80)]
MULTIPLES = [0.0, 0.5, 3, 5, 7, 13]
DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def a_block(
    seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    weights = [student_t(*shape, seed=seed + i).to(dtype) for i, shape in enumerate(SHAPES)]
    return weights, [np.exp(rng.normal(0, 1, shape[1])) for shape in SHAPES]


def scores(weights: list[torch.Tensor], norms: list[np.ndarray]) -> list[np.ndarray]:
    return [oracle.scores(w, x) for w, x in zip(weights, norms, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_counts_are_exactly_those_of_float64_scores(dtype: torch.dtype, seed: int) -> None:
    weights, norms = a_block(seed, dtype)
    found = block_outliers(weights, norms, MULTIPLES)
    expected = scores(weights, norms)
    for i, m in enumerate(MULTIPLES):
        assert [row[i] for row in found.counts] == oracle.outlier_counts(expected, m)
        assert found.lod_pct[i] == pytest.approx(oracle.lod_pct(expected, m), rel=1e-15)
        for row, one in zip(found.matrix_lod_pct, expected, strict=True):
            assert row[i] == pytest.approx(oracle.lod_pct([one], m), rel=1e-15)
    mean = np.concatenate([s.reshape(-1) for s in expected]).mean()
    assert found.mean_score == pytest.approx(mean, rel=1e-7)
    assert sum(found.counts[0]) > 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
def test_integer_weights_count_too(dtype: torch.dtype) -> None:
    weights = [torch.from_numpy(np.random.default_rng(0).integers(-99, 99, (40, 30))).to(dtype)]
    norms = [np.random.default_rng(1).exponential(1, 30)]
    found = block_outliers(weights, norms, [1, 3])
    expected = scores(weights, norms)
    assert found.counts[0] == tuple(oracle.outlier_counts(expected, m)[0] for m in (1, 3))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(DTYPES[:4]), st.sampled_from([1e-30, 1e-3, 1.0, 1e6]))
def test_the_largest_weight_that_is_no_outlier_is_found_exactly(
    seed: int, dtype: torch.dtype, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    norms = scale * np.exp(rng.normal(0, 3, 40)) * (rng.random(40) > 0.1)
    threshold = float(rng.exponential(1))
    bits = outliers._largest_not_above([threshold], norms, dtype)[0]
    value = torch.from_numpy(bits).view(dtype)
    assert (value.double().numpy() * norms <= threshold).all()
    above = torch.nextafter(value.to(dtype), torch.full_like(value, math.inf)).double().numpy()
    finite = np.isfinite(above)
    assert (above[finite] * norms[finite] > threshold).all()
    assert ((norms[~finite] == 0) | (value.double().numpy()[~finite] > 1e4)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sums_are_those_of_float64(dtype: torch.dtype) -> None:
    for shape in ((700, 48), (3, 47), (48, 700)):
        weight = student_t(*shape).to(dtype)
        expected = weight.double().abs().sum(0).numpy()
        for view in (weight, weight[:, 1:].contiguous(), weight[:, 1:]):
            first = shape[1] - view.shape[1]
            np.testing.assert_allclose(column_abs_sums(view), expected[first:], rtol=1e-6)


def test_column_sums_can_be_shared_between_sets_of_norms() -> None:
    weights, norms = a_block()
    sums = [column_abs_sums(w) for w in weights]
    for factor in (1.0, 3.0):
        scaled = [np.sqrt(factor + x) for x in norms]
        found = block_outliers(weights, scaled, [3, 7], column_sums=sums)
        assert found == block_outliers(weights, scaled, [3, 7])


def test_listing_the_few_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, norms = a_block()
    counts = []
    for pays in (True, False):
        monkeypatch.setattr(outliers, "_listing_pays", lambda *_, pays=pays: pays)
        counts.append(block_outliers(weights, norms, [7, 3, 0.5, 13, 40, 3]).counts)
    assert counts[0] == counts[1]


def test_a_score_equal_to_the_threshold_is_no_outlier() -> None:
    found = block_outliers([torch.tensor([[0.5, 0.5, 0.5, 2.5]])], [None], [2.5])
    assert found.mean_score == 1.0
    assert found.counts == ((0,),)
    assert block_outliers([torch.ones(7, 5)], [None], [1]).lod_pct == (0.0,)


def test_norms_none_stands_for_ones() -> None:
    weights, _ = a_block()
    ones = [np.ones(w.shape[1]) for w in weights]
    assert block_outliers(weights, [None] * 4, [3]) == block_outliers(weights, ones, [3])


def test_an_expert_that_no_token_reached_counts_as_zeros() -> None:
    weights, norms = a_block()
    norms[1] = np.zeros(48)
    found = block_outliers(weights, norms, [3])
    assert found.lod_pct[0] == pytest.approx(oracle.lod_pct(scores(weights, norms), 3), rel=1e-15)
    assert found.counts[1] == (0,)
    assert found.matrix_lod_pct[1] == (0.0,)


def test_a_block_of_zeros_has_no_outliers_and_no_shares() -> None:
    found = block_outliers([torch.zeros(3, 4)], [None], [7])
    assert found.lod_pct == (0.0,)
    assert math.isnan(found.share_frac[0][0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_shares_sum_to_one(seed: int) -> None:
    found = block_outliers(*a_block(seed), [1, 3])
    for i in range(2):
        assert sum(row[i] for row in found.share_frac) == pytest.approx(1, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2.0**-20, 3.0, 1e4]))
def test_lod_is_unchanged_by_a_common_factor(seed: int, factor: float) -> None:
    weights, norms = a_block(seed)
    reference = block_outliers(weights, norms, [3, 7])
    assert block_outliers(weights, [factor * x for x in norms], [3, 7]).counts == reference.counts
    doubled = block_outliers([4 * w for w in weights], norms, [3, 7])
    assert doubled.counts == reference.counts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.permutations(range(4)))
def test_lod_is_unchanged_by_the_order_of_matrices(seed: int, order: list[int]) -> None:
    weights, norms = a_block(seed)
    reference = block_outliers(weights, norms, [3, 7])
    found = block_outliers([weights[i] for i in order], [norms[i] for i in order], [3, 7])
    assert found.mean_score == reference.mean_score
    assert found.lod_pct == reference.lod_pct
    assert found.counts == tuple(reference.counts[i] for i in order)


@pytest.mark.parametrize("values", [1, 100, 1000, 5000])
def test_lod_is_unchanged_by_the_size_of_blocks(
    values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, norms = a_block()
    reference = block_outliers(weights, norms, MULTIPLES)
    monkeypatch.setattr(blocks, "_CPU_VALUES", values)
    assert block_outliers(weights, norms, MULTIPLES).counts == reference.counts


def test_views_give_the_counts_of_their_copies() -> None:
    weight, norms = student_t(60, 90), np.random.default_rng(0).exponential(1, 60)
    for view in (weight.T, weight.bfloat16().T, weight[:, :60]):
        found = block_outliers([view], [norms], [3, 7])
        assert found == block_outliers([view.contiguous()], [norms], [3, 7])


def test_joining_matrices_measures_the_scale_between_them() -> None:
    """Two Gaussian matrices, one five times the other: outliers of the block, none of their own."""
    torch.manual_seed(0)
    weights = [5 * torch.randn(50, 100), torch.randn(1000, 100)]
    found = block_outliers(weights, [None, None], [7])
    assert found.lod_pct[0] > 0.5
    assert found.matrix_lod_pct == ((0.0,), (0.0,))
    assert found.share_frac == ((1.0,), (0.0,))


def test_values_whose_float32_sum_overflows_are_summed_again() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.full((64, 4), 3e38).to(dtype)
        assert block_outliers([weight], [None], [0.5]).lod_pct == (100.0,)


def test_per_matrix_can_be_left_out() -> None:
    weights, norms = a_block()
    found = block_outliers(weights, norms, [7], per_matrix=False)
    assert found.counts == block_outliers(weights, norms, [7]).counts
    assert all(math.isnan(row[0]) for row in found.matrix_lod_pct)


def test_the_path_for_other_devices_counts_the_same() -> None:
    weights, norms = a_block()
    for weight, vector in zip(weights, norms, strict=True):
        thresholds = [0.0, 1.0, 5.0]
        found = outliers._count_on_device(weight, vector, thresholds)
        assert found == outliers._count_above(weight, vector, thresholds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lod_on_cuda() -> None:
    weights, norms = a_block()
    found = block_outliers([w.cuda() for w in weights], norms, [3, 7])
    assert found.counts == block_outliers(weights, norms, [3, 7]).counts


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_counted(bad: float) -> None:
    weights, norms = a_block()
    weights[2][1, 1] = weights[2][2, 2] = bad
    with pytest.raises(MatrixError, match="matrix 2 of the block has 2 non-finite values"):
        block_outliers(weights, norms, [7])


def test_bad_arguments_are_named() -> None:
    weights, norms = a_block()
    with pytest.raises(UsageError, match="M is missing"):
        block_outliers(weights, norms, [])
    with pytest.raises(UsageError, match=r"M is -1\.0"):
        block_outliers(weights, norms, [7, -1])
    with pytest.raises(UsageError, match="4 matrices and 3 norm vectors"):
        block_outliers(weights, norms[:3], [7])
    with pytest.raises(
        UsageError, match=r"matrix 0 has 48 inputs but its norms have shape \(80,\)"
    ):
        block_outliers(weights, norms[::-1], [7])
    norms[1][[3, 4]] = [float("nan"), -1]
    with pytest.raises(MatrixError, match="norms of matrix 1 have 2 non-finite or negative"):
        block_outliers(weights, norms, [7])


@pytest.mark.parametrize("sums", [[], [np.ones(3)], [np.ones(2), np.ones(2)]])
def test_column_sums_that_do_not_fit_are_refused(sums: list[np.ndarray]) -> None:
    with pytest.raises(UsageError, match="column_sums do not fit"):
        block_outliers([torch.ones(4, 2)], [None], [7], column_sums=sums)
