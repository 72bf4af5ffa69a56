r"""PEFT: keyword arguments of a `LoraConfig`, with a rank for each layer.

PEFT matches a key of `rank_pattern` as ``^(.*\.)?(KEY)$`` against a module's path, so a key
``model\.layers\.1\..+`` holds for every target module of layer 1 and for no module of layer 11.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from layerstats.errors import UsageError
from layerstats.schedules.exporters.parts import (
    header,
    layer_weights,
    layers_path,
    static_layers,
)
from layerstats.schedules.exporters.registry import (
    Export,
    ExportedFile,
    ExportRequest,
    exporter,
)
from layerstats.schedules.scores import FloatArray
from layerstats.schedules.water_filling import fill_between

__all__ = ["peft", "whole_ranks"]

MEAN_RANK = 16
ROUTERS = ("gate", "router", "shared_expert_gate")
LARGEST = 4
"""No layer gets more than this times the mean rank."""


@exporter(
    "peft",
    summary="LoraConfig arguments: rank_pattern by layer, layers_to_transform",
    reference="peft, LoraConfig and utils/other.py (get_pattern_key)",
    options=("interval", "top_fraction", "stats", "metric", "layers_path", "mean_rank"),
)
def peft(request: ExportRequest) -> Export:
    """Write `lora_config.json` (arguments of LoraConfig) and the notes beside it.

    Ranks are in proportion to the schedule's scores or to a column, from 1 to four times the mean,
    whole numbers whose mean is exactly `mean_rank`. `alpha_pattern` keeps alpha / rank the same
    in all layers. All layers get an adapter unless --interval or --top-fraction chooses some.
    """
    schedule, path = request.schedule, layers_path(request)
    mean_rank = MEAN_RANK if request.mean_rank is None else request.mean_rank
    if mean_rank < 1:
        msg = f"mean_rank must be a whole number from 1, got {mean_rank}"
        raise UsageError(msg)
    chosen, words = list(range(schedule.num_layers)), "every layer"
    some = request.interval is not None or request.top_fraction is not None
    if some:
        chosen, words = static_layers(request)
    weights, name = layer_weights(request)
    ranks = dict(zip(chosen, whole_ranks(weights[chosen], mean_rank), strict=True))
    modules, notes = _target_modules(request, some)
    keys = {layer: rf"{re.escape(path)}\.{layer}\..+" for layer in chosen}
    config: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": mean_rank,
        "lora_alpha": 2 * mean_rank,
        "target_modules": modules,
    }
    if some:
        config |= {"layers_to_transform": chosen, "layers_pattern": path.rpartition(".")[2]}
    config |= {
        "rank_pattern": {keys[layer]: rank for layer, rank in ranks.items()},
        "alpha_pattern": {keys[layer]: 2 * rank for layer, rank in ranks.items()},
    }
    notes = [
        f"adapters in {words}; ranks {min(ranks.values())} to {max(ranks.values())}, mean exactly "
        f"{mean_rank}, in proportion to {name}, 1 at least and {LARGEST * mean_rank} at most",
        "PEFT trains all its adapters in every step: intervals, probabilities, seed and sampling "
        f"({schedule.sampling}) are not expressed, and the always-active group stays frozen "
        "(modules_to_save would train it)",
        *notes,
    ]
    usage = "LoraConfig(**json.load(open('lora_config.json')))"
    return Export(
        "peft",
        (
            ExportedFile("lora_config.json", json.dumps(config, indent=2) + "\n"),
            ExportedFile("lora_config.notes.txt", header(f"PEFT: {usage}", schedule, notes)),
        ),
        tuple(notes),
    )


def whole_ranks(weights: FloatArray, mean_rank: int) -> list[int]:
    """Share out ``n * mean_rank`` ranks in proportion to weights, each from 1 to 4 * mean_rank.

    The exact shares are rounded down and the largest remainders up, so the mean is exact.

    Examples
    --------
    >>> whole_ranks(np.array([4.0, 1.0, 1.0, 0.0]), 8)
    [21, 5, 5, 1]
    """
    size, high = weights.size, float(LARGEST * mean_rank)
    if weights.max() == 0:
        return [mean_rank] * size
    # Where few layers have all the weight, the cap leaves ranks over: the least weight rises.
    raised, total = weights.astype(np.float64), float(size * mean_rank)
    positive = int(np.count_nonzero(raised))
    if high * positive + (size - positive) < total:
        raised = np.maximum(raised, raised[raised > 0].min() * 1e-9)
    exact = fill_between(raised, total, low=1.0, high=high)
    ranks = np.floor(exact).astype(int)
    missing = int(total) - int(ranks.sum())
    order = sorted(range(size), key=lambda layer: (ranks[layer] - exact[layer], layer))
    for layer in order[:missing]:
        ranks[layer] += 1
    return [int(rank) for rank in ranks]


def _target_modules(request: ExportRequest, some: bool) -> tuple[Any, list[str]]:
    """Return the linear modules of the blocks; "all-linear" where nothing else is known."""
    if request.stats is None:
        if some:
            msg = (
                "layers_to_transform needs a list of target modules: give --stats DIR, "
                "or leave out --interval and --top-fraction"
            )
            raise UsageError(msg)
        return "all-linear", []
    table = request.stats.matrices
    blocks = table[table["layer"].notna() & table["kind"].isin(["attn", "mlp"])]
    dense = blocks[blocks["expert"].isna()]
    names = sorted({str(module).rpartition(".")[2] for module in dense["module"]})
    notes = []
    if len(dense) < len(blocks):
        names = [name for name in names if name not in ROUTERS]
        notes.append(
            "experts and routers get no adapter: fused ones are parameters, which PEFT takes as "
            "target_parameters; separate ones can be added to target_modules"
        )
    if not names:
        msg = "the statistics name no linear module of a block; leave --stats out"
        raise UsageError(msg)
    return names, notes
