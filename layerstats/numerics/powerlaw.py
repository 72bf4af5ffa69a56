"""Power-law fits to a spectrum: the Hill exponent and the rules that choose where the tail begins.

One estimator, three rules for xmin: `fit_mid` (the median), `fit_ks` (best Kolmogorov-Smirnov
distance over all eigenvalues), `fit_peak` (best distance near the peak of the log histogram,
"fix-finger"). All arithmetic is float64. The search is pruned by lower bounds, so it costs
milliseconds, and the winner is still evaluated by the literal formula: the result is the one of the
plain double loop, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerstats.errors import UsageError, choices
from layerstats.numerics.spectrum import MatrixError, zero_threshold
from layerstats.numerics.tails import Tails

__all__ = ["PeakFit", "PowerLawFit", "fit_ks", "fit_mid", "fit_peak"]

LOWER_BOUNDS = ("reference", "intended")

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class PowerLawFit:
    """A power law p(x) ~ x^-alpha fitted to the eigenvalues from `xmin` up.

    Attributes
    ----------
    alpha : float
        Hill exponent, > 1; lower means a heavier tail. Infinite if the whole tail is one repeated
        value.
    xmin : float
        The eigenvalue at which the tail begins (it belongs to the tail).
    k : int
        Eigenvalues in the tail, `xmin` included.
    ks_distance : float
        Largest distance between the fitted and the empirical distribution function, 0 to 1.
    n : int
        Eigenvalues used in all: those given less the numerically zero ones and those cut by
        `min_eval`.
    """

    alpha: float
    xmin: float
    k: int
    ks_distance: float
    n: int


@dataclass(frozen=True, slots=True)
class PeakFit(PowerLawFit):
    """A fix-finger fit, with a word on how fragile it is.

    Attributes
    ----------
    alpha_lo, alpha_hi : float
        Range of alpha over every histogram bin that could be the fullest one. Equal to `alpha`
        without ties.
    flag : str
        "" or "tie" (more than one bin could be the fullest) or "edge" (xmin is one of the two
        outermost candidates of its window, so the window's bound made the choice) or "tie+edge".
    peak_bins : int
        How many bins could be the fullest, the chosen one included.
    """

    alpha_lo: float
    alpha_hi: float
    flag: str
    peak_bins: int


def fit_mid(evals: NDArray[np.float64]) -> PowerLawFit:
    r"""Fit the upper half of the spectrum: xmin is the median eigenvalue, nothing is searched.

    .. math:: \alpha = 1 + \frac{k}{\sum_{i=n-k+1}^{n} \ln \lambda_i - k \ln x_{\min}},
        \quad x_{\min} = \lambda_{\lfloor n/2 \rfloor + 1}, \quad k = n - \lfloor n/2 \rfloor

    Parameters
    ----------
    evals : numpy.ndarray, shape (n,), float64
        Eigenvalues of W^T W in any order. Numerically zero ones (`zero_threshold`) are left out.

    Returns
    -------
    PowerLawFit

    Raises
    ------
    MatrixError
        If an eigenvalue is not finite or fewer than two are above rounding.

    Notes
    -----
    As the reference programs do, k counts the threshold point itself, whose logarithm
    adds nothing: alpha - 1 is k / (k - 1) times the textbook Hill value. With two eigenvalues the
    tail is one point: alpha is infinite.

    References
    ----------
    Hill (1975), Ann. Statist. 3(5); Lu et al. (2024), AlphaPruning, arXiv 2410.10912 (`xmin_mid`).

    Examples
    --------
    >>> fit = fit_mid(np.exp(np.array([0.0, 1.0, 2.0, 3.0])))
    >>> fit.alpha, fit.k, fit.n
    (3.0, 2, 4)
    """
    tails = Tails(sample_of(evals))
    return _fit(tails, tails.size // 2)


def fit_ks(evals: NDArray[np.float64], *, min_eval: float | None = None) -> PowerLawFit:
    r"""Fit with the eigenvalue as xmin that gives the smallest Kolmogorov-Smirnov distance.

    .. math:: D_i = \max_{j \ge i} \left| 1 - (\lambda_j / \lambda_i)^{1 - \alpha_i} - \frac{j -
    i}{n - i} \right|

    Parameters
    ----------
    evals : numpy.ndarray, shape (n,), float64
        Eigenvalues of W^T W in any order. Numerically zero ones are left out.
    min_eval : float, optional
        Leave out eigenvalues up to this value as well. 1e-5 gives weightwatcher's default alpha.

    Returns
    -------
    PowerLawFit
        The first minimum, should several be equal.

    Raises
    ------
    MatrixError
        As `fit_mid`.

    Notes
    -----
    Equal to weightwatcher 0.7.7 with its defaults (`fix_fingers=False`, its own fit)
    from 20 eigenvalues up. Below 20 weightwatcher changes to another estimator (alpha - 1 smaller
    by (k - 1) / k, tails of at least 8, and D - 0.868 / sqrt(k) minimised), which is not what this
    function does. The empirical step is taken on one side only, as there. A tail of one repeated
    value has alpha = infinity and D = 1 - 1 / k; the references return rounding noise.

    References
    ----------
    Clauset, Shalizi, Newman (2009), arXiv 0706.1062; Martin, Mahoney (2021), arXiv 1810.01075.

    Examples
    --------
    >>> fit = fit_ks(np.linspace(0.001, 0.999, 500) ** -0.5)   # exact quantiles of alpha = 3
    >>> abs(fit.alpha - 3) < 0.05, fit.n
    (True, 500)
    """
    tails = Tails(sample_of(evals, min_eval))
    return _fit(tails, tails.best(0, tails.size - 1))


def fit_peak(
    evals: NDArray[np.float64],
    *,
    bins: int = 100,
    lower_bound: str = "reference",
    neighbours: int = 0,
    error: float | None = None,
) -> PeakFit:
    r"""Fit with the best xmin near the peak of the log histogram ("fix-finger", PL_Alpha_Hill).

    With x the left edge of the first fullest of `bins` equal bins of log10(lambda), candidates are
    the eigenvalues (but the largest) in

    .. math:: [\log_{10}(0.95\,x),\; 1.5\,x] \text{ ("reference")} \quad\text{or}\quad [0.95\,x,\;
    1.5\,x] \text{ ("intended")}

    and the one with the smallest distance D of `fit_ks` wins.

    Parameters
    ----------
    evals : numpy.ndarray, shape (n,), float64
        Eigenvalues of W^T W in any order. Numerically zero ones are left out: they would set the
        histogram's range.
    bins : int
        Bins between the smallest and the largest eigenvalue. 100 in every reference program.
    lower_bound : {"reference", "intended"}
        The reference programs compare the *logarithm* of the bound with the eigenvalue itself, so
        it seldom binds and the result depends on the scale of W. "intended" compares like with
        like, and is scale-invariant.
    neighbours : int
        Let `alpha_lo` and `alpha_hi` also cover this many bins on either side of each possible
        peak.
    error : float, optional
        Absolute error of each eigenvalue, to decide which bins could be the fullest. Rounding of
        `esd` if not given.

    Returns
    -------
    PeakFit

    Raises
    ------
    MatrixError
        As `fit_mid`; or no eigenvalue lies in the window (possible only with few, wide bins).
    UsageError
        If `lower_bound` is unknown or `bins` < 1.

    Notes
    -----
    AlphaPruning and TempBalance bin in float32 (`torch.histc`), weightwatcher in
    float64 (`numpy.histogram`). This is float64: the same estimator without float32's chance moves
    of an eigenvalue over the edge of a bin.

    References
    ----------
    Zhou et al. (2023), TempBalance, arXiv 2312.00359; Lu et al. (2024),
    AlphaPruning, arXiv 2410.10912.

    Examples
    --------
    >>> fit = fit_peak(np.linspace(0.001, 0.999, 500) ** -0.5)
    >>> abs(fit.alpha - 3) < 0.05, fit.flag
    (True, '')
    """
    if lower_bound not in LOWER_BOUNDS:
        raise UsageError(choices("lower_bound", lower_bound, LOWER_BOUNDS))
    if bins < 1:
        msg = f"bins is {bins}; a histogram needs at least 1"
        raise UsageError(msg)
    values = sample_of(evals)
    tails = Tails(values)
    histogram = histogram_peaks(values, bins, error)
    edges, first, possible = histogram.edges, histogram.first, histogram.possible
    chosen, at_edge = _best_in_window(tails, float(edges[first]), lower_bound)
    if chosen is None:
        peak = 10.0 ** edges[first]
        msg = f"no eigenvalue lies near the histogram's peak {peak:.6g}; give more than {bins} bins"
        raise MatrixError(msg)
    fit = _fit(tails, chosen)
    around = {b + step for b in possible for step in range(-neighbours, neighbours + 1)}
    others = (
        _best_in_window(tails, float(edges[b]), lower_bound)[0] for b in around if 0 <= b < bins
    )
    alphas = [fit.alpha, *(tails.evaluate(i)[0] for i in others if i is not None)]
    words = (["tie"] if len(possible) > 1 else []) + (["edge"] if at_edge else [])
    return PeakFit(
        fit.alpha,
        fit.xmin,
        fit.k,
        fit.ks_distance,
        fit.n,
        min(alphas),
        max(alphas),
        "+".join(words),
        len(possible),
    )


def sample_of(evals: NDArray[np.float64], min_eval: float | None = None) -> NDArray[np.float64]:
    """Ascending eigenvalues above rounding (and above `min_eval`), at least two of them."""
    values = np.asarray(evals, dtype=np.float64).reshape(-1)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        msg = f"the spectrum has {bad} non-finite values"
        raise MatrixError(msg)
    if values.size < 2:
        msg = f"a power law needs at least two eigenvalues; the matrix has {values.size}"
        raise MatrixError(msg)
    if np.any(values[1:] < values[:-1]):
        values = np.sort(values)
    if values[-1] <= 0.0:
        msg = "the matrix is all zero: it has no power law"
        raise MatrixError(msg)
    floor = max(zero_threshold(values), min_eval or 0.0)
    kept = values[int(np.searchsorted(values, floor, side="right")) :]
    if kept.size < 2:
        msg = (
            f"a power law needs at least two eigenvalues; "
            f"{kept.size} of {values.size} are above {floor:.3g}"
        )
        raise MatrixError(msg)
    return kept


def _fit(tails: Tails, i: int) -> PowerLawFit:
    alpha, distance = tails.evaluate(i)
    return PowerLawFit(alpha, float(tails.values[i]), tails.size - i, distance, tails.size)


def _best_in_window(tails: Tails, edge: float, lower_bound: str) -> tuple[int | None, bool]:
    """Return the best candidate in one bin's window (None if empty) and if it is at an edge."""
    lowest, highest = window(edge, lower_bound)
    start = int(np.searchsorted(tails.values, lowest, side="left"))
    stop = min(int(np.searchsorted(tails.values, highest, side="right")), tails.size - 1)
    if start >= stop:
        return None, False
    chosen = tails.best(start, stop)
    return chosen, is_at_edge(chosen, start, stop)


def window(edge: float, lower_bound: str) -> tuple[float, float]:
    """Return the smallest and the largest xmin allowed for a peak at 10**edge."""
    peak = 10.0**edge
    # Odd on purpose: the reference programs compare log10 of the bound with the eigenvalue itself.
    lowest = math.log10(0.95 * peak) if lower_bound == "reference" else 0.95 * peak
    return lowest, 1.5 * peak


def is_at_edge(chosen: int, start: int, stop: int) -> bool:
    """Whether a candidate is one of the two outermost of its window start..stop-1."""
    return chosen >= stop - 2 or (start > 0 and chosen < start + 2)


@dataclass(frozen=True, slots=True)
class Histogram:
    """The log histogram of a spectrum, and what can be said of its fullest bin.

    `possible` are the bins that could be the fullest when each eigenvalue moves by its error;
    `certain` says that each of them surely holds the same number, the largest one; `reach` is how
    far each edge may move, in units of log10.
    """

    edges: NDArray[np.float64]
    first: int
    possible: list[int]
    certain: bool
    reach: NDArray[np.float64]


def histogram_peaks(
    values: NDArray[np.float64], bins: int, error: float | NDArray[np.float64] | None
) -> Histogram:
    """Put log10(values) in equal bins and find those that are or could be the fullest."""
    logs = np.log10(values)
    low, high = float(logs[0]), float(logs[-1])
    edges = np.linspace(low, high, bins + 1)
    if low == high:
        return Histogram(edges, 0, [0], error is None, np.zeros(bins + 1))
    # The values are sorted: counts are differences of positions. The last bin keeps its right edge.
    places = np.searchsorted(logs, edges, side="left")
    places[-1] = values.size
    first = int(np.argmax(np.diff(places)))

    absolute = 4 * _EPS * float(values[-1]) if error is None else error
    moves = np.minimum(absolute / values, 1.0) / math.log(10) + 4 * _EPS * np.abs(logs).max()
    # The smallest (place 0) and the largest eigenvalue (place 1) move the grid itself.
    place = (logs - low) / (high - low)
    shift = (moves + moves[0] * (1 - place) + moves[-1] * place) / (high - low) * bins
    shift[[0, -1]] = 0.0
    leftmost = np.clip(np.floor(place * bins - shift), 0, bins - 1).astype(np.int64)
    rightmost = np.clip(np.floor(place * bins + shift), 0, bins - 1).astype(np.int64)
    surely = np.bincount(leftmost[leftmost == rightmost], minlength=bins)
    entered = np.bincount(leftmost, minlength=bins + 1)
    left = np.bincount(rightmost + 1, minlength=bins + 1)
    at_most = np.cumsum(entered - left)[:bins]
    found = np.flatnonzero(at_most >= surely.max())
    fraction = np.linspace(0.0, 1.0, bins + 1)
    return Histogram(
        edges,
        first,
        sorted({first, *(int(b) for b in found)}),
        bool((surely[found] == at_most[found]).all()),
        moves[0] * (1 - fraction) + moves[-1] * fraction,
    )
