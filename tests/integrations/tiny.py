"""A tiny model, its data and a quiet Trainer on a CPU; snapshots of what moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from layerstats.checkpoint.parts import find_parts
from layerstats.schedules import ModelRef, Schedule, schedule

__all__ = ["Snapshots", "lisa", "make_model", "make_trainer", "moved", "weights"]

_WORDS = 24


def make_model(family: str = "llama", *, blocks: int = 6, tied: bool = False) -> PreTrainedModel:
    """A random model, the same at every call, with dropout so that the random state matters."""
    shared = {"vocab_size": _WORDS, "tie_word_embeddings": tied, "pad_token_id": None}
    if family == "gpt2":
        config: Any = GPT2Config(
            n_embd=16,
            n_head=2,
            n_layer=blocks,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=1,
            **shared,
        )
    else:
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=2,
            num_hidden_layers=blocks,
            max_position_embeddings=16,
            attention_dropout=0.1,
            **shared,
        )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(config)


def make_trainer(
    model: PreTrainedModel,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    *,
    steps: int,
    optimizers: Any = (None, None),
    **settings: Any,
) -> Trainer:
    """A Trainer that reports nothing and saves nothing unless told so."""
    defaults = {
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "lr_scheduler_type": "linear",
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        seed=3,
        **defaults | settings,
    )
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(0, _WORDS, (75, 8), generator=draw)
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(
        model, arguments, train_dataset=data, callbacks=list(callbacks), optimizers=optimizers
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def lisa(
    blocks: int = 6, active: float = 2, *, every: int = 5, path: str | None = None, **settings: Any
) -> Schedule:
    """A uniform schedule for `blocks` layers."""
    return schedule(
        "lisa",
        expected_active=active,
        interval_steps=every,
        seed=4,
        model=ModelRef(None, blocks, path),
        **settings,
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """What changed by at least one bit: the layers' numbers as words, and the groups outside."""
    parts = find_parts({name: tuple(one.shape) for name, one in before.items()})
    places = {name: str(at) for at, names in enumerate(parts.layers) for name in names}
    places |= {name: group for group, names in parts.outside.items() for name in names}
    return {places[name] for name in before if not torch.equal(before[name], after[name])}


class Snapshots(TrainerCallback):
    """Weights before training and after each step, and the bytes that the optimizer holds."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.state_bytes: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.weights = [weights(others["model"])]

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.weights.append(weights(others["model"]))
        states = others["optimizer"].state.values()
        self.state_bytes.append(
            sum(one.nbytes for state in states for one in state.values() if torch.is_tensor(one))
        )
