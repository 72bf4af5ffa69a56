"""Statistics, schedules and runs to report on, and a page as a parser sees it."""

from __future__ import annotations

import functools
import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from layerstats.checkpoint.parts import find_parts
from layerstats.schedules import Schedule, schedule
from layerstats.stats import LayerStats, strict_json
from layerstats.train.config import TrainConfig
from layerstats.train.engagement import engagement
from layerstats.train.run_directory import RunDirectory

MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def make_stats(num_layers: int = 8, *, experts: int = 0, odd: str = "") -> LayerStats:
    """Statistics with intervals, gaps, flags and experts; `odd` is put into names."""
    rng = np.random.default_rng(num_layers + experts)
    kinds = [(module, None) for module in MODULES]
    kinds += [("mlp.experts.up_proj", expert) for expert in range(experts)]
    matrices = pd.DataFrame(
        {
            "layer": layer,
            "name": f"model.layers.{layer}.{module}{odd}.{expert}",
            "module": module + odd,
            "expert": expert,
            "kind": module.split(".")[0],
            "rows": 48,
            "cols": 16,
            "dtype": "BF16",
            "parameters": 48 * 16,
            "frobenius_norm": float(rng.uniform(20, 40)),
            "alpha_hill": float(rng.uniform(2, 6)),
            "alpha_flag": str(rng.choice(["", "tie", "tie+edge"])),
            "status": "ok",
        }
        for layer in range(num_layers)
        for module, expert in kinds
    )
    matrices.loc[1, ["alpha_hill", "status"]] = [np.nan, "alpha_hill: too few eigenvalues"]
    for column in ("layer", "expert"):
        matrices[column] = matrices[column].astype("Int64")
    alphas = matrices.groupby("layer")["alpha_hill"].mean().to_numpy()
    lod = rng.uniform(0.01, 2.0, num_layers)
    blocks = pd.DataFrame(
        {
            "layer": range(num_layers),
            "name": [f"layer {layer}{odd}" for layer in range(num_layers)],
            "kind": "block",
            "num_matrices": len(kinds),
            "parameters": len(kinds) * 48 * 16,
            "frobenius_norm": rng.uniform(30, 50, num_layers),
            "alpha_hill": alphas,
            "alpha_hill_lo": alphas - 0.2,
            "alpha_hill_hi": alphas + 0.4,
            "lod_m7": lod,
            "lod_m7_lo": 0.9 * lod,
            "lod_m7_hi": 1.2 * lod,
            "status": "ok",
        }
    )
    embed = {"name": "model.embed_tokens.weight", "kind": "embed", "num_matrices": 1}
    ends = pd.DataFrame([{**embed, "parameters": 640, "frobenius_norm": 71.5, "status": "ok"}])
    layers = pd.concat([blocks, ends], ignore_index=True)
    layers["layer"] = layers["layer"].astype("Int64")
    meta = {
        "format": "layerstats-stats",
        "version": 1,
        "created_by": "layerstats 9.9",
        "checkpoint": {
            "path": "/models/small",
            "id": f"small{odd}",
            "files": [{"name": "model.safetensors", "bytes": 12345}],
            "parameters": int(matrices["parameters"].sum()),
            "num_layers": num_layers,
            "layers_path": "model.layers",
        },
        "metrics": ["frobenius_norm", "alpha_hill", "lod"],
        "parameters": {"m": [7.0], "lower_bound": "reference", "precision": "float64"},
        "calibration": None,
        "skipped": [
            {"name": "model.norm.weight", "reason": "norm weight", "lost": False},
            {"name": f"packed{odd}", "reason": "a packed type", "lost": True},
        ],
        "notes": [f"a note{odd}"],
        "versions": {"python": "3.11"},
    }
    return LayerStats(matrices=matrices, layers=layers, meta=meta)


def make_schedule(num_layers: int = 8) -> Schedule:
    """A schedule with a law that misses its targets."""
    return schedule(
        "owlore",
        list(np.linspace(1.0, 3.0, num_layers)),
        expected_active=2,
        interval_steps=5,
        sampling="successive",
    )


def make_run(folder: Path, *, steps: int = 24, finished: bool = True) -> Path:
    """A run of eight layers, written by the trainer's own writers."""
    plan = make_schedule()
    config = TrainConfig(
        model="/models/small", data="d.jsonl", out=str(folder), method="owlore", steps=steps,
        schedule="s.json", lr=1e-3, max_grad_norm=None,
    )  # fmt: skip
    run = RunDirectory.create(folder, config.to_dict())
    plan.save(run.schedule_file)
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        interval = plan.interval_of(step - 1)
        active = list(plan.active_layers(interval))
        if (step - 1) % plan.interval_steps == 0:
            run.log(
                {"kind": "interval", "step": step, "interval": interval, "active_layers": active}
            )
        memory = {"weights": 1000, "gradients": 300, "optimizer": 600, "peak": 4000 + step}
        run.log(
            {
                "kind": "step", "step": step, "loss": 3.0 - 0.05 * step + rng.uniform(0, 0.1),
                "lr": 1e-3 / step, "gradient_norm": 1.0, "active_layers": active, "trainable": 10,
                "tokens": 64, "tokens_per_second": 100.0,
                "memory": {**memory, "measured_by": "process high-water mark"},
            }
        )  # fmt: skip
        if step % 8 == 0:
            norms = [10.0 + 0.1 * step * layer for layer in range(8)]
            run.log(
                {"kind": "track", "step": step, "metrics": {"frobenius_norm": {"layers": norms}}}
            )
            run.log({"kind": "eval", "step": step, "loss": 2.9 - 0.05 * step, "tokens": 64})
    run.log({"kind": "note", "step": 3, "message": "a checkpoint was <damaged>"})
    if finished:
        names = [f"h.{layer}.{part}.weight" for layer in range(8) for part in "ab"]
        start = {name: torch.ones(2, 2) for name in names}
        moved = {layer for one in run.entries() for layer in one.get("active_layers") or ()}
        end = {
            name: weight + 0.1 * (int(name.split(".")[1]) in moved)
            for name, weight in start.items()
        }
        parts = find_parts({name: (2, 2) for name in names})
        found = engagement(start, end, parts, plan, run.entries()).to_dict()
        page = {"eval_loss": 1.5, "peak_bytes": 4024, "out": str(folder), **found}
        run.report_file.write_text(strict_json(page))
    return folder


@functools.cache
def _library() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


class _Parts(html.parser.HTMLParser):
    """Every element with its attributes, and the text of scripts by their id or place."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") or tag if tag == "script" else tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.inside, data))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


class Parsed:
    """A page as a browser's parser sees it; plotly's own text is left out."""

    def __init__(self, page: bytes) -> None:
        self.text = page.decode("utf-8").replace(_library(), "")
        parser = _Parts()
        parser.feed(self.text)
        self.elements = parser.elements
        self.words = " ".join(
            text for inside, text in parser.texts if inside not in ("data", "script", "style")
        )
        self.data = self._strict("".join(text for inside, text in parser.texts if inside == "data"))

    @staticmethod
    def _strict(text: str) -> Any:
        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is no JSON")

        return json.loads(text, parse_constant=refuse)

    def table(self, name: str) -> dict[str, list[Any]]:
        [found] = [table["values"] for table in self.data["tables"] if table["id"] == name]
        return dict(found)
