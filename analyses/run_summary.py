"""Fine-tuning runs in numbers and words: one run, a method's seeds, two methods seed by seed.

Runs of equal seed see the same data in the same order, so methods are compared by the differences
within seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analyses.bench import Bench
from analyses.intervals import mean_interval
from layerstats import runs
from layerstats.plots.logs import of_steps, smoothed

__all__ = [
    "NAMES",
    "agreement",
    "bands",
    "difference",
    "direction",
    "exact_match_in_words",
    "in_words",
    "inputs",
    "over_seeds",
    "row",
    "signed",
    "summary",
    "values",
]

#: As the papers write the methods.
NAMES = {
    "full": "full",
    "lora": "LoRA",
    "galore": "GaLore",
    "lisa": "LISA",
    "lisa-d": "LISA-D",
    "owlore-full": "OwLore-Full",
    "owlore": "OwLore",
}
#: Of a run's summary, what a row of a table has for each method.
MEASURED = (
    "held_out_loss",
    "last_loss",
    "peak_bytes",
    "training_peak_bytes",
    "optimizer_bytes",
    "tokens_per_second",
)


def summary(directory: Path) -> dict[str, Any]:
    """Return what one run came to, and what its model writes.

    `peak_bytes` is the whole process's, `training_peak_bytes` leaves out what it held beside the
    model before the first step.
    """
    config, entries = runs.read_config(directory), runs.read_log(directory)
    report, steps = runs.read_report(directory), runs.of_kind(entries, "step")
    answers = next((e["exact_match"] for e in reversed(entries) if "exact_match" in e), {})
    tokens = sum(entry["tokens"] for entry in steps)
    seconds = sum(entry["tokens"] / entry["tokens_per_second"] for entry in steps)
    return {
        "lr": config["lr"],
        "steps": report["steps"],
        "tokens": tokens,
        "first_loss": report["loss"]["first_mean"],
        "last_loss": report["loss"]["last_mean"],
        "steps_in_these_means": report["loss"]["mean_over"],
        "held_out_loss": report["eval_loss"],
        "held_out_before": next(e["loss"] for e in runs.of_kind(entries, "eval")),
        "correct": answers.get("correct"),
        "questions": answers.get("total"),
        "peak_bytes": report["peak_bytes"],
        "training_peak_bytes": max(e["memory"]["peak"] - e["memory"]["base"] for e in steps),
        "optimizer_bytes": report["optimizer_bytes"]["max"],
        "tokens_per_second": tokens / seconds,
        "minutes_of_training": seconds / 60,
        "layers_that_moved": sum(layer["moved"] for layer in report["layers"]),
        "sample": answers["samples"][0]["generated"] if answers else None,
    }


def inputs(bench: Bench, found: Mapping[str, Mapping[int, Path]]) -> dict[str, Any]:
    """Return what all runs of a comparison share; `found` is label -> seed -> run directory."""
    seeds = next(iter(found.values()))
    config = runs.read_config(next(iter(seeds.values())))
    problems = bench.held_out.read_text(encoding="utf-8").splitlines()
    return {
        **{name: config[name] for name in ("steps", "seq_len", "batch_size")},
        "held_out_problems": len(problems),
        "seeds": list(seeds),
        "intervals": "95 %, Student's t over seeds; the held-out problems are the same for all",
    }


def values(summaries: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    """Return one number of each seed's summary.

    Examples
    --------
    >>> values({0: {"held_out_loss": 1.5}}, "held_out_loss")
    {0: 1.5}
    """
    return {seed: one[name] for seed, one in summaries.items()}


def over_seeds(found: Mapping[int, float]) -> dict[str, Any]:
    """Return each seed's value, their mean and its 95 % interval (no width for one seed).

    Examples
    --------
    >>> over_seeds({0: 1.5})
    {'per_seed': {0: 1.5}, 'mean': 1.5, 'interval': [1.5, 1.5]}
    """
    return {"per_seed": dict(found), **mean_interval(list(found.values()))}


def row(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a method's row of a table: what it measured over seeds, and how many were right.

    `correct` has the seeds that were asked.
    """
    first = next(iter(summaries.values()))
    return {
        "lr": first["lr"],
        **{name: over_seeds(values(summaries, name)) for name in MEASURED},
        "correct": {
            seed: one["correct"] for seed, one in summaries.items() if one["correct"] is not None
        },
        "questions": first["questions"],
    }


