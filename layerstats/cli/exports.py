"""`layerstats export`: a schedule in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from layerstats.cli.console import emit_json, note
from layerstats.errors import UsageError

if TYPE_CHECKING:
    from layerstats.stats import LayerStats

__all__ = ["load_stats", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(export)


def export(
    schedule: str | None = typer.Argument(
        None, metavar="SCHEDULE", help="A schedule.json that `layerstats schedule --out` wrote."
    ),
    to: str | None = typer.Option(
        None, "--to", help="axolotl | spectrum | peft | lmflow | owlore | ms-swift | sparsity."
    ),
    out: str = typer.Option(".", metavar="DIR", help="Where the files go; - prints them instead."),
    interval: int | None = typer.Option(
        None, min=0, help="Static sets: the layers of this interval (0 if nothing is said)."
    ),
    top_fraction: float | None = typer.Option(
        None, help="Static sets: this share of layers (spectrum: of each type of matrix)."
    ),
    stats: Path | None = typer.Option(
        None, metavar="DIR", help="Statistics of the model: names and sizes of its matrices."
    ),
    metric: str | None = typer.Option(
        None, help="Column of --stats in the place of the scores (spectrum, peft, sparsity)."
    ),
    layers_path: str | None = typer.Option(
        None, help="Where the trainer's model keeps its layers, such as model.layers."
    ),
    model_name: str | None = typer.Option(None, help="The model's name (spectrum)."),
    mean_rank: int | None = typer.Option(None, help="Mean LoRA rank (peft); 16."),
    sparsity: float | None = typer.Option(None, help="Mean sparsity (sparsity); 0.7."),
    spread: float | None = typer.Option(
        None, help="OWL's lambda (0.08) or AlphaPruning's epsilon (0.3) (sparsity)."
    ),
    method: str | None = typer.Option(None, help="owl | alphapruning (sparsity)."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Write a schedule as configuration of another trainer; say what it cannot express."""
    from layerstats.schedules import Schedule
    from layerstats.schedules.exporters import export as run

    if to is None or schedule is None:
        missing = "SCHEDULE" if schedule is None else "--to"
        msg = f"missing {missing}; for example: layerstats export schedule.json --to axolotl"
        raise UsageError(msg)
    done = run(
        to, Schedule.from_json(schedule), source=schedule, interval=interval,
        top_fraction=top_fraction, stats=load_stats(stats), metric=metric, layers_path=layers_path,
        model_name=model_name, mean_rank=mean_rank, sparsity=sparsity, spread=spread, method=method,
    )  # fmt: skip
    if out == "-":
        if json:
            texts = {file.name: file.text for file in done.files}
            names = list(texts)
            emit_json({"target": to, "files": names, "notes": list(done.notes), "texts": texts})
            return
        for file in done.files:
            print(f"# --- {file.name}\n{file.text}", end="")
    else:
        paths = [str(path) for path in done.write(out)]
        if json:
            emit_json({"target": to, "files": paths, "notes": list(done.notes)})
            return
        for path in paths:
            print(path)
    for text in done.notes:
        note(f"note: {text}")


def load_stats(directory: Path | None) -> LayerStats | None:
    """Load a statistics directory if one is given."""
    if directory is None:
        return None
    from layerstats.stats import LayerStats

    return LayerStats.load(directory)
