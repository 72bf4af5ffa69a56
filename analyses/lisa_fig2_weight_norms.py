"""Is LoRA skewed to embedding and head, full fine-tuning not? LISA's Figure 2 by four readings.

The paper draws the mean over training of a layer's norm and does not say of what for LoRA: the
weights in use, the update or the adapter. `python -m analyses.lisa_fig2_weight_norms [--quick]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from analyses import flops
from analyses.bench import open_bench
from analyses.drawings import lisa_fig2_weight_norms
from analyses.norm_runs import (
    FAR,
    UNTIED,
    adapter_at_start,
    by_place,
    norms,
    places,
    skew,
    spread,
    trained,
    verdict,
)
from layerstats import runs

#: Reading -> column of LoRA, column of full fine-tuning, what it is.
READINGS = {
    "weights in use": ("weights", "weights", "mean over training of ||W||; LoRA: of W + sBA"),
    "update": ("update", "update", "||W - W_0|| at the end; LoRA: ||sBA||"),
    "relative update": ("relative", "relative", "the same over ||W_0||"),
    "trained numbers": (
        "adapter", "weights", "LoRA: of A and B together, at the end; full: mean of ||W||",
    ),
}  # fmt: skip


def main(argv: Sequence[str] = ()) -> None:
    """Train, read the norms, draw, write down."""
    bench, options = open_bench("lisa_fig2_weight_norms", argv, seeds=3)
    found = trained(bench, options.seeds)
    table = norms(found)
    shown = {name: {"LoRA": table["lora"][one], "full": table["full"][other]}
             for name, (one, other, _) in READINGS.items()}  # fmt: skip
    skews = {name: _skews(pair) for name, pair in shown.items()}
    holds = {name: is_far(found) for name, found in skews.items()}
    configs = {method: runs.read_config(by_seed[0]) for method, by_seed in found.items()}
    shapes = flops.shapes_of(bench.model)
    result = {
        "inputs": {"seeds": options.seeds, "steps": configs["full"]["steps"],
                   "learning_rates": {method: one["lr"] for method, one in configs.items()},
                   "readings": {name: text for name, (_, _, text) in READINGS.items()},
                   "lora_rate": "the best of adapters on the blocks alone",
                   "far_from_factor": FAR, "tied": UNTIED},
        "places": places(len(table["full"]["weights"][0]) - 2),
        "norms": {name: {label: by_place(values) for label, values in pair.items()}
                  for name, pair in shown.items()},
        "over_the_median_block": skews,
        "adapter_at_start": adapter_at_start(found["lora"][0] / "adapter", shapes.hidden),
        "root_of_sizes_table_over_block": (shapes.table / shapes.block) ** 0.5,
        "claim_holds": holds,
        "published": {"claim": "of LoRA the norm of embedding or head is far larger than that of "
                      "the layers between; of full fine-tuning it is not; no numbers printed",
                      "source": "LISA (arXiv 2403.17919), section 3 and Fig. 2"},
        "same_direction": verdict(holds, options.seeds),
    }  # fmt: skip
    bench.write(lisa_fig2_weight_norms.draw(result), {**result, "reading": reading(result)})


def _skews(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return embedding and head over the median block, by method, and LoRA's over full's."""
    each = {label: skew(values) for label, values in pair.items()}
    each["LoRA over full"] = each["LoRA"] / each["full"]
    return {label: {"embed": spread(values[:, 0]), "head": spread(values[:, 1])}
            for label, values in each.items()}  # fmt: skip


def is_far(found: Mapping[str, Any]) -> bool:
    """Tell whether an end is far above LoRA's blocks, and farther than in full fine-tuning."""
    lora, more = found["LoRA"], found["LoRA over full"]
    return any(min(lora[end]["interval"][0], more[end]["interval"][0]) > FAR for end in lora)


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    start = {
        True: "Same direction, by every reading",
        False: "Not seen here, by no reading",
        None: "It depends on what is called the weight of LoRA",
    }[result["same_direction"]]
    if result["inputs"]["seeds"] < 2:
        start = "One seed, so no spread to judge by"
    parts = []
    for name, found in result["over_the_median_block"].items():
        (e, h), (fe, fh) = ([found[label][end]["mean"] for end in ("embed", "head")]
                            for label in ("LoRA", "full"))  # fmt: skip
        said = "far above full's" if result["claim_holds"][name] else "not far above full's"
        parts.append(f"{name}: LoRA {e:.3g} and {h:.3g}, full {fe:.3g} and {fh:.3g} ({said})")
    begin = result["adapter_at_start"]
    return (
        f"{start}. Embedding and head over the median block, {'; '.join(parts)}. Far is a factor "
        f"of {FAR:g} that the 95 % interval over seeds stays above. Before any step the adapter "
        f"of the embedding has norm {begin['embed']:.1f}, that of a block {begin['block']:.1f}, of "
        f"the head {begin['head']:.1f}: a ratio of {begin['embed'] / begin['block']:.1f} that is "
        f"peft's initial draw and no training. {UNTIED}; the update of its one "
        "tensor in full fine-tuning answers to both. If all numbers were of one size, the norm of "
        f"the table would be {result['root_of_sizes_table_over_block']:.2f} times a block's."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
