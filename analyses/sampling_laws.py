"""Does OwLore's published code sample the probabilities of OwLore's formula? LLaMA-2-7B's scores.

The formula says p = gamma D / sum D; the code calls numpy's choice(N, n, replace=False, p), one
layer after the other. `python -m analyses.sampling_laws [--quick] [--draws 20000]`; no model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import layerstats as ls
from analyses.bench import open_bench
from analyses.drawings import sampling_laws
from layerstats.correlation import read_scores
from layerstats.schedules import active_count_distribution, expected_untrained

SCORES = Path(__file__).parents[1] / "tests" / "data" / "llama2_7b_lod_m13_percent.txt"
GAMMAS = (2, 4, 8, 16)
INTERVALS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200)


def main(argv: Sequence[str] = ()) -> None:
    """Work out what each law gives, check it by simulation, draw, write down."""
    bench, options = open_bench("sampling_laws", argv, needs="nothing", draws=20_000)
    draws, runs = (500, 5) if bench.quick else (options.draws, 200)
    scores = read_scores(SCORES)[1]
    kept: dict[str, Any] = {"rule": "owlore", "stats": scores, "expected_active": 2}
    laws = {
        "uniform (LISA)": {**kept, "rule": "lisa", "stats": None, "num_layers": scores.size},
        "formula": kept,
        "published code": {**kept, "sampling": "successive"},
        "quota (ours)": {**kept, "sampling": "quota"},
    }
    lone = [ls.schedule(**kept, sampling="bernoulli", seed=s) for s in range(draws)]
    count = active_count_distribution("bernoulli", lone[0].target)
    seen = np.bincount([len(plan.active_layers(0)) for plan in lone], minlength=count.size) / draws
    result = {
        "model": "LLaMA-2-7B (published scores)",
        "inputs": {"scores": f"tests/data/{SCORES.name}", "draws": draws, "runs": runs},
        "gammas": {str(gamma): _inclusion(scores, gamma, draws) for gamma in GAMMAS},
        "never_trained": {label: _never(law, runs) for label, law in laws.items()},
        "bernoulli_count": {
            "chance": count.tolist(),
            "simulated": seen.tolist(),
            "none_percent": 100 * count[0],
            "four_or_more_percent": 100 * count[4:].sum(),
            "layers_of_99_percent": int(np.searchsorted(np.cumsum(count), 0.99)),
        },
        "published": {"formula": "p = gamma D / sum D", "source": "OwLore eq. (1), finetuner.py"},
        "same_direction": True,
        "reading": "Same direction, other numbers. The code orders layers as the formula does, but "
        "layers with large scores train more rarely than the formula says and those with small "
        "ones more often, the more so the more layers are drawn; from gamma 8 the formula asks for "
        "more than certainty. Short runs leave layers untrained, more with the scores than without "
        "(a quota leaves only layers whose share of the run is below one interval). Bernoulli "
        "draws need memory for far more layers than gamma.",
    }
    bench.write(sampling_laws.draw(result), result)


def _inclusion(scores: Any, gamma: int, draws: int) -> dict[str, Any]:
    """Return inclusion probabilities of formula and code, exact and simulated."""
    share, generator = scores / scores.sum(), np.random.default_rng(gamma)
    formula, code = (
        np.array(ls.schedule("owlore", scores, expected_active=gamma, sampling=law)
                 .inclusion_probabilities) for law in ("systematic", "successive")
    )  # fmt: skip
    picks = [generator.choice(share.size, gamma, replace=False, p=share) for _ in range(draws)]
    seen, error = np.bincount(np.ravel(picks)) / draws, np.sqrt(code * (1 - code) / draws)
    relative = 100 * (code / formula - 1)
    return {
        "naive": (gamma * share).tolist(),
        "formula": formula.tolist(),
        "code": code.tolist(),
        "code_simulated": seen.tolist(),
        "standard_error": error.tolist(),
        "farthest_in_standard_errors": float(np.max(np.abs(seen - code) / error)),
        "relative_error_percent": [relative.min(), relative.max()],
        "most_to_least": {name: p.max() / p.min() for name, p in
                          (("formula", formula), ("code", code))},
        "capped_layers": int(np.sum(formula > 1 - 1e-9)),
        "clipping_leaves": float(np.minimum(gamma * share, 1).sum()),
    }  # fmt: skip


def _never(law: Mapping[str, Any], runs: int) -> list[dict[str, Any]]:
    """Return how many layers have never trained after so many intervals: exact, and of runs."""
    plans = [ls.schedule(**law, seed=seed).plan(INTERVALS[-1]) for seed in range(runs)]
    left = [[32 - len(set().union(*plan[:n])) for n in INTERVALS] for plan in plans]
    one = ls.schedule(**law)
    return [
        {"intervals": n, "expected": expected_untrained(one.sampling, one.target, intervals=n),
         "mean_of_runs": float(np.mean(column)),
         "nine_of_ten_runs": np.quantile(column, [0.05, 0.95]).tolist()}
        for n, column in zip(INTERVALS, zip(*left, strict=True), strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
