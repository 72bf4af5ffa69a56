"""`layerstats report`: one HTML page of a measurement or a training run."""

from __future__ import annotations

from pathlib import Path

import typer

from layerstats.cli.console import amount, emit_json, note

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(report)


def report(
    directory: Path = typer.Argument(
        ..., metavar="DIR", help="A statistics directory, or the RUN of a training."
    ),
    out: Path = typer.Option("report.html", metavar="FILE", help="The page."),
    schedule: Path | None = typer.Option(
        None, metavar="FILE", help="A schedule made for the model of these statistics."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Write one HTML page that needs no network: tables, linked charts, warnings, commands."""
    from layerstats.report import write_report

    file = write_report(directory, out, schedule=schedule)
    size = file.stat().st_size
    if json:
        emit_json({"out": str(file), "bytes": size})
    else:
        note(f"wrote {file} ({amount(size, 'B')})")
