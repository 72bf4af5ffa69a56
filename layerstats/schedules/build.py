"""Make a schedule: from a rule and statistics, or a vector of scores, to a `Schedule`.

Here belongs the function behind `layerstats.schedule(...)`: it finds the scores, asks the rule for
weights, water-fills them and writes down where everything came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from layerstats.errors import UsageError
from layerstats.schedules.columns import gather
from layerstats.schedules.parts import LowRank, ModelRef, Provenance
from layerstats.schedules.rules import get_rule, rule_weights
from layerstats.schedules.sampling import Target, get_law
from layerstats.schedules.schedule import ALWAYS_ACTIVE, Schedule
from layerstats.schedules.scores import sharpen
from layerstats.schedules.water_filling import water_fill
from layerstats.stats import LayerStats

__all__ = ["schedule"]


def schedule(
    rule: str,
    stats: LayerStats | ArrayLike | None = None,
    *,
    expected_active: float,
    interval_steps: int = 20,
    seed: int = 0,
    metric: str | Mapping[str, float] | None = None,
    direction: str | None = None,
    normalise: str | None = None,
    temperature: float = 1.0,
    floor: float = 0.0,
    full: LayerStats | ArrayLike | None = None,
    sampling: str = "systematic",
    num_layers: int | None = None,
    always_active: tuple[str, ...] = ALWAYS_ACTIVE,
    low_rank: LowRank | Mapping[str, Any] | None = None,
    model: ModelRef | str | None = None,
    source: str | None = None,
    full_source: str | None = None,
) -> Schedule:
    """Make a layer-sampling schedule.

    ``pi_l = max(floor, min(1, c * w_l ** (1 / temperature)))`` with ``sum pi = expected_active``,
    where w are the rule's weights: 1 (lisa), N - l (lisa-d), the score of layer l (owlore, metric),
    a mean of several columns (blend), a ratio of norms (lisa-theory).

    Parameters
    ----------
    rule : str
        A registered rule; `layerstats.schedules.describe_rules` lists them.
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
    metric : str or mapping of str to float, optional
        Column of the statistics; by default `lod_m7`, or the one LOD column there is. `heavy_tail`
        is mapped linearly onto 0.5 .. 1.5 (see `scores.map_scores`), others are taken as they are.
        With an array it is a name for the record. For rule blend: columns with factors, as a
        mapping or as "lod_m7=0.7,heavy_tail=0.3"; a negative factor takes the column decreasing.
        For lisa-theory: the LoRA column, `lora_updated_norm` (of W + BA) by default or `lora_norm`.
    direction : str, optional
        For rule metric: "increasing" (default) or "decreasing", which takes ``max + min - x``.
    normalise : str, optional
        For rule blend: "sum" (default; each column divided by its sum) or "rank".
    temperature : float
        Above 1 the layers become more alike, below 1 less; 1 leaves the weights as they are.
    floor : float
        No layer's probability is below it; from 0 to expected_active / num_layers.
    full : LayerStats or array_like, optional
        For rule lisa-theory: statistics of the fully fine-tuned model (its `frobenius_norm`).
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
    source, full_source : str, optional
        Where the statistics are, for the record.

    Returns
    -------
    Schedule

    Raises
    ------
    UsageError
        An unknown name, scores that are missing, negative, all zero or not one a layer, numbers out
        of range, a floor that the sampling law does not keep.

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
    if isinstance(model, ModelRef) and num_layers is None and stats is None:
        num_layers = model.num_layers
    found = gather(
        get_rule(rule), stats, num_layers=num_layers, metric=metric, direction=direction,
        normalise=normalise, full=full,
    )  # fmt: skip
    weights = sharpen(rule_weights(rule, found.given, what=found.what), temperature)
    reference = _model_ref(model, found.given.num_layers, stats)
    _same_layers(num_layers, weights.size)
    _same_layers(reference.num_layers, weights.size)
    probabilities = water_fill(weights, expected_active, floor=floor)
    target = Target(
        scores=tuple(weights.tolist()),
        probabilities=tuple(probabilities.tolist()),
        expected_active=min(expected_active, weights.size),
    )
    parameters = dict(found.parameters)
    if temperature != 1:
        parameters["temperature"] = float(temperature)
    if floor:
        parameters["floor"] = float(floor)
    if full_source is not None:
        parameters["full"] = str(full_source)
    if expected_active > weights.size:
        parameters["expected_active_asked"] = float(expected_active)
    return Schedule(
        model=reference,
        rule=rule,
        metric=found.metric,
        scores=target.scores,
        expected_active=target.expected_active,
        interval_steps=interval_steps,
        seed=seed,
        probabilities=target.probabilities,
        sampling=sampling,
        inclusion_probabilities=_inclusion(sampling, target, floor),
        always_active=tuple(always_active),
        low_rank=_low_rank(low_rank),
        provenance=Provenance(stats=None if source is None else str(source), parameters=parameters),
    )


def _inclusion(sampling: str, target: Target, floor: float) -> tuple[float, ...]:
    law = get_law(sampling)
    law.check(target)
    inclusion: list[float] = law.inclusion(target).tolist()
    lowest = min(inclusion)
    if lowest < floor * (1 - 1e-9):
        msg = (
            f"sampling {sampling!r} gives layer {inclusion.index(lowest)} only {lowest:.4g}, below "
            f"the floor {floor:g}: it does not follow the probabilities; use systematic, bernoulli "
            "or quota"
        )
        raise UsageError(msg)
    return tuple(inclusion)


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
