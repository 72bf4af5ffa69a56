"""The trainer's own steps, taken a few times and counted: over fake tensors, or over real ones.

`rehearse` makes a trainee as the loop does, switches its layers and takes optimizer steps with
batches of the size that a run would have. It knows no presets and no files; which layers are to be
on together is said to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from layerstats.schedules import Schedule
from layerstats.train.config import TrainConfig
from layerstats.train.cuda_allocator import reserved_bytes
from layerstats.train.data import Batch
from layerstats.train.live_bytes import LiveBytes, MemoryUse
from layerstats.train.methods import Trainee, make_trainee
from layerstats.train.step import optimizer_step

__all__ = ["STEPS_PER_INTERVAL", "Interval", "Rehearsal", "rehearse"]

STEPS_PER_INTERVAL = 2
"""The first makes the optimizer's state, the second has it from the beginning: the steady state."""

_MICRO_BATCHES = 2
"""From the second on, gradients are there when a forward pass begins; a third is like it."""


@dataclass(frozen=True)
class Interval:
    """What one interval took: its layers (None where all train), its bytes, what trained."""

    layers: tuple[int, ...] | None
    use: MemoryUse
    trainable: int


@dataclass(frozen=True)
class Rehearsal:
    """What some intervals took, together and one by one, and what CUDA's allocator would hold."""

    use: MemoryUse
    intervals: tuple[Interval, ...]
    reserved_bytes_estimate: int
    parameters: int


class _Plan:
    """Stands for a schedule whose draws are given; the rest is the schedule's own."""

    interval_steps = STEPS_PER_INTERVAL

    def __init__(self, schedule: Schedule, draws: Sequence[tuple[int, ...]]) -> None:
        self._schedule = schedule
        self._draws = tuple(draws)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._schedule, name)

    def active_layers(self, interval: int) -> tuple[int, ...]:
        """Return the layers given for an interval."""
        return self._draws[interval]

    def interval_of(self, step: int) -> int:
        """Return the interval of a step."""
        return step // STEPS_PER_INTERVAL


def rehearse(
    model: Any,
    config: TrainConfig,
    schedule: Schedule | None = None,
    draws: Sequence[tuple[int, ...]] = (),
) -> Rehearsal:
    """Take the trainer's own steps on a model and count every byte.

    With ``state="keep"`` or ``"offload"`` all layers that the schedule can draw have had their turn
    before anything is counted, as late in a run.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Prepared for training, of real tensors or, inside `fake_tensors`, of fake ones. It is
        changed as training changes it.
    config : TrainConfig
        `accumulation` above 2 is counted as 2: no more is alive.
    schedule : Schedule, optional
        For the methods that sample layers.
    draws : sequence of tuple of int
        The layers of the intervals to be gone through, two steps each.

    Returns
    -------
    Rehearsal

    Raises
    ------
    UsageError
        Model, config and schedule do not fit together.
    """
    config = replace(config, accumulation=min(config.accumulation, _MICRO_BATCHES))
    intervals = []
    with LiveBytes() as live:
        live.adopt([*model.parameters(), *model.buffers()], "weights")
        before = _layers_with_state(config, schedule)
        plan = None if schedule is None else cast(Schedule, _Plan(schedule, [*before, *draws]))
        trainee = make_trainee(model, config, plan)
        _watch(live, trainee)
        for number in range(len(before)):
            _take_steps(trainee, live, number, batch_size=1, seq_len=2)
        # States that wait on the host have gone there when counting begins.
        trainee.enter(len(before) * STEPS_PER_INTERVAL)
        live.phase("start")
        start = live.position
        for number in range(len(before), len(before) + max(1, len(draws))):
            began = live.position
            _take_steps(trainee, live, number, batch_size=config.batch_size, seq_len=config.seq_len)
            intervals.append(Interval(trainee.active, live.use(since=began), trainee.trainable))
        live.phase("end")
    return Rehearsal(
        use=live.use(since=start),
        intervals=tuple(intervals),
        reserved_bytes_estimate=reserved_bytes(live.device_sizes(since=start)),
        parameters=sum(one.numel() for one in {id(p): p for p in model.parameters()}.values()),
    )


def _layers_with_state(config: TrainConfig, schedule: Schedule | None) -> list[tuple[int, ...]]:
    """Return what to train beforehand, so that all states are there that a late step finds."""
    if schedule is None or config.state == "drop":
        return []
    return [tuple(at for at, share in enumerate(schedule.inclusion_probabilities) if share > 0)]


def _watch(live: LiveBytes, trainee: Trainee) -> None:
    model, optimizer = trainee.model, trainee.optimizer
    live.watch("weights", lambda: [*model.parameters(), *model.buffers()])
    live.watch("gradients", lambda: [one.grad for one in model.parameters()])
    live.watch("optimizer", lambda: [one for s in optimizer.state.values() for one in s.values()])
    if (switch := trainee.switch) is not None:
        live.watch_host(lambda: [one for s in switch.parked.values() for one in s.values()])


def _take_steps(
    trainee: Trainee, live: LiveBytes, interval: int, *, batch_size: int, seq_len: int
) -> None:
    """Go through one interval as the loop does, without its log and its checks."""
    first = interval * STEPS_PER_INTERVAL
    for step in range(first, first + STEPS_PER_INTERVAL):
        live.phase("switch")
        trainee.enter(step)
        trainee.set_learning_rate(step, 1.0)
        batches = [_batch(batch_size, seq_len) for _ in range(trainee.config.accumulation)]
        optimizer_step(trainee, batches, step=step, announce=live.phase)


def _batch(size: int, seq_len: int) -> Batch:
    tokens = torch.zeros(size, seq_len, dtype=torch.int64)
    return Batch(tokens, tokens.clone(), tuple(range(size)), size * (seq_len - 1))
