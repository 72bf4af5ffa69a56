from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.numerics.noise import marchenko_pastur_quantile, noise_edge
from layerstats.numerics.spectrum import MatrixError, esd
from tests.numerics.matrices import gaussian, rank_deficient, student_t, trained_like
from tests.oracles import noise as oracle

SHORT_SIDES = [64, 128, 256, 512]
ASPECTS = [1, 1.5, 2, 4, 8]


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1), st.floats(0.01, 0.99))
def test_quantiles_invert_the_integrated_density(beta: float, level: float) -> None:
    quantile = marchenko_pastur_quantile(beta, level)
    assert oracle.marchenko_pastur_below(quantile, beta) == pytest.approx(level, abs=1e-5)


@pytest.mark.parametrize("beta", [1e-4, 0.3, 1.0])
def test_the_outermost_quantiles_are_the_edges_of_the_law(beta: float) -> None:
    assert marchenko_pastur_quantile(beta, 0.0) == pytest.approx((1 - beta**0.5) ** 2, abs=1e-7)
    assert marchenko_pastur_quantile(beta, 1.0) == pytest.approx((1 + beta**0.5) ** 2, rel=1e-7)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("short", SHORT_SIDES)
def test_pure_noise_has_no_spikes(short: int, aspect: float) -> None:
    shape = (short, round(short * aspect))
    for seed in range(8 if short < 256 else 2):
        found = noise_edge(esd(0.3 * gaussian(*shape, seed=seed)), shape)
        assert (found.num_spikes, found.snr) == (0, 0.0)
        assert found.sigma == pytest.approx(0.3, rel=6 / short)
        assert found.mp_edge == pytest.approx(
            found.sigma * (shape[0] ** 0.5 + shape[1] ** 0.5), rel=1e-15
        )
        assert found.mp_edge < found.threshold < 1.2 * found.mp_edge


@pytest.mark.parametrize(("short", "aspect"), [(1024, 1), (1024, 3)])
def test_large_pure_noise_has_no_spikes(short: int, aspect: int) -> None:
    shape = (short, short * aspect)
    found = noise_edge(esd(gaussian(*shape)), shape)
    assert found.num_spikes == 0
    assert found.sigma == pytest.approx(1, rel=6e-3)


def test_false_alarms_are_rare() -> None:
    """Six in a thousand at this size, as sigma is estimated; one in a thousand in the limit."""
    alarms = sum(
        noise_edge(esd(gaussian(64, 96, seed=seed)), (64, 96)).num_spikes > 0 for seed in range(400)
    )
    assert alarms <= 8


@pytest.mark.parametrize("shape", [(64, 64), (128, 512), (300, 200), (1000, 125)])
@pytest.mark.parametrize("spikes", [1, 5])
def test_planted_spikes_are_found(shape: tuple[int, int], spikes: int) -> None:
    """Directions of strength 2 (mn)^(1/4), twice where noise stops hiding them."""
    left = torch.linalg.qr(gaussian(shape[0], spikes, seed=1)).Q
    right = torch.linalg.qr(gaussian(shape[1], spikes, seed=2)).Q
    strength = 2.0 * (shape[0] * shape[1]) ** 0.25
    weight = gaussian(*shape) + strength * left @ right.T
    found = noise_edge(esd(weight), shape)
    assert found.num_spikes == spikes
    assert found.snr > 0
    hidden = gaussian(*shape) + 0.25 * strength * left @ right.T
    assert noise_edge(esd(hidden), shape).num_spikes == 0


@pytest.mark.parametrize("make", [trained_like, student_t])
@pytest.mark.parametrize("scale", [1e-6, 3.0])
def test_scale_and_transpose_change_nothing(make, scale: float) -> None:
    weight = make(80, 120).double()
    found = noise_edge(esd(weight), (80, 120))
    for other, shape in ((scale * weight, (80, 120)), (scale * weight.T, (120, 80))):
        changed = noise_edge(esd(other), shape)
        assert changed.num_spikes == found.num_spikes > 0
        assert changed.snr == pytest.approx(found.snr, rel=1e-9)
        assert changed.mp_edge == pytest.approx(scale * found.mp_edge, rel=1e-9)


def test_spectrums_score_takes_noise_for_signal_and_falls_with_the_scale() -> None:
    """Pins the two defects that the docstring names."""
    values = np.sqrt(esd(gaussian(512, 1408)))
    score = oracle.spectrum_score(values, (512, 1408))
    assert score * values.max() > 1  # more signal than noise, it says, in pure noise
    assert oracle.spectrum_score(10 * values, (512, 1408)) == pytest.approx(score / 10)


def test_a_matrix_of_low_rank_is_all_signal() -> None:
    found = noise_edge(esd(rank_deficient(60, 90, rank=20)), (60, 90))
    assert (found.sigma, found.num_spikes, found.snr) == (0.0, 20, float("inf"))


def test_one_row_has_no_spike() -> None:
    assert noise_edge(np.array([7.0]), (1, 7)).num_spikes == 0


def test_bad_spectra_are_refused() -> None:
    with pytest.raises(MatrixError, match="all zero"):
        noise_edge(np.zeros(3), (3, 4))
    with pytest.raises(MatrixError, match="negative or non-finite"):
        noise_edge(np.array([-1.0, 2.0]), (2, 4))
    with pytest.raises(UsageError, match="3 eigenvalues for a 4x5 matrix; give all 4"):
        noise_edge(np.ones(3), (4, 5))
    with pytest.raises(UsageError, match="beta is 0"):
        marchenko_pastur_quantile(0, 0.5)
