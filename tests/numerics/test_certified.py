from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.numerics import approximate, certified
from layerstats.numerics.approximate import approximate_spectrum
from layerstats.numerics.certified import RULES, SpectrumFits, certified_fits
from layerstats.numerics.powerlaw import PeakFit, PowerLawFit
from layerstats.numerics.spectrum import MatrixError, esd
from layerstats.numerics.tails import Tails
from tests.numerics.matrices import KINDS, gaussian, student_t
from tests.oracles import powerlaw as oracle

SHAPES = [(64, 200), (64, 512), (300, 150), (256, 1100), (400, 1200)]


def noisy_low_rank(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return 1e-3 * gaussian(rows, columns, seed=seed) + gaussian(rows, 8) @ gaussian(8, columns)


def one_huge_column(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    weight = gaussian(rows, columns, seed=seed)
    weight[:, 3] *= 100
    return weight


def positive(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    return gaussian(rows, columns, seed=seed).abs() + 1


def uneven_rows(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    weight = gaussian(rows, columns, seed=seed)
    weight[: rows // 2] = 30 * weight[: rows // 2] + 3
    return weight


def few_levels(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """As dequantised weights are: every product of two levels is rounded alike wherever it is."""
    return (2 * gaussian(rows, columns, seed=seed)).round().clamp(-3, 3) * 0.1


def orthogonal(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """All eigenvalues are equal, as in a layer that was just initialised so."""
    return torch.nn.init.orthogonal_(gaussian(rows, columns, seed=seed))


def nearly_equal_rows(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    weight = gaussian(rows, columns, seed=seed)
    weight[rows // 2 : 2 * (rows // 2)] = (
        weight[: rows // 2] + 0.01 * weight[rows // 2 :][: rows // 2]
    )
    return weight


ALL_KINDS = {
    **KINDS,
    "low rank": noisy_low_rank,
    "column": one_huge_column,
    "positive": positive,
    "uneven": uneven_rows,
    "levels": few_levels,
    "pairs": nearly_equal_rows,
    "orthogonal": orthogonal,
}


def assert_equal_fits(found: SpectrumFits, expected: SpectrumFits) -> None:
    for rule in RULES:
        one, other = getattr(found, rule), getattr(expected, rule)
        assert isinstance(one, PowerLawFit)
        assert (one.k, one.n) == (other.k, other.n)
        assert one.alpha == pytest.approx(other.alpha, rel=1e-4)
        assert one.xmin == pytest.approx(other.xmin, rel=1e-4)
        if isinstance(one, PeakFit):
            assert (one.flag, one.peak_bins) == (other.flag, other.peak_bins)
            assert one.alpha_lo == pytest.approx(other.alpha_lo, rel=1e-4)
            assert one.alpha_hi == pytest.approx(other.alpha_hi, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (64, 80), (576, 1536)])
def test_eigenvalues_lie_within_half_their_error_bars(
    kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = ALL_KINDS[kind](*shape).to(dtype)
    values, errors = approximate_spectrum(weight)
    assert (np.abs(values - esd(weight)) <= errors / 2).all()


def test_the_bars_follow_what_the_products_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another BLAS may add up worse than the one that the bars were tested with."""

    def careless(gram: np.ndarray, piece: np.ndarray, *, by_rows: bool) -> None:
        exact = piece if by_rows else piece.T
        noise = np.random.default_rng(0).standard_normal(gram.shape)
        gram += np.triu((exact @ exact.T) * (1 + 1e-4 * noise)).astype(gram.dtype)

    weight = gaussian(64, 512).float()
    usual = approximate_spectrum(weight)[1]
    monkeypatch.setattr(approximate, "add_product", careless)
    values, errors = approximate_spectrum(weight)
    assert (np.abs(values - esd(weight)) <= errors / 2).all()
    assert (errors > 3 * usual).all()


def test_rows_of_zeros_have_no_error() -> None:
    weight = gaussian(64, 512).float()
    weight[::2] = 0
    values, errors = approximate_spectrum(weight)
    assert (np.abs(values - esd(weight)) <= errors / 2).all()
    with pytest.raises(MatrixError, match="overflow float32"):
        approximate_spectrum(1e25 * weight)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_certified_fits_are_those_of_float64(kind: str, shape: tuple[int, int]) -> None:
    for seed in range(3):
        weight = ALL_KINDS[kind](*shape, seed=seed).float()
        found = certified_fits(weight, RULES, neighbours=1, precision="certified")
        exact = certified_fits(weight, RULES, neighbours=1, precision="float64")
        assert (found.precision == "float64") == bool(found.doubt)
        assert_equal_fits(found, exact)
        if found.precision == "float64":
            assert found.peak == exact.peak


def test_some_matrices_are_certified_and_some_are_not() -> None:
    kinds = [
        certified_fits(student_t(64, 512, seed=s), precision="certified").precision
        for s in range(10)
    ]
    assert kinds.count("float32") >= 3
    assert certified_fits(noisy_low_rank(64, 512), precision="certified").precision == "float64"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-8, 1e-6, 1e-5, 1e-4]))
def test_what_is_certified_holds_for_every_spectrum_within_the_bars(seed: int, size: float) -> None:
    """The certificate itself, with random spectra, random bars and values anywhere within them."""
    rng = np.random.default_rng(seed)
    values = np.sort(np.exp(rng.normal(0, rng.uniform(0.3, 1.5), int(rng.integers(20, 200)))))
    errors = size * values[-1] * rng.uniform(0.01, 1) * np.linspace(0.5, 1, values.size)
    rules = tuple(RULES[: int(rng.integers(1, 4))])
    bound = ("reference", "intended")[seed % 2]
    question = certified._Question(rules, bound, 100, seed % 3 == 0, None)
    try:
        certified._Certificate(values, errors).check(question)
    except certified.Doubt:
        return
    reference = certified._answer(values, "float32", "", question)
    for signs in (-1.0, 1.0, rng.choice([-1.0, 1.0], values.size), rng.uniform(-1, 1, values.size)):
        moved = certified._answer(np.sort(values + signs * errors), "float64", "", question)
        for rule in rules:
            one, other = getattr(reference, rule), getattr(moved, rule)
            assert one.k == other.k
            assert one.alpha == pytest.approx(other.alpha, rel=1e-4)
    moved_peak = moved.peak
    assert moved_peak is not None
    assert reference.peak is not None
    assert reference.peak.flag == moved_peak.flag


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_rivals_are_all_tails_within_the_errors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(np.exp(rng.normal(0, 1, 60)))
    errors = rng.uniform(0, 0.1, 60)
    distances = np.array([oracle.tail_alpha_and_distance(values, i)[1] for i in range(59)])
    best = int(np.argmin(distances))
    limit = distances[best] + errors[best]
    expected = np.flatnonzero(distances - errors[:59] <= limit)
    np.testing.assert_array_equal(Tails(values).rivals(0, 59, errors), expected)


@pytest.mark.parametrize("shape", [(80, 90), (60, 300)])
def test_shapes_outside_the_tested_range_are_not_tried(shape: tuple[int, int]) -> None:
    found = certified_fits(gaussian(*shape).float(), ["mid"], precision="certified")
    assert (found.precision, found.doubt) == ("float64", "")


def test_auto_tries_float32_only_where_it_saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def precision(weight: torch.Tensor, *rules: str) -> str:
        return certified_fits(weight.float(), rules).precision

    plain = gaussian(256, 700)
    assert precision(plain, "mid") == precision(plain.T, "mid") == "float32"
    assert precision(plain, "mid", "ks") == "float32"
    assert precision(gaussian(200, 700), "mid") == "float64"
    monkeypatch.setattr(certified, "_MOST_FOR_PEAK", 255)
    assert precision(plain, "mid", "peak") == precision(plain, "peak") == "float64"
    assert precision(plain, "mid", "ks") == "float32"


@pytest.mark.parametrize(
    "kind", sorted(set(ALL_KINDS) - {"low rank", "pairs", "column", "orthogonal"})
)
def test_alpha_of_the_upper_half_is_certain(kind: str) -> None:
    weight = ALL_KINDS[kind](300, 1000)
    found = certified_fits(weight.float(), ["mid"])
    assert (found.precision, found.doubt) == ("float32", "")


def test_doubt_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=certified.__name__):
        found = certified_fits(noisy_low_rank(64, 512), precision="certified")
    assert found.doubt
    assert found.doubt in caplog.text


def test_a_min_eval_within_the_spectrum_is_left_to_float64() -> None:
    weight = student_t(64, 512)
    cut = float(np.median(esd(weight)))
    found = certified_fits(weight, ["ks"], min_eval=cut, precision="certified")
    assert (found.precision, found.doubt) == ("float64", "min_eval lies within the spectrum")
    assert found.ks is not None
    assert found.ks.n == 32


def test_what_float64_refuses_is_refused() -> None:
    bad = gaussian(64, 190).float()
    bad[0, 0] = float("nan")
    with pytest.raises(MatrixError, match="1 non-finite"):
        certified_fits(bad, precision="certified")
    with pytest.raises(MatrixError, match="all zero"):
        certified_fits(torch.zeros(64, 190), precision="certified")
    with pytest.raises(MatrixError, match="the matrix has 1"):
        certified_fits(torch.ones(1, 9), precision="certified")
    huge = 1e25 * gaussian(64, 190).float()
    assert certified_fits(huge, precision="certified").precision == "float64"


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="unknown precision 'half'"):
        certified_fits(torch.ones(2, 9), precision="half")
    with pytest.raises(UsageError, match="unknown rule 'hill'"):
        certified_fits(torch.ones(2, 9), ["hill"])
