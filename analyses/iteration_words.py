"""What the times of an iteration mean, in words that follow the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reading"]


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    rows, published = result["methods"], result["published"]["speedup_of_lisa_over"]
    lisa, lora = rows["lisa"]["over_full"], rows["lora"]["over_full"]
    products = rows["lisa"]["products_over_full"]
    large, large_lora = (result["products_over_full_llama_2_7b"][m] for m in ("lisa", "lora"))
    start = {True: "Same direction", False: "Not the paper's direction",
             None: "One of two claims is seen"}[result["same_direction"]]  # fmt: skip
    if result["inputs"]["rounds"] < 2:
        start = "One round, so no spread to judge by"
    return (
        f"{start}. One iteration of LISA takes {_ratio(lisa)} of full's time "
        f"({_compared(lisa, 'full')}) and {_ratio(result['lisa_over_lora'])} of LoRA's "
        f"({_compared(result['lisa_over_lora'], 'LoRA')}); the paper is quoted with "
        f"1 / {published['full']:g} and 1 / {published['lora']:g} on GPUs. LoRA takes "
        f"{_ratio(lora)} of full's. Forward and backward pass through all blocks cannot be saved "
        "while the embedding trains: by matrix products alone LISA needs "
        f"{products:.2f} of full's here (LoRA {rows['lora']['products_over_full']:.2f}) and "
        f"{large:.2f} on LLaMA-2-7B (LoRA {large_lora:.2f}), which is {1 / large:.2f} times as "
        "fast; what is beyond that must come from the optimizer's step, of which LISA has "
        f"{rows['lisa']['trained_over_full']:.2f} here, and from memory. "
        f"{_beside(lisa, products)} {_firsts(rows)} The log has no times of the phases of a step."
    )


def _ratio(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.2f} [{low:.2f}, {high:.2f}]"


def _compared(found: Mapping[str, Any], other: str) -> str:
    low, high = found["interval"]
    if high < 1:
        return f"faster than {other}"
    return f"slower than {other}" if low > 1 else f"not to be told from {other}"


def _beside(found: Mapping[str, Any], products: float) -> str:
    low, high = found["interval"]
    if high < products:
        return "The measured ratio is below that of the products."
    return ("The measured ratio is above that of the products." if low > products
            else "The measured ratio agrees with that of the products.")  # fmt: skip


def _firsts(rows: Mapping[str, Any]) -> str:
    """Say what the first step of an interval costs, where the median step hides it."""
    parts = []
    for method, row in rows.items():
        first = row["first_step_of_an_interval_seconds"]
        if first is not None:
            parts.append(f"{method} {first['mean'] / row['seconds']['mean']:.2f}")
    return f"The first step of an interval, over the median step: {', '.join(parts)}."
