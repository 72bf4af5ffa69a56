"""A GGUF file of the Llama architecture -> a Hugging Face directory of safetensors shards.

One tensor is in memory at a time. For models that can be had as GGUF only. Anything this cannot
express exactly in `config.json` and `tokenizer.json` is refused by name, not written approximately.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerstats.checkpoint.bpe_tokenizer import PRE_TOKENIZERS, ByteLevelBpe, write_tokenizer
from layerstats.checkpoint.entry import UNREADABLE_KEY, TensorEntry
from layerstats.checkpoint.gguf import (
    read_gguf_array,
    read_gguf_index,
    read_gguf_tensor,
)
from layerstats.checkpoint.writer import staged_directory, write_json, write_shards
from layerstats.errors import CheckpointError, UsageError

__all__ = ["convert_gguf"]

_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_DENSE = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def convert_gguf(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_shard_bytes: int = 5_000_000_000,
    dtype: str = "bfloat16",
) -> Path:
    """Write a GGUF file as the Hugging Face directory it was made from, up to quantisation noise.

    Parameters
    ----------
    path
        A `.gguf` file: dense Llama architecture, byte-level BPE tokenizer (pre-tokenizer smollm,
        gpt-2 or llama-bpe), plain rotary embedding.
    out
        The directory to make; it must not exist and appears only when it is complete.
    max_shard_bytes
        Upper bound of the tensors in one shard.
    dtype
        `float32`, `float16` or `bfloat16`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    UsageError
        Another architecture or tokenizer, or `out` exists.
    CheckpointError
        The file is damaged.

    Notes
    -----
    One tensor is in memory at a time (float32 and in `dtype`).
    """
    source, target = Path(path), Path(out)
    entries, metadata = read_gguf_index(source)
    _refuse_what_cannot_be_written(source, entries, metadata)
    bpe = _tokenizer(source, metadata)
    config = _config(source, entries, metadata, dtype)
    shapes = {name: entries[name].shape for name in sorted(entries, key=_position)}
    with staged_directory(target) as stage:
        write_shards(
            stage,
            shapes,
            lambda name: read_gguf_tensor(entries[name], metadata),
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
        )
        write_json(stage / "config.json", config)
        tokens = {key: config[key] for key in config if key.endswith("_token_id")}
        write_json(stage / "generation_config.json", {"_from_model_config": True, **tokens})
        write_tokenizer(stage, bpe)
    return target


def _position(name: str) -> tuple[int, int, str]:
    """Order of tensors: embedding, blocks by number, final norm, head."""
    if match := _LAYER.fullmatch(name):
        return 1, int(match[1]), match[2]
    return {_EMBEDDING: 0, _FINAL_NORM: 2}.get(name, 3), 0, name


def _refuse_what_cannot_be_written(
    path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, Any]
) -> None:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        msg = (
            f"{path}: architecture {architecture!r} cannot be converted, only 'llama'; measure "
            "the .gguf file itself"
        )
        raise UsageError(msg)
    if unreadable := metadata[UNREADABLE_KEY]:
        name, reason = next(iter(unreadable.items()))
        msg = f"{path}: tensor {name!r} {reason}"
        raise CheckpointError(msg)
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if "rope_freqs.weight" in entries or scaling != "none":
        msg = f"{path}: scaled rotary embeddings cannot be converted; measure the .gguf file itself"
        raise UsageError(msg)
    _check_names(path, entries, _count(path, metadata, "llama.block_count"))


def _check_names(path: Path, entries: Mapping[str, TensorEntry], layers: int) -> None:
    """Refuse a tensor too many, which would be lost, and one too few, which would be made up."""
    blocks = {f"model.layers.{layer}.{part}" for layer in range(layers) for part in _DENSE}
    needed = {_EMBEDDING, _FINAL_NORM} | {f"{name}.weight" for name in blocks}
    allowed = needed | {_HEAD} | {f"{name}.bias" for name in blocks if not name.endswith("norm")}
    for name in entries:
        if name not in allowed:
            msg = f"{path}: tensor {name!r} has no place in a Llama of {layers} dense layers"
            msg += "; measure the .gguf file itself"
            raise UsageError(msg)
    if missing := sorted(needed - set(entries)):
        msg = f"{path}: tensor {missing[0]!r} and {len(missing) - 1} more are missing"
        msg += "; download the file again"
        raise CheckpointError(msg)


def _number(
    path: Path, metadata: Mapping[str, Any], key: str, default: float | None = None
) -> float:
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        msg = f"{path}: {key} is {value!r} in the GGUF header; config.json needs one number above 0"
        raise CheckpointError(msg)
    return value


def _count(path: Path, metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = _number(path, metadata, key, default)
    if not isinstance(value, int):
        msg = f"{path}: {key} is {value!r} in the GGUF header; config.json needs a whole number"
        raise CheckpointError(msg)
    return value


def _config(
    path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    def count(key: str, default: int | None = None) -> int:
        return _count(path, metadata, f"llama.{key}", default)

    def decimal(key: str, default: float | None = None) -> float:
        # The header holds float32; six digits give back the 1e-05 and 500000.0 that were meant.
        return float(f"{_number(path, metadata, f'llama.{key}', default):.6g}")

    heads = count("attention.head_count")
    width = count("embedding_length")
    rotary = count("rope.dimension_count", width // heads)
    head_dim = count("attention.key_length", rotary)
    if rotary != head_dim:
        msg = f"{path}: rotates {rotary} of {head_dim} dimensions of a head; a Llama rotates all"
        raise UsageError(msg)
    theta = decimal("rope.freq_base", 10000.0)
    tokens = {
        role.replace("_token", "_token_id"): metadata[key]
        for short, role in _SPECIAL.items()
        if role != "unk_token" and (key := f"tokenizer.ggml.{short}_token_id") in metadata
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": any(name.endswith("q_proj.bias") for name in entries),
        "attention_dropout": 0.0,
        "mlp_bias": any(name.endswith("up_proj.bias") for name in entries),
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": count("context_length"),
        "rms_norm_eps": decimal("attention.layer_norm_rms_epsilon"),
        # Written both ways: transformers 4 reads the first, transformers 5 the second.
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": _HEAD not in entries,
        "dtype": dtype,
        "use_cache": True,
        "vocab_size": entries[_EMBEDDING].shape[0],
        **tokens,
    }


def _tokenizer(path: Path, metadata: Mapping[str, Any]) -> ByteLevelBpe:
    model, rule = (
        metadata.get("tokenizer.ggml.model"),
        metadata.get("tokenizer.ggml.pre", "default"),
    )
    if model != "gpt2" or rule not in PRE_TOKENIZERS:
        msg = (
            f"{path}: tokenizer {model!r} with pre-tokenizer {rule!r} cannot be converted; "
            f"convertible are 'gpt2' with {', '.join(PRE_TOKENIZERS)}"
        )
        raise UsageError(msg)
    special = {
        role: metadata[key]
        for short, role in _SPECIAL.items()
        if (key := f"tokenizer.ggml.{short}_token_id") in metadata
    }
    return ByteLevelBpe(
        tokens=read_gguf_array(path, "tokenizer.ggml.tokens"),
        merges=read_gguf_array(path, "tokenizer.ggml.merges"),
        types=read_gguf_array(path, "tokenizer.ggml.token_type"),
        pre_tokenizer=rule,
        special=special,
        # llama.cpp puts a first token before every text of a Llama 3 unless the file forbids it.
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", rule == "llama-bpe")),
        max_length=metadata.get("llama.context_length"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )
