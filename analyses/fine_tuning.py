"""The fine-tuning runs that several analyses read: seven methods, each at its own learning rate.

Each method's learning rate is the best of a grid, by held-out loss on problems that no result is
taken from. What is found for one analysis is found by the next in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.bench import Bench
from layerstats import runs
from layerstats.train import METHODS, TrainConfig

__all__ = ["best_rates", "final", "questions", "tune", "tuned_runs"]

#: Peak learning rates that are tried, in order.
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
#: Where the search begins: what such methods are usually given.
FIRST = {
    "full": 1e-4,
    "lora": 1e-3,
    "galore": 3e-4,
    "lisa": 3e-4,
    "lisa-d": 3e-4,
    "owlore-full": 3e-4,
    "owlore": 1e-3,
}
#: Of the search alone, so that no seed of a result was tuned on.
SEARCH_SEED = 1000


def tune(bench: Bench, method: str, lr: float) -> TrainConfig:
    """Return a run of the search: half as long, held-out loss on problems of its own."""
    return bench.config(
        method,
        **_common(bench, method),
        lr=lr,
        seed=SEARCH_SEED,
        steps=4 if bench.quick else 60,
        validation=str(bench.tuning),
    )


def final(
    bench: Bench, method: str, rates: Mapping[str, float], seed: int, **settings: Any
) -> TrainConfig:
    """Return a run of a result, at the method's best learning rate."""
    every = 4 if bench.quick else 30
    return bench.config(
        method,
        **{**_common(bench, method), "eval_every": every, **settings},
        lr=rates[method],
        seed=seed,
    )


def best_rates(bench: Bench, methods: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Search the grid for each method: outward, until the best lies between two that are worse.

    Returns
    -------
    dict
        Method -> {"lr": the best, "tried": {learning rate: held-out loss}}.
    """
    tried: dict[str, dict[float, float]] = {method: {} for method in methods}
    wanted = {method: _beside(GRID.index(FIRST[method])) for method in methods}
    while any(wanted.values()):
        found = bench.run({f"{m}/{lr:g}": tune(bench, m, lr) for m in methods for lr in wanted[m]})
        for method in methods:
            for lr in wanted[method]:
                tried[method][lr] = held_out_loss(found[f"{method}/{lr:g}"])
            # A quick run knows no optimum to walk to.
            near = () if bench.quick else _beside(GRID.index(_best(tried[method])))
            wanted[method] = tuple(lr for lr in near if lr not in tried[method])
    return {
        method: {"lr": _best(losses), "tried": {f"{lr:g}": losses[lr] for lr in sorted(losses)}}
        for method, losses in tried.items()
    }


def tuned_runs(bench: Bench, methods: Sequence[str], seeds: int) -> dict[str, dict[int, Path]]:
    """Train each method with each seed at its best learning rate; method -> seed -> directory."""
    rates = {method: found["lr"] for method, found in best_rates(bench, methods).items()}
    configs = {
        f"{method}/{seed}": final(bench, method, rates, seed, **questions(bench, seed))
        for seed in range(seeds)
        for method in methods
    }
    found = bench.run(configs)
    return {m: {seed: found[f"{m}/{seed}"] for seed in range(seeds)} for m in methods}


def questions(bench: Bench, seed: int) -> dict[str, Any]:
    """Return the settings that have the first seed's model answer problems at its end.

    Only the first: a small model gets next to none right, and answering takes half as long as
    training.
    """
    if seed:
        return {}
    return {"exact_match": str(bench.held_out), "exact_match_limit": 2 if bench.quick else 32}


def held_out_loss(directory: Path) -> float:
    """Return a run's last loss on held-out data; infinite if it has none that is a number."""
    loss = runs.read_report(directory)["eval_loss"]
    return float("inf") if loss is None else float(loss)


def _common(bench: Bench, method: str) -> dict[str, Any]:
    # bfloat16 products beside float32 weights: 1.4 times as fast on a processor that has them,
    # and small updates are not rounded away, as in weights of bfloat16.
    low_rank = METHODS[method].how == "galore"
    tracked = {"track": ("frobenius_norm",)} if method == "full" else {}
    return {
        "autocast": True,
        **({"rank": 8 if bench.quick else 64} if low_rank else {}),
        **tracked,
    }


def _beside(at: int) -> tuple[float, ...]:
    return GRID[max(at - 1, 0) : at + 2]


def _best(losses: Mapping[float, float]) -> float:
    return min(losses, key=lambda lr: losses[lr])
