"""What LISA's measured importance means, in words that follow the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["ALIKE", "reading"]

#: Blocks count as alike up to this share of draws that would go elsewhere.
ALIKE = 0.1


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    holds, rows = result["claim_holds"], result["probabilities"]
    start = {
        True: "Same direction, by every reading",
        False: "Not the paper's law, by no reading",
        None: "It depends on which norms are meant",
    }[result["same_direction"]]
    if result["inputs"]["seeds"] < 2:
        start = "One seed, so no spread to judge by"
    asked = result["published"]["ends_over_blocks"]
    far = result["inputs"]["far_from_factor"]
    text = "; ".join(f"{name}: {_row(row, far)}" for name, row in rows.items())
    kept = ", ".join(name for name, true in holds.items() if true) or "none"
    checks = result["from_measured_checkpoints"].values()
    off = max(one["largest_difference_from_log_percent"] for one in checks)
    return (
        f"{start}. The paper's law gives embedding and head {asked:.3g} times a block's "
        f"probability (N / gamma) and all blocks the same. p over the mean block: {text}. Far "
        f"above is a factor of {far:g} that the 95 % interval over seeds stays above; blocks are "
        f"alike while less than {100 * ALIKE:.0f} % of the draws would go elsewhere (by LOD "
        f"{100 * result['lod_draws_elsewhere']:.0f} % would). Both hold for: {kept}. From adapter "
        f"and checkpoint by the rule lisa-theory p differs from the logs by {off:.2g} % at most. "
        f"{result['inputs']['tied']}."
    )


def _row(row: Mapping[str, Any], far: float) -> str:
    ends = []
    for name, key in (("embedding", "embed_over_blocks"), ("head", "head_over_blocks")):
        mean, (low, high) = row[key]["mean"], row[key]["interval"]
        above = "far above" if low > far else "above"
        said = above if low > 1 else "below" if high < 1 else "not to be told from them"
        ends.append(f"{name} {mean:.3g} ({said})")
    low, high = row["draws_elsewhere"]["interval"]
    alike = "alike" if high < ALIKE else "not alike" if low > ALIKE else "perhaps alike"
    seeds = row["spearman_of_two_seeds"]
    known = seeds is not None and math.isfinite(seeds["mean"])
    order = f", order of blocks from seed to seed rho {seeds['mean']:.2f}" if known else ""
    return (
        f"{', '.join(ends)}, blocks {alike} (largest over least "
        f"{row['max_over_min']['mean']:.3g}, {100 * row['draws_elsewhere']['mean']:.1f} % of "
        f"draws elsewhere{order}), {_with_lod(row['spearman_with_lod'])}"
    )


def _with_lod(pair: Mapping[str, Any]) -> str:
    """Write rho with LOD, which a constant p does not have."""
    if pair["rho"] is None:
        return "no rho with LOD, p being constant"
    low, high = pair["interval"]
    if low is None:
        return f"with LOD rho {pair['rho']:.2f}, without an interval"
    none = ", which may be none" if low <= 0 <= high else ""
    return f"with LOD rho {pair['rho']:.2f} [{low:.2f}, {high:.2f}]{none}"
