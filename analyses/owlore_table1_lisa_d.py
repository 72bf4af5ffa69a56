"""Is it better to train early layers more often? LISA against LISA-D, OwLore's Table 1.

Two layers an interval, drawn evenly or with a probability that falls from the first layer to the
last; each at the best of its own learning rates. `python -m analyses.owlore_table1_lisa_d [--quick]
[--seeds 3]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analyses import run_summary as rs
from analyses.bench import open_bench
from analyses.drawings import owlore_table1_lisa_d
from analyses.fine_tuning import best_rates, tuned_runs
from layerstats import runs

METHODS = ("lisa", "lisa-d")
PUBLISHED = {
    "direction": "LISA-D beats LISA",
    "source": "OwLore (arXiv 2405.18380) Table 1. The direction only: its numbers were not at "
    "hand, and no formula of LISA-D is printed (the code's, (N - l) / sum, is used)",
}


def main(argv: Sequence[str] = ()) -> None:
    """Train both with each seed, compare seed by seed, draw, write down."""
    bench, options = open_bench("owlore_table1_lisa_d", argv, seeds=3)
    rates = best_rates(bench, METHODS)
    found = tuned_runs(bench, METHODS, options.seeds)
    table = {m: {s: rs.summary(run) for s, run in seeds.items()} for m, seeds in found.items()}
    differences = {
        name: rs.difference(*(rs.values(table[m], name) for m in reversed(METHODS)))
        for name in ("held_out_loss", "last_loss")
    }
    result = {
        "inputs": rs.inputs(bench, found),
        "search": rates,
        "methods": {method: rs.row(seeds) for method, seeds in table.items()},
        "lisa_d_minus_lisa": differences,
        "layers": {method: trained_steps(seeds) for method, seeds in found.items()},
        "curves": {
            method: rs.bands(seeds, 3 if bench.quick else 21) for method, seeds in found.items()
        },
        "published": PUBLISHED,
        "same_direction": rs.direction(differences["held_out_loss"]),
    }
    bench.write(owlore_table1_lisa_d.draw(result), {**result, "reading": reading(result)})


def trained_steps(directories: Mapping[int, Path]) -> dict[str, Any]:
    """Return steps that each layer trained: seed by seed, their mean, and what its chance expects.

    `never` counts the layers without a turn.
    """
    reports = {seed: runs.read_report(one)["layers"] for seed, one in directories.items()}
    interval = runs.read_config(next(iter(directories.values())))["interval_steps"]
    steps = {seed: [one["active_steps"] for one in layers] for seed, layers in reports.items()}
    chances = next(iter(reports.values()))
    return {
        "per_seed": steps,
        "mean": np.mean(list(steps.values()), axis=0).tolist(),
        "expected": [one["expected_intervals"] * interval for one in chances],
        "never": {seed: sum(n == 0 for n in one) for seed, one in steps.items()},
    }


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    starts = {
        True: "Same direction: LISA-D ends at a lower held-out loss than LISA.",
        False: "Not the published direction: LISA-D ends at a higher held-out loss than LISA.",
        None: "Not settled: the seeds do not tell LISA-D from LISA.",
    }
    found, layers = result["lisa_d_minus_lisa"], result["layers"]
    first, last = (layers["lisa-d"]["expected"][end] for end in (0, -1))
    never = {m: np.mean(list(layers[m]["never"].values())) for m in METHODS}
    rates = {m: result["search"][m]["lr"] for m in METHODS}
    same_rate = (
        f"Both do best at a learning rate of {rates['lisa']:g}."
        if rates["lisa"] == rates["lisa-d"]
        else f"Best learning rates: {rates['lisa']:g} (LISA), {rates['lisa-d']:g} (LISA-D)."
    )
    return (
        f"{starts[result['same_direction']]} LISA-D minus LISA, seed by seed: held-out "
        f"{rs.in_words(found['held_out_loss'])}; training {rs.in_words(found['last_loss'])}. "
        f"{same_rate} LISA-D expects {first:.1f} steps of the first layer and {last:.1f} of the "
        f"last, LISA {layers['lisa']['expected'][0]:.1f} of each; in so short a run chance decides "
        f"much: of {len(layers['lisa']['mean'])} layers a run leaves {never['lisa']:.1f} (LISA) "
        f"and {never['lisa-d']:.1f} (LISA-D) untrained on average. Embedding and head train all "
        f"the time in both. {rs.exact_match_in_words(result['methods'].values())}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
