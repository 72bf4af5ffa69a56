"""Run the benchmarks named on the command line, or all of them; all together write results.md.

With `--write` a benchmark run by itself writes results-NAME.md.
"""

from __future__ import annotations

import importlib
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.clock import Row, machine

NAMES = ("spectra", "lod", "whole", "projection", "scaling", "streaming", "training")
RESULTS = Path(__file__).with_name("results.md")


def main(words: list[str]) -> None:
    names = [word for word in words if word != "--write"]
    for name in names:
        if name not in NAMES:
            sys.exit(f"unknown benchmark {name!r}; available: {', '.join(NAMES)}")
    rows: list[Row] = []
    for name in names or NAMES:
        found = importlib.import_module(f"benchmarks.{name}").main()
        for row in found:
            print(
                f"{row.what}: {row.measured} {row.target} {_verdict(row)} {row.note}".rstrip(),
                flush=True,
            )
        rows += found
        if names and "--write" in words:
            _write(found, RESULTS.with_name(f"results-{name}.md"), f"python -m benchmarks {name}")
    if not names:
        _write(rows, RESULTS, "make bench")


def _write(rows: list[Row], file: Path, command: str) -> None:
    file.write_text(_page(rows, command), encoding="utf-8")
    print(f"wrote {file}")


def _verdict(row: Row) -> str:
    return {True: "met", False: "MISSED", None: ""}[row.met]


def _page(rows: list[Row], command: str) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{command}` on {datetime.now(UTC):%Y-%m-%d}: {machine()}.",
        "CPU seconds with one BLAS thread, candidates in turn in one process, "
        "medians. Results are compared with",
        "each other and with float64 before any time is printed.",
        "",
        "| what | measured | promised | | seconds and remarks |",
        "|---|---|---|---|---|",
        *(
            f"| {row.what} | {row.measured} | {row.target} | {_verdict(row)} | {row.note} |"
            for row in rows
        ),
        "",
    ]
    missed = {row.why: row for row in rows if row.met is False}
    if missed:
        lines += ["## Rows that are missed, and why", ""]
        lines += [f"- {why or row.what}" for why, row in missed.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
