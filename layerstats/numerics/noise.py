"""The noise edge of one matrix: how large its singular values could be were it random noise.

Pure noise has singular values that follow the Marchenko-Pastur law of the matrix's shape. From the
median singular value this file works out the size of the noise, from that the upper edge of the
law, and what sticks out above it: the number of spikes and their ratio to the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerstats.errors import UsageError
from layerstats.numerics.spectrum import MatrixError

__all__ = ["NoiseEdge", "marchenko_pastur_quantile", "noise_edge"]

# The largest eigenvalue of pure noise lies above this many Tracy-Widom units in one of a thousand.
_TRACY_WIDOM_999 = 3.2724


@dataclass(frozen=True, slots=True)
class NoiseEdge:
    """Where noise ends in the singular values of one matrix.

    Attributes
    ----------
    sigma : float
        Standard deviation of one weight of the noise, >= 0, in units of the weight.
    mp_edge : float
        Largest singular value of noise of that size in the limit of large matrices, in units of the
        weight.
    threshold : float
        `mp_edge` with the allowance for finite matrices: pure Gaussian noise has a singular value
        above it in one large matrix of a thousand, and in one 64x64 matrix of a hundred, where
        sigma itself is known to 2 % only.
    num_spikes : int
        Singular values above `threshold`.
    snr : float
        Sum of the singular values above `threshold` over the sum of the others, >= 0; infinite
        without noise (a matrix of low rank).
    """

    sigma: float
    mp_edge: float
    threshold: float
    num_spikes: int
    snr: float


def noise_edge(evals: NDArray[np.float64], shape: tuple[int, int]) -> NoiseEdge:
    r"""Return the Marchenko-Pastur edge of a matrix and what its spectrum has above it.

    .. math:: \hat\sigma = \frac{\mathrm{median}(s)}{\sqrt{L \, \mu_\beta}}, \qquad
        \text{edge} = \hat\sigma \left(\sqrt{m} + \sqrt{n}\right), \qquad
        \text{snr} = \frac{\sum_{s_i > t} s_i}{\sum_{s_i \le t} s_i}

    with singular values s, L the longer side, and mu_beta the median of the Marchenko-Pastur law of
    aspect beta = shorter / longer side. The threshold t is the edge with a Tracy-Widom allowance.

    Parameters
    ----------
    evals : numpy.ndarray, shape (min(m, n),), float64
        All eigenvalues of W^T W (`esd`), zeros included, in any order.
    shape : (int, int)
        (m, n) of W.

    Returns
    -------
    NoiseEdge
        Counts and snr do not change when W is scaled or transposed.

    Raises
    ------
    MatrixError
        If an eigenvalue is negative or not finite, or all are zero.
    UsageError
        If the number of eigenvalues does not fit the shape.

    Notes
    -----
    Spectrum (Hartford et al.) takes sigma from the quartiles of the singular values as if they
    were normal deviates, multiplies it by 1 + sqrt(beta) without the root of the matrix's size,
    and divides the ratio by the largest singular value. Pure noise then passes for signal and the
    score falls when W is scaled up. Neither happens here. The median stands for noise as long as
    clearly fewer than half of the singular values carry signal; the bulk of a trained matrix is
    not exactly Marchenko-Pastur, so compare layers by these numbers rather than trust one count.

    References
    ----------
    Gavish, Donoho (2014), arXiv 1305.5870 (sigma from the median); Johnstone (2001), Ann. Statist.
    29(2) (the largest eigenvalue of noise); Hartford et al. (2024), Spectrum, arXiv 2406.06623.

    Examples
    --------
    >>> spectrum = np.linalg.svd(np.random.default_rng(0).normal(0, 2, (200, 300)))[1] ** 2
    >>> found = noise_edge(spectrum, (200, 300))
    >>> round(found.sigma, 2), round(found.mp_edge, 1), found.num_spikes, found.snr
    (2.0, 62.8, 0, 0.0)
    """
    short, long = sorted(shape)
    if evals.size != short or short < 1:
        msg = f"{evals.size} eigenvalues for a {shape[0]}x{shape[1]} matrix; give all {short}"
        raise UsageError(msg)
    if not np.isfinite(evals).all() or (evals < 0).any():
        msg = "the spectrum has negative or non-finite values"
        raise MatrixError(msg)
    if not evals.any():
        msg = "the matrix is all zero: it has no noise edge"
        raise MatrixError(msg)
    values = np.sqrt(evals)
    middle = marchenko_pastur_quantile(short / long, 0.5)
    sigma = float(np.median(values)) / math.sqrt(long * middle)
    mp_edge = sigma * (math.sqrt(short) + math.sqrt(long))
    threshold = sigma * math.sqrt(_largest_of_noise(short, long))
    spikes = values > threshold
    signal, noise = float(values[spikes].sum()), float(values[~spikes].sum())
    snr = signal / noise if noise else math.inf
    return NoiseEdge(sigma, mp_edge, threshold, int(np.count_nonzero(spikes)), snr)


def marchenko_pastur_quantile(beta: float, level: float) -> float:
    r"""Return a quantile of the Marchenko-Pastur law with unit variance.

    With x = 1 + beta - 2 sqrt(beta) cos(t), 0 <= t <= pi, the distribution function is

    .. math:: \frac{2}{\pi} \left[\frac{\sin t}{2\sqrt\beta} + \frac{(1 + \beta)\, t}{4 \beta}
        - \frac{1 - \beta}{2 \beta} \arctan\left(\frac{1 + \sqrt\beta}{1 - \sqrt\beta}
        \tan\frac{t}{2}\right)\right]

    Parameters
    ----------
    beta : float
        Shorter side over longer side, above 0 and at most 1.
    level : float
        Share of the law below the quantile, 0 to 1.

    Returns
    -------
    float
        Between (1 - sqrt(beta))^2 and (1 + sqrt(beta))^2.

    Raises
    ------
    UsageError
        If `beta` or `level` is out of range.

    Examples
    --------
    >>> [round(marchenko_pastur_quantile(beta, 0.5), 4) for beta in (1.0, 0.25)]
    [0.6528, 0.916]
    """
    if not (0 < beta <= 1 and 0 <= level <= 1):
        msg = f"beta is {beta}, level is {level}; give 0 < beta <= 1 and 0 <= level <= 1"
        raise UsageError(msg)
    root = math.sqrt(beta)

    def below(angle: float) -> float:
        turned = math.atan2((1 + root) * math.sin(angle / 2), (1 - root) * math.cos(angle / 2))
        terms = math.sin(angle) / (2 * root), (1 + beta) * angle / (4 * beta)
        return 2 / math.pi * (sum(terms) - (1 - beta) / (2 * beta) * turned)

    low, high = 0.0, math.pi
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) < level else (low, middle)
    return 1 + beta - 2 * root * math.cos(high)


def _largest_of_noise(short: int, long: int) -> float:
    """Return the 99.9 % quantile of the largest eigenvalue of W^T W for unit noise."""
    # Johnstone's centring and scaling; a matrix of one row has a chi-square for an eigenvalue.
    sides = math.sqrt(max(long - 1, 1)), math.sqrt(short)
    centre = (sides[0] + sides[1]) ** 2
    unit = (sides[0] + sides[1]) * math.cbrt(1 / sides[0] + 1 / sides[1])
    return centre + _TRACY_WIDOM_999 * unit
