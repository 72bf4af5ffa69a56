"""Which method learns most, and at what memory? All seven, OwLore's Tables 3 to 5.

Held-out loss of word problems and exact match, each method at the best of its own learning rates,
with the search; memory and speed beside it. `python -m analyses.owlore_table3_methods [--quick]
[--seeds 3]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses import run_summary as rs
from analyses.bench import open_bench
from analyses.drawings import owlore_table3_methods
from analyses.fine_tuning import GRID, best_rates, tuned_runs
from layerstats.train import METHODS

#: OwLore is said to beat these; whether full training too depends on the table.
BEATEN = ("lisa", "galore", "lora")
#: What one step from a method to the next adds.
STEPS = {
    "weighting by LOD (OwLore-Full minus LISA)": ("owlore-full", "lisa"),
    "low rank (OwLore minus OwLore-Full)": ("owlore", "owlore-full"),
    "falling probability (LISA-D minus LISA)": ("lisa-d", "lisa"),
}
PUBLISHED = {
    "direction": "OwLore beats LISA, GaLore and LoRA, and often full training",
    "gain_of_owlore_over_baselines_up_to": {
        "commonsense reasoning, mean accuracy": "1.1 %", "MMLU": "3.0 %", "MT-Bench": "10 %"},
    "memory_gb_llama_2_7b": {"full": 61, "lora": 26, "galore": 36, "lisa": 24, "owlore": 22},
    "source": "OwLore (arXiv 2405.18380): abstract; Table 3 for full, LoRA and GaLore, Table 2 for "
    "two layers of LISA and OwLore. The scores of Tables 3 to 5 were not at hand",
}  # fmt: skip


def main(argv: Sequence[str] = ()) -> None:
    """Train every method with each seed, compare seed by seed, draw, write down."""
    bench, options = open_bench("owlore_table3_methods", argv, seeds=3)
    rates = best_rates(bench, tuple(METHODS))
    found = tuned_runs(bench, tuple(METHODS), options.seeds)
    table = {m: {s: rs.summary(run) for s, run in seeds.items()} for m, seeds in found.items()}
    loss = {method: rs.values(seeds, "held_out_loss") for method, seeds in table.items()}
    beaten = {other: rs.difference(loss["owlore"], loss[other]) for other in BEATEN}
    rows = {
        method: {"lr": rates[method]["lr"], "tried": rates[method]["tried"],
                 "optimum_inside_the_grid": inside(rates[method]), **rs.row(seeds),
                 "minus_full": rs.difference(loss[method], loss["full"]),
                 "minus_lisa": rs.difference(loss[method], loss["lisa"])}
        for method, seeds in table.items()
    }  # fmt: skip
    result = {
        "inputs": {
            **rs.inputs(bench, found),
            "grid": GRID,
            "search": "half as many steps, a seed and held-out problems of its own",
        },
        "held_out_before": table["full"][0]["held_out_before"],
        "methods": rows,
        "owlore_minus": {**beaten, "full": rows["owlore"]["minus_full"]},
        "what_each_step_gives": {
            name: rs.difference(loss[ours], loss[other]) for name, (ours, other) in STEPS.items()
        },
        "published": PUBLISHED,
        "same_direction": rs.agreement(rs.direction(one) for one in beaten.values()),
    }
    bench.write(owlore_table3_methods.draw(result), {**result, "reading": reading(result)})


def inside(search: Mapping[str, Any]) -> bool:
    """Return whether the best learning rate lies between two that were tried and are worse.

    Examples
    --------
    >>> inside({"lr": 1e-3, "tried": {"0.0003": 2.0, "0.001": 1.0, "0.003": 1.5}})
    True
    """
    rates = [float(rate) for rate in search["tried"]]
    return bool(min(rates) < search["lr"] < max(rates))


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    starts = {
        True: "Same direction: OwLore's held-out loss is below those of LISA, GaLore and LoRA.",
        False: "Not the published direction: OwLore's held-out loss is above that of at least one "
        "of LISA, GaLore and LoRA.",
        None: "Not settled: the seeds do not tell OwLore from all of LISA, GaLore and LoRA, and it "
        "is above none of them beyond doubt.",
    }
    rows = result["methods"]
    mean = {method: row["held_out_loss"]["mean"] for method, row in rows.items()}
    order = sorted(mean, key=lambda method: mean[method])
    listed = ", ".join(f"{rs.NAMES[method]} {mean[method]:.3f}" for method in order)
    minus = result["owlore_minus"].items()
    against = "; ".join(f"{rs.NAMES[other]} {rs.in_words(one)}" for other, one in minus)
    steps = "; ".join(
        f"{name} {rs.in_words(one)}" for name, one in result["what_each_step_gives"].items()
    )
    edge = [rs.NAMES[m] for m, row in rows.items() if not row["optimum_inside_the_grid"]]
    searched = (
        f"The best learning rate of {', '.join(edge)} lies at the edge of what was tried."
        if edge
        else "Every best learning rate lies between two that are worse; the grid's steps are "
        "threefold and the search had one seed."
    )
    broken = [
        f"{rs.NAMES[m]} at {rate}"
        for m, row in rows.items()
        for rate, loss in row["tried"].items()
        if not np.isfinite(loss)
    ]
    searched += f" Training broke down: {', '.join(broken)}." if broken else ""
    gb = {m: row["training_peak_bytes"]["mean"] / 1e9 for m, row in rows.items()}
    least = min(gb, key=lambda method: gb[method])
    return (
        f"{starts[result['same_direction']]} Mean held-out loss, in order: {listed}. OwLore minus, "
        f"seed by seed: {against}. What single steps give: {steps}. Not corrected for the number "
        f"of comparisons. {searched} Peak memory of training from {gb[least]:.2f} GB "
        f"({rs.NAMES[least]}) to {max(gb.values()):.2f} GB (full {gb['full']:.2f}, LISA "
        f"{gb['lisa']:.2f}, OwLore {gb['owlore']:.2f}); in a model this small embedding and "
        f"activations weigh more than in the papers'. {_largest_spread(rows)} "
        f"{rs.exact_match_in_words(rows.values())}"
    )


def _largest_spread(rows: Mapping[str, Any]) -> str:
    """Set the methods' differences against the seeds' own."""
    seeds = [list(row["held_out_loss"]["per_seed"].values()) for row in rows.values()]
    if len(seeds[0]) == 1:
        return "One seed: nothing is said of its spread."
    within = float(np.mean([np.std(one, ddof=1) for one in seeds]))
    between = float(np.std([np.mean(one) for one in seeds], ddof=1))
    return f"Standard deviation between methods {between:.3f}, between seeds {within:.3f}."


if __name__ == "__main__":
    main(sys.argv[1:])
