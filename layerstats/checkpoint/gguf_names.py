"""llama.cpp's tensor names -> Hugging Face's, and what its converter changed on the way.

Only architectures whose names and values this scheme covers exactly are listed; a file of any other
one keeps its names (`blk.0.attn_q.weight`) and its values. The rules are those of llama.cpp's
converter (`convert_hf_to_gguf.py` and `conversion/*.py` of ggml-org/llama.cpp), read backwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from layerstats.errors import CheckpointError

__all__ = ["EXPERT", "TRANSLATED", "heads_to_unpermute", "norm_is_shifted", "translate"]

#: Stands for the number of an expert in a translated name of a tensor that holds all experts of a
#: block.
EXPERT = "{expert}"

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MOE = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": f"mlp.experts.{EXPERT}.gate_proj",
    "ffn_up_exps": f"mlp.experts.{EXPERT}.up_proj",
    "ffn_down_exps": f"mlp.experts.{EXPERT}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
#: Mixtral is of architecture `llama` in GGUF and keeps the names of its own checkpoint.
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": f"block_sparse_moe.experts.{EXPERT}.w1",
    "ffn_down_exps": f"block_sparse_moe.experts.{EXPERT}.w2",
    "ffn_up_exps": f"block_sparse_moe.experts.{EXPERT}.w3",
}
_NORMS_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {"ffn_up": "mlp.gate_up_proj"}

#: architecture in the file -> parts of a block that differ from `_BLOCK`.
TRANSLATED: dict[str, dict[str, str]] = {
    "llama": _MIXTRAL,
    "mistral3": {},
    "arcee": {},
    "smollm3": {},
    "granite": {},
    "olmo": {},
    "olmo2": _NORMS_AROUND,
    "olmoe": _MOE,
    "qwen2": {},
    "qwen2moe": _MOE,
    "qwen3": {},
    "qwen3moe": _MOE,
    "gemma": {},
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND,
    "phi3": _PHI3,
    "command-r": {},
    "cohere2": {},
}

#: Architectures whose converter reorders the rows of q and k inside each head (from "two halves" to
#: "pairs" rotary order). llama4, apertus, qwen*, gemma*, phi3, olmo2, olmoe and cohere are written
#: as they are.
_PERMUTED = frozenset({"llama", "mistral3", "arcee", "smollm3", "granite", "olmo"})

#: Gemma multiplies by (1 + w); its converter stores 1 + w for every norm.
_SHIFTED = frozenset({"gemma", "gemma2", "gemma3"})

_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(.+?)(\.weight|\.bias)?")
_ONE_EXPERT = re.compile(r"(ffn_(?:gate|up|down))\.(\d+)")
_ROTATED = re.compile(r"model\.layers\.(\d+)\.self_attn\.([qk])_proj\.(weight|bias)")


def translate(architecture: str, name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor, or the name itself where there is none.

    A tensor that holds all experts of a block gets a name with `EXPERT` in the place of the number.
    In a translated architecture a part without a counterpart keeps its own word inside the block's
    name, so that the block stays one.

    Examples
    --------
    >>> translate("llama", "blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    >>> translate("qwen3moe", "blk.0.ffn_up_exps.weight")
    'model.layers.0.mlp.experts.{expert}.up_proj.weight'
    >>> translate("gpt2", "blk.3.attn_qkv.weight")
    'blk.3.attn_qkv.weight'
    """
    own = TRANSLATED.get(architecture)
    if own is None:
        return name
    match = _BLOCK_NAME.fullmatch(name)
    if match is None:
        stem, dot, leaf = name.rpartition(".")
        return f"{_TOP[stem]}.{leaf}" if dot and stem in _TOP else name
    layer, part, leaf = match[1], match[2], match[3] or ""
    parts = _BLOCK | own
    if one := _ONE_EXPERT.fullmatch(part):  # files of 2023 hold each expert as a tensor of its own
        target = parts.get(f"{one[1]}_exps", part).replace(EXPERT, one[2])
    else:
        target = parts.get(part, part)
    return f"model.layers.{layer}.{target}{leaf}"


def heads_to_unpermute(name: str, metadata: Mapping[str, Any]) -> int | None:
    """Return the number of heads whose rows must be put back in order, None if they are in order.

    Parameters
    ----------
    name
        Translated name of the tensor.
    metadata
        Key-values of the file.

    Raises
    ------
    CheckpointError
        The tensor is permuted and the file does not say how many heads there are.
    """
    architecture = metadata.get("general.architecture")
    match = _ROTATED.fullmatch(name)
    if (
        match is None
        or architecture not in _PERMUTED
        or (architecture == "olmo" and match[3] == "bias")
    ):
        return None
    heads = metadata.get(f"{architecture}.attention.head_count")
    if match[2] == "k":
        heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    layer = int(match[1])
    if isinstance(heads, list) and layer < len(heads):
        heads = heads[layer]
    if not isinstance(heads, int) or heads <= 0:
        msg = (
            f"{name}: {architecture}.attention.head_count is {heads!r} in the GGUF header; the "
            "rows cannot be ordered"
        )
        raise CheckpointError(msg)
    return heads


def norm_is_shifted(name: str, metadata: Mapping[str, Any]) -> bool:
    """Tell whether the file holds 1 + w where Hugging Face holds w (norms of Gemma 1, 2, 3)."""
    return metadata.get("general.architecture") in _SHIFTED and name.endswith("norm.weight")
