from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from layerstats.numerics import symmetric
from layerstats.numerics.symmetric import add_product, reduced_eigenvalues, zero_matrix

SIZES = [1, 2, 3, 17, 64, 300]


def product(size: int, dtype: Any, *, by_rows: bool) -> np.ndarray:
    piece = np.random.default_rng(size).standard_normal((size, 2 * size + 1)).astype(dtype)
    gram = zero_matrix(size, dtype)
    for _ in range(2):
        add_product(gram, piece if by_rows else np.ascontiguousarray(piece.T), by_rows=by_rows)
    full = 2 * piece.astype(np.float64) @ piece.T.astype(np.float64)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(np.triu(gram), np.triu(full), rtol=tolerance, atol=tolerance * size)
    assert not np.tril(gram, -1).any()
    return gram


@pytest.mark.parametrize("size", SIZES)
def test_products_and_eigenvalues_are_numpys(size: int) -> None:
    for by_rows in (True, False):
        product(size, np.float32, by_rows=by_rows)
        gram = product(size, np.float64, by_rows=by_rows)
        before = gram.copy()
        found = reduced_eigenvalues(gram)
        expected = np.linalg.eigvalsh(gram, UPLO="U")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 * size * expected[-1])
        assert np.all(np.diff(found) >= 0)
        np.testing.assert_array_equal(gram, before)


@pytest.mark.parametrize("by_rows", [True, False])
def test_another_scipy_gives_the_same_numbers(
    by_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers() -> list[np.ndarray]:
        gram = product(64, np.float64, by_rows=by_rows)
        return [product(64, np.float32, by_rows=by_rows), gram, reduced_eigenvalues(gram)]

    direct = numbers()
    monkeypatch.setattr(symmetric, "_routine", lambda *_: None)
    for found, expected in zip(numbers(), direct, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_routines_of_unknown_arguments_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(symmetric._ARGUMENTS, "syrk", "cc")
    symmetric._routine.cache_clear()
    assert symmetric._routine("d", "syrk") is None
    assert symmetric._routine("d", "nosuch") is None
    symmetric._routine.cache_clear()


def test_failure_to_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        arguments[-1].value = 1

    monkeypatch.setattr(symmetric, "_routine", lambda *_: fails)
    with pytest.raises(np.linalg.LinAlgError, match="did not converge"):
        reduced_eigenvalues(np.eye(3))
