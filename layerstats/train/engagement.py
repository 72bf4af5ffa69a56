"""Did training do what it was asked: which layers had a turn, which moved and by how much.

Compares the weights before and after, the log and the schedule with each other, and says in plain
words where they do not agree. Reads one tensor of each model at a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from layerstats import runs
from layerstats.checkpoint.parts import Parts
from layerstats.schedules import Schedule
from layerstats.schedules.log import ScheduleLog
from layerstats.schedules.schedule import ALWAYS_ACTIVE
from layerstats.train.movement import Movement, movement
from layerstats.train.verdicts import verdicts

__all__ = ["Engagement", "LayerEngagement", "Loss", "Movement", "OptimizerBytes", "engagement"]

Plan = Schedule | ScheduleLog

#: Optimizer bytes that differ by less are the same.
_FLAT = 1.05
_SMOOTHED_STEPS = 20


@dataclass(frozen=True)
class LayerEngagement:
    """What one block did.

    Attributes
    ----------
    layer : int
    active_intervals : int or None
        Intervals in which it trained; None without a schedule.
    expected_intervals, expected_sd : float or None
        Sum of its inclusion probabilities over the intervals run, and the standard deviation of the
        count where intervals are drawn independently.
    active_steps : int
        Optimizer steps in which it trained.
    effective_steps : int
        Those of them with a learning rate above 0.
    movement : Movement
    """

    layer: int
    active_intervals: int | None
    expected_intervals: float | None
    expected_sd: float | None
    active_steps: int
    effective_steps: int
    movement: Movement

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name, the movement beside the rest."""
        own = asdict(self)
        went = own.pop("movement")
        return {**own, **went}


@dataclass(frozen=True)
class OptimizerBytes:
    """The optimizer's state over time, in bytes, as the log has it after each step.

    `flat` compares the ends of intervals (of steps, without a schedule) with equally many
    trainable parameters: whether they need the same within 5 %. None if no two can be compared.
    """

    first: int
    max: int
    last: int
    flat: bool | None


@dataclass(frozen=True)
class Loss:
    """The training loss of the first and last step and its means over as many steps at each end."""

    first: float | None
    last: float | None
    first_mean: float | None
    last_mean: float | None
    mean_over: int


