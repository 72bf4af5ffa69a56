"""Do more sampled layers train better, and what do they take? OwLore by gamma, Figure 5 and App. B.

OwLore with 1, 2 and 8 layers an interval on average. `python -m analyses.owlore_appendix_gamma
[--quick] [--seeds 3]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from analyses import run_summary as rs
from analyses.bench import open_bench
from analyses.drawings import owlore_appendix_gamma
from analyses.owlore_table2_memory import TABLES
from analyses.owlore_variants import METHOD, variant_runs

GAMMAS = (1, 2, 8)
USUAL = 2
PUBLISHED = {
    "direction": "more sampled layers train better, up to a point",
    "memory_gb_llama_2_7b": {
        str(gamma): gb for gamma, gb in TABLES["Appendix B"][METHOD].items() if gamma in GAMMAS
    },
    "source": "OwLore (arXiv 2405.18380) Fig. 5 for the direction (curves not read off), Appendix "
    "B for memory",
}


def main(argv: Sequence[str] = ()) -> None:
    """Train with each gamma and seed, compare seed by seed, draw, write down."""
    bench, options = open_bench("owlore_appendix_gamma", argv, seeds=3)
    gammas = {str(gamma): {"expected_active": gamma} for gamma in GAMMAS}
    found = variant_runs(bench, gammas, options.seeds)
    table = {g: {s: rs.summary(run) for s, run in seeds.items()} for g, seeds in found.items()}
    names = list(table)
    pairs = [*zip(names[1:], names, strict=False), (names[-1], names[0])]
    differences = {
        loss: {f"{a} minus {b}": rs.difference(*(rs.values(table[g], loss) for g in (a, b)))
               for a, b in pairs}
        for loss in ("held_out_loss", "last_loss")
    }  # fmt: skip
    width = 3 if bench.quick else 21
    result = {
        "inputs": {**rs.inputs(bench, found), "lr": table[names[0]][0]["lr"], "method": METHOD,
                   "lr_chosen_with_gamma": USUAL, "training_loss_smoothed_over_steps": width},
        "values": {gamma: rs.row(seeds) for gamma, seeds in table.items()},
        "layers_that_moved": {
            g: rs.over_seeds(rs.values(seeds, "layers_that_moved")) for g, seeds in table.items()
        },
        "peak_relative_to_gamma_1": {"measured": relative_peaks(table), "published": _published()},
        "differences": differences,
        "curves": {gamma: rs.bands(seeds, width) for gamma, seeds in found.items()},
        "published": PUBLISHED,
        "same_direction": rs.direction(
            differences["held_out_loss"][f"{names[-1]} minus {names[0]}"]
        ),
    }  # fmt: skip
    bench.write(owlore_appendix_gamma.draw(result), {**result, "reading": reading(result)})


def relative_peaks(table: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the peak of training by gamma, as a multiple of that of the first, seed by seed."""
    peaks = {g: rs.values(seeds, "training_peak_bytes") for g, seeds in table.items()}
    first = next(iter(peaks.values()))
    return {
        gamma: rs.over_seeds({seed: peak / first[seed] for seed, peak in one.items()})
        for gamma, one in peaks.items()
    }


def _published() -> dict[str, float]:
    gb: Any = PUBLISHED["memory_gb_llama_2_7b"]
    return {gamma: one / gb["1"] for gamma, one in gb.items()}


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    low, *_, high = result["values"]
    starts = {
        True: f"Same direction: {high} layers end at a lower held-out loss than {low}.",
        False: f"Not the published direction: {high} layers end at a higher held-out loss than "
        f"{low}.",
        None: f"Not settled: the seeds do not tell {high} layers from {low}.",
    }
    mean = {g: row["held_out_loss"]["mean"] for g, row in result["values"].items()}
    best = min(mean, key=lambda gamma: mean[gamma])
    at_end = "that is the largest tried" if best == high else "more did not lower it further"
    held_out, training = (
        "; ".join(f"{label} {rs.in_words(one)}" for label, one in result["differences"][x].items())
        for x in ("held_out_loss", "last_loss")
    )
    moved = result["layers_that_moved"]
    peaks = result["peak_relative_to_gamma_1"]
    gb = {g: row["training_peak_bytes"]["mean"] / 1e9 for g, row in result["values"].items()}
    return (
        f"{starts[result['same_direction']]} Lowest mean at gamma {best} ({mean[best]:.3f}); "
        f"{at_end}. Held-out, seed by seed: {held_out}. Training: {training}. A run moves "
        f"{moved[low]['mean']:.1f} layers at gamma {low} and {moved[high]['mean']:.1f} at {high}. "
        f"Peak memory of training {gb[low]:.2f} to {gb[high]:.2f} GB, "
        f"{peaks['measured'][high]['mean']:.2f} times that of gamma {low}; LLaMA-2-7B's, as "
        f"printed, {peaks['published'][high]:.2f} times. The learning rate was chosen with gamma "
        f"{USUAL}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
