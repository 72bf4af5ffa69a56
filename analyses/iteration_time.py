"""How long is one iteration by method? LISA's Figure 4, on a processor, beside what it must cost.

Forward, backward and step of seven methods in short runs taken in turn; the ratio of matrix
products beside the ratio of times. `python -m analyses.iteration_time [--quick]`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyses import flops
from analyses.bench import Bench, open_bench
from analyses.drawings import iteration_time
from analyses.intervals import mean_interval
from analyses.iteration_words import reading
from layerstats import runs
from layerstats.train import METHODS, TrainConfig

#: Steps at the start of a run that are not counted: memory is new, GaLore looks for its bases.
LEFT_OUT = 2
#: Steps between draws: a run of 10 draws four times, and most steps are no first one.
INTERVAL = 3
PUBLISHED = {"full": 2.9, "lora": 1.5}


def main(argv: Sequence[str] = ()) -> None:
    """Run all methods in turn, compare times with operations, draw, write down."""
    bench, options = open_bench("iteration_time", argv, rounds=3)
    rounds = range(options.rounds)
    configs = {f"{m}/{n}": _config(bench, m, seed=n) for n in rounds for m in METHODS}
    found = bench.run(configs, alone=True)
    times = {m: [_times(found[f"{m}/{n}"]) for n in rounds] for m in METHODS}
    rows = {m: _row(times, m) for m in METHODS}
    shapes = flops.shapes_of(bench.model)
    config = configs["full/0"]
    settings = {"tokens": config.seq_len, "active": configs["lisa/0"].expected_active}
    for method, row in rows.items():
        row["products_over_full"] = _products(shapes, method, configs[f"{method}/0"].rank, settings)
    llama = {name: _products(flops.LLAMA_2_7B, name, 128, {"tokens": 1024, "active": 2.0})
             for name in ("lisa", "lora")}  # fmt: skip
    over_lora = np.array(rows["lisa"]["seconds"]["rounds"]) / rows["lora"]["seconds"]["rounds"]
    faster = [rows["lisa"]["over_full"], _over_rounds(over_lora)]
    shown = [one["interval"][1] < 1 for one in faster]
    result = {
        "inputs": {"rounds": options.rounds, "steps": config.steps, "left_out": LEFT_OUT,
                   "interval_steps": INTERVAL, "batch_size": config.batch_size,
                   "seq_len": config.seq_len, "dtype": config.dtype, "autocast": config.autocast,
                   "machine": machine()},
        "methods": rows,
        "lisa_over_lora": faster[1],
        "products_over_full_llama_2_7b": llama,
        "not_measured": "the log has the time of a step, not of its phases",
        "published": {"speedup_of_lisa_over": PUBLISHED, "source": "LISA, section 4 and Fig. 4, "
                      "as quoted; the paper's text was not at hand. GPUs, larger models"},
        "same_direction": shown[0] if len(set(shown)) == 1 and options.rounds > 1 else None,
    }  # fmt: skip
    bench.write(iteration_time.draw(result), {**result, "reading": reading(result)})


def _config(bench: Bench, method: str, *, seed: int) -> TrainConfig:
    low_rank = METHODS[method].how == "galore"
    sampled = METHODS[method].who == "layers"
    return bench.config(
        method,
        seed=seed,
        steps=10,
        validation=None,
        save_every=None,
        **({"rank": 8 if bench.quick else 64} if low_rank else {}),
        **({"interval_steps": INTERVAL} if sampled else {}),
    )


def _times(run: Path) -> dict[str, Any]:
    """Return a run's median step, its median first step of an interval, and what trained."""
    entries = runs.read_log(run)
    steps = runs.of_kind(entries, "step")[LEFT_OUT:]
    begins = {entry["step"] for entry in runs.of_kind(entries, "interval")}
    seconds = {one["step"]: one["tokens"] / one["tokens_per_second"] for one in steps}
    first = [value for step, value in seconds.items() if step in begins]
    return {
        "seconds": float(np.median(list(seconds.values()))),
        "mean": float(np.mean(list(seconds.values()))),
        "first": float(np.median(first)) if first else None,
        "trainable": float(np.mean([one["trainable"] for one in steps])),
    }


def _row(times: Mapping[str, Sequence[Mapping[str, Any]]], method: str) -> dict[str, Any]:
    """Return the times of a method over rounds, and over those of full in the same rounds."""
    own, full = times[method], times["full"]
    seconds = [one["seconds"] for one in own]
    over = [one["seconds"] / other["seconds"] for one, other in zip(own, full, strict=True)]
    firsts = [one["first"] for one in own if one["first"] is not None]
    return {
        "seconds": _over_rounds(seconds),
        "mean_step_seconds": _over_rounds([one["mean"] for one in own]),
        "first_step_of_an_interval_seconds": _over_rounds(firsts) if firsts else None,
        "over_full": _over_rounds(over),
        "trained_over_full": own[0]["trainable"] / full[0]["trainable"],
    }


def _over_rounds(values: Any) -> dict[str, Any]:
    return {**mean_interval(values), "rounds": np.asarray(values).tolist()}


def _products(
    shapes: flops.Shapes, method: str, rank: int | None, settings: Mapping[str, Any]
) -> float:
    own = flops.iteration(shapes, method, rank=rank or 8, **settings)
    return own / flops.iteration(shapes, "full", **settings)


def machine() -> str:
    """Name the processor, its cores and the versions that compute."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    main(sys.argv[1:])
