from __future__ import annotations

import pytest
import torch

from layerstats.errors import UsageError
from layerstats.numerics import blocks
from layerstats.numerics.norms import (
    frobenius_norm,
    low_rank_norm,
    mean_abs,
    updated_norm,
    weight_norms,
)
from layerstats.numerics.spectrum import MatrixError
from tests.numerics.matrices import SHAPES, gaussian, student_t, trained_like
from tests.oracles import norms as oracle

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (3, 50_000), (300, 700)])
def test_norms_equal_the_float64_oracle(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = student_t(*shape).to(dtype)
    found = weight_norms(weight)
    assert found.frobenius_norm == pytest.approx(oracle.frobenius_norm(weight), rel=1e-12)
    assert found.mean_abs == pytest.approx(oracle.mean_abs(weight), rel=1e-12)
    assert found.count == weight.numel()
    assert frobenius_norm(weight) == found.frobenius_norm
    assert mean_abs(weight) == found.mean_abs


def test_norms_of_integers_do_not_overflow() -> None:
    weight = torch.full((3, 5), -128, dtype=torch.int8)
    assert mean_abs(weight) == 128.0
    assert frobenius_norm(weight) == pytest.approx(128 * 15**0.5, rel=1e-15)


def test_tiny_float16_values_are_not_lost() -> None:
    weight = torch.full((4, 4), 6e-8, dtype=torch.float16)  # its square is no float16
    assert frobenius_norm(weight) == pytest.approx(4 * float(weight[0, 0]), rel=1e-12)


def test_norms_of_views_and_of_the_transpose() -> None:
    weight = trained_like(70, 90)
    assert frobenius_norm(weight.T) == pytest.approx(frobenius_norm(weight), rel=1e-14)
    part = weight[::3, 1::2]
    assert mean_abs(part) == pytest.approx(oracle.mean_abs(part), rel=1e-14)


def test_norms_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = student_t(100, 60)
    whole = weight_norms(weight)
    monkeypatch.setattr(blocks, "_CPU_VALUES", 300)
    split = weight_norms(weight)
    assert split.frobenius_norm == pytest.approx(whole.frobenius_norm, rel=1e-14)
    assert split.mean_abs == pytest.approx(whole.mean_abs, rel=1e-14)


def test_blocks_cover_the_matrix_once_and_in_order() -> None:
    weight = torch.arange(60_000.0).reshape(3, 20_000).repeat(7, 1)
    assert torch.equal(torch.cat(list(blocks.row_blocks(weight))), weight)
    assert torch.equal(torch.cat(list(blocks.row_blocks(weight.T))), weight.T)


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_low_rank_norm_equals_the_formed_product(rank: int) -> None:
    a, b = trained_like(rank, 30), trained_like(25, rank, seed=1)
    assert low_rank_norm(a, b) == pytest.approx(oracle.low_rank_norm(a, b), rel=1e-12)
    gram = (b.double().T @ b.double()) @ (a.double() @ a.double().T)
    assert low_rank_norm(a, b) == pytest.approx(float(gram.trace()) ** 0.5, rel=1e-12)


def test_low_rank_norm_of_terms_that_cancel_is_zero() -> None:
    row, column = gaussian(1, 30), gaussian(20, 1)
    a, b = torch.cat([row, -row]), torch.cat([column, column], dim=1)
    assert low_rank_norm(a, b) < 1e-14 * float(torch.linalg.norm(a) * torch.linalg.norm(b))
    assert low_rank_norm(a, torch.zeros(20, 2)) == 0.0


@pytest.mark.parametrize("scale", [0.0, 0.5, -2.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updated_norm_equals_the_formed_sum(
    scale: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_CPU_VALUES", 500)
    weight = trained_like(50, 40).to(dtype)
    a, b = trained_like(4, 40, seed=2).to(dtype), trained_like(50, 4, seed=3).to(dtype)
    expected = oracle.updated_norm(weight, a, b, scale)
    assert updated_norm(weight, a, b, scale=scale) == pytest.approx(expected, rel=1e-12)
    squared = (
        oracle.frobenius_norm(weight) ** 2
        + 2 * scale * float(((b.double() @ a.double()) * weight.double()).sum())
        + (scale * low_rank_norm(a, b)) ** 2
    )
    assert updated_norm(weight, a, b, scale=scale) ** 2 == pytest.approx(squared, rel=1e-10)


def test_updated_norm_survives_an_update_that_undoes_the_weight() -> None:
    a, b = gaussian(3, 40), gaussian(50, 3)
    weight = -(b @ a) + 1e-9
    expected = 1e-9 * (50 * 40) ** 0.5
    assert updated_norm(weight, a, b, scale=1.0) == pytest.approx(expected, rel=1e-5)


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="A has rank 3 but B has rank 2"):
        low_rank_norm(torch.ones(3, 5), torch.ones(4, 2))
    with pytest.raises(UsageError, match="W is 9x5 but B A is 4x5"):
        updated_norm(torch.ones(9, 5), torch.ones(3, 5), torch.ones(4, 3), scale=1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_counted(bad: float) -> None:
    weight, a, b = trained_like(6, 5), torch.ones(2, 5), torch.ones(6, 2)
    weight[1, 1] = weight[2, 2] = bad
    for measure in (weight_norms, frobenius_norm, mean_abs):
        with pytest.raises(MatrixError, match="has 2 non-finite values"):
            measure(weight)
    with pytest.raises(MatrixError, match="has 2 non-finite values"):
        updated_norm(weight, a, b, scale=1.0)
    a[0, 0] = bad
    with pytest.raises(MatrixError, match="factor A has 1 non-finite values"):
        low_rank_norm(a, b)


def test_what_is_no_matrix_is_refused() -> None:
    for bad in (torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.complex64)):
        with pytest.raises(MatrixError, match="not a real matrix"):
            weight_norms(bad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_norms_on_cuda() -> None:
    weight = trained_like(50, 40)
    a, b = trained_like(4, 40), trained_like(50, 4)
    assert frobenius_norm(weight.cuda()) == pytest.approx(frobenius_norm(weight), rel=1e-12)
    there = updated_norm(weight.cuda(), a.cuda(), b.cuda(), scale=2.0)
    assert there == pytest.approx(updated_norm(weight, a, b, scale=2.0), rel=1e-12)
