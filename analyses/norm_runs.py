"""The runs that section 3 of LISA is about, and norms by place that can be read from them.

A place is the embedding, a block or the head. LISA's statistic is the mean over training steps of
||theta||, and it is not said what theta is for LoRA; so there are several columns of norms here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open

from analyses.bench import Bench
from analyses.fine_tuning import best_rates, final, tuned_runs
from analyses.intervals import mean_interval
from layerstats import runs

__all__ = [
    "FAR",
    "UNTIED",
    "adapter_at_start",
    "by_place",
    "norms",
    "places",
    "skew",
    "spread",
    "trained",
    "verdict",
]

FloatArray = NDArray[np.float64]
Runs = Mapping[str, Mapping[int, Path]]

#: A norm is "far larger" than another from this factor on; the paper draws it and gives no number.
FAR = 2.0
UNTIED = (
    "Embedding and head are one tensor in this model: full fine-tuning keeps it one (its norm "
    "stands at both places), LoRA has an adapter on each and so makes two tensors of it"
)
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def trained(bench: Bench, seeds: int) -> dict[str, dict[int, Path]]:
    """Train fully and by LoRA with adapters on embedding and head too; method -> seed -> run.

    LoRA's learning rate is the best of adapters on the blocks alone, as other analyses have them.
    """
    full = tuned_runs(bench, ["full"], seeds)["full"]
    rates = {"lora": best_rates(bench, ["lora"])["lora"]["lr"]}
    settings: dict[str, Any] = {"lora_targets": "all", "track": ("frobenius_norm",)}
    configs = {str(seed): final(bench, "lora", rates, seed, **settings) for seed in range(seeds)}
    return {"full": full, "lora": {int(k): run for k, run in bench.run(configs).items()}}


def places(num_layers: int) -> list[str]:
    """Name the places, input to output.

    Examples
    --------
    >>> places(2)
    ['embed', '0', '1', 'head']
    """
    return ["embed", *map(str, range(num_layers)), "head"]


def norms(found: Runs) -> dict[str, dict[str, FloatArray]]:
    """Return method -> column -> norms of shape (seeds, places).

    Columns: `weights` in use, mean over training; `last`, the same at the last record; `update`,
    from start to end; `relative`, that over the norm at the start; of LoRA `adapter`, the norm of
    all numbers in A and B at the end.
    """
    columns: dict[str, Callable[[Path], FloatArray]] = {
        "weights": lambda run: _tracked(run).mean(axis=0),
        "last": lambda run: _tracked(run)[-1],
        "update": lambda run: _moved(run, "update_norm"),
        "relative": lambda run: _moved(run, "relative_update"),
    }
    table = {
        method: {name: np.array([read(one) for one in by_seed.values()])
                 for name, read in columns.items()}
        for method, by_seed in found.items()
    }  # fmt: skip
    adapters = np.array([_adapter(run / "adapter") for run in found["lora"].values()])
    table["lora"]["adapter"] = adapters
    return table


def _tracked(run: Path) -> FloatArray:
    """Return the norms of the weights in use, a row a record; the start is none of the steps."""
    entries = runs.of_kind(runs.read_log(run), "track")
    pages = [entry["metrics"]["frobenius_norm"] for entry in entries]
    rows = []
    for page in pages[1:] or pages:  # a quick run is over before its second record
        head = page["embed"] if page["head"] is None else page["head"]
        rows.append([page["embed"], *page["layers"], head])
    return np.array(rows)


def _moved(run: Path, key: str) -> FloatArray:
    report = runs.read_report(run)
    outside = report["outside"]
    head = outside.get("head", outside["embed"])
    blocks = [one[key] for one in report["layers"]]
    return np.array([outside["embed"][key], *blocks, head[key]])


def _adapter(directory: Path) -> FloatArray:
    """Return the norm of all numbers of A and B together, at each place."""
    squares: dict[str, float] = {}
    with safe_open(directory / "adapter_model.safetensors", framework="np") as file:
        for name in sorted(file.keys()):
            if ".lora_" not in name:
                continue  # the table that peft saves beside an embedding's adapter
            layer = _LAYER.search(name)
            place = layer[1] if layer else "embed" if ".lora_embedding_" in name else "head"
            values = file.get_tensor(name).astype(np.float64)
            squares[place] = squares.get(place, 0.0) + float((values**2).sum())
    return np.sqrt([squares[place] for place in places(len(squares) - 2)])


def adapter_at_start(directory: Path, hidden: int) -> dict[str, float]:
    """Return the expected norm of A and B together before the first step, as peft draws them.

    One factor of each pair is 0. Of an embedding the other has `rank` x `hidden` numbers from
    N(0, 1); of a linear map it is uniform with variance 1 / (3 inputs), so rank / 3 in all.
    """
    settings = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    rank = int(settings["r"])
    with safe_open(directory / "adapter_model.safetensors", framework="np") as file:
        names = [name for name in sorted(file.keys()) if name.endswith(".lora_A.weight")]
    maps = sum(match[1] == "0" for name in names if (match := _LAYER.search(name)))
    one = (rank / 3) ** 0.5
    return {"embed": (rank * hidden) ** 0.5, "block": maps**0.5 * one, "head": one}


def skew(values: ArrayLike) -> FloatArray:
    """Return embedding and head over the median block, of norms by place in the last axis.

    Examples
    --------
    >>> skew([8.0, 1.0, 2.0, 4.0, 6.0]).tolist()
    [4.0, 3.0]
    """
    found = np.asarray(values, dtype=float)
    return np.asarray(found[..., [0, -1]] / np.median(found[..., 1:-1], axis=-1, keepdims=True))


def spread(values: ArrayLike) -> dict[str, Any]:
    """Return mean, 95 % interval and the values themselves, one a seed."""
    found = np.asarray(values, dtype=float)
    return {**mean_interval(found), "seeds": found.tolist()}


def by_place(values: FloatArray) -> dict[str, Any]:
    """Return mean, interval and the values of (seeds, places), each a list over places."""
    found = [mean_interval(column) for column in values.T]
    low, high = np.array([one["interval"] for one in found]).T.tolist()
    mean = [one["mean"] for one in found]
    return {"mean": mean, "low": low, "high": high, "seeds": values.tolist()}


def verdict(holds: Mapping[str, bool], seeds: int) -> bool | None:
    """Return whether a claim holds by every reading (True), by none (False), or by some (None).

    One seed has no spread to hold a difference against, so it decides nothing.
    """
    if seeds < 2 or len(set(holds.values())) != 1:
        return None
    return next(iter(holds.values()))
