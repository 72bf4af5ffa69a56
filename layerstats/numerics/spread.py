"""How far alpha can be trusted: its range over the choices that the data leave open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerstats.numerics.powerlaw import fit_ks, fit_mid, fit_peak

__all__ = ["AlphaSpread", "alpha_spread"]


@dataclass(frozen=True, slots=True)
class AlphaSpread:
    """Alpha of one spectrum under choices that are as good as the one made.

    Attributes
    ----------
    alpha : float
        By `fit_peak`.
    ties : (float, float)
        Lowest and highest alpha over the bins tied for the fullest one.
    neighbours : (float, float)
        The same with one more bin on either side of each of them.
    rules : (float, float)
        Lowest and highest alpha over all rules for xmin: peak with both lower bounds, median, best
        distance.
    by_rule : tuple of float
        Alpha of peak ("reference"), peak ("intended"), mid and ks.
    """

    alpha: float
    ties: tuple[float, float]
    neighbours: tuple[float, float]
    rules: tuple[float, float]
    by_rule: tuple[float, float, float, float]


def alpha_spread(
    evals: NDArray[np.float64], *, bins: int = 100, lower_bound: str = "reference"
) -> AlphaSpread:
    r"""Return alpha with its ranges over tied bins, neighbouring bins and rules for xmin.

    .. math:: [\min_r \hat\alpha_r, \; \max_r \hat\alpha_r]

    over r: the bins tied for the fullest of the log histogram, those and the bins beside them, and
    the four rules for where the tail begins.

    Parameters
    ----------
    evals : numpy.ndarray, shape (n,), float64
        Eigenvalues of W^T W in any order; numerically zero ones are left out.
    bins, lower_bound
        See `fit_peak`.

    Returns
    -------
    AlphaSpread
        Ranges of a dimensionless exponent above 1; each holds `alpha`.

    Raises
    ------
    MatrixError, UsageError
        As `fit_peak`.

    Notes
    -----
    A range over choices, not a confidence interval: sampling noise of a tail of k values is about
    (alpha - 1) / sqrt(k) beside it.

    References
    ----------
    Lu et al. (2024), AlphaPruning, arXiv 2410.10912; Clauset, Shalizi, Newman (2009), arXiv
    0706.1062.

    Examples
    --------
    >>> spread = alpha_spread(np.linspace(0.001, 0.999, 500) ** -0.5)
    >>> low, high = spread.rules
    >>> 2.9 < low <= spread.alpha <= high < 3.1
    True
    """
    fit = fit_peak(evals, bins=bins, lower_bound=lower_bound)
    wider = fit_peak(evals, bins=bins, lower_bound=lower_bound, neighbours=1)
    peaks = [fit_peak(evals, bins=bins, lower_bound=b).alpha for b in ("reference", "intended")]
    by_rule = (peaks[0], peaks[1], fit_mid(evals).alpha, fit_ks(evals).alpha)
    return AlphaSpread(
        fit.alpha,
        (fit.alpha_lo, fit.alpha_hi),
        (wider.alpha_lo, wider.alpha_hi),
        (min(by_rule), max(by_rule)),
        by_rule,
    )
