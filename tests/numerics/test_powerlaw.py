from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.numerics.powerlaw import PowerLawFit, fit_ks, fit_mid, fit_peak
from layerstats.numerics.spectrum import MatrixError, esd, zero_threshold
from layerstats.numerics.tails import Tails
from tests.numerics.matrices import KINDS, rank_deficient, trained_like
from tests.oracles import powerlaw as oracle


def as_tuple(fit: PowerLawFit) -> tuple[float, float, int, float]:
    return fit.alpha, fit.xmin, fit.k, fit.ks_distance


def random_spectrum(seed: int) -> np.ndarray:
    """A spectrum of some kind: heavy or light tails, ties, repeats, all but equal, tiny."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 90))
    kinds = (
        lambda: rng.pareto(rng.uniform(0.3, 5), n) + 1,
        lambda: np.exp(rng.normal(0, rng.uniform(0.1, 5), n)),
        lambda: rng.integers(1, 5, n).astype(float),
        lambda: np.repeat(rng.pareto(1, n) + 1, 4),
        lambda: 2.0 ** rng.integers(-3, 4, n),
        lambda: 1 + 1e-12 * rng.integers(0, 50, n),
        lambda: np.full(n, rng.random() + 0.1),
        lambda: 1e-9 * (rng.random(n) + 1e-6),
        lambda: np.linspace(0.001, 0.999, n) ** -rng.uniform(0.1, 2),
    )
    values = np.sort(kinds[int(rng.integers(len(kinds)))]())
    return values[values > zero_threshold(values)]


spectra = st.one_of(
    st.integers(0, 2**32).map(random_spectrum),
    st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0, 9.0, 27.0]), min_size=2, max_size=30).map(
        lambda values: np.array(sorted(values))
    ),
).filter(lambda values: len(values) >= 2)


@settings(max_examples=400, deadline=None)
@given(spectra)
def test_every_rule_equals_the_plain_double_loop_bit_for_bit(values: np.ndarray) -> None:
    assert as_tuple(fit_ks(values)) == oracle.fit_ks(values)
    assert as_tuple(fit_mid(values)) == oracle.fit_mid(values)
    for lower_bound in ("reference", "intended"):
        found = fit_peak(values, lower_bound=lower_bound)
        assert as_tuple(found) == oracle.fit_peak(values, lower_bound=lower_bound)


@settings(max_examples=100, deadline=None)
@given(spectra, st.data())
def test_any_window_is_searched_exactly_whatever_was_searched_before(
    values: np.ndarray, data: st.DataObject
) -> None:
    tails = Tails(values)
    for _ in range(3):
        start = data.draw(st.integers(0, len(values) - 2))
        stop = data.draw(st.integers(start + 1, len(values) - 1))
        best = tails.best(start, stop)
        expected = oracle.best_of(values, list(range(start, stop)))
        assert (len(values) - best, tails.evaluate(best)) == (
            expected[2],
            (expected[0], expected[3]),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(200, 500), (300, 300)])
def test_large_spectra_equal_the_plain_double_loop(kind: str, shape: tuple[int, int]) -> None:
    values = esd(KINDS[kind](*shape))
    assert as_tuple(fit_ks(values)) == oracle.fit_ks(values)
    assert as_tuple(fit_peak(values)) == oracle.fit_peak(values)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 1e3))
def test_alpha_does_not_depend_on_the_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(np.exp(rng.normal(0, 1.5, 60)))
    assert fit_mid(scale * values).alpha == pytest.approx(fit_mid(values).alpha, rel=1e-9)
    assert fit_ks(scale * values).alpha == pytest.approx(fit_ks(values).alpha, rel=1e-9)
    # Values may cross a bin's edge by rounding; only a flagged tie may then change alpha.
    scaled = fit_peak(scale * values, lower_bound="intended")
    fit = fit_peak(values, lower_bound="intended")
    if "tie" not in fit.flag:
        assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-9)


def test_the_reference_lower_bound_depends_on_the_scale() -> None:
    """The defect that "intended" removes: log10 of the bound is compared with the eigenvalue."""
    rng = np.random.default_rng(5)
    bulk, peak = np.exp(rng.normal(0, 2, 300)), 60 * np.exp(rng.normal(0, 0.05, 60))
    values = np.concatenate([bulk, peak])
    assert len({fit_peak(c * values).k for c in (1e-3, 1.0)}) == 2
    assert len({fit_peak(c * values, lower_bound="intended").k for c in (1e-3, 1.0)}) == 1


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 5.0])
def test_pareto_samples_give_their_index(alpha: float) -> None:
    n = 4000
    rng = np.random.default_rng(7)
    values = (1 - rng.random(n)) ** (-1 / (alpha - 1))
    tail = fit_mid(values)
    assert tail.k == n // 2
    assert abs(tail.alpha - alpha) < 3 * (alpha - 1) / tail.k**0.5
    searched = fit_ks(values)
    assert abs(searched.alpha - alpha) < 4 * (alpha - 1) / searched.k**0.5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["trained", "student"])
def test_peak_equals_alphapruning(kind: str, seed: int) -> None:
    weight = KINDS[kind](160, 320, seed=seed)
    assert fit_peak(esd(weight)).alpha == pytest.approx(oracle.alphapruning_peak(weight), abs=1e-3)


@pytest.mark.parametrize("min_eval", [None, 1e-5])
@pytest.mark.parametrize("n", [20, 150])
def test_ks_equals_weightwatcher(n: int, min_eval: float | None) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        ww = pytest.importorskip("weightwatcher.WW_powerlaw")
    values = esd(trained_like(n, 2 * n)) * 1e-2
    if min_eval:
        values = np.concatenate([[1e-7, 9e-6], values])
    reference = ww.WWFit(values[values > (min_eval or 0)])
    found = fit_ks(values, min_eval=min_eval)
    assert found.alpha == pytest.approx(reference.alpha, rel=1e-12)
    assert found.xmin == reference.xmin
    assert found.ks_distance == pytest.approx(reference.D, rel=1e-12)
    assert found.n == n


def test_weightwatcher_has_another_fit_for_fewer_than_twenty() -> None:
    """Pins the difference that the docstring explains; should it go, the note must go too."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        ww = pytest.importorskip("weightwatcher.WW_powerlaw")
        values = esd(trained_like(19, 40))
        reference = ww.WWFit(values)
    assert fit_ks(values).alpha != pytest.approx(reference.alpha, rel=1e-3)


