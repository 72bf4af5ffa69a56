"""LISA's importance p = w_LoRA / w_full, measured, beside the uniform law that the paper takes.

Are embedding and head really the places with high p, and are the blocks alike? Which norms are
meant is not said, so there are four readings. `python -m analyses.lisa_theory_probabilities
[--quick]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import layerstats as ls
from analyses import theory_words
from analyses.bench import Bench, open_bench
from analyses.drawings import lisa_theory_probabilities
from analyses.norm_runs import FAR, UNTIED, by_place, norms, places, spread, trained, verdict
from analyses.theory_words import ALIKE
from layerstats.correlation import correlate

GAMMA = 2.0
#: Reading -> column of LoRA, column of full fine-tuning, what they are.
READINGS = {
    "weights in use": ("weights", "weights", "||W + sBA|| over ||W||, means over training"),
    "update": ("update", "update", "||sBA|| over ||W - W_0||, at the end"),
    "update over weights": ("update", "last", "||sBA|| over ||W||, at the end"),
    "trained numbers": ("adapter", "weights", "norm of A and B at the end over mean of ||W||"),
}


def main(argv: Sequence[str] = ()) -> None:
    """Train, form p by each reading, draw, write down."""
    bench, options = open_bench("lisa_theory_probabilities", argv, seeds=3)
    found = trained(bench, options.seeds)
    table = norms(found)
    lod = ls.LayerStats.load(bench.stats).layer_column("lod_m7").to_numpy()
    rows = {name: row(table["lora"][one], table["full"][other], lod)
            for name, (one, other, _) in READINGS.items()}  # fmt: skip
    holds = {name: _as_lisa(one) for name, one in rows.items()}
    result = {
        "inputs": {"seeds": options.seeds, "gamma": GAMMA, "lod": "lod_m7",
                   "readings": {name: text for name, (_, _, text) in READINGS.items()},
                   "far_from_factor": FAR, "alike_up_to_share_of_draws": ALIKE, "tied": UNTIED},
        "places": places(lod.size),
        "probabilities": rows,
        "lod_over_mean": (lod / lod.mean()).tolist(),
        "lod_draws_elsewhere": elsewhere(ls.schedule("owlore", lod, expected_active=GAMMA)),
        "from_measured_checkpoints": _measured(bench, found, table),
        "claim_holds": holds,
        "published": {"formula": "p = w_LoRA / w_full; taken as 1 for embedding and head, "
                      "gamma / N for each block", "ends_over_blocks": lod.size / GAMMA,
                      "source": "LISA (arXiv 2403.17919), section 3; no p printed"},
        "same_direction": verdict(holds, options.seeds),
    }  # fmt: skip
    words = theory_words.reading(result)
    bench.write(lisa_theory_probabilities.draw(result), {**result, "reading": words})


def row(lora: NDArray[np.float64], full: NDArray[np.float64], lod: Any) -> dict[str, Any]:
    """Return p of one reading, from norms of shape (seeds, places), and what it says."""
    # The rule gives blocks what sums to gamma; its scores are p itself.
    plans = [ls.schedule("lisa-theory", one[1:-1], full=other[1:-1], expected_active=GAMMA)
             for one, other in zip(lora, full, strict=True)]  # fmt: skip
    p = np.array(
        [[a[0] / b[0], *plan.scores, a[-1] / b[-1]]
         for a, b, plan in zip(lora, full, plans, strict=True)]
    )  # fmt: skip
    blocks = p[:, 1:-1]
    [with_lod] = correlate({"p": blocks.mean(axis=0), "lod_m7": lod})
    return {
        "p": by_place(p),
        "p_over_mean_block": by_place(p / blocks.mean(axis=1, keepdims=True)),
        "block_probabilities": by_place(np.array([plan.probabilities for plan in plans])),
        "embed_over_blocks": spread(p[:, 0] / blocks.mean(axis=1)),
        "head_over_blocks": spread(p[:, -1] / blocks.mean(axis=1)),
        "max_over_min": spread(blocks.max(axis=1) / blocks.min(axis=1)),
        "coefficient_of_variation": spread(blocks.std(axis=1, ddof=1) / blocks.mean(axis=1)),
        "draws_elsewhere": spread([elsewhere(plan) for plan in plans]),
        "spearman_of_two_seeds": _of_two_seeds(blocks),
        "spearman_with_lod": with_lod.to_dict(),
    }


def elsewhere(plan: ls.Schedule) -> float:
    """Return the share of draws that go to other blocks than under the uniform law, in [0, 1)."""
    shares = np.array(plan.probabilities) / sum(plan.probabilities)
    return float(np.abs(shares - 1 / shares.size).sum() / 2)


def _of_two_seeds(blocks: NDArray[np.float64]) -> dict[str, float] | None:
    """Return Spearman's rho of the blocks' p between seeds, over all pairs of them."""
    columns = {str(seed): values for seed, values in enumerate(blocks)}
    if len(columns) < 2:
        return None
    rho = [pair.rho for pair in correlate(columns, bootstrap=0)]
    # NaN where p is constant; JSON has null there.
    return {"least": min(rho), "mean": float(np.mean(rho)), "largest": max(rho)}


def _as_lisa(found: Mapping[str, Any]) -> bool:
    """Tell whether both ends are far above the blocks and the blocks alike."""
    ends = [found[f"{end}_over_blocks"]["interval"][0] for end in ("embed", "head")]
    return bool(min(ends) > FAR and found["draws_elsewhere"]["interval"][1] < ALIKE)


def _measured(bench: Bench, found: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Form p as a user does, from adapter and checkpoint of seed 0, and compare with the logs."""
    lora = ls.measure(bench.model, metrics=["lora_norm"], adapter=found["lora"][0] / "adapter")
    full = ls.measure(found["full"][0] / "model", metrics=["frobenius_norm"])
    kept = {"lora_norm": "update", "lora_updated_norm": "last"}
    result = {}
    for metric, column in kept.items():
        plan = ls.schedule("lisa-theory", lora, full=full, metric=metric, expected_active=GAMMA)
        logged = table["lora"][column][0, 1:-1] / table["full"]["last"][0, 1:-1]
        off = np.abs(np.array(plan.scores) / logged - 1).max()
        result[f"{metric} / frobenius_norm"] = {
            "probabilities": plan.probabilities, "largest_difference_from_log_percent": 100 * off
        }  # fmt: skip
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
