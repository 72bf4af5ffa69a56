"""Do OwLore's memory tables come out by simulation? Table 2, Mem. of Table 3, Appendix B.

LLaMA-2-7B by the trainer's own step on fake tensors, no GPU and no weights; nothing is fitted.
`python -m analyses.owlore_table2_memory [--quick]`
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.bench import open_bench
from analyses.drawings import owlore_table2_memory
from layerstats.train.memory import plan_memory

SETTINGS: dict[str, Any] = {"seq_len": 1024, "batch_size": 1, "dtype": "bfloat16"}
RANK = {"lora": 8, "galore": 8, "owlore": 128}
#: GB as printed: where, method, layers that train.
TABLES: dict[str, dict[str, dict[int | None, int]]] = {
    "Table 3": {"full": {None: 61}, "lora": {None: 26}, "galore": {None: 36}},
    "Table 2": {
        "lisa": {1: 23, 2: 24, 4: 27, 8: 32},
        "owlore": {1: 21, 2: 22, 4: 23, 8: 25},
    },
    "Appendix B": {
        "lisa": {1: 23, 2: 25, 4: 27, 8: 32, 12: 36},
        "owlore": {1: 21, 2: 22, 4: 23, 8: 25, 12: 27},
    },
}
PUBLISHED = [
    (where, method, layers, gb)
    for where, table in TABLES.items()
    for method, column in table.items()
    for layers, gb in column.items()
]
UNEXPLAINED = (
    "LoRA's 26 GB: 23.1 here with adapters in fp32, as peft keeps them; less with bf16 adapters, "
    "more with dropout, whose rate is not said",
    "61 GB of full training and 36 GB of GaLore as peaks: both are near the sum of the parts' own "
    "peaks, which are never alive together",
    "LISA with two layers is printed as 24 and as 25 GB: no model gives both",
    "an offset of 1 to 2 GB of all rows, such as libraries or an evaluation would leave; we do not "
    "fit one",
    "which layers the fifth column of Appendix B had: 12 is inferred, the slope fits it",
)


def main(argv: Sequence[str] = ()) -> None:
    """Simulate every printed entry, and LLaMA-2-70B, whose row the paper leaves out."""
    bench, _ = open_bench("owlore_table2_memory", argv, needs="nothing")
    model = str(bench.model) if bench.quick else "llama-2-7b"
    printed = [row for row in PUBLISHED if not bench.quick or row[2] in (None, 1, 2)]
    settings = {**SETTINGS, "seq_len": 16} if bench.quick else SETTINGS
    runs = dict.fromkeys((method, layers) for _, method, layers, _ in printed)
    plans = {run: _plan(model, *run, settings) for run in runs}
    rows = [
        {"where": where, "method": method, "layers": layers, "rank": RANK.get(method)}
        | {"published_gb": gb, **plans[method, layers]}
        for where, method, layers, gb in printed
    ]
    large = () if bench.quick else (("lisa", 4), ("owlore", 4))
    result = {
        "model": bench.model.name if bench.quick else model,
        "inputs": {**settings, "checkpointing": False, "unit": "GB = 1e9 bytes", "simulated": True},
        "assumptions": "bf16 weights, gradients and Adam states, sequences of 1024, batch 1, fused "
        "optimizer; what the paper used is not said",
        "rows": rows,
        "errors": {name: _errors(rows, name) for name in ("simulated_peak_gb", "sum_of_parts_gb")},
        "gb_per_layer": {method: _slopes(rows, method) for method in ("lisa", "owlore")},
        "llama_2_70b": {
            f"{method}, {layers} layers": _plan("llama-2-70b", method, layers, settings)
            for method, layers in large
        },
        "not_explained": UNEXPLAINED,
        "published": {"source": "OwLore (arXiv 2405.18380), Tables 2 and 3, Appendix B"},
        "same_direction": True,
        "reading": "The order of the methods and the price of a LISA layer come out; an OwLore "
        "layer costs what is printed only by the sum of the parts' own peaks, and the level does "
        "not come out: true peaks lie below what is printed. The sum, whose parts are not alive "
        "together, comes closer.",
    }
    bench.write(owlore_table2_memory.draw(result), result)


def _plan(model: Any, method: str, layers: int | None, settings: Any) -> dict[str, Any]:
    """Return one simulated run in GB; LoRA stands on embedding and head too."""
    more: dict[str, Any] = {} if layers is None else {"expected_active": layers}
    if method == "lora":
        more["lora_targets"] = "all"
    rank = RANK.get(method)
    if rank is not None:
        more["rank"] = min(rank, 8) if settings["seq_len"] < 1024 else rank
    found = plan_memory(model, method=method, **settings, **more)
    return {
        "simulated_peak_gb": found.peak_bytes / 1e9,
        "phase": found.peak_phase,
        "sum_of_parts_gb": found.sum_of_parts_bytes / 1e9,
        "reserved_estimate_gb": found.reserved_bytes_estimate / 1e9,
        "part_peaks_gb": {name: size / 1e9 for name, size in found.part_peaks_bytes.items()},
        "seconds": found.seconds,
    }


def _errors(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Return mean absolute errors over all printed entries, in GB and percent."""
    gap = np.array([row[name] - row["published_gb"] for row in rows])
    share = 100 * np.abs(gap) / np.array([row["published_gb"] for row in rows])
    return {
        "mean_absolute_gb": float(np.abs(gap).mean()),
        "mean_absolute_percent": float(share.mean()),
        "largest_percent": float(share.max()),
        "mean_signed_gb": float(gap.mean()),
    }


def _slopes(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, float]:
    """Return GB a further layer, by least squares over Appendix B."""
    chosen = [row for row in rows if row["method"] == method and row["where"] == "Appendix B"]
    at = [row["layers"] for row in chosen]
    names = ("published_gb", "simulated_peak_gb", "sum_of_parts_gb")
    return {name: float(np.polyfit(at, [row[name] for row in chosen], 1)[0]) for name in names}


if __name__ == "__main__":
    main(sys.argv[1:])
