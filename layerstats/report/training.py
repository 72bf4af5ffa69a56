"""The page of a training run: what its log, its report and its schedule say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerstats import runs
from layerstats.errors import CheckpointError
from layerstats.report.charts import Chart, Series, View, is_wide
from layerstats.report.commands import train_command
from layerstats.report.notices import Notice
from layerstats.report.page import Facts, Page, Part
from layerstats.report.schedules import schedule_part
from layerstats.report.tables import Table, from_records
from layerstats.report.tracks import tracked
from layerstats.schedules import Schedule

__all__ = ["run_page"]

#: Steps and intervals that are drawn at most; a longer run is thinned, and the page says so.
MOST_STEPS, MOST_INTERVALS = 4000, 1000

_MEMORY = ("weights", "gradients", "optimizer", "peak")
_STEP_UNITS = {
    "loss": "nats per token",
    "held_out_loss": "nats per token",
    "tokens_per_second": "tokens a second",
    **{f"{part}_bytes": "bytes" for part in _MEMORY},
}
_ENGAGEMENT_UNITS = {
    "active_intervals": "intervals",
    "expected_intervals": "intervals",
    "expected_sd": "standard deviation of the count, in intervals",
    "active_steps": "optimizer steps",
    "effective_steps": "active steps with a learning rate above 0",
    "update_norm": "unit of the weights",
    "relative_update": "update_norm over the norm at the start",
}


def run_page(directory: str | os.PathLike[str]) -> Page:
    """Gather the page of a run, finished or not.

    Raises
    ------
    MissingError, CheckpointError
        A file of the run is missing or damaged.
    """
    folder = Path(directory)
    config = runs.read_config(folder)
    entries = runs.read_log(folder)
    steps = runs.of_kind(entries, "step")
    report = _read_report(folder / runs.REPORT)
    schedule = _read_schedule(folder / runs.SCHEDULE)
    num_layers = _num_layers(report, schedule, entries)
    own = Part(
        facts=_facts(config, report, steps),
        commands=(train_command(config),),
        notices=tuple(_notices(report, entries, steps)),
    )
    parts = [own, _curves(steps, entries), _activity(entries, num_layers), *tracked(entries)]
    parts.append(_engagement(report))
    if schedule is not None:
        parts.append(schedule_part(schedule, steps=len(steps) or None))
    name = Path(str(config.get("model", ""))).name or "a model"
    length = f"{len(steps)} steps" + ("" if report else ", not finished")
    return Page(
        f"{name}: training by {config.get('method')}", length, num_layers, Part.joined(parts)
    )


def _read_report(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(page, dict) or not isinstance(page.get("layers"), list):
            msg = "no object with layers"
            raise ValueError(msg)
    except ValueError as error:
        msg_0 = f"{file}: damaged ({error}); go on with --resume to have it written again"
        raise CheckpointError(msg_0) from error
    return page


def _read_schedule(file: Path) -> Schedule | None:
    return Schedule.from_json(file) if file.is_file() else None


def _num_layers(
    report: Mapping[str, Any] | None, schedule: Schedule | None, entries: Sequence[runs.Entry]
) -> int:
    if report is not None:
        return len(report["layers"])
    if schedule is not None:
        return schedule.num_layers
    named = [one.get("active_layers") or [] for one in entries]
    return 1 + max((layer for layers in named for layer in layers), default=-1)


def _facts(
    config: Mapping[str, Any], report: Mapping[str, Any] | None, steps: Sequence[runs.Entry]
) -> tuple[Facts, ...]:
    settings = {name.replace("_", " "): _word(value) for name, value in config.items()}
    came: dict[str, str] = {"steps": str(len(steps))}
    if steps:
        came["tokens"] = f"{sum(one.get('tokens') or 0 for one in steps):,}"
        came["loss of the last step"] = _word(steps[-1].get("loss"))
        came["memory measured by"] = str((steps[-1].get("memory") or {}).get("measured_by"))
    for name in ("eval_loss", "exact_match", "peak_bytes", "tokens_per_second", "never_active"):
        if report is not None and report.get(name) is not None:
            came[name.replace("_", " ")] = _word(report[name])
    said = tuple((name, value) for name, value in settings.items() if value)
    return (Facts("Result", tuple(came.items())), Facts("Settings", said))


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _notices(
    report: Mapping[str, Any] | None, entries: Sequence[runs.Entry], steps: Sequence[runs.Entry]
) -> list[Notice]:
    found = []
    if report is None:
        text = f"the run is not finished: no {runs.REPORT}, so what moved is not known yet"
        found.append(Notice("warning", text))
    else:
        found += [Notice("warning", str(text)) for text in report.get("verdicts") or []]
        if not found:
            text = "what trained is what the schedule and the log say: no layer disagrees"
            found.append(Notice("good", text))
    stride = _stride(len(steps), MOST_STEPS)
    if stride > 1:
        found.append(Notice("note", f"curves show one in {stride} of the {len(steps)} steps"))
    notes = runs.of_kind(entries, "note")
    return found + [
        Notice("note", f"step {one.get('step')}: {one.get('message')}") for one in notes
    ]


def _stride(count: int, most: int) -> int:
    return max(1, -(-count // most))


def _curves(steps: Sequence[runs.Entry], entries: Sequence[runs.Entry]) -> Part:
    """Draw loss, learning rate, gradient norm, speed and memory by step."""
    if not steps:
        return Part()
    evals = {one["step"]: one.get("loss") for one in runs.of_kind(entries, "eval")}
    kept = steps[:: _stride(len(steps), MOST_STEPS)]
    drawn = {one["step"]: one for one in kept}
    records = [_step_record(step, drawn.get(step, {}), evals) for step in sorted({*drawn, *evals})]
    table = from_records(records, id="steps", title="Steps", units=_STEP_UNITS, shown=False)
    values = table.values
    loss = [Series("loss", "training", "line")]
    if any(value is not None for value in values["held_out_loss"]):
        loss.append(Series("held_out_loss", "held out", "dots"))
    others = [
        View(label, text, (Series(name, label),), log=is_wide(values[name]))
        for name, label, text in (
            ("gradient_norm", "gradient norm", "Gradient norm before clipping"),
            ("lr", "learning rate", "Learning rate"),
            ("tokens_per_second", "speed", "Tokens a second"),
            ("active_count", "active layers", "Layers that train"),
        )
        if any(value is not None for value in values[name])
    ]
    views = (View("loss", "Loss (nats per token)", tuple(loss)), *others)
    memory = tuple(
        Series(f"{part}_bytes", part, "line")
        for part in _MEMORY
        if any(value is not None for value in values[f"{part}_bytes"])
    )
    charts = [Chart("loss", "Loss and other curves", "xy", "steps", views, "step", "Step")]
    if memory:
        view = View("memory", "Memory", memory, bytes=True)
        charts.append(Chart("memory", "Memory", "xy", "steps", (view,), "step", "Step"))
    return Part(tables=(table,), charts=tuple(charts))


def _step_record(
    step: int, entry: Mapping[str, Any], evals: Mapping[int, float | None]
) -> dict[str, Any]:
    memory = entry.get("memory") or {}
    active = entry.get("active_layers")
    return {
        "step": step,
        **{name: entry.get(name) for name in ("loss", "lr", "gradient_norm", "tokens_per_second")},
        "active_count": None if active is None else len(active),
        "held_out_loss": evals.get(step),
        **{f"{part}_bytes": memory.get(part) for part in _MEMORY},
    }


def _activity(entries: Sequence[runs.Entry], num_layers: int) -> Part:
    """Draw which layers trained in each interval of the log."""
    intervals = runs.of_kind(entries, "interval")
    if not intervals or not num_layers:
        return Part()
    kept = intervals[:: _stride(len(intervals), MOST_INTERVALS)]
    rows = tuple((one["interval"], tuple(one.get("active_layers") or ())) for one in kept)
    note = "" if len(kept) == len(intervals) else f"{len(kept)} of {len(intervals)} intervals."
    view = View("active", "Interval")
    chart = Chart(
        "activity", "Which layers trained", "raster", "steps", (view,), note=note, rows=rows
    )
    return Part(charts=(chart,))


def _engagement(report: Mapping[str, Any] | None) -> Part:
    """Show how often each layer trained beside how often it should have, and how far it moved."""
    if report is None:
        return Part()
    rows = [{"part": f"layer {one['layer']}", **one} for one in report["layers"]]
    keys = list(dict.fromkeys(["layer", *(key for row in rows for key in row)]))
    outside = [{"part": part, **one} for part, one in (report.get("outside") or {}).items()]
    records = [{key: row.get(key) for key in keys} for row in (*rows, *outside)]
    if not records:
        return Part()
    table = from_records(
        records,
        id="layers",
        title="Layers",
        units=_ENGAGEMENT_UNITS,
        headline=("active_intervals", "expected_intervals", "active_steps", "update_norm"),
    )
    turns = _turns(report["layers"])
    moved = (
        View("relative update", "Relative update", (Series("relative_update", "", "bar"),)),
        View("update norm", "Norm of the update", (Series("update_norm", "", "bar"),)),
        View("steps", "Active steps", (Series("active_steps", "", "bar"),)),
    )
    charts = [Chart("moved", "How far each layer moved", "xy", "layers", moved)]
    if turns is None:
        return Part(tables=(table,), charts=tuple(charts))
    expected = Series("expected_intervals", "expected", "dots", "expected_low", "expected_high")
    view = View(
        "intervals",
        "Intervals in which it trained",
        (Series("active_intervals", "trained", "bar"), expected),
    )
    note = "Bars around the expected: two standard deviations."
    shown = Chart("turns", "Engagement: had its turn", "xy", "turns", (view,), note=note)
    return Part(tables=(table, turns), charts=(shown, *charts))


def _turns(layers: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return active and expected intervals by layer, with two standard deviations around."""
    if not layers or layers[0].get("active_intervals") is None:
        return None
    records = []
    for one in layers:
        mean, spread = one.get("expected_intervals"), one.get("expected_sd")
        low = high = None
        if mean is not None and spread is not None:
            low, high = max(0.0, mean - 2 * spread), mean + 2 * spread
        records.append(
            {
                "layer": one["layer"],
                "active_intervals": one["active_intervals"],
                "expected_intervals": mean,
                "expected_low": low,
                "expected_high": high,
            }
        )
    return from_records(records, id="turns", title="Turns", shown=False)
