"""Statistics made by hand, with the names and shapes of a small Llama, and a schedule for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layerstats.schedules import Schedule, schedule
from layerstats.schedules.exporters import Export
from layerstats.stats import LayerStats

#: So many that a pattern for layer 1 which also hits 10 to 19 is caught.
LAYERS = 20
SCORES = [2.0 ** -(layer % 7) for layer in range(LAYERS)]
MODULES = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "mlp.gate_proj": (48, 16), "mlp.up_proj": (48, 16),
    "mlp.down_proj": (16, 48),
}  # fmt: skip


def make_stats(layers: int = 12, *, path: str = "model.layers", **columns: Any) -> LayerStats:
    rows: list[dict[str, Any]] = [
        {"layer": None, "name": "model.embed_tokens.weight", "module": "embed_tokens",
         "kind": "embed", "rows": 40, "cols": 16}
    ]  # fmt: skip
    rows += [
        {"layer": layer, "name": f"{path}.{layer}.{module}.weight", "module": module,
         "kind": module.split(".")[0].replace("self_", ""), "rows": shape[0], "cols": shape[1]}
        for layer in range(layers)
        for module, shape in MODULES.items()
    ]  # fmt: skip
    rows += [rows[0] | {"name": "lm_head.weight", "module": "lm_head", "kind": "head"}]
    matrices = pd.DataFrame(rows).astype({"layer": "Int64"})
    matrices["expert"] = pd.array([None] * len(rows), dtype="Int64")
    matrices["parameters"] = matrices["rows"] * matrices["cols"]
    matrices["alpha_hill"] = 2.0 + np.arange(len(rows)) % 11 / 7
    block = sum(rows * cols for rows, cols in MODULES.values())
    table = {"layer": list(range(layers)), "kind": "block", "name": "", "parameters": block}
    ends = pd.DataFrame(
        {"layer": [None, None], "kind": ["embed", "head"], "parameters": [640, 640],
         "name": ["model.embed_tokens.weight", "lm_head.weight"]}
    )  # fmt: skip
    whole = pd.concat([pd.DataFrame({**table, **columns}), ends])
    meta = {"checkpoint": {"id": "org/tiny_llama", "layers_path": path, "tied_embeddings": False}}
    return LayerStats(matrices=matrices, layers=whole, meta=meta)


@pytest.fixture
def llama_stats() -> Callable[..., LayerStats]:
    return make_stats


def made(**options: Any) -> Schedule:
    rule = options.pop("rule", "owlore")
    options = {"stats": SCORES if rule == "owlore" else None, "num_layers": LAYERS, **options}
    plan = schedule(rule, expected_active=options.pop("expected_active", 3), **options)
    data = plan.to_dict()
    data["model"] |= {"layers_path": "model.layers", "id": "org/tiny_llama"}
    return Schedule.from_dict(data)


def text(done: Export, name: str) -> str:
    return next(file.text for file in done.files if file.name == name)
