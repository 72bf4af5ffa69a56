"""Does it matter from which M a weight is an outlier? OwLore by LOD's threshold, Appendix B.

OwLore with M = 3, 7 and 13: the probabilities that layers get, and what is learned with them.
`python -m analyses.owlore_appendix_m [--quick] [--seeds 3]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import layerstats as ls
from analyses import run_summary as rs
from analyses.bench import Bench, open_bench
from analyses.drawings import owlore_appendix_m
from analyses.owlore_variants import METHOD, variant_runs
from layerstats import runs
from layerstats.correlation import correlate

M = (3, 7, 13)
USUAL = 7
PUBLISHED = {
    "score_by_m": {"3": 19.18, "5": 19.41, "7": 20.04, "9": 20.62, "11": 21.15, "13": 20.24,
                   "15": 20.17, "17": 20.47, "19": 19.79},
    "direction": "M from 9 to 13 scores best, 3 worst (higher is better)",
    "source": "OwLore (arXiv 2405.18380) Appendix B; the columns' M are inferred from the text",
}  # fmt: skip


def main(argv: Sequence[str] = ()) -> None:
    """Train with each M and seed, compare seed by seed, draw, write down."""
    bench, options = open_bench("owlore_appendix_m", argv, seeds=3)
    found = variant_runs(bench, {str(m): {"metric": f"lod_m{m}"} for m in M}, options.seeds)
    table = {m: {s: rs.summary(run) for s, run in seeds.items()} for m, seeds in found.items()}
    loss = {m: rs.values(seeds, "held_out_loss") for m, seeds in table.items()}
    first = next(iter(found.values()))
    gamma = runs.read_config(first[0])["expected_active"]
    pairs = [("7", "3"), ("13", "7"), ("13", "3")]
    differences = {f"{a} minus {b}": rs.difference(loss[a], loss[b]) for a, b in pairs}
    result = {
        "inputs": {**rs.inputs(bench, found), "gamma": gamma, "lr": table["7"][0]["lr"],
                   "lr_chosen_with_m": USUAL, "method": METHOD},
        "probabilities": probabilities(bench, gamma),
        "spearman_of_lod": _agreements(bench),
        "values": {m: rs.row(seeds) for m, seeds in table.items()},
        "differences": differences,
        "published": PUBLISHED,
        "same_direction": rs.direction(differences["13 minus 3"]),
    }  # fmt: skip
    bench.write(owlore_appendix_m.draw(result), {**result, "reading": reading(result)})


def probabilities(bench: Bench, gamma: float) -> dict[str, Any]:
    """Return by M each layer's chance to train in an interval, gamma D / sum D, at most 1."""
    stats = ls.LayerStats.load(bench.stats)
    found = {}
    for m in M:
        plan = ls.schedule("owlore", stats, metric=f"lod_m{m}", expected_active=gamma)
        chance = np.array(plan.inclusion_probabilities)
        found[str(m)] = {
            "by_layer": chance.tolist(),
            "largest": float(chance.max()),
            "largest_at_layer": int(chance.argmax()),
            "least": float(chance.min()),
            "share_of_three_largest": float(np.sort(chance)[-3:].sum() / chance.sum()),
        }
    return found


def _agreements(bench: Bench) -> dict[str, Any]:
    """Return Spearman's rho over layers of LOD by two thresholds."""
    stats = ls.LayerStats.load(bench.stats)
    columns = {str(m): stats.layer_column(f"lod_m{m}").tolist() for m in M}
    names = [(a, b) for i, a in enumerate(columns) for b in list(columns)[i + 1 :]]
    return {f"{a} ~ {b}": correlate(columns, [a, b])[0].to_dict() for a, b in names}


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    starts = {
        True: "Same direction: held-out loss with M = 13 is below that with M = 3.",
        False: "Not the published direction: held-out loss with M = 13 is above that with M = 3.",
        None: "Not settled: the seeds do not tell M = 13 from M = 3.",
    }
    mean = {m: row["held_out_loss"]["mean"] for m, row in result["values"].items()}
    best = min(mean, key=lambda m: mean[m])
    against = "; ".join(
        f"{label} {rs.in_words(one)}" for label, one in result["differences"].items()
    )
    rho = [pair["rho"] for pair in result["spearman_of_lod"].values()]
    chance = result["probabilities"]
    changed = (
        "the order of layers stays, M changes how unevenly they train"
        if min(rho) > 0.9
        else "M changes which layers train most and how unevenly"
    )
    at = "; ".join(
        f"with M = {m} the three likeliest layers have {100 * one['share_of_three_largest']:.0f} % "
        f"of all turns, the least likely a chance of {one['least']:.4f} an interval"
        for m, one in chance.items()
    )
    return (
        f"{starts[result['same_direction']]} Lowest mean at M = {best} ({mean[best]:.3f}, of "
        f"{min(mean.values()):.3f} to {max(mean.values()):.3f}); seed by seed: {against}. "
        f"Spearman's rho of the layers' LOD by two M is {min(rho):.2f} to {max(rho):.2f}: "
        f"{changed}. {at[0].upper()}{at[1:]}. The paper's scores span {_span():.2f} points. The "
        f"learning rate was chosen with M = {USUAL}."
    )


def _span() -> float:
    scores: Any = PUBLISHED["score_by_m"]
    return float(max(scores.values()) - min(scores.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
