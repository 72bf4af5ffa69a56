"""Small Llamas that are rehearsed twice: of real tensors, and of fake ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layerstats.schedules import Schedule, schedule
from layerstats.train.config import METHODS, TrainConfig
from layerstats.train.fake_model import fake_model, fake_tensors, load_code
from layerstats.train.model import prepare
from layerstats.train.rehearsal import Rehearsal, rehearse

__all__ = ["LAYERS", "lisa", "make_config", "rehearse_fake", "rehearse_real", "shape"]

LAYERS = 2


def shape(kind: str = "llama", **settings: Any) -> Any:
    """The config of a model with blocks of width 32 and grouped heads."""
    plain = {
        "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 160,
        "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    return AutoConfig.for_model(kind, **{**plain, **settings})


def make_config(method: str, **settings: Any) -> TrainConfig:
    """Settings of a run that renews GaLore's bases at each step."""
    plain: dict[str, Any] = {
        "steps": 10, "seq_len": 24, "batch_size": 2, "rank": 4, "update_interval": 1,
        "schedule": "(given)" if METHODS[method].who == "layers" else None,
    }  # fmt: skip
    return TrainConfig(model="tiny", data="", out="", method=method, **{**plain, **settings})


def lisa(layers: int = LAYERS, expected_active: float = 1) -> Schedule:
    return schedule("lisa", num_layers=layers, expected_active=expected_active)


def rehearse_fake(config: TrainConfig, model: Any, draws: Any = ((0,), (1,))) -> Rehearsal:
    """A rehearsal on fake tensors."""
    load_code(model, adapters=True)
    with fake_tensors():
        return _rehearse(fake_model(model, dtype=config.dtype), config, draws)


def rehearse_real(config: TrainConfig, model: Any, draws: Any = ((0,), (1,))) -> Rehearsal:
    """The same on real ones, on a CPU."""
    load_code(model, adapters=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(model, dtype=getattr(torch, config.dtype))
    return _rehearse(made, config, draws)


def _rehearse(model: Any, config: TrainConfig, draws: Any) -> Rehearsal:
    sampled = config.kind.who == "layers"
    plan = lisa(model.config.num_hidden_layers) if sampled else None
    return rehearse(prepare(model, config), config, plan, draws if sampled else ())
