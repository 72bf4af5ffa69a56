"""`layerstats trust`: which rankings of the layers can be told from noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from layerstats.cli.console import emit_json, print_table

__all__ = ["register", "verdict_line"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(trust)


def trust(
    directory: Path = typer.Argument(
        ..., metavar="DIR", help="A statistics directory made with `measure --trust`."
    ),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Say which rankings of layers can be told from noise, and by what rule."""
    from layerstats.stats import LayerStats

    page = LayerStats.load(directory).verdicts()
    if json:
        emit_json(page)
        return
    found = page["metrics"].values()
    columns = ["metric", "rho", "rho, 5 %", "noise, 95 %", "top layer", "overlap top", "verdict"]
    print_table(columns, [_row(verdict) for verdict in found])
    for column, verdict in page["metrics"].items():
        if verdict["source"] in ("windows", "bins"):
            print(f"\n{column}: {verdict_line(verdict)}")
    print()
    for source, rule in page["rules"].items():
        print(f"{source}: {rule}.")
    if page["alpha_rules"]:
        pairs = ", ".join(f"{pair} {_short(rho)}" for pair, rho in page["alpha_rules"].items())
        print(f"rules for xmin, rank correlation over layers: {pairs}.")


def _row(verdict: dict[str, Any]) -> list[Any]:
    words = {True: "distinguishable", False: "not distinguishable", None: "too few layers"}
    drawn = verdict["source"] in ("windows", "bins")
    undrawn = {"exact": "exact", "fit": "not judged"}
    return [
        verdict["column"],
        *(_short(verdict[name]) for name in ("rho_median", "rho_q05", "noise_q95")),
        verdict["top_layer"],
        f"{verdict['overlapping']} of {verdict['layers'] - 1}" if drawn else "-",
        words[verdict["distinguishable"]] if drawn else undrawn[verdict["source"]],
    ]


def verdict_line(verdict: dict[str, Any]) -> str:
    """Put a verdict into one line of words."""
    if verdict["distinguishable"] is None:
        return str(verdict["text"])
    others = verdict["layers"] - 1
    return (
        f"{verdict['text']}; the 95 % intervals of {verdict['overlapping']} of {others} other "
        f"layers overlap that of the top layer, {verdict['top_layer']}"
    )


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"
