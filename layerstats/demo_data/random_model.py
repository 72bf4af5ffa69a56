"""A small model with random weights, for a demo without a package registry."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstats.checkpoint.bpe_tokenizer import ByteLevelBpe, byte_alphabet, write_tokenizer
from layerstats.checkpoint.writer import staged_directory, write_json, write_shards
from layerstats.demo_data.fetching import is_complete, write_marker
from layerstats.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["random_checkpoint"]

#: Names the recipe in the marker; a directory of an older recipe is not used again.
RECIPE = 1

_NOTE = """\
A model with random weights, made by layerstats so that the demo runs without a package registry.
It was never trained: its statistics show that the programs work and say nothing about language
models.
"""

_WIDTH, _INNER, _LAYERS, _HEADS, _KEY_HEADS = 128, 352, 8, 4, 2
_RANDOM_CONFIG: dict[str, Any] = {
    "_name_or_path": "layerstats/random (random weights, never trained)",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KEY_HEADS,
    "head_dim": _WIDTH // _HEADS,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "vocab_size": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
}


def random_checkpoint(path: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Make a small Llama with random weights and a byte tokenizer: 8 blocks, 2.7 MB, never trained.

    The tails of the weights grow heavier with depth so that plots of it are not flat.

    Parameters
    ----------
    path
        Directory to make. One made before by this function with the same seed is used again.
    seed
        Of the weights; the same seed gives the same files.

    Returns
    -------
    Path
        `path`: `_name_or_path` of its config and `NOTE.md` say that it is random.

    Raises
    ------
    UsageError
        `path` exists and is something else.
    """
    target = Path(path)
    if is_complete(target, recipe=RECIPE, seed=seed):
        return target
    shapes = _llama_shapes()
    order = {name: number for number, name in enumerate(shapes)}
    try:
        with staged_directory(target) as stage:
            write_shards(
                stage,
                shapes,
                lambda name: _random_tensor(name, shapes[name], seed * len(order) + order[name]),
                max_shard_bytes=1_000_000,
            )
            write_json(stage / "config.json", _RANDOM_CONFIG)
            tokens = [*byte_alphabet(), "<|endoftext|>"]
            write_tokenizer(
                stage,
                ByteLevelBpe(
                    tokens=tokens,
                    merges=(),
                    pre_tokenizer="gpt-2",
                    types=[1] * 256 + [3],
                    special={role: 256 for role in ("bos_token", "eos_token", "unk_token")},
                ),
            )
            (stage / "NOTE.md").write_text(_NOTE, encoding="utf-8")
            write_marker(stage, recipe=RECIPE, seed=seed)
    except UsageError:
        if is_complete(target, recipe=RECIPE, seed=seed):  # made by another process in the meantime
            return target
        raise
    return target


def _llama_shapes() -> dict[str, tuple[int, ...]]:
    keys = _WIDTH // _HEADS * _KEY_HEADS
    block = {
        "input_layernorm": (_WIDTH,),
        "self_attn.q_proj": (_WIDTH, _WIDTH),
        "self_attn.k_proj": (keys, _WIDTH),
        "self_attn.v_proj": (keys, _WIDTH),
        "self_attn.o_proj": (_WIDTH, _WIDTH),
        "post_attention_layernorm": (_WIDTH,),
        "mlp.gate_proj": (_INNER, _WIDTH),
        "mlp.up_proj": (_INNER, _WIDTH),
        "mlp.down_proj": (_WIDTH, _INNER),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (257, _WIDTH)}
    for layer in range(_LAYERS):
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in block.items()}
    return shapes | {"model.norm.weight": (_WIDTH,)}


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    parts = name.split(".")
    if parts[1] == "layers":
        spread = 0.05 + 0.05 * int(parts[2])
        weight *= torch.exp(spread * torch.randn((1, shape[1]), generator=generator))
        weight *= torch.exp(spread * torch.randn((shape[0], 1), generator=generator))
    return weight
