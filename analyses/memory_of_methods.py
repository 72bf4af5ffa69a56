"""Does the planner tell what a run takes? Simulated peak beside the measured one, seven methods.

OwLore's Tables 2 and 3 and Figure 3 compare methods by memory. Here each trains SmolLM2-135M for a
few steps in a process of its own; its plan was made without it. `python -m
analyses.memory_of_methods [--quick]`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from analyses.bench import Bench, open_bench
from layerstats import plots, runs
from layerstats.train import METHODS, TrainConfig
from layerstats.train.memory import plan_memory


def main(argv: Sequence[str] = ()) -> None:
    """Train each method for a few steps, plan each, draw and write both."""
    bench, _ = open_bench("memory_of_methods", argv)
    configs = {method: _config(bench, method) for method in METHODS}
    found = bench.run(configs)
    table: dict[str, dict[str, Any]] = {}
    for method, config in configs.items():
        plan = plan_memory(config.model, method=method, layers=None, **_settings(config))
        steps = runs.of_kind(runs.read_log(found[method]), "step")
        measured = max(one["memory"]["peak"] - one["memory"]["base"] for one in steps)
        table[method] = {
            "simulated_peak_bytes": plan.peak_bytes,
            "simulated_phase": plan.peak_phase,
            "simulated_parts_bytes": dict(plan.parts_at_peak_bytes),
            "measured_peak_bytes": measured,
            "measured_over_simulated": measured / plan.peak_bytes,
            "process_peak_bytes": max(one["memory"]["peak"] for one in steps),
        }
        print(f"{method:12} {plan.peak_bytes / 1e9:6.3f} GB planned {measured / 1e9:6.3f} measured")
    ax = plots.plot("memory", {method: runs.read_log(path) for method, path in found.items()})
    bench.write(ax, {"methods": table, "measured": "resident memory over what is not the model"})


def _config(bench: Bench, method: str) -> TrainConfig:
    low_rank = METHODS[method].how == "galore"
    sampled = METHODS[method].who == "layers"
    return bench.config(
        method,
        steps=4,
        validation=None,
        save_every=None,
        **({"rank": 8 if bench.quick else 64} if low_rank else {}),
        **({"interval_steps": 2} if sampled else {}),
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    names = ("rank", "seq_len", "batch_size", "dtype", "state", "expected_active")
    return {name: getattr(config, name) for name in names}


if __name__ == "__main__":
    main(sys.argv[1:])
