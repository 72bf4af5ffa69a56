"""Draws obey their laws, rho is SciPy's, the chance level is that of all orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from layerstats import trust
from layerstats.errors import UsageError
from layerstats.trust.ranks import overlapping
from tests.oracles.trust import rho_of_all_orders


@given(st.integers(4, 33), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**40))
@settings(deadline=None)
def test_draws_are_resamples_and_disjoint_halves(
    groups: int, bootstrap: int, splits: int, seed: int
) -> None:
    draws = trust.group_draws(groups, bootstrap=bootstrap, splits=splits, seed=seed)
    assert draws.bootstrap.shape == (bootstrap, groups)
    assert (draws.bootstrap.sum(axis=1) == groups).all()
    assert draws.halves.shape == (2, splits, groups)
    assert (draws.halves.sum(axis=2) == groups // 2).all()
    assert draws.halves.sum(axis=0).max() == 1
    again = trust.group_draws(groups, bootstrap=bootstrap, splits=splits, seed=seed)
    np.testing.assert_array_equal(draws.rows, again.rows)
    resampled, halves = draws.parted(draws.rows.astype(float))
    np.testing.assert_array_equal(resampled, draws.bootstrap)
    np.testing.assert_array_equal(halves, draws.halves)


def test_seeds_give_other_draws_and_every_group_its_turn() -> None:
    first, second = (trust.group_draws(16, seed=seed) for seed in (0, 1))
    assert (first.rows != second.rows).any()
    # 100 resamples of 16: each group is drawn 100 times, give or take five standard deviations.
    assert np.abs(first.bootstrap.sum(axis=0) - 100).max() < 5 * np.sqrt(100 * 15 / 16)
    assert first.halves[0].sum(axis=0).min() > 5


@pytest.mark.parametrize("options", [(3, 10, 10), (8, 0, 10), (8, 10, 0)])
def test_too_little_to_draw_from(options: tuple[int, int, int]) -> None:
    groups, bootstrap, splits = options
    with pytest.raises(UsageError, match="more calibration windows"):
        trust.group_draws(groups, bootstrap=bootstrap, splits=splits)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=12))
def test_rho_is_scipys_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=float).T
    [rho] = trust.rank_correlations(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert rho == 0
    else:
        assert rho == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("n", range(3, 8))
def test_chance_is_the_quantile_over_all_orders(n: int) -> None:
    found = trust.chance_quantile(n)
    every = np.array(rho_of_all_orders(n))
    assert np.mean(every <= found) >= 0.95
    assert np.mean(every < found) < 0.95


@pytest.mark.parametrize("n", [9, 12, 30, 80])
def test_chance_above_eight_layers_is_that_of_random_orders(n: int) -> None:
    draw = np.random.default_rng(n)
    orders = draw.permuted(np.tile(np.arange(n), (20_000, 1)), axis=1)
    rho = trust.rank_correlations(orders, np.tile(np.arange(n), (20_000, 1)))
    assert np.mean(rho > trust.chance_quantile(n)) == pytest.approx(0.05, abs=0.007)


def test_overlap_counts_touching_intervals_but_not_itself() -> None:
    low, high = np.array([0.0, 2.0, 2.5, 4.0]), np.array([2.0, 3.0, 2.6, 5.0])
    assert overlapping(low, high, 1) == 2
    assert overlapping(low, high, 3) == 0


def test_agreement_of_columns_leaves_out_missing_layers() -> None:
    nan = float("nan")
    found = trust.agreement({"a": [1, 2, 3, nan], "b": [1, 3, 2, 9], "c": [nan, nan, 1, 2]})
    assert found["a ~ b"] == pytest.approx(0.5)
    assert np.isnan(found["a ~ c"])
    assert found["b ~ c"] == 1.0
