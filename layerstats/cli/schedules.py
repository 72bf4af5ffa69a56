"""`layerstats schedule`: probabilities over layers, which train when, and what that means."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerstats.cli.console import emit_json, note, print_table, typed
from layerstats.cli.exports import load_stats
from layerstats.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from layerstats.schedules import Schedule
    from layerstats.stats import LayerStats

__all__ = ["register"]

#: Options that make a schedule, and have nothing to say of one that is there already.
_MAKING = (
    "expected_active", "interval_steps", "seed", "metric", "direction", "normalise", "temperature",
    "floor", "full", "sampling", "num_layers", "model", "always_active", "rank", "update_interval",
    "scale",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(schedule)


def schedule(
    context: typer.Context,
    source: str | None = typer.Argument(
        None,
        metavar="DIR|SCORES|SCHEDULE",
        help="Statistics directory, a file with one score a line, or a schedule.json to look at.",
    ),
    rule: str | None = typer.Option(
        None,
        help="lisa | lisa-d | lisa-d-mirror | owlore | owlore-reverse | metric | blend | "
        "lisa-theory | adaptive.",
    ),
    expected_active: float | None = typer.Option(
        None, help="Layers that train in an interval, on average."
    ),
    interval_steps: int = typer.Option(20, help="Optimizer steps between draws."),
    seed: int = typer.Option(0, help="Seed of the draws."),
    metric: str | None = typer.Option(
        None,
        help="Column of DIR; lod_m7 by default. For blend: lod_m7=0.7,heavy_tail=0.3 (a minus "
        "turns a column round).",
    ),
    direction: str | None = typer.Option(None, help="increasing | decreasing, for rule metric."),
    normalise: str | None = typer.Option(None, help="sum | rank, for rule blend; sum by default."),
    temperature: float = typer.Option(
        1.0, help="Above 1 the layers become more alike, below 1 less."
    ),
    floor: float = typer.Option(0.0, help="No layer's probability is below it."),
    full: Path | None = typer.Option(
        None, metavar="DIR", help="Statistics after full fine-tuning, for rule lisa-theory."
    ),
    sampling: str = typer.Option(
        "systematic", help="systematic | bernoulli | successive | quota | reshuffle."
    ),
    num_layers: int | None = typer.Option(None, help="For rules that need no statistics."),
    model: str | None = typer.Option(None, help="Model id to write into the file."),
    always_active: str = typer.Option(
        "embed,head,norm", help="What trains in every interval, with commas."
    ),
    rank: int | None = typer.Option(None, help="Low-rank gradients (GaLore) of this rank."),
    update_interval: int = typer.Option(
        200, help="Active steps between GaLore bases, with --rank."
    ),
    scale: float = typer.Option(1.0, help="GaLore's scale, with --rank."),
    out: Path | None = typer.Option(
        None, metavar="FILE", help="Where the JSON goes; stdout otherwise."
    ),
    show: int = typer.Option(
        0, "--list", min=0, help="Also print the layers of the first intervals."
    ),
    explain: bool = typer.Option(
        False, "--explain", help="Print what trains how often, what never does, what it costs."
    ),
    steps: int = typer.Option(1000, min=1, help="Optimizer steps of the run, for --explain."),
    stats: Path | None = typer.Option(
        None,
        metavar="DIR",
        help="Sizes for --explain, where the source is no statistics directory.",
    ),
    json_schema: bool = typer.Option(
        False, "--json-schema", help="Print the JSON Schema of the file and stop."
    ),
    json: bool = typer.Option(
        False,
        "--json",
        help="Print the schedule to stdout even with --out (and --explain's numbers).",
    ),
) -> None:
    """Turn statistics into a schedule: which layers train in which interval."""
    from layerstats.schedules import json_schema as schema

    if json_schema:
        print(json_module.dumps(schema(), indent=2))
        return
    scores = _read(source)
    if rule is None and isinstance(scores, str):
        made = _existing(context, scores)
    elif rule is None or expected_active is None:
        missing = "--rule" if rule is None else "--expected-active"
        example = "layerstats schedule stats --rule owlore --expected-active 2"
        msg = f"missing {missing}; for example: {example}"
        raise UsageError(msg)
    else:
        made = _make(
            source, scores, rule, expected_active=expected_active, interval_steps=interval_steps,
            seed=seed, metric=metric, direction=direction, normalise=normalise, floor=floor,
            temperature=temperature, sampling=sampling, num_layers=num_layers, model=model,
            low_rank=_low_rank(context, rank, update_interval, scale), full=full,
            always_active=_names(always_active),
        )  # fmt: skip
    if out is not None:
        made.save(out)
        note(f"wrote {out}")
    sizes = load_stats(stats) or (scores if _is_stats(scores) else None)
    if explain:
        _explain(made, steps, sizes, json=json)  # type: ignore[arg-type]
    elif json or (out is None and not show):
        print(made.to_json(), end="")
    elif out is not None:
        _print(made)
    if show and not json:
        if explain:
            print()
        _print_plan(made, show)


def _low_rank(
    context: typer.Context, rank: int | None, update_interval: int, scale: float
) -> dict[str, Any] | None:
    if rank is not None:
        return {"rank": rank, "update_interval": update_interval, "scale": scale}
    if idle := typed(context, "update_interval", "scale"):
        msg = f"{' and '.join(idle)} go with --rank, which is not given"
        raise UsageError(msg)
    return None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _is_stats(found: object) -> bool:
    from layerstats.stats import LayerStats

    return isinstance(found, LayerStats)


def _read(source: str | None) -> LayerStats | tuple[str, NDArray[Any]] | str | None:
    """Read statistics or named scores; of a schedule's file only the path comes back."""
    if source is None:
        return None
    path = Path(source)
    if path.is_dir():
        return load_stats(path)
    if path.suffix == ".json":
        return source
    from layerstats.correlation import read_scores

    return read_scores(source)


