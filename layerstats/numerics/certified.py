"""Power-law fits from a float32 spectrum, where its error bars leave no choice open.

Each eigenvalue gets an error bar. Then every decision of a fit is asked again under the bars: which
bins of the histogram are the fullest, which eigenvalues lie in a window, which tail has the
smallest distance, how far alpha itself may be off. One doubt, and the fits come from float64.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

from layerstats.errors import UsageError, choices
from layerstats.numerics.blocks import row_blocks
from layerstats.numerics.powerlaw import (
    PeakFit,
    PowerLawFit,
    fit_ks,
    fit_mid,
    fit_peak,
    histogram_peaks,
    is_at_edge,
    window,
)
from layerstats.numerics.spectrum import (
    MatrixError,
    approximate_spectrum,
    check_matrix,
    esd,
    zero_threshold,
)
from layerstats.numerics.tails import Tails

__all__ = ["SpectrumFits", "certified_fits"]

RULES = ("peak", "mid", "ks")
PRECISIONS = ("float64", "auto", "certified")

# Alpha and xmin of a certified fit equal float64's to this, relatively.
TOLERANCE = 1e-4

# Below this aspect ratio the smallest eigenvalues drown in float32's rounding.
_LEAST_ASPECT = 1.25

# Shorter sides for which the error bars have been tested, and those where "auto" was seen to gain.
_SIDES = (64, 2048)
_GAINING_SIDES = (256, 1024)

# Largest over mean eigenvalue up to which float32 leaves alpha of the upper half certain.
_GAINING_SPREAD = 36.0

_LOG = logging.getLogger(__name__)


class Doubt(Exception):
    """A decision that the error bars leave open; its text says which."""


@dataclass(frozen=True, slots=True)
class SpectrumFits:
    """The fits asked for, all of one spectrum.

    Attributes
    ----------
    evals : numpy.ndarray
        The eigenvalues behind the fits: exact for "float64", else with float32's errors.
    precision : str
        "float64" or "float32" (certified).
    doubt : str
        What float32 could not decide; "" if it was certified or not tried.
    peak : PeakFit or None
    mid, ks : PowerLawFit or None
        None if not asked for.
    """

    evals: NDArray[np.float64]
    precision: str
    doubt: str
    peak: PeakFit | None
    mid: PowerLawFit | None
    ks: PowerLawFit | None


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a spectrum."""

    rules: tuple[str, ...]
    lower_bound: str
    bins: int
    neighbours: int
    min_eval: float | None


def certified_fits(
    weight: torch.Tensor,
    rules: Sequence[str] = ("peak",),
    *,
    precision: str = "auto",
    lower_bound: str = "reference",
    bins: int = 100,
    neighbours: int = 0,
    min_eval: float | None = None,
) -> SpectrumFits:
    r"""Fit power laws to the spectrum of a matrix, in float32 where error bars leave no choice.

    An eigenvalue of the float32 Gram matrix is trusted to

    .. math:: |\delta\lambda_i| \le \epsilon_{32} \, (a \, \lambda_i + b \, \lambda_{\max})

    with constants of the eigensolver (`approximate_spectrum`) that are at least twice the largest
    error seen over real and random matrices; they are tested, not proven. If they leave a decision
    open, the smallest eigenvalue, which sets the histogram's grid, is refined to float64 by one
    inverse iteration with a Kato-Temple bound; if doubt remains, float64 does it all.

    Parameters
    ----------
    weight : torch.Tensor, shape (m, n), any real dtype
        float32 is tried only on a CPU (a GPU's float32 may be a shorter type in disguise), from an
        aspect ratio of 1.25 up and for a shorter side of 64 to 2048.
    rules : sequence of {"peak", "mid", "ks"}
        Fits wanted. They are certified together: `fit_peak`, `fit_mid`, `fit_ks`.
    precision : {"auto", "certified", "float64"}
        "certified" tries float32 wherever the bars have been tested. "auto" does so only where it
        pays: for "mid" alone, on a shorter side of 256 to 1024 and with no eigenvalue far above the
        others.
    lower_bound, bins, neighbours
        See `fit_peak`.
    min_eval
        See `fit_ks`.

    Returns
    -------
    SpectrumFits
        Tail sizes and flags equal float64's; alpha, its range and xmin to 1e-4, relatively.

    Raises
    ------
    MatrixError
        As `esd` and the fits.
    UsageError
        If a rule or `precision` is unknown.

    Notes
    -----
    "mid" was certified for every eligible matrix of one real checkpoint, in three quarters of
    float64's time. The searches of "peak" and "ks" are decided by the last digits too often: three
    quarters of those matrices are certified, few of ill-conditioned ones, and a doubt costs the
    time of both precisions, so that they are no faster than float64.

    References
    ----------
    Parlett (1998), The Symmetric Eigenvalue Problem, section 10.5 (Kato-Temple).

    Examples
    --------
    >>> weight = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 300)))
    >>> fits = certified_fits(weight, ["mid"], precision="certified")
    >>> fits.precision, fits.mid.k, fits.peak
    ('float32', 32, None)
    """
    check_matrix(weight)
    if precision not in PRECISIONS:
        raise UsageError(choices("precision", precision, PRECISIONS))
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown or not rules:
        raise UsageError(choices("rule", unknown[0] if unknown else "", RULES))
    question = _Question(tuple(rules), lower_bound, bins, neighbours, min_eval)
    doubt = ""
    if (
        precision != "float64"
        and _tested(weight)
        and (precision != "auto" or _gains(weight, rules))
    ):
        try:
            values = _certified_values(weight, question)
        except Doubt as reason:
            doubt = str(reason)
            _LOG.debug("float32 left open %s: %s", tuple(weight.shape), doubt)
        else:
            return _answer(values, "float32", "", question)
    return _answer(esd(weight), "float64", doubt, question)