def difference(these: Mapping[int, float], those: Mapping[int, float]) -> dict[str, Any]:
    """Return `these` minus `those` seed by seed, with interval.

    `told_apart` is whether zero is outside the interval; one seed tells nothing apart.

    Examples
    --------
    >>> difference({0: 1.0, 1: 2.0}, {0: 3.0, 1: 4.0})["mean"]
    -2.0
    """
    found = over_seeds({seed: these[seed] - those[seed] for seed in these})
    low, high = found["interval"]
    return {**found, "told_apart": len(these) > 1 and not low <= 0 <= high}


def direction(found: Mapping[str, Any]) -> bool | None:
    """Return whether a difference is below zero; None if it cannot be told from zero."""
    return bool(found["mean"] < 0) if found["told_apart"] else None


def agreement(directions: Iterable[bool | None]) -> bool | None:
    """Return True if all are, False if one is not, None if the seeds do not say.

    Examples
    --------
    >>> agreement([True, True]), agreement([True, None]), agreement([None, False])
    (True, None, False)
    """
    listed = list(directions)
    if False in listed:
        return False
    return None if None in listed else True


def signed(number: float, digits: int = 3) -> str:
    """Return a number with its sign, a true minus.

    Examples
    --------
    >>> signed(-0.0312), signed(0.5, 1)
    ('−0.031', '+0.5')
    """
    return f"{number:+.{digits}f}".replace("-", "−")


def in_words(found: Mapping[str, Any], digits: int = 3) -> str:
    """Return a difference of losses with its interval, and what may be said of it.

    Examples
    --------
    >>> in_words({"mean": -0.1, "interval": [-0.2, -0.05], "told_apart": True, "per_seed": {}}, 2)
    '−0.10 [−0.20, −0.05], lower'
    """
    mean = signed(found["mean"], digits)
    if len(found["per_seed"]) == 1:
        return f"{mean} with one seed, which tells nothing apart"
    ends = ", ".join(signed(end, digits) for end in found["interval"])
    if not found["told_apart"]:
        return f"{mean} [{ends}], smaller than the seeds can tell from zero"
    return f"{mean} [{ends}], {'lower' if found['mean'] < 0 else 'higher'}"


def exact_match_in_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """Say what exact match is worth here: with so few problems, or none right, it ranks nothing."""
    listed = list(rows)
    right = [number for one in listed for number in one["correct"].values()]
    most, of = max(right), listed[0]["questions"]
    if not most:
        return f"No run answered one of the {of} problems exactly, so exact match ranks nothing."
    return (
        f"Exact match: {min(right)} to {most} of {of} problems right in a run; so few problems "
        "rank nothing."
    )


def bands(directories: Mapping[int, Path], width: int) -> dict[str, Any]:
    """Return mean, least and largest over seeds of the training and the held-out loss by step.

    The training loss is smoothed over `width` steps (odd), and thinned for the file.
    """
    logs = [runs.read_log(directory) for directory in directories.values()]
    trained = [_by_step(log, "step") for log in logs]
    held_out = [_by_step(log, "eval") for log in logs]
    thin = max(1, len(trained[0]) // 40)
    rows = np.array([smoothed(np.array(list(one.values())), width) for one in trained])
    steps = list(trained[0])
    at = sorted({*range(0, len(steps), thin), len(steps) - 1})
    return {
        "training": _over([steps[i] for i in at], rows[:, at]),
        "held_out": _over(list(held_out[0]), np.array([list(one.values()) for one in held_out])),
    }


def _by_step(log: list[dict[str, Any]], kind: str) -> dict[int, float]:
    """Return step -> loss; the last one of a step that was done again after a stop."""
    steps, losses = of_steps(log, "loss", kind=kind)
    pairs = zip(steps.tolist(), losses.tolist(), strict=True)
    # What answers questions is logged as an "eval" too, without a loss.
    return {int(step): loss for step, loss in pairs if kind == "step" or np.isfinite(loss)}


def _over(steps: list[int], rows: Any) -> dict[str, Any]:
    found = {"mean": rows.mean(axis=0), "least": rows.min(axis=0), "largest": rows.max(axis=0)}
    return {"step": steps, **{name: one.round(4).tolist() for name, one in found.items()}}
