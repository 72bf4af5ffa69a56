"""Does the planner tell what a run takes? Simulated peak beside the measured one, seven methods.

OwLore's Tables 2 and 3 and Figure 3 compare methods by memory. Here each trains SmolLM2-135M for a
few steps in a process of its own; its plan was made without it. What libraries bring into memory
with the first steps is taken from a run of a tiny model. `python -m analyses.memory_of_methods
[--quick]`
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyses.bench import Bench, open_bench
from layerstats import demo_data, plots, runs
from layerstats.train import METHODS, TrainConfig
from layerstats.train.memory import plan_memory

#: GB as printed, from least to most; LISA and OwLore with two layers.
PUBLISHED_GB = {"owlore": 22, "lisa": 24, "lora": 26, "galore": 36, "full": 61}
#: glibc keeps what is freed in small pieces, unless told to give it back.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(argv: Sequence[str] = ()) -> None:
    """Train each method for a few steps, plan each, draw and write both."""
    bench, _ = open_bench("memory_of_methods", argv)
    configs = {method: _config(bench, method) for method in METHODS}
    tiny = demo_data.random_checkpoint(bench.runs / "tiny-model")
    configs["libraries"] = _config(replace(bench, model=tiny), "full", seq_len=32)
    found = bench.run(configs, GIVE_BACK, alone=True)
    rows = {label: _row(config, found[label]) for label, config in configs.items()}
    small = rows.pop("libraries")
    libraries = small["measured_peak_bytes"] - small["simulated_peak_bytes"]
    for method, row in rows.items():
        row["measured_without_libraries_bytes"] = row["measured_peak_bytes"] - libraries
        row["relative_difference"] = (
            row["measured_without_libraries_bytes"] / row["simulated_peak_bytes"] - 1
        )
        planned, measured, left = (
            row[f"{name}_bytes"] / 1e9
            for name in ("simulated_peak", "measured_peak", "measured_without_libraries")
        )
        print(
            f"{method:12} planned {planned:.3f} measured {measured:.3f}, {left:.3f} of it the run"
        )
    measured = {label: row["measured_without_libraries_bytes"] for label, row in rows.items()}
    config = configs["full"]
    ordered = sorted(PUBLISHED_GB, key=lambda method: measured[method])
    result = {
        "inputs": {"seq_len": config.seq_len, "batch_size": config.batch_size,
                   "steps": config.steps, "dtype": config.dtype},
        "methods": rows,
        "libraries_bytes": libraries,
        "largest_difference_percent": 100
        * max(abs(row["relative_difference"]) for row in rows.values()),
        "order_measured": ordered,
        "measured": "the process's largest resident memory, less what it held beside the "
        "weights before the first step",
        "published": {"gb": PUBLISHED_GB, "source": "OwLore, Tables 2 and 3: LLaMA-2-7B"},
        "same_direction": ordered == list(PUBLISHED_GB),
    }  # fmt: skip
    bench.write(plots.memory_plan(rows, measured=measured), {**result, "reading": reading(result)})


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    same = "the same as" if result["same_direction"] else "not"
    peaks = {m: row["measured_without_libraries_bytes"] for m, row in result["methods"].items()}
    return (
        f"Plan and measurement differ by {result['largest_difference_percent']:.1f} % at most, "
        "libraries taken off. From least to most memory the methods are "
        f"{', '.join(result['order_measured'])}: {same} the order printed for LLaMA-2-7B "
        f"({', '.join(PUBLISHED_GB)}). LISA takes {peaks['lisa'] / peaks['full']:.2f} of full "
        f"training's memory here, LoRA {peaks['lora'] / peaks['full']:.2f}. A small model has a "
        "large embedding, which LISA and OwLore always train, with its Adam state in full."
    )


def _row(config: TrainConfig, run: Path) -> dict[str, Any]:
    """Return plan and measurement of one run."""
    plan = plan_memory(config.model, method=config.method, **_settings(config))
    memory = [one["memory"] for one in runs.of_kind(runs.read_log(run), "step")]
    return {
        "simulated_peak_bytes": plan.peak_bytes,
        "simulated_phase": plan.peak_phase,
        "parts_at_peak_bytes": dict(plan.parts_at_peak_bytes),
        "sum_of_parts_bytes": plan.sum_of_parts_bytes,
        "measured_peak_bytes": max(one["peak"] - one["base"] for one in memory),
        "process_peak_bytes": max(one["peak"] for one in memory),
    }


def _config(bench: Bench, method: str, **more: Any) -> TrainConfig:
    low_rank = METHODS[method].how == "galore"
    sampled = METHODS[method].who == "layers"
    return bench.config(
        method,
        steps=4,
        validation=None,
        save_every=None,
        **({"rank": 8 if bench.quick else 64} if low_rank else {}),
        **({"interval_steps": 2} if sampled else {}),
        **more,
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    names = ("rank", "seq_len", "batch_size", "dtype", "state", "expected_active")
    return {name: getattr(config, name) for name in names}


if __name__ == "__main__":
    main(sys.argv[1:])
