"""Make a schedule: from a rule and statistics, or a vector of scores, to a `Schedule`.

Here belongs the function behind `layerstats.schedule(...)`: it finds the scores, asks the rule for
weights, water-fills them and writes down where everything came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerstats.errors import UsageError
from layerstats.schedules.parts import LowRank, ModelRef, Provenance
from layerstats.schedules.rules import check_scores, get_rule, map_scores, rule_weights
from layerstats.schedules.sampling import Target, get_law, water_fill
from layerstats.schedules.schedule import ALWAYS_ACTIVE, Schedule
from layerstats.stats import LayerStats

__all__ = ["schedule"]

FloatArray = NDArray[np.float64]
DEFAULT_METRIC = "lod_m7"


def schedule(
    rule: str,
    stats: LayerStats | ArrayLike | None = None,
    *,
    expected_active: float,
    interval_steps: int = 20,
    seed: int = 0,
    metric: str | None = None,
    sampling: str = "systematic",
    num_layers: int | None = None,
    always_active: tuple[str, ...] = ALWAYS_ACTIVE,
    low_rank: LowRank | Mapping[str, Any] | None = None,
    model: ModelRef | str | None = None,
    source: str | None = None,
) -> Schedule:
    """Make a layer-sampling schedule.

    ``pi_l = min(1, c * w_l)`` with ``sum pi = expected_active``, where w are the rule's weights: 1
    (lisa), N - l (lisa-d) or the score of layer l (owlore).

    Parameters
    ----------
    rule : str
        "lisa", "lisa-d", "owlore" or another registered rule.
    stats : LayerStats or array_like, shape (num_layers,), optional
        Measured statistics, or scores of any origin. Rules without scores need only `num_layers`.
    expected_active : float
        Layers per interval in expectation (gamma), above 0. LISA uses 2 for 7B models, 4 for 70B. A
        fraction is allowed (systematic: floor or ceiling of it in each interval). At the number of
        layers or above, every layer always trains, and the schedule says expected_active =
        num_layers.
    interval_steps : int
        Optimizer steps per interval (K); 20 is the default of the LISA programs.
    seed : int
        0 .. 2**63 - 1; with the interval it determines the layers.
    metric : str, optional
        Column of the statistics; by default `lod_m7`, or the one LOD column there is. `heavy_tail`
        is mapped linearly onto 0.5 .. 1.5 (see `rules.map_scores`), others are taken as they are.
        With an array it is a name for the record.
    sampling : str
        "systematic" (fixed size, exact), "bernoulli", "successive", "quota", "reshuffle".
    num_layers : int, optional
        Needed when there are no statistics; checked when there are.
    always_active : tuple of str
        Of "embed", "head", "norm".
    low_rank : LowRank or mapping, optional
        ``{"rank": 128, "update_interval": 200, "scale": 1.0}`` for OwLore with low-rank gradients.
    model : ModelRef or str, optional
        The model or its id; by default what the statistics say.
    source : str, optional
        Where the statistics are, for the record.

    Returns
    -------
    Schedule

    Raises
    ------
    UsageError
        An unknown name, scores that are missing, negative, all zero or not one a layer, numbers out
        of range.

    References
    ----------
    Pan et al. (2024), LISA, arXiv:2403.17919; Bai et al. (2024), OwLore, arXiv:2405.18380.

    Examples
    --------
    >>> owlore = schedule("owlore", [4.0, 2.0, 1.0, 1.0], expected_active=2)
    >>> owlore.probabilities
    (1.0, 0.5, 0.25, 0.25)
    >>> owlore.active_layers(3)
    (0, 3)
    """
    parameters: dict[str, Any] = {}
    scores: FloatArray | None = None
    if isinstance(stats, LayerStats):
        found = stats.num_layers
        if get_rule(rule).needs_scores:
            metric = metric or _default_metric(stats)
            scores = check_scores(stats.layer_column(metric), what=f"metric {metric!r}")
    elif stats is not None:
        scores = check_scores(stats)
        found = scores.size
    else:
        found = _given_layers(num_layers, model, rule)
    if not get_rule(rule).needs_scores:
        scores, metric = None, None
    if scores is not None:
        scores, parameters = map_scores(scores, metric)
    what = "scores" if metric is None else f"metric {metric!r}"
    weights = rule_weights(rule, found, scores, what=what)
    reference = _model_ref(model, found, stats)
    _same_layers(num_layers, found)
    _same_layers(reference.num_layers, found)
    probabilities = water_fill(weights, expected_active)
    if expected_active > found:
        parameters["expected_active_asked"] = float(expected_active)
    target = Target(
        scores=tuple(weights.tolist()),
        probabilities=tuple(probabilities.tolist()),
        expected_active=min(expected_active, found),
    )
    law = get_law(sampling)
    law.check(target)
    return Schedule(
        model=reference,
        rule=rule,
        metric=metric,
        scores=target.scores,
        expected_active=target.expected_active,
        interval_steps=interval_steps,
        seed=seed,
        probabilities=target.probabilities,
        sampling=sampling,
        inclusion_probabilities=tuple(law.inclusion(target).tolist()),
        always_active=tuple(always_active),
        low_rank=_low_rank(low_rank),
        provenance=Provenance(stats=source, parameters=parameters),
    )


def _default_metric(stats: LayerStats) -> str:
    lods = [name for name in stats.columns() if name.startswith("lod_m")]
    if DEFAULT_METRIC in lods or len(lods) != 1:
        return DEFAULT_METRIC
    return lods[0]


def _given_layers(num_layers: int | None, model: ModelRef | str | None, rule: str) -> int:
    if num_layers is None and isinstance(model, ModelRef):
        num_layers = model.num_layers
    if num_layers is None:
        needs = "scores" if get_rule(rule).needs_scores else "num_layers"
        msg = f"rule {rule!r} needs {needs}: give statistics, one score a layer"
        raise UsageError(msg + (", or num_layers" if needs == "num_layers" else ""))
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        msg = f"num_layers must be a whole number from 1, got {num_layers!r}"
        raise UsageError(msg)
    return num_layers


def _same_layers(asked: int | None, found: int) -> None:
    if asked is not None and asked != found:
        msg = f"num_layers is {asked}, but the scores are for {found} layers; leave one of them out"
        raise UsageError(msg)


def _model_ref(
    model: ModelRef | str | None, num_layers: int, stats: LayerStats | ArrayLike | None
) -> ModelRef:
    if isinstance(model, ModelRef):
        return model
    meta = stats.meta if isinstance(stats, LayerStats) else {}
    checkpoint = meta.get("checkpoint")
    facts = {**meta, **(checkpoint if isinstance(checkpoint, dict) else {})}
    known = model or facts.get("id") or facts.get("path")
    layers_path = facts.get("layers_path")
    return ModelRef(
        id=None if known is None else str(known),
        num_layers=num_layers,
        layers_path=None if layers_path is None else str(layers_path),
    )


def _low_rank(low_rank: LowRank | Mapping[str, Any] | None) -> LowRank | None:
    if low_rank is None or isinstance(low_rank, LowRank):
        return low_rank
    try:
        return LowRank(**low_rank)
    except TypeError:
        msg = f"low_rank takes rank, update_interval and scale, got {', '.join(map(str, low_rank))}"
        raise UsageError(msg) from None
