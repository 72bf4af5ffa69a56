"""Do all seven methods learn, and what does each take? Training loss on word problems.

LISA's Figure 1 and the right half of OwLore's Figure 4. `python -m analyses.loss_curves [--quick]
[--seeds 1]`; the JSON holds held-out loss, exact match, memory, speed and a sample of each method.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.bench import open_bench
from layerstats import plots, runs
from layerstats.train import METHODS

#: Peak learning rates: what these methods are usually given, larger where fewer numbers move.
LR = {
    "full": 5e-5,
    "lora": 1e-3,
    "galore": 3e-4,
    "lisa": 1e-4,
    "lisa-d": 1e-4,
    "owlore-full": 1e-4,
    "owlore": 3e-4,
}


def main(argv: Sequence[str] = ()) -> None:
    """Train each method with each seed, draw the curves of the first, write down all."""
    bench, options = open_bench("loss_curves", argv, seeds=1)
    configs = {}
    for seed in range(options.seeds):
        for method in METHODS:
            low_rank = METHODS[method].how == "galore"
            rank = {"rank": 8 if bench.quick else 64} if low_rank else {}
            configs[f"{method}/{seed}"] = bench.config(
                method,
                lr=LR[method],
                seed=seed,
                eval_every=4 if bench.quick else 100,
                exact_match=str(bench.held_out),
                exact_match_limit=2 if bench.quick else 32,
                **rank,
            )
    found = bench.run(configs)
    result = {label: _summary(directory) for label, directory in found.items()}
    curves = {method: runs.read_log(found[f"{method}/0"]) for method in METHODS}
    bench.write(plots.plot("loss", curves, smooth=2 if bench.quick else 20), {"runs": result})


def _summary(directory: Path) -> dict[str, Any]:
    """Return what one run came to, and what its model writes."""
    config, entries = runs.read_config(directory), runs.read_log(directory)
    report = runs.read_report(directory)
    samples = [e["exact_match"]["samples"] for e in entries if "exact_match" in e]
    return {
        "lr": config["lr"],
        "steps": report["steps"],
        "tokens": sum(entry["tokens"] for entry in runs.of_kind(entries, "step")),
        "first_loss": report["loss"]["first_mean"],
        "last_loss": report["loss"]["last_mean"],
        "held_out_loss": report["eval_loss"],
        "held_out_before": next(e["loss"] for e in runs.of_kind(entries, "eval")),
        "exact_match": report["exact_match"],
        "peak_bytes": report["peak_bytes"],
        "optimizer_bytes": report["optimizer_bytes"]["max"],
        "tokens_per_second": report["tokens_per_second"],
        "minutes_of_training": sum(
            entry["tokens"] / entry["tokens_per_second"] / 60
            for entry in runs.of_kind(entries, "step")
        ),
        "layers_that_moved": sum(layer["moved"] for layer in report["layers"]),
        "sample": samples[-1][0]["generated"],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
