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

from layerstats.errors import UsageError, choices
from layerstats.numerics.approximate import approximate_spectrum
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
from layerstats.numerics.spectrum import MatrixError, check_matrix, esd, zero_threshold
from layerstats.numerics.tails import Tails

__all__ = ["SpectrumFits", "certified_fits"]

RULES = ("peak", "mid", "ks")
PRECISIONS = ("float64", "auto", "certified")

# Alpha and xmin of a certified fit equal float64's to this, relatively.
TOLERANCE = 1e-4

# Below this aspect ratio the smallest eigenvalues drown in float32's rounding.
_LEAST_ASPECT = 1.25

# Shorter sides for which the error bars have been tested; the least one where float32 was seen to
# gain, and the greatest where the doubts of "peak", more with each eigenvalue, leave some of it.
_SIDES = (64, 4096)
_LEAST_GAINING, _MOST_FOR_PEAK = 256, 1024

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

    The Gram matrix is summed in float32 and its eigenvalues get error bars from a sample of its
    entries done again in float64 (`approximate_spectrum`); the bars are tested, not proven. If they
    leave any decision of a fit open, float64 does it all.

    Parameters
    ----------
    weight : torch.Tensor, shape (m, n), any real dtype
        float32 is tried only on a CPU (a GPU's float32 may be a shorter type in disguise), from an
        aspect ratio of 1.25 up and for a shorter side of 64 to 4096.
    rules : sequence of {"peak", "mid", "ks"}
        Fits wanted. They are certified together: `fit_peak`, `fit_mid`, `fit_ks`.
    precision : {"auto", "certified", "float64"}
        "certified" tries float32 wherever the bars have been tested, "auto" only where it pays:
        from a shorter side of 256 up, and to 1024 if "peak" is wanted.
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
    float32 saves half the time of the products and none of the eigenvalues', so a quarter of all at
    best; a doubt costs both again. Of a real checkpoint's 90 matrices of 576 x 1536, 85 were
    certified for "peak", 88 for "ks", all for "mid"; of 24 random shapes (benchmarks/results.md) 16
    for "peak" and 22 for "ks". "peak" hangs on single eigenvalues at the edges of its histogram's
    bins, and the larger the matrix, the more there are.

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
    if precision != "float64" and _tested(weight) and (precision != "auto" or _pays(weight, rules)):
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


def _pays(weight: torch.Tensor, rules: Sequence[str]) -> bool:
    short = min(weight.shape)
    return short >= _LEAST_GAINING and (short <= _MOST_FOR_PEAK or "peak" not in rules)


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
        values, errors = approximate_spectrum(weight)
    except (MatrixError, np.linalg.LinAlgError) as error:  # float64 will say what is wrong
        raise Doubt(str(error)) from None
    _Certificate(values, errors).check(question)
    return values


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