def test_ties_between_bins_are_flagged_with_their_range() -> None:
    low_peak, high_peak = [1.0, 1.01, 1.02, 1.2, 1.3, 2.0, 3.0], [8.0, 8.1, 8.2, 11, 12, 13, 14]
    values = np.array([*low_peak, *high_peak, 30.0, 100.0])
    fit = fit_peak(values, bins=40)
    low, high = oracle.fit_peak_range(values, bins=40)
    assert low < high
    assert (fit.alpha_lo, fit.alpha_hi) == (low, high)
    assert "tie" in fit.flag
    assert fit.peak_bins == 2


def test_without_ties_the_range_is_the_point() -> None:
    fit = fit_peak(np.sort(np.exp(np.random.default_rng(3).normal(0, 1, 2000))))
    assert fit.alpha_lo == fit.alpha == fit.alpha_hi
    assert "tie" not in fit.flag
    assert fit.peak_bins == 1


def test_the_range_holds_alpha_and_grows_with_neighbours() -> None:
    for seed in range(20):
        values = esd(trained_like(100, 150, seed=seed))
        fit, wider = fit_peak(values), fit_peak(values, neighbours=1)
        low, high = oracle.fit_peak_range(values)
        assert fit.alpha_lo <= low <= fit.alpha <= high <= fit.alpha_hi
        assert wider.alpha_lo <= fit.alpha_lo
        assert wider.alpha_hi >= fit.alpha_hi
        assert wider.alpha == fit.alpha


