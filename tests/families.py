"""Tiny random checkpoints of many families, made with transformers: 4 blocks, several shards.

`make_family(name, directory)` writes one; `FAMILIES` are the names. One table of settings, no code
per family.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "FAMILIES",
    "LOCKSTEP",
    "MAIN_FAMILIES",
    "MOE",
    "VOCABULARY",
    "make_family",
    "make_tokenizer",
]

#: 256 bytes and two special tokens that calibration must never insert.
VOCABULARY = 258
_BLOCKS = 4

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": _BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_LOCAL = {"sliding_window": 8}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": _BLOCKS,
    "n_head": 4,
    "n_positions": 256,
}


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


#: name -> (model_type, settings)
_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "mistral": ("mistral", {**_LLAMA, **_LOCAL}),
    "qwen2": (
        "qwen2",
        {
            **_without(_LLAMA, "head_dim"),
            **_LOCAL,
            "use_sliding_window": True,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("qwen3", _LLAMA),
    "gemma2": ("gemma2", {**_LLAMA, **_LOCAL, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        {**_LLAMA, **_LOCAL, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    ),
    "phi3": ("phi3", _without(_LLAMA, "head_dim")),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", _without(_LLAMA, "head_dim", "num_key_value_heads")),
    "opt": (
        "opt",
        {
            **_without(_LLAMA, "head_dim", "num_key_value_heads"),
            "ffn_dim": 96,
            "word_embed_proj_dim": 32,
        },
    ),
    "falcon": (
        "falcon",
        {**_without(_LLAMA, "head_dim"), "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "olmo2": ("olmo2", _without(_LLAMA, "head_dim")),
    "mixtral": ("mixtral", {**_LLAMA, "intermediate_size": 32, "num_local_experts": 6}),
    "qwen3_moe": ("qwen3_moe", {**_LLAMA, **_EXPERTS}),
    "llama_tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 8}),
    "bloom": (
        "bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": _BLOCKS, "n_head": 4},
    ),
    "falcon_alibi": (
        "falcon",
        {
            **_without(_LLAMA, "head_dim"),
            "alibi": True,
            "multi_query": True,
            "new_decoder_architecture": False,
        },
    ),
    "gpt_oss": ("gpt_oss", {**_LLAMA, **_LOCAL, "num_local_experts": 6, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_without(_LLAMA, "head_dim"),
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
        },
    ),
    "llama4": (
        "llama4_text",
        {
            **_LLAMA,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8,
        },
    ),
    "bert": ("bert", {**_without(_LLAMA, "head_dim", "num_key_value_heads"), "pad_token_id": 0}),
    "roberta": (
        "roberta",
        {**_without(_LLAMA, "head_dim", "num_key_value_heads"), "pad_token_id": 1},
    ),
    "distilbert": (
        "distilbert",
        {
            "vocab_size": VOCABULARY,
            "dim": 64,
            "n_layers": _BLOCKS,
            "n_heads": 4,
            "hidden_dim": 96,
            "max_position_embeddings": 256,
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **_LLAMA,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_ssm": 128,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
    "rwkv": (
        "rwkv",
        {**_without(_LLAMA, "head_dim"), "attention_hidden_size": 64, "context_length": 256},
    ),
    "bamba": (
        "bamba",
        {
            **_without(_LLAMA, "head_dim"),
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
    "t5": (
        "t5",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
        },
    ),
}

#: The families that issue and README promise.
MAIN_FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "falcon",
    "olmo2",
    "mixtral",
    "qwen3_moe",
]
#: With experts; and those whose blocks pass on more than hidden states.
MOE = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4"]
LOCKSTEP = ["rwkv", "bamba"]
FAMILIES = [name for name in _TABLE if name != "t5"]


def make_family(name: str, directory: Path, *, seed: int = 0, shard_bytes: int = 150_000) -> Path:
    """Write a tiny random checkpoint with its tokenizer into `directory` and return that.

    Shards are so small that blocks straddle them. Weights are larger than transformers' initial
    ones, so that attention is not uniform and routers do not tie.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
    )
    from transformers.utils import logging

    model_type, settings = _TABLE[name]
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.for_model(model_type, **settings)
        auto = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
        if config.is_encoder_decoder:
            auto = AutoModelForSeq2SeqLM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = auto.from_config(config, dtype=torch.float32)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    # In place of transformers' 0.02: unit variance in, about unit variance out.
                    torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        model.save_pretrained(directory, max_shard_size=shard_bytes)
    finally:
        if bars:
            logging.enable_progress_bar()
    make_tokenizer(directory)
    return directory


def make_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer: one token a byte, ids 0-255, BOS unless told not to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", VOCABULARY - 2)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
