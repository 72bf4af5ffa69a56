"""What a schedule will do in the run at hand, in numbers: `explain` and its `Explanation`.

Here belong the collection of those numbers and the warnings in words; how they are printed is the
command line's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerstats.errors import UsageError
from layerstats.schedules.cost import ASSUMPTIONS, Cost, worst_cost
from layerstats.schedules.outlook import (
    active_count_distribution,
    expected_steps,
    never_trained,
)
from layerstats.schedules.rules import RULES
from layerstats.schedules.sampling import FloatArray
from layerstats.schedules.schedule import Schedule
from layerstats.stats import LayerStats

__all__ = ["Explanation", "LayerOutlook", "explain"]

STARVED = 0.5
"""A layer that will rather never train than train is called starved."""
NEARLY_EQUAL = 1.05


@dataclass(frozen=True, slots=True)
class LayerOutlook:
    """One layer in a run: its score, probabilities, expected training, chance never to train."""

    layer: int
    score: float
    target: float
    inclusion: float
    expected_intervals: float
    expected_steps: float
    chance_never: float


@dataclass(frozen=True)
class Explanation:
    """A schedule in a run of `steps` optimizer steps.

    Parameters
    ----------
    steps, intervals : int
        Length of the run; the last interval may be shorter.
    law, law_summary, rule_summary : str
    expected_active : float
    active_99 : int
        99 percent of the intervals have at most so many layers.
    active_max : int
    empty_chance : float
        Chance that an interval has no layer at all.
    expected_untrained : float
        Layers that never train, in expectation.
    layers : tuple of LayerOutlook
    cost : Cost or None
        Of the worst interval; None without statistics.
    cost_99 : Cost or None
        Of the worst interval with `active_99` layers.
    warnings : tuple of str
    """

    steps: int
    intervals: int
    law: str
    law_summary: str
    rule_summary: str
    expected_active: float
    active_99: int
    active_max: int
    empty_chance: float
    expected_untrained: float
    layers: tuple[LayerOutlook, ...]
    cost: Cost | None
    cost_99: Cost | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "steps": self.steps,
            "intervals": self.intervals,
            "law": self.law,
            "law_summary": self.law_summary,
            "active_layers": {
                "expected": self.expected_active,
                "percentile_99": self.active_99,
                "max": self.active_max,
                "chance_of_none": self.empty_chance,
            },
            "expected_untrained": self.expected_untrained,
            "layers": [
                {name: getattr(layer, name) for name in LayerOutlook.__slots__}
                for layer in self.layers
            ],
            "worst_case": None if self.cost is None else self.cost.to_dict(),
            "worst_case_99": None if self.cost_99 is None else self.cost_99.to_dict(),
            "assumptions": list(ASSUMPTIONS) if self.cost else [],
            "warnings": list(self.warnings),
        }


def explain(schedule: Schedule, *, steps: int, stats: LayerStats | None = None) -> Explanation:
    """Work out what a schedule does in a run of `steps` optimizer steps.

    All numbers are exact (closed forms, or the plan itself for laws without chance); nothing is
    simulated.

    Parameters
    ----------
    schedule : Schedule
    steps : int
        Optimizer steps of the run, at least 1.
    stats : LayerStats, optional
        Statistics of the model, for parameters and bytes.

    Returns
    -------
    Explanation

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> lisa = schedule("lisa", num_layers=32, expected_active=2, interval_steps=20)
    >>> run = explain(lisa, steps=122)
    >>> run.intervals, round(run.expected_untrained, 1), run.layers[0].expected_steps
    (7, 20.4, 7.625)
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        msg = f"steps must be a whole number from 1, got {steps!r}"
        raise UsageError(msg)
    target, law = schedule.target, schedule.law
    intervals = -(-steps // schedule.interval_steps)
    never = never_trained(law.name, target, intervals=intervals, seed=schedule.seed)
    often, long = expected_steps(
        law.name, target, steps=steps, interval_steps=schedule.interval_steps, seed=schedule.seed
    )
    counts = active_count_distribution(law.name, target)
    highest = int(np.flatnonzero(counts).max()) if law.fixed_size else _possible(schedule)
    usual = int(np.searchsorted(np.cumsum(counts), 0.99 - 1e-12))
    cost = None if stats is None else worst_cost(schedule, stats, highest)
    layers = zip(
        schedule.scores, schedule.probabilities, schedule.inclusion_probabilities, often, long,
        never, strict=True,
    )  # fmt: skip
    return Explanation(
        steps=steps,
        intervals=intervals,
        law=law.name,
        law_summary=law.summary,
        rule_summary=RULES[schedule.rule].summary if schedule.rule in RULES else "",
        expected_active=float(schedule.expected_active),
        active_99=usual,
        active_max=highest,
        empty_chance=float(counts[0]),
        expected_untrained=math.fsum(never.tolist()),
        layers=tuple(LayerOutlook(i, *map(float, row)) for i, row in enumerate(layers)),
        cost=cost,
        cost_99=None if stats is None else worst_cost(schedule, stats, usual),
        warnings=tuple(_warnings(schedule, steps, never, float(counts[0]), cost)),
    )


def _possible(schedule: Schedule) -> int:
    return int(np.count_nonzero(schedule.inclusion_probabilities))


def _warnings(
    schedule: Schedule, steps: int, never: FloatArray, empty: float, cost: Cost | None
) -> list[str]:
    exact = np.array(schedule.inclusion_probabilities)
    target = np.array(schedule.probabilities)
    found = []
    starved = [i for i in range(exact.size) if exact[i] == 0]
    if starved:
        found.append(f"never trains at all (probability 0): {_layers(starved)}; see --floor")
    rare = [i for i in range(exact.size) if never[i] > STARVED and exact[i] > 0]
    if rare:
        certain = "does not train" if not schedule.law.independent else "will rather not train"
        quota = "" if schedule.sampling == "quota" else " sampling quota,"
        found.append(
            f"starved, {certain} in {steps} steps: {_layers(rare)}; a longer run, shorter "
            f"intervals, more layers,{quota} or --floor helps"
        )
    missed = math.fsum(never.tolist())
    if missed >= 1 and not rare and not starved:
        found.append(
            f"{missed:.1f} of {exact.size} layers will not train in {steps} steps, in expectation; "
            "a longer run, shorter intervals or sampling quota helps"
        )
    capped = np.flatnonzero((target == 1.0) & (exact == 1.0)).tolist()
    if capped and len(capped) < exact.size:
        found.append(
            f"capped, trains in every interval (the score asks for more than 1): {_layers(capped)}"
        )
    gap = np.abs(exact - target)
    if not schedule.law.follows_target and gap.max() > 1e-9:
        found.append(_gap_warning(schedule, exact, target))
    if schedule.law.follows_target and empty > 0.001:
        found.append(
            f"{100 * empty:.1f} % of the intervals train no layer at all; "
            + (
                "expected_active of 1 or more helps"
                if schedule.expected_active < 1
                else "sampling systematic has a fixed number"
            )
        )
    scores = np.array(schedule.scores)
    if RULES[schedule.rule].needs_scores if schedule.rule in RULES else False:
        ratio = scores.max() / scores.min() if scores.min() > 0 else math.inf
        if ratio < NEARLY_EQUAL:
            found.append(
                f"the scores are nearly equal (largest / smallest = {ratio:.4g}): this is LISA in "
                "all but name; --temperature below 1 sharpens"
            )
    if cost is not None and cost.always_share > 0.5:
        found.append(
            f"the always-active group is {100 * cost.always_share:.0f} % of what trains; "
            "--always-active norm leaves embedding and head frozen"
        )
    return found


def _gap_warning(schedule: Schedule, exact: FloatArray, target: FloatArray) -> str:
    if schedule.sampling == "reshuffle":
        return "reshuffle ignores the scores: every layer trains equally often"
    worst = int(np.abs(exact - target).argmax())
    return (
        f"sampling {schedule.sampling} does not give the target probabilities: layer {worst} gets "
        f"{exact[worst]:.4g} instead of {target[worst]:.4g}; sampling systematic does"
    )


def _layers(layers: list[int]) -> str:
    """Name layers in words, runs of neighbours as ranges: 'layers 3, 7-9'."""
    parts: list[str] = []
    start = 0
    for place in range(1, len(layers) + 1):
        if place == len(layers) or layers[place] != layers[place - 1] + 1:
            first, last = layers[start], layers[place - 1]
            parts.append(f"{first}" if first == last else f"{first}-{last}")
            start = place
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(parts)
