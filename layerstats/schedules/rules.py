"""Schedule rules: which layers deserve training, as weights over layers.

Here belongs everything that turns "which rule" (and perhaps a column of scores) into weights that
the inclusion probabilities are proportional to. A rule is one function `(num_layers, scores) ->
weights` with one `@schedule` registration; what happens to the weights afterwards is sampling.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerstats.errors import UsageError, choices

__all__ = ["RULES", "Rule", "check_scores", "get_rule", "map_scores", "rule_weights", "schedule"]

FloatArray = NDArray[np.float64]
Weights = Callable[[int, FloatArray | None], FloatArray]

TEMPBALANCE_RANGE = (0.5, 1.5)
"""Where TempBalance (arXiv:2312.00359) maps alpha linearly, as a learning rate's factor."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A registered schedule rule.

    Parameters
    ----------
    name : str
    weights : callable
        ``(num_layers, scores or None) -> weights``, shape (num_layers,), none negative.
    needs_scores : bool
        Whether the rule needs a score per layer.
    summary, reference : str
        One line for people, and where it comes from.
    """

    name: str
    weights: Weights
    needs_scores: bool
    summary: str
    reference: str


RULES: dict[str, Rule] = {}


def schedule(
    name: str, *, summary: str, reference: str, needs_scores: bool = False
) -> Callable[[Weights], Weights]:
    """Register a function of (num_layers, scores) as the rule `name` (decorator; see `Rule`)."""

    def register(weights: Weights) -> Weights:
        RULES[name] = Rule(name, weights, needs_scores, summary, reference)
        return weights

    return register


def get_rule(name: str) -> Rule:
    """Return the rule `name`, or raise UsageError with the names there are."""
    try:
        return RULES[name]
    except KeyError:
        raise UsageError(choices("rule", name, RULES)) from None


@schedule(
    "lisa",
    summary="every layer alike: gamma / N",
    reference="Pan et al. (2024), LISA, arXiv:2403.17919",
)
def lisa(num_layers: int, scores: FloatArray | None) -> FloatArray:
    """Weigh all layers alike. N counts blocks, as the LISA programs do, not embedding and head."""
    return np.ones(num_layers)


@schedule(
    "lisa-d",
    summary="falling from the first layer to the last: proportional to N - l",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380 (its program's prob_mode=decrease)",
)
def lisa_d(num_layers: int, scores: FloatArray | None) -> FloatArray:
    """Weigh layer l by N - l. The paper says monotonic decreasing; the formula is its program's."""
    return np.arange(num_layers, 0, -1, dtype=np.float64)


@schedule(
    "owlore",
    summary="proportional to a metric, the layerwise outlier distribution by default",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380",
    needs_scores=True,
)
def owlore(num_layers: int, scores: FloatArray | None) -> FloatArray:
    """Weigh each layer by its score: ``pi_l = gamma * D_l / sum_k D_k`` before water-filling."""
    assert scores is not None  # `rule_weights` has seen to it
    return scores


def check_scores(scores: ArrayLike, *, what: str = "scores") -> FloatArray:
    """Return scores as a float64 vector, or say which layer's value cannot be used.

    Raises
    ------
    UsageError
        Not one-dimensional, empty, or a value that is missing or infinite.

    Examples
    --------
    >>> check_scores([1, 2])
    array([1., 2.])
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        msg = f"{what}: not a list of numbers; give one number a layer"
        raise UsageError(msg) from None
    if values.ndim != 1 or values.size == 0:
        msg = f"{what}: has shape {values.shape}; give one number a layer"
        raise UsageError(msg)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        msg = (
            f"{what}: layer {bad[0]} has no finite value ({values[bad[0]]}); "
            "measure that layer, or give a list of scores without gaps"
        )
        raise UsageError(msg)
    return values


def map_scores(values: FloatArray, metric: str | None) -> tuple[FloatArray, dict[str, Any]]:
    """Turn a metric into weights that are not negative, where the metric's sign calls for it.

    Only `heavy_tail` (= -alpha, negative for every layer) has a map: linear from its smallest to
    its largest value onto 0.5 .. 1.5, so that the heaviest tail gets three times the weight of the
    lightest; layers that are all equal get 1. That is the range TempBalance maps alpha to. A ratio
    of values, as for LOD, would have no meaning: alpha is an exponent. Other metrics pass as they
    are and must not be negative.

    Returns
    -------
    weights : ndarray, shape (num_layers,)
    parameters : dict
        What was done, for the schedule's provenance; empty when nothing was.

    References
    ----------
    Zhou et al. (2023), TempBalance, arXiv:2312.00359.

    Examples
    --------
    >>> map_scores(np.array([-4.0, -3.0, -2.0]), "heavy_tail")[0]
    array([0.5, 1. , 1.5])
    """
    if metric != "heavy_tail":
        return values, {}
    low, high = TEMPBALANCE_RANGE
    parameters = {"score_map": {"kind": "linear", "low": low, "high": high}}
    spread = values.max() - values.min()
    if spread == 0:
        return np.ones_like(values), parameters
    return low + (high - low) * (values - values.min()) / spread, parameters


def rule_weights(
    name: str, num_layers: int, scores: FloatArray | None, *, what: str = "scores"
) -> FloatArray:
    """Return the weights of rule `name`, checked: one a layer, finite, none negative, not all zero.

    Examples
    --------
    >>> rule_weights("lisa-d", 4, None)
    array([4., 3., 2., 1.])
    """
    rule = get_rule(name)
    if rule.needs_scores and scores is None:
        others = ", ".join(sorted(key for key, value in RULES.items() if not value.needs_scores))
        msg = (
            f"rule {name!r} needs scores: give statistics or one number a layer (without: {others})"
        )
        raise UsageError(msg)
    weights = check_scores(rule.weights(num_layers, scores), what=what)
    if weights.size != num_layers:
        msg = f"{what}: {weights.size} values for {num_layers} layers; give one number a layer"
        raise UsageError(msg)
    if weights.min() < 0:
        worst = int(weights.argmin())
        msg = (
            f"{what}: layer {worst} is {weights[worst]:g}, and a probability cannot be "
            "proportional to a negative score; subtract the smallest score, or use another metric"
        )
        raise UsageError(msg)
    if weights.max() == 0:
        msg = f"{what}: every layer is 0, so no layer is preferred; use rule lisa or another metric"
        raise UsageError(msg)
    return weights


def describe_rules() -> Mapping[str, str]:
    """Return each rule's name and one-line summary, for help texts."""
    return {name: rule.summary for name, rule in sorted(RULES.items())}
