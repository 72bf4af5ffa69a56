"""Do layer-sampled methods learn as fast as LoRA and full training? Loss by step, seven methods.

LISA's Figure 1 and the right half of OwLore's Figure 4: word problems, each method at the best of
its own learning rates. `python -m analyses.loss_curves [--quick] [--seeds 3]`; the JSON has
losses, exact match, memory, speed and a sample of every run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from analyses import run_summary as rs
from analyses.bench import open_bench
from analyses.drawings import loss_curves
from analyses.fine_tuning import tuned_runs
from layerstats.train import METHODS

SAMPLED, USUAL = ("lisa", "owlore"), ("lora", "full")
LOSSES = {"last_loss": "Training loss", "held_out_loss": "Held-out loss"}
PUBLISHED = {
    "direction": "the loss of LISA and of OwLore falls as low as LoRA's or lower, near or below "
    "that of full training",
    "source": "LISA (arXiv 2403.17919) Fig. 1; OwLore (arXiv 2405.18380) Fig. 4, right. The "
    "direction only; the curves were not read off",
}


def main(argv: Sequence[str] = ()) -> None:
    """Train each method with each seed, draw mean and spread, write down all."""
    bench, options = open_bench("loss_curves", argv, seeds=3)
    found = tuned_runs(bench, tuple(METHODS), options.seeds)
    width = 3 if bench.quick else 21
    table = {m: {s: rs.summary(run) for s, run in seeds.items()} for m, seeds in found.items()}
    differences = {
        loss: {f"{ours} minus {other}": rs.difference(*(rs.values(table[m], loss)
                                                        for m in (ours, other)))
               for ours in SAMPLED for other in USUAL}
        for loss in LOSSES
    }  # fmt: skip
    result = {
        "inputs": {**rs.inputs(bench, found), "training_loss_smoothed_over_steps": width},
        "methods": {method: rs.row(seeds) for method, seeds in table.items()},
        "differences": differences,
        "curves": {method: rs.bands(seeds, width) for method, seeds in found.items()},
        "runs": {f"{m}/{s}": one for m, seeds in table.items() for s, one in seeds.items()},
        "published": PUBLISHED,
        "same_direction": rs.agreement(
            rs.direction(differences["last_loss"][f"{ours} minus lora"]) for ours in SAMPLED
        ),
    }
    bench.write(loss_curves.draw(result), {**result, "reading": reading(result)})


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    starts = {
        True: "Same direction: LISA and OwLore train to a lower loss than LoRA.",
        False: "Not the published direction: LISA or OwLore ends at a higher training loss than "
        "LoRA.",
        None: "Not settled: the seeds do not tell both LISA and OwLore from LoRA.",
    }
    parts = [starts[result["same_direction"]]]
    for loss, name in LOSSES.items():
        pairs = result["differences"][loss].items()
        said = "; ".join(f"{_pair(label)} {rs.in_words(one)}" for label, one in pairs)
        parts.append(f"{name} at the end, seed by seed: {said}.")
    held_out = {m: row["held_out_loss"]["mean"] for m, row in result["methods"].items()}
    order = sorted(held_out, key=lambda method: held_out[method])
    before = next(iter(result["runs"].values()))["held_out_before"]
    worse = [rs.NAMES[m] for m in order if held_out[m] >= before]
    parts.append(
        f"Held-out loss was {before:.3f} before training; mean at the end from "
        f"{held_out[order[0]]:.3f} ({rs.NAMES[order[0]]}) to {held_out[order[-1]]:.3f} "
        f"({rs.NAMES[order[-1]]})."
    )
    parts.append(f"It did not fall with {', '.join(worse)}." if worse else "It fell with all.")
    steps, seq_len = (result["inputs"][name] for name in ("steps", "seq_len"))
    parts.append(
        f"A small model, {steps} steps of {seq_len} tokens: the start of a curve, not its end. "
        + rs.exact_match_in_words(result["methods"].values())
    )
    return " ".join(parts)


def _pair(label: str) -> str:
    return " minus ".join(rs.NAMES[method] for method in label.split(" minus "))


if __name__ == "__main__":
    main(sys.argv[1:])