def _existing(context: typer.Context, path: str) -> Schedule:
    from layerstats.schedules import Schedule

    if given := typed(context, *_MAKING):
        msg = (
            f"{path} is a schedule already and stays as it is; leave {', '.join(given)} out, or "
            "give --rule and scores to make another"
        )
        raise UsageError(msg)
    return Schedule.from_json(path)


def _make(
    source: str | None,
    scores: LayerStats | tuple[str, NDArray[Any]] | str | None,
    rule: str,
    *,
    full: Path | None,
    metric: str | None,
    **options: Any,
) -> Schedule:
    from layerstats.schedules import schedule as build

    second = _read(None if full is None else str(full))
    for found in (scores, second):
        if isinstance(found, str):
            msg = f"{found} is no list of scores; give a statistics directory, a text or CSV file"
            raise UsageError(msg)
    if isinstance(scores, tuple):
        metric = metric or scores[0]
    first, other = (found[1] if isinstance(found, tuple) else found for found in (scores, second))
    made = build(
        rule,
        first,
        source=source,
        metric=metric,
        full=other,
        full_source=None if full is None else str(full),
        **options,
    )
    asked = made.provenance.parameters.get("expected_active_asked")
    if asked is not None:
        note(f"{asked:g} active layers were asked for; all {made.num_layers} always train")
    return made


def _explain(made: Schedule, steps: int, stats: LayerStats | None, *, json: bool) -> None:
    from layerstats.schedules import explain

    found = explain(made, steps=steps, stats=stats)
    if json:
        emit_json({**made.to_dict(), "explain": found.to_dict()})
        return
    from layerstats.cli.explanations import print_explanation

    print_explanation(made, found)


def _print(made: Schedule) -> None:
    rows = [
        [layer, score, target, exact]
        for layer, (score, target, exact) in enumerate(
            zip(made.scores, made.probabilities, made.inclusion_probabilities, strict=True)
        )
    ]
    print_table(["layer", "score", "probability", "inclusion_probability"], rows)
    if made.always_active:
        note(f"besides them train in every interval: {', '.join(made.always_active)}")


def _print_plan(made: Schedule, count: int) -> None:
    size = made.interval_steps
    print_table(
        ["interval", "steps", "active layers"],
        [
            [number, f"{number * size}-{(number + 1) * size - 1}", " ".join(map(str, layers))]
            for number, layers in enumerate(made.plan(count))
        ],
    )