def _tested(weight: torch.Tensor) -> bool:
    short, long = sorted(weight.shape)
    tested = _SIDES[0] <= short <= _SIDES[1]
    return weight.device.type == "cpu" and tested and long >= _LEAST_ASPECT * short


def _gains(weight: torch.Tensor, rules: Sequence[str]) -> bool:
    gaining = _GAINING_SIDES[0] <= min(weight.shape) <= _GAINING_SIDES[1]
    return set(rules) == {"mid"} and gaining and _spread(weight) <= _GAINING_SPREAD


def _spread(weight: torch.Tensor) -> float:
    """Estimate largest over mean eigenvalue by power iteration on an eighth of the longer side.

    A single huge row or column among the others is missed: then a doubt costs the time of both.
    """
    tall = weight.detach() if weight.shape[0] >= weight.shape[1] else weight.detach().T
    part = tall[::8].to(torch.float32)
    start = np.random.default_rng(0).standard_normal(part.shape[1]).astype(np.float32)
    vector, largest = torch.from_numpy(start), torch.zeros(())
    for _ in range(5):
        vector = part.T @ (part @ vector)
        largest = torch.linalg.vector_norm(vector)
        vector = vector / largest
    return float(largest * part.shape[1] / part.square().sum())  # NaN without a finite answer


def _answer(
    evals: NDArray[np.float64], precision: str, doubt: str, question: _Question
) -> SpectrumFits:
    peak = mid = ks = None
    if "peak" in question.rules:
        peak = fit_peak(
            evals,
            bins=question.bins,
            lower_bound=question.lower_bound,
            neighbours=question.neighbours,
        )
    if "mid" in question.rules:
        mid = fit_mid(evals)
    if "ks" in question.rules:
        ks = fit_ks(evals, min_eval=question.min_eval)
    return SpectrumFits(evals, precision, doubt, peak, mid, ks)


def _certified_values(weight: torch.Tensor, question: _Question) -> NDArray[np.float64]:
    """Return float32 eigenvalues from which all fits are certain, or raise `Doubt`."""
    try:
        gram, values, errors = approximate_spectrum(weight)
    except (MatrixError, np.linalg.LinAlgError) as error:  # float64 will say what is wrong, if so
        raise Doubt(str(error)) from None
    try:
        _Certificate(values, errors).check(question)
    except Doubt:
        values, errors = _with_refined_smallest(weight, gram, values, errors)
        _Certificate(values, errors).check(question)
    return values


