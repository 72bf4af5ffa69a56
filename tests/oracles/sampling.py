"""Inclusion probabilities by their definitions, slowly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction


def water_level(scores: Sequence[float], expected_active: float) -> list[float]:
    """min(1, c * score) with c found by bisection, so that the sum is expected_active."""
    low, high = 0.0, 1.0
    while sum(min(1.0, high * score) for score in scores) < expected_active:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if sum(min(1.0, middle * score) for score in scores) < expected_active:
            low = middle
        else:
            high = middle
    return [min(1.0, high * score) for score in scores]


def successive_inclusion(weights: Sequence[int], size: int) -> list[Fraction]:
    """Sum the probability of every ordered draw of `size` layers, in exact fractions."""
    result = [Fraction(0)] * len(weights)
    for draw in itertools.permutations(range(len(weights)), size):
        probability, left = Fraction(1), sum(weights)
        for layer in draw:
            probability *= Fraction(weights[layer], left)
            left -= weights[layer]
            if probability == 0:
                break
        for layer in draw:
            result[layer] += probability
    return result


def count_distribution(probabilities: Sequence[float]) -> list[float]:
    """Probability of k successes, by adding over every set of layers."""
    layers = range(len(probabilities))
    result = [0.0] * (len(probabilities) + 1)
    for outcome in itertools.product((False, True), repeat=len(probabilities)):
        product = 1.0
        for layer in layers:
            product *= probabilities[layer] if outcome[layer] else 1 - probabilities[layer]
        result[sum(outcome)] += product
    return result
