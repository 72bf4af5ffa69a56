"""Rank correlation by its definitions, slowly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence


def mid_ranks(values: Sequence[float]) -> list[float]:
    """Rank = how many are smaller, plus the middle of the places that the equal ones share."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    cross = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    square_x = sum((a - mean_x) ** 2 for a in x)
    square_y = sum((b - mean_y) ** 2 for b in y)
    return cross / math.sqrt(square_x * square_y)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    return pearson(mid_ranks(x), mid_ranks(y))


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Tau-b: concordant less discordant pairs over the root of the untied pairs of each."""
    balance = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        sign_x = (x[i] > x[j]) - (x[i] < x[j])
        sign_y = (y[i] > y[j]) - (y[i] < y[j])
        balance += sign_x * sign_y
        untied_x += sign_x != 0
        untied_y += sign_y != 0
    return balance / math.sqrt(untied_x * untied_y)


def permutation_p_value(
    x: Sequence[float],
    y: Sequence[float],
    coefficient: Callable[[Sequence[float], Sequence[float]], float],
) -> float:
    """Share of all orders of y whose coefficient is as far from zero as the one seen."""
    seen = abs(coefficient(x, y))
    orders = list(itertools.permutations(y))
    return sum(abs(coefficient(x, order)) >= seen - 1e-12 for order in orders) / len(orders)
