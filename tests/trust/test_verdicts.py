"""Noise is called noise and signal signal; verdicts depend on ranks alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layerstats import trust
from layerstats.numerics.powerlaw import fit_peak

FloatArray = NDArray[np.float64]
LAYERS, GROUPS = 30, 16


def windows_verdict(by_group: FloatArray, seed: int = 0) -> trust.Verdict:
    """Judge a statistic that is the mean over windows, one value for each group and layer."""
    draws = trust.group_draws(len(by_group), seed=seed)
    weights = draws.rows / draws.rows.sum(axis=1, keepdims=True)
    bootstrap, halves = draws.parted(weights @ by_group)
    return trust.from_windows("lod_m7", by_group.mean(axis=0), bootstrap, halves)


def simulated(seed: int, signal: float, *, layers: int = LAYERS) -> FloatArray:
    """Noise of each group, and differences between layers of `signal` standard errors."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=layers) * signal / np.sqrt(GROUPS)
    return truth + draw.normal(size=(GROUPS, layers))


@pytest.mark.parametrize("layers", [5, 12, 30])
def test_pure_noise_over_windows_is_called_noise(layers: int) -> None:
    found = [windows_verdict(simulated(seed, 0.0, layers=layers), seed) for seed in range(100)]
    assert sum(verdict.distinguishable is False for verdict in found) >= 90
    assert found[0].text == "this ranking of layers is not distinguishable from noise"


def test_noise_that_neighbouring_layers_share_is_called_noise() -> None:
    """Errors of layers go together in a real model: one text shifts many of them."""
    found = [windows_verdict(np.cumsum(simulated(seed, 0.0), axis=1), seed) for seed in range(100)]
    assert sum(verdict.distinguishable is False for verdict in found) >= 90


def test_clear_signal_over_windows_is_called_signal() -> None:
    found = [windows_verdict(simulated(seed, 5.0), seed) for seed in range(50)]
    assert sum(verdict.distinguishable is True for verdict in found) >= 45
    assert found[0].text == "this ranking of layers is distinguishable from noise"


def test_bootstrap_redraws_would_have_called_noise_signal() -> None:
    """Why the rule takes halves: resamples of one noise agree about it."""
    by_group = simulated(1, 0.0)
    draws = trust.group_draws(GROUPS, bootstrap=200)
    means = draws.bootstrap @ by_group / GROUPS
    rho = trust.rank_correlations(means[:100], means[100:])
    assert np.median(rho) > trust.chance_quantile(LAYERS)
    assert windows_verdict(by_group).distinguishable is False


