"""Schedule rules: which layers deserve training, as weights over layers.

Here belongs everything that turns "which rule" (and perhaps columns of scores) into weights that
the inclusion probabilities are proportional to. A rule is one function `RuleInput -> weights` with
one `@schedule` registration; columns.py finds its columns, water_filling.py and sampling.py have
what happens to the weights afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from layerstats.errors import UsageError, choices
from layerstats.schedules.scores import FloatArray, check_scores, mirror, shares

__all__ = ["DIRECTIONS", "RULES", "Rule", "RuleInput", "get_rule", "rule_weights", "schedule"]

DIRECTIONS = ("increasing", "decreasing")
TAKES = ("nothing", "scores", "blend", "pair")


@dataclass(frozen=True, slots=True)
class RuleInput:
    """What a rule may look at.

    Parameters
    ----------
    num_layers : int
    columns : tuple of ndarray, each of shape (num_layers,)
        As many as the rule takes: none, one, several to blend, or a pair to compare.
    names : tuple of str
        What the columns are called in errors.
    factors : tuple of float
        One a column, for a blend; a negative factor takes the column decreasing.
    direction : str
        "increasing" or "decreasing": whether a large score means much or little training.
    normalise : str
        "sum" or "rank": how columns of a blend become comparable (`scores.shares`).
    """

    num_layers: int
    columns: tuple[FloatArray, ...] = ()
    names: tuple[str, ...] = ()
    factors: tuple[float, ...] = ()
    direction: str = "increasing"
    normalise: str = "sum"


Weights = Callable[[RuleInput], FloatArray]


@dataclass(frozen=True, slots=True)
class Rule:
    """A registered schedule rule.

    Parameters
    ----------
    name : str
    weights : callable
        ``RuleInput -> weights``, shape (num_layers,), none negative.
    takes : str
        "nothing", "scores" (one column), "blend" (columns with factors) or "pair" (a column of
        one checkpoint and one of another).
    directed : bool
        Whether the rule looks at `direction`.
    summary, reference : str
        One line for people, and where it comes from.
    """

    name: str
    weights: Weights
    takes: str
    directed: bool
    summary: str
    reference: str

    @property
    def needs_scores(self) -> bool:
        """Whether the rule needs any column."""
        return self.takes != "nothing"


#: Name -> rule, in the order of registration.
RULES: dict[str, Rule] = {}


def schedule(
    name: str, *, summary: str, reference: str, takes: str = "nothing", directed: bool = False
) -> Callable[[Weights], Weights]:
    """Register a function of a `RuleInput` as the rule `name` (decorator; see `Rule`)."""
    if takes not in TAKES:
        raise UsageError(choices("takes", takes, TAKES))

    def register(weights: Weights) -> Weights:
        RULES[name] = Rule(name, weights, takes, directed, summary, reference)
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
def lisa(given: RuleInput) -> FloatArray:
    """Weigh all layers alike. N counts blocks, as the LISA programs do, not embedding and head."""
    return np.ones(given.num_layers)


@schedule(
    "lisa-d",
    summary="falling from the first layer to the last: proportional to N - l",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380 (its program's prob_mode=decrease)",
)
def lisa_d(given: RuleInput) -> FloatArray:
    """Weigh layer l by N - l. The paper says monotonic decreasing; the formula is its program's."""
    return np.arange(given.num_layers, 0, -1, dtype=np.float64)


@schedule(
    "lisa-d-mirror",
    summary="rising from the first layer to the last: proportional to l + 1",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380 (its program's prob_mode=increase)",
)
def lisa_d_mirror(given: RuleInput) -> FloatArray:
    """Weigh layer l by l + 1: lisa-d seen from the other end."""
    return np.arange(1, given.num_layers + 1, dtype=np.float64)


@schedule(
    "owlore",
    summary="proportional to a metric, the layerwise outlier distribution by default",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380",
    takes="scores",
)
def owlore(given: RuleInput) -> FloatArray:
    """Weigh each layer by its score: ``pi_l = gamma * D_l / sum_k D_k`` before water-filling."""
    return given.columns[0]


@schedule(
    "owlore-reverse",
    summary="max - score, as OwLore's program reverses; its top layer never trains (see --floor)",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380 (its program's prob_mode=owl_reverse)",
    takes="scores",
)
def owlore_reverse(given: RuleInput) -> FloatArray:
    """Weigh each layer by ``max_k D_k - D_l``; `mirror` is the reversal that starves nobody."""
    return np.asarray(given.columns[0].max() - given.columns[0])


@schedule(
    "metric",
    summary="proportional to any column; direction decreasing turns it round in its own range",
    reference="Bai et al. (2024), OwLore, arXiv:2405.18380, with another score",
    takes="scores",
    directed=True,
)
def metric(given: RuleInput) -> FloatArray:
    """Weigh each layer by a column x, or by ``max + min - x``."""
    return given.columns[0] if given.direction == "increasing" else mirror(given.columns[0])


@schedule(
    "blend",
    summary="several columns, each made to sum to 1, averaged with factors (a minus turns round)",
    reference="layerstats",
    takes="blend",
)
def blend(given: RuleInput) -> FloatArray:
    """Weigh by ``sum_k |a_k| s_k(l) / sum_k |a_k|`` with shares s_k that sum to 1 (`shares`)."""
    total = np.zeros(given.num_layers)
    for values, name, factor in zip(given.columns, given.names, given.factors, strict=True):
        turned = values if factor > 0 else mirror(values)
        total += abs(factor) * shares(turned, given.normalise, what=name)
    return np.asarray(total / sum(map(abs, given.factors)))


@schedule(
    "lisa-theory",
    summary="norm in LoRA over norm in full fine-tuning, by layer: the formula LISA starts from",
    reference="Pan et al. (2024), LISA, arXiv:2403.17919, section 3",
    takes="pair",
)
def lisa_theory(given: RuleInput) -> FloatArray:
    """Weigh layer l by ``w~_l / w_l``: how much LoRA moves it, where full fine-tuning has w_l.

    The paper's norms are means over training steps; here they are those of two checkpoints. It
    then replaces the formula by gamma / N (rule lisa), as no public program computes it.
    """
    lora, full = given.columns
    empty = np.flatnonzero(full <= 0)
    if empty.size:
        msg = f"{given.names[1]}: layer {empty[0]} is {full[empty[0]]:g}; a norm must be above 0"
        raise UsageError(msg)
    return np.asarray(lora / full)


@schedule(
    "adaptive",
    summary="proportional to running gradient norms; refreshed during training",
    reference="after GRASS (2026), arXiv:2604.07808",
    takes="scores",
)
def adaptive(given: RuleInput) -> FloatArray:
    """Weigh each layer by its running gradient norm (see `layerstats.schedules.adaptive`)."""
    return given.columns[0]


def rule_weights(name: str, given: RuleInput, *, what: str = "scores") -> FloatArray:
    """Return the weights of rule `name`, checked: one a layer, finite, none negative, not all zero.

    Examples
    --------
    >>> rule_weights("lisa-d", RuleInput(4))
    array([4., 3., 2., 1.])
    """
    weights = check_scores(get_rule(name).weights(given), what=what)
    if weights.size != given.num_layers:
        msg = (
            f"{what}: {weights.size} values for {given.num_layers} layers; give one number a layer"
        )
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