def _with_refined_smallest(
    weight: torch.Tensor,
    gram: NDArray[np.float32],
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Replace the smallest eigenvalue by a float64 Rayleigh quotient with a bound of its own."""
    shift = values[0] - 2 * errors[0]
    shifted = gram.copy(order="F")
    shifted[np.diag_indices_from(shifted)] -= np.float32(shift)
    factor, failed = lapack.spotrf(shifted, lower=0, clean=0, overwrite_a=1)
    if failed:
        msg = "the smallest eigenvalue is lost in rounding"
        raise Doubt(msg)
    vector = np.random.default_rng(0).standard_normal(values.size).astype(np.float32)
    for _ in range(4):
        vector, _ = lapack.spotrs(factor, vector, lower=0)
        vector /= np.linalg.norm(vector)
    exact = vector.astype(np.float64)
    exact /= np.linalg.norm(exact)
    image = _image(weight, torch.from_numpy(exact))
    quotient = float(image @ image)  # an upper bound of the smallest eigenvalue
    upper = np.triu(gram).astype(np.float64)
    product = upper @ exact + exact @ upper - np.diagonal(upper) * exact
    residual = float(np.linalg.norm(product - quotient * exact)) + float(errors[0])
    gap = values[1] - errors[1] - quotient
    if not gap > 0:
        msg = "the two smallest eigenvalues are too close"
        raise Doubt(msg)
    rounding = 1e-14 * values.size * values[-1]
    values, errors = values.copy(), errors.copy()
    values[0], errors[0] = quotient, residual**2 / gap + rounding
    return values, errors


def _image(weight: torch.Tensor, vector: torch.Tensor) -> NDArray[np.float64]:
    """Return the product of the matrix with a vector of its shorter side, in float64."""
    rows_are_short = weight.shape[0] <= weight.shape[1]
    images = []
    start = 0
    for block in row_blocks(weight):
        stop = start + len(block)
        exact = block.to(torch.float64)
        images.append(vector[start:stop] @ exact if rows_are_short else exact @ vector)
        start = stop
    whole = torch.stack(images).sum(0) if rows_are_short else torch.cat(images)
    found: NDArray[np.float64] = whole.numpy()
    return found


# ---------------------------------------------------------------- decisions under error bars


class _Certificate:
    """The decisions of the fits to one spectrum, asked under its error bars; raises `Doubt`."""

    def __init__(self, values: NDArray[np.float64], errors: NDArray[np.float64]) -> None:
        if values[0] - errors[0] <= 2 * zero_threshold(values):
            msg = "the smallest eigenvalue may be zero"
            raise Doubt(msg)
        self.values, self.errors = values, errors
        self.moves = -np.log1p(-np.minimum(errors / values, 0.5))
        self.tails = Tails(values)
        self.alpha_off, self.distance_off = self.tails.distance_errors(self.moves)

    def check(self, question: _Question) -> None:
        if "mid" in question.rules:
            self._check_tail(self.values.size // 2)
        if "ks" in question.rules:
            if (question.min_eval or 0.0) >= self.values[0] - self.errors[0]:
                msg = "min_eval lies within the spectrum"
                raise Doubt(msg)
            last = self.values.size - 1
            self._check_search((0, 0), (last, last))
        if "peak" in question.rules:
            self._check_peak(question)

    def _check_tail(self, i: int) -> None:
        alpha = self.tails.evaluate(i)[0]
        if not max(self.alpha_off[i] * (alpha - 1) / alpha, self.moves[i]) <= TOLERANCE:
            msg = "alpha is less certain than 1e-4"
            raise Doubt(msg)

    def _check_search(self, starts: tuple[int, int], stops: tuple[int, int]) -> int:
        """Return the one candidate that wins, whichever start and stop the window has."""
        rivals = self.tails.rivals(starts[0], stops[1], self.distance_off)
        if rivals.size != 1 or not starts[1] <= rivals[0] < stops[0]:
            msg = "two tails fit equally well"
            raise Doubt(msg)
        self._check_tail(int(rivals[0]))
        return int(rivals[0])

    def _check_peak(self, question: _Question) -> None:
        histogram = histogram_peaks(self.values, question.bins, 1.01 * self.errors)
        if not histogram.certain:
            msg = "an eigenvalue is too near the edge of a bin"
            raise Doubt(msg)
        steps = range(-question.neighbours, question.neighbours + 1)
        around = {b + step for b in histogram.possible for step in steps}
        for b in sorted(b for b in around if 0 <= b < question.bins):
            starts, stops = _window_range(
                self.values,
                self.errors,
                (float(histogram.edges[b]), float(histogram.reach[b])),
                question.lower_bound,
            )
            if starts[0] >= stops[1]:
                continue  # surely empty
            chosen = self._check_search(starts, stops)
            if len({is_at_edge(chosen, i, j) for i in starts for j in stops}) > 1:
                msg = "xmin may or may not be at the edge of its window"
                raise Doubt(msg)


def _window_range(
    values: NDArray[np.float64],
    errors: NDArray[np.float64],
    edge_and_reach: tuple[float, float],
    lower_bound: str,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the least and the greatest start, and stop, that a bin's window may have."""
    edge, reach = edge_and_reach
    lowest, highest = window(edge - reach, lower_bound)
    lowest_up, highest_up = window(edge + reach, lower_bound)
    starts = (
        int(np.count_nonzero(values + errors < lowest)),
        int(np.count_nonzero(values - errors < lowest_up)),
    )
    stops = (
        min(int(np.count_nonzero(values + errors <= highest)), values.size - 1),
        min(int(np.count_nonzero(values - errors <= highest_up)), values.size - 1),
    )
    return starts, stops
