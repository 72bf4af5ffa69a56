"""From what the user gave to the columns a rule takes.

Here belong the choice of a column in statistics, the reading of a blend's text and the pairing of
two checkpoints: everything that names a column. Numbers over layers are scores.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from layerstats.errors import UsageError, choices
from layerstats.schedules.rules import DIRECTIONS, RULES, Rule, RuleInput
from layerstats.schedules.scores import FloatArray, check_scores, map_scores
from layerstats.stats import LOD_NAME, LayerStats

__all__ = ["Gathered", "gather", "parse_blend"]

DEFAULT_METRIC = "lod_m7"
LORA_METRIC = "lora_updated_norm"
FULL_METRIC = "frobenius_norm"


@dataclass(frozen=True)
class Gathered:
    """A rule's input, and what the schedule file says about where it came from."""

    given: RuleInput
    metric: str | None = None
    what: str = "scores"
    parameters: dict[str, Any] = field(default_factory=dict)


def gather(
    rule: Rule,
    stats: LayerStats | ArrayLike | None,
    *,
    num_layers: int | None = None,
    metric: str | Mapping[str, float] | None = None,
    direction: str | None = None,
    normalise: str | None = None,
    full: LayerStats | ArrayLike | None = None,
) -> Gathered:
    """Find the columns of `rule`; `build.schedule` explains the parameters.

    Raises
    ------
    UsageError
        Something the rule needs is missing, or something it does not take is given.
    """
    _refuse_unused(rule, metric, direction, normalise, full)
    if rule.takes == "blend":
        return _blend(rule, stats, metric, normalise or "sum")
    if isinstance(metric, Mapping) or (metric and "=" in metric and isinstance(stats, LayerStats)):
        msg = f"metric {metric!r} is a blend, but the rule is {rule.name!r}; use rule blend"
        raise UsageError(msg)
    if rule.takes == "pair":
        return _pair(rule, stats, full, metric)
    if rule.takes == "nothing":
        return Gathered(RuleInput(_count(stats, num_layers, rule)))
    if stats is None:
        others = ", ".join(sorted(key for key, value in RULES.items() if not value.needs_scores))
        msg = (
            f"rule {rule.name!r} needs scores: give statistics or one number a layer "
            f"(without: {others})"
        )
        raise UsageError(msg)
    if isinstance(stats, LayerStats):
        metric = metric or _default_metric(stats, rule)
    what = "scores" if metric is None else f"metric {metric!r}"
    values, parameters = map_scores(_column(stats, metric, what), metric)
    if rule.directed:
        parameters = {"direction": direction or DIRECTIONS[0], **parameters}
    given = RuleInput(values.size, (values,), (what,), direction=direction or DIRECTIONS[0])
    return Gathered(given, metric, what, parameters)


def parse_blend(text: str) -> dict[str, float]:
    """Read ``lod_m7=0.7,stable_rank=-0.3``: columns and factors; a minus means decreasing.

    Examples
    --------
    >>> parse_blend("lod_m7=0.7, stable_rank=-0.3")
    {'lod_m7': 0.7, 'stable_rank': -0.3}
    """
    result: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (name and equals and math.isfinite(value) and value) or name in result:
            msg = (
                f"cannot read {part!r} in a blend; give columns with factors, each once and not 0, "
                "such as lod_m7=0.7,heavy_tail=0.3"
            )
            raise UsageError(msg)
        result[name] = value
    return result


def _refuse_unused(rule: Rule, metric: object, direction: object, *others: object) -> None:
    normalise, full = others
    if direction is not None and not rule.directed:
        able = ", ".join(name for name, value in RULES.items() if value.directed)
        msg = f"rule {rule.name!r} has no direction; rules that have: {able}"
        raise UsageError(msg)
    if direction is not None and direction not in DIRECTIONS:
        raise UsageError(choices("direction", str(direction), DIRECTIONS))
    if normalise is not None and rule.takes != "blend":
        msg = f"rule {rule.name!r} has nothing to normalise; only a blend has"
        raise UsageError(msg)
    if full is not None and rule.takes != "pair":
        msg = f"rule {rule.name!r} takes no second checkpoint (full); rule lisa-theory does"
        raise UsageError(msg)
    if rule.takes == "blend" and metric is None:
        msg = f"rule {rule.name!r} needs columns with factors as metric: lod_m7=0.7,heavy_tail=0.3"
        raise UsageError(msg)


