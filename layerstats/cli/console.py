"""How the commands print: tables and strict JSON to stdout, progress and notes to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer

__all__ = [
    "amount",
    "as_list",
    "as_numbers",
    "emit_json",
    "note",
    "option",
    "print_table",
    "progress_bar",
    "typed",
]


def emit_json(document: Any) -> None:
    """Print one strict JSON document."""
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def note(text: str) -> None:
    """Say something that is not data."""
    print(text, file=sys.stderr)


def typed(context: typer.Context, *names: str) -> list[str]:
    """Return those of a command's options that were typed, as `--name`."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        option(name)
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]


def option(name: str) -> str:
    """Return how a parameter is typed: seq_len -> --seq-len."""
    return f"--{name.replace('_', '-')}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns, numbers to the right; no frame, no colour, no cutting off."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(str(text)) for text in column) for column in zip(columns, *cells, strict=True)
    ]
    right = [
        bool(rows) and all(isinstance(value, (int, float)) or value is None for value in column)
        for column in zip(*rows, strict=True)
    ] or [False] * len(columns)
    for line in [list(columns), *cells]:
        parts = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def amount(number: float, unit: str = "") -> str:
    """Shorten a large number: 134515008 -> '134.5 M'."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()


def as_list(text: str | None) -> list[str]:
    """Split an option such as `lod,alpha_hill` at its commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def as_numbers(option: str, text: str) -> list[float]:
    """Split an option such as `7,13` into numbers."""
    from layerstats.errors import UsageError

    try:
        return [float(part) for part in as_list(text)]
    except ValueError as error:
        msg = f"{option} is {text!r}; give numbers separated by commas, such as 7 or 7,13"
        raise UsageError(msg) from error


@contextlib.contextmanager
def progress_bar(*, off: bool) -> Iterator[Callable[[str, float, float], None] | None]:
    """Show a bar with the time left on stderr; nothing where stderr is no terminal."""
    if off or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color="NO_COLOR" in os.environ)
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: float, total: float) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done)

        yield report
