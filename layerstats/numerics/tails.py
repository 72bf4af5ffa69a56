"""All tails of one sorted sample: Hill exponents, distances from a power law, the smallest of them.

The plain search evaluates all n tails at O(n) each. This one keeps a lower bound of every distance
and always evaluates, by the plain formula, the tail with the smallest bound. Where that tail
deviates most, its rivals are likely to deviate too: one look there at each of them raises their
bounds. A few of thousands of tails are ever evaluated, and the answer is the plain search's, ties
included.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tails"]

_EPS = float(np.finfo(np.float64).eps)

# Fractions of a tail at which its distance is first bounded from below.
_FRACTIONS = np.linspace(0.0, 0.999, 12)


class Tails:
    """All tails of one ascending sample: candidate i is the tail from values[i] up.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,), float64
        Ascending, positive, at least two.

    Examples
    --------
    >>> tails = Tails(np.array([1.0, 2.0, 3.0, 4.0, 8.0, 16.0]))
    >>> best = tails.best(0, 5)
    >>> best, [round(number, 4) for number in tails.evaluate(best)]
    (1, [2.0954, 0.181])
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values
        self.size = values.size
        self.logs = np.log(values)
        self._evaluated: dict[int, tuple[float, float, int]] = {}
        self._bounds = np.full(self.size, np.nan)  # lower bounds of the distances, where asked for

        # All exponents at once from one cumulative sum, and how far rounding may move a distance.
        counts = np.arange(self.size, 0, -1, dtype=np.float64)
        below_top = self.logs - self.logs[-1]
        excess = np.cumsum(below_top[::-1])[::-1] - counts * below_top
        largest = float(np.abs(self.logs[[0, -1]]).max()) - 2 * float(below_top[0])
        usable = excess > 0
        excess[~usable] = 1.0
        self._counts = counts
        self._decay = -counts / excess  # 1 - alpha
        self._slack = 1e-12 + 4 * _EPS * counts * (counts * largest + 2) / excess
        # No bound where the sum of logarithms is mostly rounding (tails of nearly equal values).
        self._slack[~usable | (self._slack > 0.1)] = np.inf

    def evaluate(self, i: int) -> tuple[float, float]:
        """Return alpha and D of one tail, operation by operation as the reference loop has them."""
        if i not in self._evaluated:
            self._evaluated[i] = self._evaluate(i)
            self._bounds[i] = self._evaluated[i][1]
        return self._evaluated[i][:2]

    def best(self, start: int, stop: int) -> int:
        """Return the first candidate in start..stop-1 with the smallest distance."""
        unknown = start + np.flatnonzero(np.isnan(self._bounds[start:stop]))
        if unknown.size:
            steps = np.floor(self._counts[unknown, None] * _FRACTIONS).astype(np.int64)
            self._bounds[unknown] = self._bound(unknown[:, None], unknown[:, None] + steps).max(
                axis=1
            )
        bounds = self._bounds[start:stop]
        while True:
            at = start + int(np.argmin(bounds))
            if at in self._evaluated:  # its bound is its distance, and nobody else's is smaller
                return at
            _, distance = self.evaluate(at)
            worst = self._evaluated[at][2]
            rivals = start + np.flatnonzero(bounds[: worst - start] <= distance)
            self._bounds[rivals] = np.maximum(self._bounds[rivals], self._bound(rivals, worst))

    def rivals(self, start: int, stop: int, errors: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the candidates that could have the smallest distance under these errors.

        `errors` has for each candidate of the whole sample how far its distance may be off.
        """
        best = self.best(start, stop)
        limit = self.evaluate(best)[1] + errors[best]
        while True:
            near = start + np.flatnonzero(self._bounds[start:stop] - errors[start:stop] <= limit)
            unknown = [int(i) for i in near if int(i) not in self._evaluated]
            if not unknown:
                return near
            for i in unknown:
                self.evaluate(i)

    def distance_errors(
        self, moves: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bound how far alpha (relative to alpha - 1) and D of each tail are off.

        `moves` bounds the error of the logarithm of each value. With u = (alpha - 1) ln(x / xmin)
        the fitted distribution is 1 - exp(-u): an error of u counts at most once, one of alpha at
        most max u exp(-u) = 1 / e times.
        """
        excess = -self._counts / self._decay
        total = np.cumsum(moves[::-1])[::-1] + self._counts * moves
        share = np.where(total < 0.5 * excess, total / np.maximum(excess - total, 1e-300), np.inf)
        largest = np.maximum.accumulate(moves[::-1])[::-1] + moves
        distance = -self._decay * (1 + share) * largest + share * (1 + share) / math.e
        return share, 1.1 * distance + 1e-12

    def _evaluate(self, i: int) -> tuple[float, float, int]:
        """Return alpha, D and the position of D."""
        count = self.size - i
        if self.values[-1] == self.values[i]:
            return math.inf, (count - 1) / count, self.size - 1
        excess = float(np.sum(self.logs[i:]) - count * self.logs[i])
        alpha = 1 + count / excess if excess else math.inf
        if alpha <= 1:  # only rounding does that: a tail of all but equal values
            return alpha, 1.0, i
        theory = 1 - (self.values[i:] / self.values[i]) ** (-alpha + 1)
        deviation = np.abs(theory - np.arange(count) / count)
        worst = int(np.argmax(deviation))
        return alpha, float(deviation[worst]), i + worst

    def _bound(
        self, candidates: NDArray[np.int64], points: NDArray[np.int64] | int
    ) -> NDArray[np.float64]:
        """Return the deviation of each tail at the points, less rounding: never above its D."""
        theory = np.exp(self._decay[candidates] * (self.logs[points] - self.logs[candidates]))
        deviation = np.abs(1 - theory - (points - candidates) / self._counts[candidates])
        bound: NDArray[np.float64] = deviation - self._slack[candidates]
        return bound
