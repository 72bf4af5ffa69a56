"""A tiny trained-from-random model with a byte tokenizer, its data, and runs of it on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layerstats.demo_data import random_checkpoint
from layerstats.train import TrainConfig, Trainee
from layerstats.train import loop as loop_module

__all__ = [
    "LAYERS",
    "Watch",
    "config",
    "log",
    "make_data",
    "make_model",
    "moved_layers",
    "weights_of",
]

LAYERS = 8


def make_model(folder: Path) -> Path:
    """Eight random Llama blocks of width 128 with tied embeddings, a byte tokenizer beside them."""
    return random_checkpoint(folder / "model")


def make_data(folder: Path, lines: int = 60) -> Path:
    """Sums as questions and answers."""
    file = folder / "sums.jsonl"
    rows = [
        {"question": f"What is {n} + {n + 3}?", "answer": f"{n} + {n + 3} = #### {2 * n + 3}"}
        for n in range(lines)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def config(folder: Path, method: str, *, out: str = "run", **settings: Any) -> TrainConfig:
    """A short run; owlore gets scores that favour the first layers."""
    defaults: dict[str, Any] = {
        "steps": 12,
        "seq_len": 32,
        "batch_size": 2,
        "lr": 1e-3,
        "warmup_steps": 0,
        "device": "cpu",
    }
    if method.startswith(("lisa", "owlore")):
        defaults |= {"interval_steps": 3, "expected_active": 2}
    if method.startswith("owlore") and "schedule" not in settings:
        scores = folder / "scores.txt"
        scores.write_text("".join(f"{LAYERS - n}\n" for n in range(LAYERS)), encoding="utf-8")
        defaults["stats"] = str(scores)
    if method in ("galore", "owlore"):
        defaults |= {"rank": 8, "update_interval": 4}
    return TrainConfig(
        model=str(make_model(folder)),
        data=str(make_data(folder)),
        out=str(folder / out),
        method=method,
        **defaults | settings,
    )


def log(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The entries of one kind in a run's log."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        found |= load_file(file)
    return found


def moved_layers(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """What changed by at least one bit: layers' numbers as words, else the tensor's name."""
    moved = set()
    for name, old in before.items():
        new = after[name]
        if not torch.equal(old.to(new.dtype), new):
            words = name.split(".")
            moved.add(words[2] if words[1] == "layers" else name)
    return moved


class Watch:
    """Copies of the weights and bytes of optimizer state before each step and after the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.state: list[int] = []
        self.trainee: Trainee | None = None
        step = loop_module.optimizer_step

        def watched(trainee: Trainee, *args: Any, **options: Any) -> Any:
            if not self.weights:
                self.weights.append(self._copy(trainee))
            found = step(trainee, *args, **options)
            self.weights.append(self._copy(trainee))
            self.state.append(
                sum(
                    one.nbytes
                    for state in trainee.optimizer.state.values()
                    for one in state.values()
                )
            )
            self.trainee = trainee
            return found

        monkeypatch.setattr(loop_module, "optimizer_step", watched)

    @staticmethod
    def _copy(trainee: Trainee) -> dict[str, torch.Tensor]:
        return {name: one.detach().clone() for name, one in trainee.named.items()}
