"""OwLore with one setting varied, all else as in the runs that compare methods.

The variant that changes nothing is among those runs and is not trained twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyses.bench import Bench
from analyses.fine_tuning import best_rates, final, tuned_runs

__all__ = ["METHOD", "variant_runs"]

METHOD = "owlore"


def variant_runs(
    bench: Bench, settings: Mapping[str, Mapping[str, Any]], seeds: int
) -> dict[str, dict[int, Path]]:
    """Train OwLore with each label's settings at its usual best rate; label -> seed -> directory.

    Raises
    ------
    ValueError
        No label's settings are OwLore's usual ones: they would be compared with nothing.
    """
    rates = {METHOD: best_rates(bench, [METHOD])[METHOD]["lr"]}
    usual = tuned_runs(bench, [METHOD], seeds)[METHOD]
    plain = {seed: final(bench, METHOD, rates, seed) for seed in range(seeds)}
    configs = {
        f"{label}/{seed}": final(bench, METHOD, rates, seed, **more)
        for seed in range(seeds)
        for label, more in settings.items()
    }
    # Of the usual runs some answer questions at the end, which makes no other weights.
    found = bench.run({k: one for k, one in configs.items() if one not in plain.values()})
    found |= {f"{label}/{seed}": usual[seed] for label in settings for seed in range(seeds)
              if configs[f"{label}/{seed}"] == plain[seed]}  # fmt: skip
    runs = {label: {seed: found[f"{label}/{seed}"] for seed in range(seeds)} for label in settings}
    if usual not in runs.values():
        msg = f"none of {list(settings)} is OwLore as it is compared with other methods"
        raise ValueError(msg)
    return runs
