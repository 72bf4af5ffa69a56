"""Writes tiny GGUF files the way llama.cpp's converter does, from Hugging Face's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

HEADS, KEY_HEADS, HEAD_DIM, WIDTH, INNER, LAYERS, VOCAB = 4, 2, 16, 64, 96, 2, 300


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row order of llama.cpp: the two halves of each head interleaved (LlamaModel.permute)."""
    order = []
    size = weight.shape[0] // heads
    for head in range(heads):
        for pair in range(size // 2):
            order += [head * size + pair, head * size + size // 2 + pair]
    return weight[order]


def dense_tensors(seed: int = 0, *, tied: bool = True) -> dict[str, np.ndarray]:
    """Random weights of a tiny Llama, by Hugging Face name."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        shapes |= {
            block + "input_layernorm": (WIDTH,),
            block + "self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH),
            block + "self_attn.k_proj": (KEY_HEADS * HEAD_DIM, WIDTH),
            block + "self_attn.v_proj": (KEY_HEADS * HEAD_DIM, WIDTH),
            block + "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
            block + "post_attention_layernorm": (WIDTH,),
            block + "mlp.gate_proj": (INNER, WIDTH),
            block + "mlp.up_proj": (INNER, WIDTH),
            block + "mlp.down_proj": (WIDTH, INNER),
        }
    if not tied:
        shapes["lm_head"] = (VOCAB, WIDTH)
    return {
        f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def quantized(weight: np.ndarray, kind: Type) -> np.ndarray:
    """What reading back gives: the weight after a round trip through the type."""
    if weight.ndim < 2:
        return weight
    return gguf.dequantize(gguf.quantize(weight, kind), kind).reshape(weight.shape)


def gguf_name(architecture: str, name: str) -> str:
    """The name that gguf's own table gives a Hugging Face tensor."""
    kinds = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[architecture], LAYERS)
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, f"gguf does not know {name}"
    return found


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    architecture: str = "llama",
    kind: Type | Callable[[str], Type] = Type.F32,
    permuted: bool = True,
    values: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write tensors (Hugging Face names and row order) as a GGUF file; vectors stay F32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    if values is not None:
        values(writer)
    for name, weight in tensors.items():
        data = weight
        if permuted and ".q_proj." in name:
            data = permute(weight, HEADS)
        if permuted and ".k_proj." in name:
            data = permute(weight, KEY_HEADS)
        chosen = kind(name) if callable(kind) else kind
        chosen = chosen if data.ndim > 1 else Type.F32
        writer.add_tensor(
            gguf_name(architecture, name), gguf.quantize(data, chosen), raw_dtype=chosen
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_byte_tokenizer(writer: gguf.GGUFWriter, pre: str = "gpt-2") -> None:
    """A byte-level vocabulary of VOCAB tokens with a few merges and two control tokens."""
    from layerstats.checkpoint.bpe_tokenizer import byte_alphabet

    tokens = byte_alphabet()
    merges = ["t h", "th e", "Ġ the", "1 2", "12 3", "o f"]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<|begin|>", "<|end|>"]
    types = [1] * (256 + len(merges)) + [3, 3]
    tokens += [f"[PAD{number}]" for number in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types + [5] * (VOCAB - len(types)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(262)
    writer.add_eos_token_id(263)
