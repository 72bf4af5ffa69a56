"""`layerstats memory`: what a training run would take, simulated before it is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerstats.cli.console import as_list, emit_json, note, print_table, progress_bar, typed
from layerstats.errors import UsageError

if TYPE_CHECKING:
    from layerstats.train.memory import MemoryPlan

__all__ = ["register"]

_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_PARTS = ("weights", "gradients", "optimizer", "activations")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(memory)


def memory(
    context: typer.Context,
    source: str = typer.Argument(
        ..., metavar="CKPT|CONFIG|PRESET", help="Model directory, config.json, or llama-2-7b etc."
    ),
    more: list[str] | None = typer.Argument(
        None, metavar="[NAME=VALUES]...", help="Further settings for --sweep."
    ),
    method: str | None = typer.Option(
        None,
        help="full | lora | galore | lisa | lisa-d | owlore-full | owlore; several with commas for "
        "--plot or --budget.",
    ),
    expected_active: float = typer.Option(2.0, help="Layers that train in an interval."),
    rank: int | None = typer.Option(None, help="Of GaLore [128] or LoRA [8]."),
    seq_len: int = typer.Option(512, help="Tokens in a window."),
    batch_size: int = typer.Option(16, help="Windows in a micro-batch."),
    accumulation: int = typer.Option(1, help="Micro-batches in a step."),
    dtype: str = typer.Option("bfloat16", help="float32 | bfloat16."),
    checkpointing: bool = typer.Option(False, "--checkpointing", help="Recompute activations."),
    state: str = typer.Option("drop", help="drop | offload | keep."),
    always_active: str | None = typer.Option(None, help="Of embed,head,norm; '' for nothing."),
    schedule: Path | None = typer.Option(None, metavar="FILE", help="Plan for this schedule."),
    steps: int = typer.Option(1000, help="Steps of the run, to look for its heaviest interval."),
    sweep: list[str] | None = typer.Option(
        None, metavar="NAME=VALUES", help="Vary settings, as expected-active=1,2,4 rank=64,128."
    ),
    budget: str | None = typer.Option(
        None, metavar="24GB", help="Which runs fit into this, best first."
    ),
    plot: Path | None = typer.Option(None, metavar="FILE", help="Draw the plans as bars."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Simulate the memory of a training run: its peak, when, and what it consists of."""
    settings: dict[str, Any] = {
        "expected_active": expected_active, "rank": rank, "seq_len": seq_len, "steps": steps,
        "batch_size": batch_size, "accumulation": accumulation, "dtype": dtype, "state": state,
        "checkpointing": checkpointing, "schedule": None if schedule is None else str(schedule),
        "always_active": None if always_active is None else tuple(as_list(always_active)),
    }  # fmt: skip
    if budget is not None:
        if idle := [*typed(context, "sweep", "plot", "expected_active"), *(more or ())]:
            msg = f"--budget finds the layers and draws nothing; leave {', '.join(idle)} out"
            raise UsageError(msg)
        sizes = (batch_size,) if typed(context, "batch_size") else None
        _budget(source, budget, method, settings, batch_sizes=sizes, quiet=quiet, json=json)
        return
    grid = _grid([*(sweep or ()), *(more or ())])
    methods = as_list(method)
    if not methods and "method" not in grid:
        msg = "missing --method; for example: layerstats memory llama-2-7b --method owlore"
        raise UsageError(msg)
    if len(methods) > 1:
        grid = {"method": methods, **grid}
    elif methods:
        settings["method"] = methods[0]
    if grid:
        _sweep(source, grid, settings, plot=plot, quiet=quiet, json=json)
    else:
        _one(source, settings, plot=plot, json=json)


def _one(source: str, settings: dict[str, Any], *, plot: Path | None, json: bool) -> None:
    from layerstats.train.memory import plan_memory

    found = plan_memory(source, **settings)
    if plot is not None:
        _draw({found.method: found}, plot)
    if json:
        emit_json(found.to_dict())
        return
    rows = [
        [part, *_sizes(found.parts_at_peak_bytes[part]), *_sizes(found.part_peaks_bytes[part])]
        for part in _PARTS
    ]
    total = [*_sizes(found.peak_bytes), *_sizes(found.sum_of_parts_bytes)]
    columns = ["part", "at the peak, GB", "GiB", "its own peak, GB", "GiB"]
    print_table(columns, [*rows, ["together", *total]])
    note(f"simulated peak {found.peak_bytes / 1e9:.2f} GB, in the phase {found.peak_phase!r}")
    note(f"reserved by CUDA's allocator, estimated: {found.reserved_bytes_estimate / 1e9:.2f} GB")
    if found.host_bytes:
        note(f"optimizer state on the host: {found.host_bytes / 1e9:.2f} GB")
    if found.worst_case is not None:
        case = found.worst_case
        note(
            f"planned for {case['layers']} layers on together, {list(found.active_layers or ())}: "
            f"99 of 100 intervals have at most {case['quantile_99']}, the {case['intervals']} of "
            f"this run at most {case['largest_drawn']}"
        )
    for line in found.assumptions:
        note(f"assumed: {line}")


