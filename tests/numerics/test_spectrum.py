from __future__ import annotations

import numpy as np
import pytest
import torch

from layerstats.numerics import spectrum
from layerstats.numerics.spectrum import (
    MatrixError,
    esd,
    spectral_norm,
    stable_rank,
    zero_threshold,
)
from tests.numerics.matrices import KINDS, SHAPES, gaussian, rank_deficient, trained_like
from tests.oracles import norms as oracle


@pytest.mark.parametrize("shape", [*SHAPES, (1, 7), (7, 1), (700, 1300)])
@pytest.mark.parametrize("kind", KINDS)
def test_esd_equals_squared_singular_values(kind: str, shape: tuple[int, int]) -> None:
    weight = KINDS[kind](*shape)
    found = esd(weight)
    assert found.shape == (min(shape),)
    expected = oracle.eigenvalues(weight)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14 * expected[-1])


def test_esd_with_the_large_solver_and_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = trained_like(90, 70)
    monkeypatch.setattr(spectrum, "_TORCH_SOLVER_FROM", 1)
    monkeypatch.setattr(spectrum, "_PIECE", 16)
    monkeypatch.setattr(spectrum, "_PIECE_VALUES", 1)
    expected = oracle.eigenvalues(weight)
    for matrix in (weight, weight.T, weight.T.contiguous(), weight[:, ::2]):
        expected = oracle.eigenvalues(matrix)
        np.testing.assert_allclose(esd(matrix), expected, rtol=1e-10, atol=1e-14 * expected[-1])


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_esd_of_any_float_type_is_that_of_its_float64_copy(dtype: torch.dtype) -> None:
    weight = trained_like(40, 60).mul(4).to(dtype)
    np.testing.assert_array_equal(esd(weight), esd(weight.to(torch.float64)))


def test_esd_of_integers() -> None:
    weight = torch.tensor([[3, 0, 0], [0, -2, 0]], dtype=torch.int8)
    assert esd(weight).tolist() == [4.0, 9.0]


def test_esd_is_unchanged_by_transpose_and_rotation_and_squares_a_scale() -> None:
    weight = trained_like(50, 80).to(torch.float64)
    left = torch.linalg.qr(gaussian(50, 50)).Q
    right = torch.linalg.qr(gaussian(80, 80)).Q
    reference = esd(weight)
    for other, factor in ((weight.T, 1), (left @ weight @ right, 1), (3 * weight, 9)):
        np.testing.assert_allclose(esd(other), factor * reference, rtol=1e-9)


def test_esd_does_not_change_its_input() -> None:
    weight = torch.nn.Parameter(trained_like(20, 30))
    before = weight.detach().clone()
    esd(weight)
    assert torch.equal(weight.detach(), before)


def test_gaussian_spectrum_ends_at_the_marchenko_pastur_edges() -> None:
    rows, columns = 400, 1000
    evals = esd(gaussian(rows, columns))
    ratio = rows / columns
    assert evals[-1] / columns == pytest.approx((1 + ratio**0.5) ** 2, rel=0.03)
    assert evals[0] / columns == pytest.approx((1 - ratio**0.5) ** 2, rel=0.06)


@pytest.mark.parametrize("rank", [1, 5, 30])
@pytest.mark.parametrize("shape", [(40, 90), (1200, 40)])
def test_rank_deficient_matrices_show_their_rank_as_exact_zeros(
    rank: int, shape: tuple[int, int]
) -> None:
    evals = esd(rank_deficient(*shape, rank=rank))
    assert np.count_nonzero(evals) == rank
    assert (evals >= 0).all()


def test_the_zero_threshold_keeps_every_value_of_a_square_full_rank_matrix() -> None:
    for seed in range(20):
        assert np.count_nonzero(esd(gaussian(128, 128, seed=seed))) == 128
    assert zero_threshold(np.array([])) == 0.0


def test_the_path_for_other_devices_gives_the_same() -> None:
    weight = trained_like(30, 50)
    gram = spectrum._gram_torch(weight)
    np.testing.assert_allclose(spectrum.eigenvalues(gram), esd(weight), rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_esd_on_cuda() -> None:
    weight = trained_like(30, 50)
    np.testing.assert_allclose(esd(weight.cuda()), esd(weight), rtol=1e-9)


def test_spectral_norm_and_stable_rank_match_their_definitions() -> None:
    weight = trained_like(30, 50)
    evals = esd(weight)
    exact = weight.to(torch.float64).numpy()
    largest = np.linalg.norm(exact, 2)
    assert spectral_norm(evals) == pytest.approx(largest, rel=1e-12)
    expected = np.linalg.norm(exact) ** 2 / largest**2
    assert stable_rank(evals) == pytest.approx(expected, rel=1e-12)
    assert stable_rank(esd(torch.eye(9))) == pytest.approx(9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_non_finite_values_are_counted(bad: float, dtype: torch.dtype) -> None:
    weight = trained_like(20, 30).to(dtype)
    weight[3, 4] = weight[5, 6] = weight[7, 8] = bad
    with pytest.raises(MatrixError, match="has 3 non-finite values") as caught:
        esd(weight)
    assert caught.value.exit_code == 4


def test_overflow_of_squares_is_not_called_non_finite() -> None:
    with pytest.raises(MatrixError, match="overflow"):
        esd(torch.full((2, 3), 1e200, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4,), (2, 2, 2), ()])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MatrixError, match="not a real matrix"):
        esd(torch.zeros(shape))


def test_a_zero_matrix_has_a_spectrum_but_no_stable_rank() -> None:
    evals = esd(torch.zeros(3, 5))
    assert evals.tolist() == [0.0, 0.0, 0.0]
    assert spectral_norm(evals) == 0.0
    with pytest.raises(MatrixError, match="all zero"):
        stable_rank(evals)
    with pytest.raises(MatrixError, match="no eigenvalues"):
        spectral_norm(np.array([]))
