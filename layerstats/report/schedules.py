"""A schedule on the page: its facts, its table, its charts and what it warns of."""

from __future__ import annotations

from dataclasses import asdict

from layerstats.report.charts import LAYER_AXIS, Chart, Series, View
from layerstats.report.commands import schedule_command
from layerstats.report.notices import Notice
from layerstats.report.page import Facts, Part
from layerstats.report.tables import from_records
from layerstats.schedules import Schedule, explain
from layerstats.stats import LayerStats

__all__ = ["RASTER_INTERVALS", "schedule_part"]

#: Intervals that the raster of a plan shows, and that its outlook is for where no run is known.
RASTER_INTERVALS = 60
_OUTLOOK_INTERVALS = 100

_UNITS = {
    "score": "what the rule goes by",
    "target": "probability of being active in an interval",
    "inclusion": "the same, exact, as the sampling law gives it",
    "expected_intervals": "intervals",
    "expected_steps": "optimizer steps",
    "chance_never": "probability of never being active",
}


def schedule_part(
    schedule: Schedule, *, steps: int | None = None, stats: LayerStats | None = None
) -> Part:
    """Gather what a page says of a schedule.

    Parameters
    ----------
    schedule : Schedule
    steps : int, optional
        Optimizer steps of the run that follows it; without, a run of 100 intervals is looked at.
    stats : LayerStats, optional
        Of the model, for the cost of the layers.
    """
    length = _OUTLOOK_INTERVALS * schedule.interval_steps if steps is None else steps
    outlook = explain(schedule, steps=length, stats=stats)
    run = f"in a run of {length} steps ({outlook.intervals} intervals)"
    table = from_records(
        [asdict(layer) for layer in outlook.layers],
        id="schedule",
        title="Schedule by layer",
        note=f"Expected {run}.",
        units=_UNITS,
        headline=("inclusion",),
    )
    notices = [Notice("warning", f"schedule, {run}: {text}") for text in outlook.warnings]
    return Part(
        facts=(Facts("Schedule", _facts(schedule)),),
        commands=tuple(one for one in (schedule_command(schedule),) if one is not None),
        notices=tuple(notices),
        tables=(table,),
        charts=(_bars(schedule), _raster(schedule, min(outlook.intervals, RASTER_INTERVALS))),
    )


def _facts(schedule: Schedule) -> tuple[tuple[str, str], ...]:
    low_rank = schedule.low_rank
    found = {
        "rule": schedule.rule,
        "metric": schedule.metric or "none",
        "expected active": f"{schedule.expected_active:g} of {schedule.num_layers} layers",
        "interval": f"{schedule.interval_steps} optimizer steps",
        "sampling": schedule.sampling,
        "seed": str(schedule.seed),
        "always active": ", ".join(schedule.always_active) or "nothing",
        "low rank": "none"
        if low_rank is None
        else f"rank {low_rank.rank}, new basis every {low_rank.update_interval} steps, "
        f"scale {low_rank.scale:g}",
        "made for": schedule.model.id or "not said",
        "made from": schedule.provenance.stats or "no statistics",
        "made by": schedule.provenance.created_by,
    }
    return tuple(found.items())


def _bars(schedule: Schedule) -> Chart:
    view = View(
        "probability",
        "Probability in an interval",
        (
            Series("target", "target", "bar"),
            Series("inclusion", "exact, as sampled", "dots"),
        ),
        level=float(schedule.expected_active) / schedule.num_layers,
        level_label="uniform (LISA)",
    )
    return Chart(
        "probabilities", "Schedule: probability of being active", "xy", "schedule", (view,)
    )


def _raster(schedule: Schedule, intervals: int) -> Chart:
    rows = tuple(enumerate(schedule.plan(intervals)))
    view = View("active", f"Interval ({schedule.interval_steps} steps each)")
    return Chart(
        "plan",
        f"Schedule: plan of the first {intervals} intervals",
        "raster",
        "schedule",
        (view,),
        x_axis=LAYER_AXIS,
        rows=rows,
    )
