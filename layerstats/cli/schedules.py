"""`layerstats schedule`: probabilities over layers, and which layers train when, as JSON."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from layerstats.cli.console import note, print_table
from layerstats.errors import UsageError

if TYPE_CHECKING:
    from layerstats.schedules import Schedule

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(schedule)


def schedule(
    source: str | None = typer.Argument(
        None, metavar="[DIR|SCORES]", help="Statistics directory, or a file with one score a line."
    ),
    rule: str | None = typer.Option(None, help="lisa | lisa-d | owlore."),
    expected_active: float | None = typer.Option(
        None, help="Layers that train in an interval, on average."
    ),
    interval_steps: int = typer.Option(20, help="Optimizer steps between draws."),
    seed: int = typer.Option(0, help="Seed of the draws."),
    metric: str | None = typer.Option(
        None, help="Column of DIR that owlore follows; lod_m7 by default."
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
    json_schema: bool = typer.Option(
        False, "--json-schema", help="Print the JSON Schema of the file and stop."
    ),
    json: bool = typer.Option(
        False, "--json", help="Print the schedule to stdout even with --out."
    ),
) -> None:
    """Turn statistics into a schedule: which layers train in which interval."""
    from layerstats.schedules import json_schema as schema

    if json_schema:
        print(json_module.dumps(schema(), indent=2))
        return
    if rule is None or expected_active is None:
        missing = "--rule" if rule is None else "--expected-active"
        msg = (
            f"missing {missing}; for example: layerstats schedule stats --rule owlore "
            "--expected-active 2"
        )
        raise UsageError(msg)
    low_rank = {"rank": rank, "update_interval": update_interval, "scale": scale} if rank else None
    made = _make(
        source, rule, expected_active, interval_steps=interval_steps, seed=seed, metric=metric,
        sampling=sampling, num_layers=num_layers, model=model, low_rank=low_rank,
        always_active=tuple(part.strip() for part in always_active.split(",") if part.strip()),
    )  # fmt: skip
    if out is not None:
        made.save(out)
        note(f"wrote {out}")
    if json or (out is None and not show):
        print(made.to_json())
    elif out is not None:
        _print(made)
    if show and not json:
        print_table(
            ["interval", "steps", "active layers"],
            [
                [number, f"{number * interval_steps}-{(number + 1) * interval_steps - 1}",
                 " ".join(map(str, layers))]
                for number, layers in enumerate(made.plan(show))
            ],
        )  # fmt: skip


def _make(source: str | None, rule: str, expected_active: float, **options: object) -> Schedule:
    from layerstats.schedules import schedule as build

    if source is None:
        return build(rule, None, expected_active=expected_active, **options)  # type: ignore[arg-type]
    if Path(source).is_dir():
        from layerstats.stats import LayerStats

        stats = LayerStats.load(source)
        return build(rule, stats, expected_active=expected_active, source=source, **options)  # type: ignore[arg-type]
    from layerstats.correlation import read_scores

    name, scores = read_scores(source)
    options["metric"] = options["metric"] or name
    return build(rule, scores, expected_active=expected_active, source=source, **options)  # type: ignore[arg-type]


def _print(made: Schedule) -> None:
    rows = [
        [layer, score, target, exact]
        for layer, (score, target, exact) in enumerate(
            zip(made.scores, made.probabilities, made.inclusion_probabilities, strict=True)
        )
    ]
    print_table(["layer", "score", "probability", "inclusion_probability"], rows)