def random_model(seed: int, layers: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ranges of alpha of blocks of Gaussian matrices: no layer differs from another."""
    draw = np.random.default_rng(seed)
    low, high = [], []
    for layer in range(layers):
        for cols in (32, 32, 96):
            weight = draw.standard_normal((32, cols))
            fit = fit_peak(np.linalg.eigvalsh(weight @ weight.T), neighbours=1)
            low.append((layer, fit.alpha_lo))
            high.append(fit.alpha_hi)
    number, lows = np.array(low).T
    return lows, np.array(high), number.astype(int)


def test_alphas_of_random_matrices_are_called_noise() -> None:
    noise, naive = 0, 0
    for seed in range(20):
        low, high, layer = random_model(seed, 16)
        verdict = trust.from_ranges("alpha_hill", low, high, layer, draws=150, seed=seed)
        noise += verdict.distinguishable is False
        naive += verdict.rho_q05 > trust.chance_quantile(16)
    assert noise >= 18
    # Held against random orders instead, noise would often pass for a ranking.
    assert naive >= 4


def test_alphas_that_differ_by_more_than_their_ranges_are_called_signal() -> None:
    clear = 0
    for seed in range(20):
        low, high, layer = random_model(seed, 16)
        apart = 4.0 * np.random.default_rng(seed).permutation(16)[layer]
        verdict = trust.from_ranges("alpha_hill", low + apart, high + apart, layer, draws=150)
        clear += verdict.distinguishable is True
    assert clear >= 18


def test_a_redraw_is_a_mean_over_the_block_of_uniform_draws() -> None:
    """Two matrices in each block, ranges 0..1 and 0..3: the mean is 1 on average."""
    layer = np.repeat(np.arange(5), 2)
    width = np.tile([1.0, 3.0], 5)
    start = 0.9 * layer
    verdict = trust.from_ranges("alpha_hill", start, start + width, layer, draws=2000)
    # The mean of the two has standard deviation sqrt((1 + 9) / 12) / 2 = 0.456; at 95 % it reaches
    # from 0.16 to 1.84, so the layers at 0.9 and (not) at 1.8 overlap the first.
    assert verdict.overlapping == 1
    assert verdict.top_layer == 0
    assert verdict.more["range_mean"] == 2.0


def test_without_ranges_the_ranking_is_as_good_as_exact() -> None:
    middle = np.random.default_rng(0).permutation(12).astype(float)
    verdict = trust.from_ranges("alpha_hill", middle, middle, np.arange(12))
    assert (verdict.rho_q05, verdict.distinguishable, verdict.overlapping) == (1.0, True, 0)
    flat = trust.from_ranges("alpha_hill", np.ones(12), np.ones(12), np.arange(12))
    assert flat.distinguishable is False
    assert flat.overlapping == 11


@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 3.0]), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_only_ranks_decide_and_layers_have_no_names(seed: int, signal: float, power: int) -> None:
    draws = trust.group_draws(8, bootstrap=30, splits=20)
    draw = np.random.default_rng(seed)
    whole = np.exp(signal * draw.normal(size=10))
    redrawn = whole * np.exp(draw.normal(size=(len(draws.rows), 10)))
    bootstrap, halves = draws.parted(redrawn)
    first = trust.from_windows("lod_m7", whole, bootstrap, halves)
    scaled = trust.from_windows("lod_m7", *(7 * part**power for part in (whole, bootstrap, halves)))
    assert (scaled.rho_median, scaled.rho_q05) == (first.rho_median, first.rho_q05)
    assert (scaled.distinguishable, scaled.top_layer) == (first.distinguishable, first.top_layer)
    order = draw.permutation(10)
    moved = trust.from_windows("lod_m7", whole[order], bootstrap[:, order], halves[:, :, order])
    assert moved.rho_q05 == pytest.approx(first.rho_q05, abs=1e-12)
    assert order[moved.top_layer] == first.top_layer
    assert moved.overlapping == first.overlapping
    assert first.rho_q05 <= first.rho_median <= 1
    assert 0 <= first.overlapping <= 9


@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_the_unit_of_alpha_does_not_matter(scale: float, shift: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    low = draw.normal(size=20)
    high, layer = low + draw.random(20), np.arange(20) // 2
    first = trust.from_ranges("alpha_hill", low, high, layer, draws=50)
    other = trust.from_ranges(
        "alpha_hill", scale * low + shift, scale * high + shift, layer, draws=50
    )
    assert other.rho_q05 == pytest.approx(first.rho_q05, abs=0.02)
    assert other.noise_q95 == pytest.approx(first.noise_q95, abs=0.02)
    assert other.top_layer == first.top_layer


def test_layers_without_values_are_left_out_and_keep_their_numbers() -> None:
    by_group = simulated(3, 8.0, layers=8)
    by_group[:, 2] = np.nan
    by_group[:, 5] += 100
    verdict = windows_verdict(by_group)
    assert (verdict.layers, verdict.top_layer, verdict.overlapping) == (7, 5, 0)
    low = np.array([np.nan, 5.0, 4.0, np.inf, 3.0, 2.0])
    ranges = trust.from_ranges("alpha_hill", low, low, np.array([0, 1, 3, 4, 6, 9]))
    assert (ranges.layers, ranges.top_layer) == (4, 9)


def test_three_layers_have_no_verdict() -> None:
    for verdict in (
        windows_verdict(simulated(0, 50.0, layers=3)),
        trust.from_ranges("alpha_hill", [1, 2, 3], [1, 2, 3], [0, 1, 2]),
    ):
        assert verdict.distinguishable is None
        assert "too few" in verdict.text
        page = verdict.to_dict()
        assert page["rho_q05"] is None
        json.dumps(page, allow_nan=False)


def test_a_metric_that_is_one_number_everywhere_ranks_nothing() -> None:
    verdict = windows_verdict(np.zeros((8, 10)))
    assert verdict.distinguishable is False
    assert verdict.overlapping == 9


def test_norms_are_exact() -> None:
    verdict = trust.exact("frobenius_norm", [1.0, float("nan"), 5.0])
    assert (verdict.source, verdict.layers, verdict.top_layer) == ("exact", 2, 2)
    assert "no sampling noise" in verdict.text
    assert verdict.distinguishable is None
    fit = trust.exact("alpha_mid", [3.0, 2.0], fitted=True)
    assert (fit.source, fit.top_layer, fit.distinguishable) == ("fit", 1, None)
    assert "not judged" in fit.text
    assert trust.exact("mean_abs", [float("nan")]).top_layer is None