def test_an_eigenvalue_within_its_error_of_a_bin_edge_is_a_possible_tie() -> None:
    values = 10.0 ** np.array([0.0, 0.02, 0.04, 0.51, 0.53, 0.599999, 1.0])
    assert fit_peak(values, bins=10).peak_bins == 2
    nudged = 10.0 ** np.array([0.0, 0.02, 0.04, 0.51, 0.53, 0.600001, 1.0])
    assert fit_peak(nudged, bins=10).peak_bins == 1
    assert fit_peak(nudged, bins=10, error=1e-4).peak_bins == 2


def test_an_xmin_at_the_end_of_its_window_is_flagged() -> None:
    rng = np.random.default_rng(0)
    tail = 1.6 * (1 - rng.random(300)) ** -0.5  # begins above 1.5 times the peak
    fit = fit_peak(np.concatenate([rng.uniform(1.0, 1.1, 300), np.linspace(1.1, 1.6, 30), tail]))
    assert "edge" in fit.flag
    assert fit.xmin > 1.45
    centred = fit_peak(np.linspace(0.001, 0.999, 500) ** -0.5)
    assert "edge" not in centred.flag


def test_numerically_zero_eigenvalues_are_left_out() -> None:
    values = esd(rank_deficient(60, 90, rank=40))
    noisy = values.copy()
    noisy[:20] = np.linspace(-1, 1, 20) * 1e-16 * values[-1]
    for fit in (fit_mid, fit_ks, fit_peak):
        assert fit(values).n == 40
        assert fit(noisy) == fit(values) == fit(values[20:])


def test_the_order_of_the_eigenvalues_does_not_matter() -> None:
    values = esd(trained_like(50, 70))
    shuffled = np.random.default_rng(0).permutation(values)
    for fit in (fit_mid, fit_ks, fit_peak):
        assert fit(shuffled) == fit(values)


def test_equal_eigenvalues_are_infinitely_steep() -> None:
    values = esd(torch.eye(30))
    for fit in (fit_mid(values), fit_ks(values), fit_peak(values)):
        assert fit.alpha == float("inf")
        assert fit.xmin == 1.0
    assert fit_ks(values).ks_distance == 0.5
    assert fit_mid(np.array([1.0, 2.0])).alpha == float("inf")


@pytest.mark.parametrize("fit", [fit_mid, fit_ks, fit_peak])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least two eigenvalues; the matrix has 0"),
        ([3.0], "at least two eigenvalues; the matrix has 1"),
        ([0.0, 0.0, 0.0], "all zero"),
        ([0.0, 0.0, 4.0], "1 of 3 are above"),
        ([1.0, float("nan"), float("inf")], "2 non-finite values"),
    ],
)
def test_spectra_without_a_power_law_are_refused(fit, values, message) -> None:
    with pytest.raises(MatrixError, match=message):
        fit(np.array(values))


def test_bad_arguments_are_named() -> None:
    values = np.arange(1.0, 9.0)
    with pytest.raises(UsageError, match="unknown lower_bound 'wide'"):
        fit_peak(values, lower_bound="wide")
    with pytest.raises(UsageError, match="bins is 0"):
        fit_peak(values, bins=0)
    few = np.array([1.0, 2.0, 50.0, 60.0, 70.0, 100.0])
    with pytest.raises(MatrixError, match="near the histogram's peak 10; give more than 2 bins"):
        fit_peak(few, bins=2, lower_bound="intended")


def test_too_high_a_cut_leaves_nothing() -> None:
    with pytest.raises(MatrixError, match="1 of 4 are above 3"):
        fit_ks(np.array([1.0, 2.0, 3.0, 4.0]), min_eval=3.0)
