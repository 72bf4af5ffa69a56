"""What does not agree in an engagement report, one plain sentence each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerstats.schedules import Schedule
    from layerstats.schedules.log import ScheduleLog
    from layerstats.train.engagement import Engagement, LayerEngagement, Loss
    from layerstats.train.movement import Movement

__all__ = ["verdicts"]

#: A count is called unusual where chance gives one as far off less often than this.
_UNUSUAL = 1e-5
_COARSE = ("bfloat16", "float16")
#: Means of the loss are compared from so many steps on.
_TELLING_STEPS = 5


def verdicts(
    report: Engagement,
    trained: Collection[str],
    steps: Sequence[Mapping[str, Any]],
    schedule: Schedule | ScheduleLog | None,
) -> Iterator[str]:
    """Yield what does not agree.

    Parameters
    ----------
    report : Engagement
    trained
        The groups outside the blocks that were to train.
    steps
        The log's entries of kind "step".
    schedule : Schedule or ScheduleLog, optional
    """
    for layer in report.layers:
        yield from _of_layer(layer)
    rate = any(entry.get("lr") != 0 for entry in steps)
    for group, movement in report.outside.items():
        if group == "other":
            continue
        if group in trained and not movement.moved and rate:
            yield f"{group} was to train and did not move{_too_coarse(movement)}"
        elif group not in trained and movement.moved:
            yield f"{group} moved and was not to train"
    if schedule is not None:
        yield from _off_schedule(steps, schedule)
    state = report.optimizer_bytes
    if state is not None and state.flat is False:
        yield (
            f"optimizer state is not flat: {_amount(state.first)} after the first step, "
            f"{_amount(state.max)} at most (with state keep it grows until every layer had a turn)"
        )
    if report.loss is not None:
        yield from _of_loss(report.loss)


def _of_loss(loss: Loss) -> Iterator[str]:
    first, last = loss.first_mean, loss.last_mean
    # One batch against another says nothing; a mean over several steps does.
    if loss.mean_over >= _TELLING_STEPS and first is not None and last is not None and last > first:
        yield (
            f"the loss rose: {first:.4f} over the first {loss.mean_over} steps, "
            f"{last:.4f} over the last"
        )


def _of_layer(layer: LayerEngagement) -> Iterator[str]:
    movement = layer.movement
    if layer.effective_steps and not movement.moved:
        count = "1 step" if layer.active_steps == 1 else f"{layer.active_steps} steps"
        yield (
            f"layer {layer.layer} was scheduled ({count}) and did not move{_too_coarse(movement)}"
        )
    elif movement.moved and not layer.active_steps:
        yield f"layer {layer.layer} moved and was never active"
    if layer.expected_intervals is None or layer.expected_sd is None:
        return
    assert layer.active_intervals is not None
    away = abs(layer.active_intervals - layer.expected_intervals)
    if _chance(away, layer.expected_sd) < _UNUSUAL:
        times = (
            "1 interval" if layer.active_intervals == 1 else f"{layer.active_intervals} intervals"
        )
        yield (
            f"layer {layer.layer} was active in {times}, expected were "
            f"{layer.expected_intervals:.1f} with standard deviation {layer.expected_sd:.1f}"
        )


def _chance(away: float, sd: float) -> float:
    """Bound the chance that a count of independent draws is so far from its mean (Bernstein 1924).

    Unlike a number of standard deviations it holds for few intervals too, where a layer with a
    small probability that had one turn is many of them off.
    """
    if away < 0.5:  # less than what rounding the mean to whole intervals does
        return 1.0
    if sd < 1e-6:  # probabilities of 0 and 1
        return 0.0
    return 2.0 * math.exp(-(away**2) / (2.0 * (sd**2 + away / 3.0)))


def _too_coarse(movement: Movement) -> str:
    """Name the likely cause where the weights' own resolution may have swallowed the updates."""
    if movement.dtype not in _COARSE:
        return ""
    return f" (updates may be smaller than {movement.dtype} can hold; use dtype float32 or more lr)"


def _off_schedule(
    steps: Sequence[Mapping[str, Any]], schedule: Schedule | ScheduleLog
) -> Iterator[str]:
    """Yield a sentence if steps trained other layers than the schedule says."""
    drawn: dict[int, list[int]] = {}
    wrong: list[tuple[int, Any, list[int]]] = []
    for entry in steps:
        interval = schedule.interval_of(entry["step"] - 1)
        if interval not in drawn:
            drawn[interval] = list(schedule.active_layers(interval))
        if entry.get("active_layers") != drawn[interval]:
            wrong.append((entry["step"], entry.get("active_layers"), drawn[interval]))
    if wrong:
        step, trained, planned = wrong[0]
        said = "all layers" if trained is None else f"layers {trained}"
        more = f" ({len(wrong)} steps of {len(steps)} differ)" if len(wrong) > 1 else ""
        yield f"step {step} trained {said}, the schedule says {planned}{more}"


def _amount(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