@dataclass(frozen=True)
class Engagement:
    """What a run did to each part of the model.

    Attributes
    ----------
    layers : tuple of LayerEngagement
    outside : dict
        "embed", "head", "norm", "other" -> Movement, of those that the model has.
    steps, intervals : int, int or None
        Optimizer steps and, with a schedule, intervals that were run (the last may be cut off).
    optimizer_bytes : OptimizerBytes or None
    loss : Loss or None
        None where the log has no step.
    verdicts : tuple of str
        What does not agree, in plain words; empty when all is well.
    """

    layers: tuple[LayerEngagement, ...]
    outside: Mapping[str, Movement]
    steps: int
    intervals: int | None
    optimizer_bytes: OptimizerBytes | None
    loss: Loss | None
    verdicts: tuple[str, ...] = ()

    @property
    def never_active(self) -> tuple[int, ...]:
        """The layers that never had a turn."""
        return tuple(one.layer for one in self.layers if not one.active_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name, ready for JSON."""
        return {
            "steps": self.steps,
            "intervals": self.intervals,
            "layers": [one.to_dict() for one in self.layers],
            "outside": {group: asdict(one) for group, one in self.outside.items()},
            "never_active": list(self.never_active),
            "optimizer_bytes": self.optimizer_bytes and asdict(self.optimizer_bytes),
            "loss": self.loss and asdict(self.loss),
            "verdicts": list(self.verdicts),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a table: a row each for the embedding, every block, the head and what is left."""
        rows = [
            {
                "part": f"layer {one.layer}",
                "active_intervals": one.active_intervals,
                "expected_intervals": one.expected_intervals,
                "active_steps": one.active_steps,
                "moved": one.movement.moved,
                "update_norm": one.movement.update_norm,
                "relative_update": one.movement.relative_update,
            }
            for one in self.layers
        ]
        for group, one in self.outside.items():
            row = {
                "part": group,
                "active_intervals": None,
                "expected_intervals": None,
                "active_steps": None,
                "moved": one.moved,
                "update_norm": one.update_norm,
                "relative_update": one.relative_update,
            }
            rows.insert(0 if group == "embed" else len(rows), row)
        return rows


def engagement(
    start: Mapping[str, torch.Tensor],
    end: Mapping[str, torch.Tensor],
    parts: Parts,
    schedule: Plan | None,
    entries: Sequence[Mapping[str, Any]],
    *,
    trained: Collection[str] | None = None,
) -> Engagement:
    """Compare a model before and after training with what the log and the schedule say.

    Parameters
    ----------
    start, end
        Name -> weights before and after. One tensor of each is asked for at a time, so a mapping
        may read files or add adapters in on the way. A start of another dtype is compared as the
        end's dtype has it, as loading would have turned it.
    parts : Parts
        Which names belong to which layer.
    schedule : Schedule or ScheduleLog, optional
        None where everything trained at every step.
    entries
        The log.
    trained : collection of str, optional
        Of "embed", "head", "norm": what was to train outside the blocks. By default what the
        schedule has always active; all three without a schedule. What is "other" is shown and not
        judged: some of it no loss reaches.

    Returns
    -------
    Engagement

    Raises
    ------
    MissingError
        A parameter is missing in `start` or `end`.
    CheckpointError
        It has another shape there.

    Examples
    --------
    >>> from layerstats.checkpoint.parts import find_parts
    >>> start = {f"h.{n}.{m}.weight": torch.ones(2, 2) for n in (0, 1) for m in "ab"}
    >>> end = start | {"h.1.a.weight": torch.tensor([[1.0, 1.0], [1.0, 4.0]])}
    >>> parts = find_parts({name: (2, 2) for name in start})
    >>> log = [{"kind": "step", "step": 1, "active_layers": [0], "loss": 2.0, "lr": 0.1}]
    >>> found = engagement(start, end, parts, None, log)
    >>> [one.movement.update_norm for one in found.layers]
    [0.0, 3.0]
    >>> found.verdicts[1]
    'layer 1 moved and was never active'
    """
    steps = runs.of_kind([dict(entry) for entry in entries], "step")
    movements = [movement(start, end, names) for names in parts.layers]
    outside = {
        group: movement(start, end, names) for group, names in parts.outside.items() if names
    }
    layers = _layers(steps, schedule, movements)
    report = Engagement(
        layers=layers,
        outside=outside,
        steps=len(steps),
        intervals=None if schedule is None else _intervals(steps, schedule),
        optimizer_bytes=_optimizer_bytes(steps, schedule),
        loss=_loss(steps),
    )
    if trained is None:
        trained = ALWAYS_ACTIVE if schedule is None else _first(schedule).always_active
    wanted = {group for group in outside if _trains(group, trained, parts, end)}
    return replace(report, verdicts=tuple(verdicts(report, wanted, steps, schedule)))


def _first(schedule: Plan) -> Schedule:
    return schedule.at(0) if isinstance(schedule, ScheduleLog) else schedule


def _trains(
    group: str, trained: Collection[str], parts: Parts, end: Mapping[str, torch.Tensor]
) -> bool:
    """Tell whether a group was to train, itself or by a tensor that it shares with one that was."""
    if group in trained:
        return True
    others = [name for other in trained for name in parts.outside.get(other, ())]
    return any(end[name] is end[other] for name in parts.outside[group] for other in others)


def _intervals(steps: Sequence[Mapping[str, Any]], schedule: Plan) -> int:
    return -(-len(steps) // schedule.interval_steps)


def _layers(
    steps: Sequence[Mapping[str, Any]], schedule: Plan | None, movements: Sequence[Movement]
) -> tuple[LayerEngagement, ...]:
    count = len(movements)
    active, effective = [0] * count, [0] * count
    intervals: list[set[int]] = [set() for _ in range(count)]
    for entry in steps:
        named = entry.get("active_layers")
        for layer in range(count) if named is None else named:
            active[layer] += 1
            effective[layer] += entry.get("lr") != 0
            if schedule is not None:
                intervals[layer].add(schedule.interval_of(entry["step"] - 1))
    expected = _expected(steps, schedule)
    return tuple(
        LayerEngagement(
            layer=layer,
            active_intervals=None if schedule is None else len(intervals[layer]),
            expected_intervals=None if expected is None else expected[layer][0],
            expected_sd=None if expected is None else expected[layer][1],
            active_steps=active[layer],
            effective_steps=effective[layer],
            movement=movements[layer],
        )
        for layer in range(count)
    )


def _expected(
    steps: Sequence[Mapping[str, Any]], schedule: Plan | None
) -> list[tuple[float, float | None]] | None:
    """Return mean and standard deviation of each layer's number of active intervals."""
    if schedule is None:
        return None
    plans = [
        schedule.at(interval) if isinstance(schedule, ScheduleLog) else schedule
        for interval in range(_intervals(steps, schedule))
    ]
    independent = _first(schedule).law.independent
    found: list[tuple[float, float | None]] = []
    for layer in range(schedule.num_layers):
        chances = [plan.inclusion_probabilities[layer] for plan in plans]
        variance = math.fsum(chance * (1.0 - chance) for chance in chances)
        found.append((math.fsum(chances), math.sqrt(max(0.0, variance)) if independent else None))
    return found


def _optimizer_bytes(
    steps: Sequence[Mapping[str, Any]], schedule: Plan | None
) -> OptimizerBytes | None:
    known = [entry for entry in steps if (entry.get("memory") or {}).get("optimizer") is not None]
    if not known:
        return None
    sizes = [int(entry["memory"]["optimizer"]) for entry in known]
    ends: dict[int, tuple[Any, int]] = {}
    for entry, size in zip(known, sizes, strict=True):
        at = entry["step"] - 1
        ends[at if schedule is None else schedule.interval_of(at)] = entry.get("trainable"), size
    alike: dict[Any, list[int]] = {}
    for trainable, size in ends.values():
        alike.setdefault(trainable, []).append(size)
    compared = [group for group in alike.values() if len(group) > 1]
    flat = all(max(group) <= _FLAT * min(group) for group in compared) if compared else None
    return OptimizerBytes(sizes[0], max(sizes), sizes[-1], flat)


def _loss(steps: Sequence[Mapping[str, Any]]) -> Loss | None:
    if not steps:
        return None
    values = [entry.get("loss") for entry in steps]
    over = max(1, min(_SMOOTHED_STEPS, len(values) // 5))
    return Loss(values[0], values[-1], _mean(values[:over]), _mean(values[-over:]), over)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