def _count(stats: LayerStats | ArrayLike | None, num_layers: int | None, rule: Rule) -> int:
    if isinstance(stats, LayerStats):
        return stats.num_layers
    if stats is not None:
        return int(check_scores(stats).size)
    if num_layers is None:
        msg = f"rule {rule.name!r} needs num_layers: give statistics, one score a layer, or "
        raise UsageError(msg + "num_layers")
    whole = isinstance(num_layers, int | np.integer) and not isinstance(num_layers, bool)
    if not whole or num_layers < 1:
        msg = f"num_layers must be a whole number from 1, got {num_layers!r}"
        raise UsageError(msg)
    return int(num_layers)


def _default_metric(stats: LayerStats, rule: Rule) -> str:
    """Return the column of LOD with M = 7, or the only one there is."""
    have = stats.columns()
    lods = [name for name in have if LOD_NAME.fullmatch(name)]
    if DEFAULT_METRIC in lods:
        return DEFAULT_METRIC
    if len(lods) == 1:
        return lods[0]
    by_default = f"which rule {rule.name!r} takes by default"
    if lods:
        msg = (
            f"the statistics hold {', '.join(lods)} and not {DEFAULT_METRIC}, {by_default}; name "
            f"one of them with --metric, such as {lods[0]}"
        )
        raise UsageError(msg)
    other = "heavy_tail" if "heavy_tail" in have else next(iter(have), "frobenius_norm")
    msg = (
        f"the statistics hold no LOD, {by_default}; measure it with --metrics lod --m 7 --tokens "
        f"TEXT, or name another column with --metric (for instance {other})"
    )
    raise UsageError(msg)


def _column(stats: LayerStats | ArrayLike, name: str | None, what: str) -> FloatArray:
    if isinstance(stats, LayerStats):
        return check_scores(stats.layer_column(str(name)), what=what)
    return check_scores(stats, what=what if name == "heavy_tail" else "scores")


def _blend(
    rule: Rule,
    stats: LayerStats | ArrayLike | None,
    metric: str | Mapping[str, float] | None,
    normalise: str,
) -> Gathered:
    if not isinstance(stats, LayerStats):
        msg = f"rule {rule.name!r} needs a statistics directory: its metric names several columns"
        raise UsageError(msg)
    assert metric is not None  # `_refuse_unused` has seen to it
    text = metric if isinstance(metric, str) else _written(metric)
    factors = parse_blend(text)
    if not factors:
        msg = "a blend has no columns; give columns with factors, such as lod_m7=0.7,heavy_tail=0.3"
        raise UsageError(msg)
    columns, names = [], []
    parameters: dict[str, Any] = {"normalise": normalise}
    for name in factors:
        values = _column(stats, name, f"metric {name!r}")
        mapped, used = map_scores(values, name)
        columns.append(mapped)
        names.append(f"metric {name!r}")
        parameters |= used
    given = RuleInput(
        columns[0].size,
        tuple(columns),
        tuple(names),
        tuple(factors.values()),
        normalise=normalise,
    )
    return Gathered(given, text, "blend", parameters)


def _written(factors: Any) -> str:
    """Write the factors of a blend to the last digit, as `parse_blend` reads them."""
    if not isinstance(factors, Mapping):
        msg = f"a blend's metric is {factors!r}; give a mapping such as {{'lod_m7': 0.7}}, or text"
        raise UsageError(msg)
    return ",".join(
        f"{name}={repr(float(one)) if isinstance(one, int | float | np.number) else one}"
        for name, one in factors.items()
    )


def _pair(
    rule: Rule,
    lora: LayerStats | ArrayLike | None,
    full: LayerStats | ArrayLike | None,
    metric: str | None,
) -> Gathered:
    if lora is None or full is None:
        msg = (
            f"rule {rule.name!r} needs two measurements: of a LoRA adapter (measure --adapter) "
            "and, as full, of the model after full fine-tuning"
        )
        raise UsageError(msg)
    name = metric or LORA_METRIC
    first = _column(lora, name, f"metric {name!r} of the LoRA statistics")
    second = _column(full, FULL_METRIC, f"metric {FULL_METRIC!r} of the full statistics")
    if first.size != second.size:
        msg = (
            f"the LoRA statistics have {first.size} layers, the full ones {second.size}; "
            "measure two runs of one model"
        )
        raise UsageError(msg)
    names = (name, FULL_METRIC)
    return Gathered(
        RuleInput(first.size, (first, second), names),
        f"{name}/{FULL_METRIC}",
        "ratio of norms",
    )