def _sweep(
    source: str,
    grid: dict[str, list[Any]],
    settings: dict[str, Any],
    *,
    plot: Path | None,
    quiet: bool,
    json: bool,
) -> None:
    from layerstats.train.sweep import sweep

    fixed = {name: one for name, one in settings.items() if name not in grid}
    with progress_bar(off=quiet) as progress:
        rows = sweep(source, grid, progress=progress, **fixed)
    if plot is not None:
        labels = (
            ", ".join(f"{name} {one}" for name, one in row.point.items() if one is not None)
            for row in rows
        )
        _draw(dict(zip(labels, (row.plan for row in rows), strict=True)), plot)
    if json:
        emit_json({"rows": [{**row.point, **row.plan.to_dict()} for row in rows]})
        return
    columns = [*grid, "peak, GB", "peak, GiB", "phase", *_PARTS, "sum of parts, GB", "reserved, GB"]
    print_table(
        columns,
        [
            [
                *row.point.values(),
                *_sizes(row.plan.peak_bytes),
                row.plan.peak_phase,
                *(row.plan.parts_at_peak_bytes[part] / 1e9 for part in _PARTS),
                row.plan.sum_of_parts_bytes / 1e9,
                row.plan.reserved_bytes_estimate / 1e9,
            ]
            for row in rows
        ],
    )
    note("simulated; GB = 1e9 bytes, parts at the peak; what is not in it stands in --json")


def _budget(
    source: str,
    budget: str,
    method: str | None,
    settings: dict[str, Any],
    *,
    batch_sizes: tuple[int, ...] | None,
    quiet: bool,
    json: bool,
) -> None:
    from layerstats.train.budget import BATCH_SIZES, fit_budget

    varied = ("expected_active", "rank", "seq_len", "batch_size", "method")
    fixed = {name: one for name, one in settings.items() if name not in varied}
    from layerstats.train.config import METHODS

    with progress_bar(off=quiet) as progress:
        fits = fit_budget(
            source,
            _bytes(budget),
            ranks=(settings["rank"],),
            seq_lens=(settings["seq_len"],),
            batch_sizes=batch_sizes or BATCH_SIZES,
            methods=as_list(method) or tuple(METHODS),
            progress=progress,
            **fixed,
        )
    rows = [
        {
            "method": fit.method,
            "layers": fit.layers,
            "rank": fit.rank,
            "seq_len": fit.seq_len,
            "batch_size": fit.batch_size,
            "peak_bytes": fit.plan.peak_bytes,
            "reserved_bytes_estimate": fit.plan.reserved_bytes_estimate,
        }
        for fit in fits
    ]
    if json:
        emit_json({"simulated": True, "budget_bytes": _bytes(budget), "fits": rows})
        return
    if not rows:
        note(f"nothing fits into {budget} (simulated); try --checkpointing or a smaller --seq-len")
        return
    shown = [
        [*list(row.values())[:5], fit.plan.peak_bytes / 1e9, fit.plan.reserved_bytes_estimate / 1e9]
        for row, fit in zip(rows, fits, strict=True)
    ]
    columns = ["method", "layers", "rank", "seq_len", "batch_size", "peak, GB", "reserved, GB"]
    print_table(columns, shown)
    note("simulated; what is reserved fits, best first: more layers, then more tokens")


def _draw(plans: dict[str, MemoryPlan], file: Path) -> None:
    from layerstats import plots

    plots.save(plots.memory_plan({label: one.to_dict() for label, one in plans.items()}), file)
    note(f"wrote {file}")


def _sizes(size: float) -> tuple[float, float]:
    return size / 1e9, size / 2**30


def _grid(texts: list[str]) -> dict[str, list[Any]]:
    """Read NAME=VALUES texts: option names with hyphens, values with commas."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not as_list(values):
            msg = f"{text!r} is no NAME=VALUES; for example: --sweep expected-active=1,2,4 rank=64"
            raise UsageError(msg)
        grid[name.replace("-", "_")] = [_value(one) for one in as_list(values)]
    return grid


def _value(text: str) -> Any:
    if text.isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _bytes(text: str) -> float:
    """Read an amount of memory; without a unit it is GB."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(found[2].lower() or "gb") if found else None
    if found is None or unit is None or found[1].count(".") > 1 or found[1] == ".":
        msg = f"--budget {text!r}: give a number with GB, GiB, MB or MiB, such as 24GB"
        raise UsageError(msg)
    return float(found[1]) * unit
