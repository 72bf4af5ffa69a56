"""Tensor names of real checkpoints of many families and habits, written short, with what is in them.

`expand` turns `"h.{0..3}.mlp.{up|down}.weight": (8, 4)` into every name it stands for; `CASES` is the table. Sizes
are small, names are the real ones (or, where a case says so, names that nobody has used yet).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstats.checkpoint.index import DTYPE_BITS, CheckpointIndex, TensorEntry

__all__ = ["CASES", "Case", "as_index", "expand"]

Spec = Mapping[str, tuple[Any, ...]]

V, D, F = 320, 64, 96  # rows of the embedding, width, inner width
L = range(3)


def expand(spec: Spec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return name -> (dtype, shape); a first string in the tuple is the dtype, F32 without."""
    tensors = {}
    for pattern, value in spec.items():
        dtype, shape = (value[0], value[1:]) if value and isinstance(value[0], str) else ("F32", value)
        choices = [_choices(part) for part in re.split(r"\{(.*?)\}", pattern)[1::2]]
        template = re.sub(r"\{.*?\}", "{}", pattern)
        for combination in itertools.product(*choices):
            tensors[template.format(*combination)] = (dtype, tuple(shape))
    return tensors


def _choices(part: str) -> list[str]:
    if ".." in part:
        first, last = map(int, part.split(".."))
        return [str(number) for number in range(first, last + 1)]
    return part.split("|")


def as_index(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> CheckpointIndex:
    """Make an index of tensors that lie in no file."""
    entries, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BITS.get(dtype, 8) // 8
        for number in shape:
            size *= number
        entries[name] = TensorEntry(name, Path("x.safetensors"), dtype, shape, size, offset)
        offset += size
    return CheckpointIndex(Path("x"), Path("x"), "safetensors", entries, (Path("x.safetensors"),), "")


@dataclass(frozen=True)
class Case:
    """`per_block` is the number of matrices of each layer (one number: of every layer)."""

    spec: Spec
    layers: int
    path: str | None
    per_block: int | list[int]
    stacks: dict[str, int] = field(default_factory=dict)
    tied: bool = False
    turned: str | None = None  # pattern of exactly the names stored as (in, out)
    config: dict[str, Any] | None = None
    note: str | None = None


def llama(prefix: str = "model.layers.{0..2}.", width: int = D, inner: int = F) -> dict[str, Any]:
    """The seven matrices and two norms of a Llama block."""
    return {
        prefix + "self_attn.{q|k|v|o}_proj.weight": (width, width),
        prefix + "mlp.{gate|up}_proj.weight": (inner, width),
        prefix + "mlp.down_proj.weight": (width, inner),
        prefix + "{input|post_attention}_layernorm.weight": (width,),
    }


def bert(prefix: str, width: int = D, inner: int = F) -> dict[str, Any]:
    """The six matrices of a BERT block, with biases and norms."""
    return {
        prefix + "attention.self.{query|key|value}.weight": (width, width),
        prefix + "attention.self.{query|key|value}.bias": (width,),
        prefix + "attention.output.dense.weight": (width, width),
        prefix + "attention.output.LayerNorm.{weight|bias}": (width,),
        prefix + "intermediate.dense.weight": (inner, width),
        prefix + "output.dense.weight": (width, inner),
        prefix + "output.LayerNorm.{weight|bias}": (width,),
    }


def bart(prefix: str, *, cross: bool, width: int = D) -> dict[str, Any]:
    """A block of BART, Whisper, M2M: six matrices, ten with cross-attention."""
    parts = "{self_attn|encoder_attn}" if cross else "self_attn"
    return {
        prefix + parts + ".{q|k|v|out}_proj.weight": (width, width),
        prefix + parts + ".{q|v|out}_proj.bias": (width,),
        prefix + "fc1.weight": (F, width),
        prefix + "fc2.weight": (width, F),
        prefix + "{self_attn_layer_norm|final_layer_norm}.{weight|bias}": (width,),
    }


def clip(prefix: str, width: int = 48) -> dict[str, Any]:
    """A block of a CLIP or SigLIP tower."""
    return {
        prefix + "self_attn.{q|k|v|out}_proj.weight": (width, width),
        prefix + "self_attn.{q|k|v|out}_proj.bias": (width,),
        prefix + "mlp.fc1.weight": (72, width),
        prefix + "mlp.fc2.weight": (width, 72),
        prefix + "layer_norm{1|2}.{weight|bias}": (width,),
    }


def gpt2(prefix: str) -> dict[str, Any]:
    """GPT-2 as the hub stores it: Conv1D weights and causal masks."""
    return {
        prefix + "wte.weight": (V, D),
        prefix + "wpe.weight": (40, D),
        prefix + "h.{0..2}.attn.bias": (1, 1, 40, 40),
        prefix + "h.{0..2}.attn.masked_bias": (),
        prefix + "h.{0..2}.attn.c_attn.weight": (D, 3 * D),
        prefix + "h.{0..2}.attn.c_attn.bias": (3 * D,),
        prefix + "h.{0..2}.attn.c_proj.weight": (D, D),
        prefix + "h.{0..2}.attn.c_proj.bias": (D,),
        prefix + "h.{0..2}.mlp.c_fc.weight": (D, 4 * D),
        prefix + "h.{0..2}.mlp.c_fc.bias": (4 * D,),
        prefix + "h.{0..2}.mlp.c_proj.weight": (4 * D, D),
        prefix + "h.{0..2}.mlp.c_proj.bias": (D,),
        prefix + "h.{0..2}.ln_{1|2}.{weight|bias}": (D,),
        prefix + "ln_f.{weight|bias}": (D,),
    }


def t5(side: str, blocks: int, *, per_block_bias: bool = False) -> dict[str, Any]:
    """One side of T5: sub-layers in a list of their own inside the block."""
    start = f"{side}.block.{{0..{blocks - 1}}}.layer."
    last = 1 if side == "encoder" else 2
    names: dict[str, Any] = {
        start + "0.SelfAttention.{q|k|v|o}.weight": (D, D),
        start + "{0..%d}.layer_norm.weight" % last: (D,),
        start + f"{last}.DenseReluDense.wi_{{0|1}}.weight": (F, D),
        start + f"{last}.DenseReluDense.wo.weight": (D, F),
    }
    where = start if per_block_bias else f"{side}.block.0.layer."
    names[where + "0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
    if side == "decoder":
        names[start + "1.EncDecAttention.{q|k|v|o}.weight"] = (D, D)
    return names


LLAMA_ENDS: dict[str, Any] = {
    "model.embed_tokens.weight": (V, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (V, D),
}
_MOE = "model.layers.{0..1}.block_sparse_moe."
_DEEPSEEK = "model.layers.{0..4}."


def _fp8(spec: Spec) -> dict[str, Any]:
    """Store the matrices as FP8 with a scale for each 128 x 128 block, as DeepSeek-V3 does."""
    stored: dict[str, Any] = {}
    for name, shape in spec.items():
        if len(shape) == 2 and "gate.weight" not in name:
            stored[name] = ("F8_E4M3", *shape)
            stored[name + "_scale_inv"] = (-(-shape[0] // 128), -(-shape[1] // 128))
        else:
            stored[name] = shape
    return stored


_DEEPSEEK_BLOCKS = {
    _DEEPSEEK + "self_attn.q_a_proj.weight": (24, D),
    _DEEPSEEK + "self_attn.q_a_layernorm.weight": (24,),
    _DEEPSEEK + "self_attn.q_b_proj.weight": (96, 24),
    _DEEPSEEK + "self_attn.kv_a_proj_with_mqa.weight": (32, D),
    _DEEPSEEK + "self_attn.kv_a_layernorm.weight": (24,),
    _DEEPSEEK + "self_attn.kv_b_proj.weight": (96, 24),
    _DEEPSEEK + "self_attn.o_proj.weight": (D, 48),
    "model.layers.0.mlp.{gate|up}_proj.weight": (F, D),
    "model.layers.0.mlp.down_proj.weight": (D, F),
    "model.layers.{1..4}.mlp.gate.weight": (16, D),
    "model.layers.{1..4}.mlp.gate.e_score_correction_bias": (16,),
    "model.layers.{1..4}.mlp.experts.{0..15}.{gate|up}_proj.weight": (32, D),
    "model.layers.{1..4}.mlp.experts.{0..15}.down_proj.weight": (D, 32),
    "model.layers.{1..4}.mlp.shared_experts.{gate|up}_proj.weight": (32, D),
    "model.layers.{1..4}.mlp.shared_experts.down_proj.weight": (D, 32),
    "model.layers.4.eh_proj.weight": (D, 2 * D),
}

CASES: dict[str, Case] = {
    "llama": Case({**LLAMA_ENDS, **llama()}, 3, "model.layers", 7),
    "llama, tied": Case(
        {"model.embed_tokens.weight": (V, D), **llama()}, 3, "model.layers", 7, tied=True
    ),
    "llama, tied, only the head stored": Case(
        {"lm_head.weight": (V, D), **llama()}, 3, "model.layers", 7, tied=True
    ),
    "deepseek-v3, fp8, one block of multi-token prediction": Case(
        {
            **LLAMA_ENDS,
            **_fp8(_DEEPSEEK_BLOCKS),
            "model.layers.4.{enorm|hnorm}.weight": (D,),
            "model.layers.4.embed_tokens.weight": (V, D),
            "model.layers.4.shared_head.head.weight": (V, D),
            "model.layers.4.shared_head.norm.weight": (D,),
        },
        4,
        "model.layers",
        [8, 5 + 1 + 51, 57, 57],
        stacks={"model.layers (multi-token prediction)": 1},
    ),
    "gpt-oss, mxfp4": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": ("BF16", D, D),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.bias": ("BF16", D),
            "model.layers.{0..2}.self_attn.sinks": ("BF16", 8),
            "model.layers.{0..2}.mlp.router.weight": ("BF16", 16, D),
            "model.layers.{0..2}.mlp.router.bias": ("BF16", 16),
            "model.layers.{0..2}.mlp.experts.{gate_up|down}_proj_blocks": ("U8", 16, D, 2, 16),
            "model.layers.{0..2}.mlp.experts.{gate_up|down}_proj_scales": ("U8", 16, D, 2),
            "model.layers.{0..2}.mlp.experts.{gate_up|down}_proj_bias": ("BF16", 16, D),
        },
        3,
        "model.layers",
        5,
    ),
    "gpt-oss, bf16, fused experts stored (expert, in, out)": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.{0..2}.mlp.router.weight": (16, D),
            "model.layers.{0..2}.mlp.experts.gate_up_proj": (16, D, 2 * F),
            "model.layers.{0..2}.mlp.experts.gate_up_proj_bias": (16, 2 * F),
            "model.layers.{0..2}.mlp.experts.down_proj": (16, F, D),
            "model.layers.{0..2}.mlp.experts.down_proj_bias": (16, D),
        },
        3,
        "model.layers",
        5 + 32,
        turned=r"experts",
    ),
    "mixtral": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..1}.self_attn.{q|k|v|o}_proj.weight": (D, D),
            _MOE + "gate.weight": (8, D),
            _MOE + "experts.{0..7}.{w1|w3}.weight": (F, D),
            _MOE + "experts.{0..7}.w2.weight": (D, F),
        },
        2,
        "model.layers",
        29,
    ),
    "qwen2-moe, 1 x d gate of the shared expert": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..1}.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.{0..1}.self_attn.{q|k|v}_proj.bias": (D,),
            "model.layers.{0..1}.mlp.gate.weight": (6, D),
            "model.layers.{0..1}.mlp.experts.{0..5}.{gate|up|down}_proj.weight": (D, D),
            "model.layers.{0..1}.mlp.shared_expert.{gate|up|down}_proj.weight": (D, D),
            "model.layers.{0..1}.mlp.shared_expert_gate.weight": (1, D),
        },
        2,
        "model.layers",
        4 + 1 + 18 + 3 + 1,
    ),
    "qwen3-moe, fused experts stored (expert, out, in)": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.{0..2}.self_attn.{q|k}_norm.weight": (16,),
            "model.layers.{0..2}.mlp.gate.weight": (8, D),
            "model.layers.{0..2}.mlp.experts.gate_up_proj": (8, 2 * F, D),
            "model.layers.{0..2}.mlp.experts.down_proj": (8, D, F),
        },
        3,
        "model.layers",
        5 + 16,
    ),
    "llama4, fused experts and a vision tower": Case(
        {
            "language_model.model.embed_tokens.weight": (V, D),
            "language_model.lm_head.weight": (V, D),
            "language_model.model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "language_model.model.layers.{0..2}.feed_forward.router.weight": (16, D),
            "language_model.model.layers.{0..2}.feed_forward.experts.gate_up_proj": (16, D, 2 * F),
            "language_model.model.layers.{0..2}.feed_forward.experts.down_proj": (16, F, D),
            "language_model.model.layers.{0..2}.feed_forward.shared_expert.{gate|up}_proj.weight": (F, D),
            "language_model.model.layers.{0..2}.feed_forward.shared_expert.down_proj.weight": (D, F),
            "multi_modal_projector.linear_1.weight": (D, 72),
            "vision_model.class_embedding": (48,),
            "vision_model.patch_embedding.linear.weight": (48, 108),
            "vision_model.positional_embedding_vlm": (10, 48),
            **clip("vision_model.model.layers.{0..6}."),
            "vision_model.vision_adapter.mlp.fc{1|2}.weight": (72, 72),
        },
        3,
        "language_model.model.layers",
        8 + 32,
        stacks={"vision_model.model.layers": 7},
        turned=r"experts",
    ),
    "gpt-2 on the hub, no prefix, no head": Case(
        gpt2(""), 3, "h", 4, tied=True, turned=r"^h\..*c_(attn|fc|proj)"
    ),
    "gpt-2 as saved today": Case(
        gpt2("transformer."), 3, "transformer.h", 4, tied=True, turned=r"c_(attn|fc|proj)"
    ),
    "nanoGPT, compiled: nn.Linear under Conv1D's names, no biases": Case(
        {
            "_orig_mod.transformer.wte.weight": (V, D),
            "_orig_mod.transformer.wpe.weight": (40, D),
            "_orig_mod.transformer.h.{0..2}.ln_{1|2}.weight": (D,),
            "_orig_mod.transformer.h.{0..2}.attn.c_attn.weight": (3 * D, D),
            "_orig_mod.transformer.h.{0..2}.attn.c_proj.weight": (D, D),
            "_orig_mod.transformer.h.{0..2}.mlp.c_fc.weight": (4 * D, D),
            "_orig_mod.transformer.h.{0..2}.mlp.c_proj.weight": (D, 4 * D),
            "_orig_mod.transformer.ln_f.weight": (D,),
            "_orig_mod.lm_head.weight": (V, D),
        },
        3,
        "transformer.h",
        4,
    ),
    "GPT-NeoX's own files: embedding, norm and head are numbered with the blocks": Case(
        {
            "sequential.0.word_embeddings.weight": (V, D),
            "sequential.{2..5}.attention.query_key_value.weight": (3 * D, D),
            "sequential.{2..5}.attention.query_key_value.bias": (3 * D,),
            "sequential.{2..5}.attention.dense.weight": (D, D),
            "sequential.{2..5}.attention.rotary_emb.inv_freq": (8,),
            "sequential.{2..5}.mlp.dense_h_to_4h.weight": (4 * D, D),
            "sequential.{2..5}.mlp.dense_4h_to_h.weight": (D, 4 * D),
            "sequential.{2..5}.input_layernorm.{weight|bias}": (D,),
            "sequential.7.norm.{weight|bias}": (D,),
            "sequential.8.final_linear.weight": (V, D),
        },
        4,
        "sequential",
        4,
    ),
    "gpt-neox in transformers": Case(
        {
            "gpt_neox.embed_in.weight": (V, D),
            "gpt_neox.layers.{0..2}.attention.bias": ("BOOL", 1, 1, 40, 40),
            "gpt_neox.layers.{0..2}.attention.masked_bias": (),
            "gpt_neox.layers.{0..2}.attention.query_key_value.weight": (3 * D, D),
            "gpt_neox.layers.{0..2}.attention.dense.weight": (D, D),
            "gpt_neox.layers.{0..2}.mlp.dense_h_to_4h.weight": (4 * D, D),
            "gpt_neox.layers.{0..2}.mlp.dense_4h_to_h.weight": (D, 4 * D),
            "embed_out.weight": (V, D),
        },
        3,
        "gpt_neox.layers",
        4,
    ),
    "distributed data parallel, twice wrapped": Case(
        {
            "module.module.model.embed_tokens.weight": (V, D),
            "module.module.lm_head.weight": (V, D),
            **llama("module.module.model.layers.{0..2}."),
        },
        3,
        "model.layers",
        7,
    ),
    "FSDP and activation checkpointing": Case(
        {
            "_fsdp_wrapped_module.model.embed_tokens.weight": (V, D),
            "_fsdp_wrapped_module.lm_head.weight": (V, D),
            **llama(
                "_fsdp_wrapped_module.model.layers.{0..2}._fsdp_wrapped_module"
                "._checkpoint_wrapped_module."
            ),
        },
        3,
        "model.layers",
        7,
    ),
    "sentence-transformers": Case(
        {
            "0.auto_model.embeddings.word_embeddings.weight": (V, D),
            "0.auto_model.embeddings.{position|token_type}_embeddings.weight": (40, D),
            "0.auto_model.embeddings.LayerNorm.{weight|bias}": (D,),
            **bert("0.auto_model.encoder.layer.{0..3}."),
            "0.auto_model.pooler.dense.weight": (D, D),
            "2.linear.weight": (48, D),
        },
        4,
        "0.auto_model.encoder.layer",
        6,
        config={"architectures": ["BertModel"]},
    ),
    "bert with its heads": Case(
        {
            "bert.embeddings.word_embeddings.weight": (V, D),
            "bert.embeddings.position_ids": ("I64", 1, 40),
            "bert.embeddings.{position|token_type}_embeddings.weight": (40, D),
            **bert("bert.encoder.layer.{0..3}."),
            "bert.pooler.dense.weight": (D, D),
            "cls.predictions.bias": (V,),
            "cls.predictions.transform.dense.weight": (D, D),
            "cls.predictions.decoder.weight": (V, D),
            "cls.seq_relationship.weight": (2, D),
        },
        4,
        "bert.encoder.layer",
        6,
    ),
    "roberta classifier": Case(
        {
            "roberta.embeddings.word_embeddings.weight": (V, D),
            **bert("roberta.encoder.layer.{0..3}."),
            "classifier.dense.weight": (D, D),
            "classifier.out_proj.weight": (3, D),
        },
        4,
        "roberta.encoder.layer",
        6,
        config={"architectures": ["RobertaForSequenceClassification"]},
    ),
    "t5": Case(
        {"shared.weight": (V, D), **t5("encoder", 4), **t5("decoder", 3)},
        7,
        "encoder.block + decoder.block",
        [7] * 4 + [11] * 3,
        tied=True,
    ),
    "umt5: a position table in each block, a head of its own": Case(
        {
            "shared.weight": (V, D),
            **t5("encoder", 2, per_block_bias=True),
            **t5("decoder", 3, per_block_bias=True),
            "lm_head.weight": (V, D),
        },
        5,
        "encoder.block + decoder.block",
        [7] * 2 + [11] * 3,
    ),
    "t5 encoder alone": Case(
        {"shared.weight": (V, D), **t5("encoder", 4)},
        4,
        "encoder.block",
        7,
        config={"architectures": ["T5EncoderModel"]},
    ),
    "bart": Case(
        {
            "model.shared.weight": (V, D),
            "model.{encoder|decoder}.embed_positions.weight": (40, D),
            **bart("model.encoder.layers.{0..3}.", cross=False),
            **bart("model.decoder.layers.{0..1}.", cross=True),
            "final_logits_bias": (1, V),
        },
        6,
        "model.encoder.layers + model.decoder.layers",
        [6] * 4 + [10] * 2,
        tied=True,
    ),
    "whisper": Case(
        {
            "model.encoder.conv1.weight": (D, 20, 3),
            "model.encoder.conv2.weight": (D, D, 3),
            "model.encoder.embed_positions.weight": (50, D),
            "model.decoder.embed_tokens.weight": (V, D),
            "model.decoder.embed_positions.weight": (40, D),
            **bart("model.encoder.layers.{0..3}.", cross=False),
            **bart("model.decoder.layers.{0..1}.", cross=True),
            "proj_out.weight": (V, D),
        },
        6,
        "model.encoder.layers + model.decoder.layers",
        [6] * 4 + [10] * 2,
    ),
    "opt": Case(
        {
            "model.decoder.embed_tokens.weight": (V, 32),
            "model.decoder.embed_positions.weight": (42, D),
            "model.decoder.project_in.weight": (D, 32),
            "model.decoder.project_out.weight": (32, D),
            **bart("model.decoder.layers.{0..2}.", cross=False),
        },
        3,
        "model.decoder.layers",
        6,
        tied=True,
    ),
    "clip: text beside a longer vision tower": Case(
        {
            "logit_scale": (),
            "text_model.embeddings.token_embedding.weight": (V, D),
            "text_model.embeddings.position_embedding.weight": (40, D),
            **clip("text_model.encoder.layers.{0..2}.", D),
            "text_projection.weight": (32, D),
            "vision_model.embeddings.patch_embedding.weight": (48, 3, 8, 8),
            **clip("vision_model.encoder.layers.{0..6}."),
            "visual_projection.weight": (32, 48),
        },
        3,
        "text_model.encoder.layers",
        6,
        stacks={"vision_model.encoder.layers": 7},
        config={"architectures": ["CLIPModel"]},
    ),
    "siglip, whose pooling head has a fused in_proj": Case(
        {
            "text_model.embeddings.token_embedding.weight": (V, D),
            **clip("text_model.encoder.layers.{0..2}.", D),
            "text_model.head.weight": (D, D),
            "vision_model.embeddings.patch_embedding.weight": (48, 3, 8, 8),
            **clip("vision_model.encoder.layers.{0..6}."),
            "vision_model.head.attention.in_proj_weight": (144, 48),
            "vision_model.head.mlp.fc{1|2}.weight": (48, 48),
            "vision_model.head.probe": (1, 1, 48),
        },
        3,
        "text_model.encoder.layers",
        6,
        stacks={"vision_model.encoder.layers": 7},
        config={"architectures": ["SiglipModel"]},
    ),
    "openai clip's own names": Case(
        {
            "token_embedding.weight": (V, D),
            "positional_embedding": (40, D),
            "text_projection": (D, 32),
            "transformer.resblocks.{0..2}.attn.in_proj_weight": (3 * D, D),
            "transformer.resblocks.{0..2}.attn.in_proj_bias": (3 * D,),
            "transformer.resblocks.{0..2}.attn.out_proj.weight": (D, D),
            "transformer.resblocks.{0..2}.mlp.c_fc.weight": (4 * D, D),
            "transformer.resblocks.{0..2}.mlp.c_fc.bias": (4 * D,),
            "transformer.resblocks.{0..2}.mlp.c_proj.weight": (D, 4 * D),
            "transformer.resblocks.{0..2}.mlp.c_proj.bias": (D,),
            "visual.conv1.weight": (48, 3, 8, 8),
            "visual.proj": (48, 32),
            "visual.transformer.resblocks.{0..6}.attn.in_proj_weight": (144, 48),
            "visual.transformer.resblocks.{0..6}.attn.out_proj.weight": (48, 48),
            "visual.transformer.resblocks.{0..6}.mlp.c_fc.weight": (192, 48),
            "visual.transformer.resblocks.{0..6}.mlp.c_proj.weight": (48, 192),
        },
        3,
        "transformer.resblocks",
        4,
        stacks={"visual.transformer.resblocks": 7},
        config={"architectures": ["CLIPModel"]},
    ),
    "llava": Case(
        {
            "language_model.model.embed_tokens.weight": (V, D),
            **llama("language_model.model.layers.{0..2}."),
            "language_model.lm_head.weight": (V, D),
            "multi_modal_projector.linear_{1|2}.weight": (D, D),
            "vision_tower.vision_model.embeddings.patch_embedding.weight": (48, 3, 8, 8),
            **clip("vision_tower.vision_model.encoder.layers.{0..6}."),
        },
        3,
        "language_model.model.layers",
        7,
        stacks={"vision_tower.vision_model.encoder.layers": 7},
    ),
    "the first llava: tower inside the text model, projector in a Sequential": Case(
        {
            **LLAMA_ENDS,
            **llama(),
            "model.mm_projector.{0|2}.weight": (D, D),
            "model.mm_projector.{0|2}.bias": (D,),
            "model.image_newline": (D,),
            "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight": (
                48, 3, 8, 8
            ),
            **clip("model.vision_tower.vision_tower.vision_model.encoder.layers.{0..6}."),
        },
        3,
        "model.layers",
        7,
        stacks={
            "model.mm_projector": 2,
            "model.vision_tower.vision_tower.vision_model.encoder.layers": 7,
        },
    ),
    "qwen2-vl": Case(
        {
            **LLAMA_ENDS,
            **llama(),
            "visual.patch_embed.proj.weight": (48, 3, 2, 8, 8),
            "visual.blocks.{0..6}.attn.qkv.weight": (144, 48),
            "visual.blocks.{0..6}.attn.proj.weight": (48, 48),
            "visual.blocks.{0..6}.mlp.fc1.weight": (96, 48),
            "visual.blocks.{0..6}.mlp.fc2.weight": (48, 96),
            "visual.merger.ln_q.weight": (48,),
            "visual.merger.mlp.{0|2}.weight": (D, D),
        },
        3,
        "model.layers",
        7,
        stacks={"visual.blocks": 7, "visual.merger.mlp": 2},
    ),
    "qwen2.5-vl, today's names": Case(
        {
            "model.language_model.embed_tokens.weight": (V, D),
            **llama("model.language_model.layers.{0..2}."),
            "lm_head.weight": (V, D),
            "model.visual.patch_embed.proj.weight": (48, 3, 2, 8, 8),
            **llama("model.visual.blocks.{0..6}.", 48, 80),
            "model.visual.merger.mlp.{0|2}.weight": (D, D),
        },
        3,
        "model.language_model.layers",
        7,
        stacks={"model.visual.blocks": 7, "model.visual.merger.mlp": 2},
    ),
    "gemma-3, multimodal": Case(
        {
            "language_model.model.embed_tokens.weight": (V, D),
            **llama("language_model.model.layers.{0..2}."),
            "language_model.model.layers.{0..2}.self_attn.{q|k}_norm.weight": (16,),
            "multi_modal_projector.mm_input_projection_weight": (48, D),
            "multi_modal_projector.mm_soft_emb_norm.weight": (48,),
            "vision_tower.vision_model.embeddings.patch_embedding.weight": (48, 3, 8, 8),
            "vision_tower.vision_model.embeddings.position_embedding.weight": (16, 48),
            **clip("vision_tower.vision_model.encoder.layers.{0..6}."),
        },
        3,
        "language_model.model.layers",
        7,
        stacks={"vision_tower.vision_model.encoder.layers": 7},
        tied=True,
    ),
    "mllama: cross-attention blocks among the others, two vision lists": Case(
        {
            "language_model.model.embed_tokens.weight": (V + 8, D),
            "language_model.lm_head.weight": (V, D),
            **llama("language_model.model.layers.{0|1|3}."),
            "language_model.model.layers.2.cross_attn.{q|k|v|o}_proj.weight": (D, D),
            "language_model.model.layers.2.cross_attn.{q|k}_norm.weight": (16,),
            "language_model.model.layers.2.cross_attn_{attn|mlp}_gate": (1,),
            "language_model.model.layers.2.mlp.{gate|up}_proj.weight": (F, D),
            "language_model.model.layers.2.mlp.down_proj.weight": (D, F),
            "multi_modal_projector.weight": (D, 48),
            "vision_model.patch_embedding.weight": (48, 3, 8, 8),
            **clip("vision_model.transformer.layers.{0..6}."),
            **clip("vision_model.global_transformer.layers.{0..4}."),
        },
        4,
        "language_model.model.layers",
        7,
        stacks={
            "vision_model.global_transformer.layers": 5,
            "vision_model.transformer.layers": 7,
        },
    ),
    "blip-2: q-former, vision tower, opt": Case(
        {
            "query_tokens": (1, 32, D),
            "language_projection.weight": (D, 48),
            "language_model.model.decoder.embed_tokens.weight": (V, D),
            **bart("language_model.model.decoder.layers.{0..2}.", cross=False),
            **bert("qformer.encoder.layer.{0..4}.", 48),
            **bert("qformer.encoder.layer.{0|2|4}.crossattention_", 48),
            "vision_model.embeddings.patch_embedding.weight": (40, 3, 8, 8),
            "vision_model.encoder.layers.{0..6}.self_attn.qkv.weight": (120, 40),
            "vision_model.encoder.layers.{0..6}.self_attn.projection.weight": (40, 40),
            "vision_model.encoder.layers.{0..6}.mlp.fc{1|2}.weight": (40, 40),
        },
        3,
        "language_model.model.decoder.layers",
        6,
        stacks={"qformer.encoder.layer": 5, "vision_model.encoder.layers": 7},
        tied=True,
    ),
    "florence-2: vision stages beside encoder and decoder": Case(
        {
            "language_model.model.shared.weight": (V, D),
            **bart("language_model.model.encoder.layers.{0..3}.", cross=False),
            **bart("language_model.model.decoder.layers.{0..1}.", cross=True),
            "image_projection": (48, D),
            "vision_tower.convs.{0..1}.proj.weight": (48, 3, 7, 7),
            "vision_tower.blocks.{0..1}.{0..2}.spatial_block.window_attn.fn.qkv.weight": (144, 48),
            "vision_tower.blocks.{0..1}.{0..2}.spatial_block.window_attn.fn.proj.weight": (48, 48),
            "vision_tower.blocks.{0..1}.{0..2}.spatial_block.ffn.fn.net.fc{1|2}.weight": (48, 48),
        },
        6,
        "language_model.model.encoder.layers + language_model.model.decoder.layers",
        [6] * 4 + [10] * 2,
        stacks={"vision_tower.blocks": 6},
        tied=True,
    ),
    "paligemma": Case(
        {
            "language_model.model.embed_tokens.weight": (V, D),
            **llama("language_model.model.layers.{0..2}."),
            "multi_modal_projector.linear.weight": (D, 48),
            "vision_tower.vision_model.embeddings.patch_embedding.weight": (48, 3, 8, 8),
            **clip("vision_tower.vision_model.encoder.layers.{0..6}."),
        },
        3,
        "language_model.model.layers",
        7,
        stacks={"vision_tower.vision_model.encoder.layers": 7},
        tied=True,
    ),
    "internvl": Case(
        {
            "language_model.model.tok_embeddings.weight": (V, D),
            "language_model.model.layers.{0..2}.attention.{wqkv|wo}.weight": (D, D),
            "language_model.model.layers.{0..2}.feed_forward.{w1|w2|w3}.weight": (D, D),
            "language_model.output.weight": (V, D),
            "mlp1.{1|3}.weight": (D, D),
            "mlp1.0.{weight|bias}": (D,),
            "vision_model.embeddings.patch_embedding.weight": (48, 3, 8, 8),
            "vision_model.encoder.layers.{0..6}.attn.qkv.weight": (144, 48),
            "vision_model.encoder.layers.{0..6}.attn.proj.weight": (48, 48),
            "vision_model.encoder.layers.{0..6}.mlp.fc{1|2}.weight": (48, 48),
        },
        3,
        "language_model.model.layers",
        5,
        stacks={"mlp1": 2, "vision_model.encoder.layers": 7},
    ),
    "qwen2-audio": Case(
        {
            "audio_tower.conv{1|2}.weight": (48, 20, 3),
            **bart("audio_tower.layers.{0..6}.", cross=False, width=48),
            "language_model.model.embed_tokens.weight": (V, D),
            **llama("language_model.model.layers.{0..2}."),
            "language_model.lm_head.weight": (V, D),
            "multi_modal_projector.linear.weight": (D, 48),
        },
        3,
        "language_model.model.layers",
        7,
        stacks={"audio_tower.layers": 7},
    ),
    "csm: depth decoder, codec": Case(
        {
            "backbone_model.embed_tokens.embed_audio_tokens.weight": (V, D),
            "embed_text_tokens.weight": (2 * V, D),
            **llama("backbone_model.layers.{0..3}."),
            "codec_model.encoder_transformer.layers.{0..6}.self_attn.{q|k|v|o}_proj.weight": (48, 48),
            "codec_model.encoder_transformer.layers.{0..6}.mlp.fc{1|2}.weight": (48, 48),
            **llama("depth_decoder.model.layers.{0..5}.", 48),
            "depth_decoder.codebooks_head.weight": (31, 48, 200),
            "lm_head.weight": (200, D),
        },
        4,
        "backbone_model.layers",
        7,
        stacks={"codec_model.encoder_transformer.layers": 7, "depth_decoder.model.layers": 6},
    ),
    "moshi: depth decoder and audio codec": Case(
        {
            "decoder.model.embed_tokens.weight": (V, D),
            "decoder.model.layers.{0..3}.self_attn.{q|k|v|o}_proj.linear.weight": (D, D),
            "decoder.model.layers.{0..3}.mlp.fc{1|2}.weight": (D, D),
            "decoder.lm_head.weight": (V, D),
            "embed_tokens.{0..3}.weight": (100, D),
            "depth_decoder.text_embed_tokens.weight": (V, 48),
            "depth_decoder.embed_tokens.{0..3}.weight": (100, 48),
            "depth_decoder.layers.{0..5}.self_attn.{q|k|v|o}_proj.linear.weight": (4, 48, 48),
            "depth_decoder.layers.{0..5}.mlp.fc{1|2}.weight": (4, 48, 48),
            "audio_encoder.encoder_transformer.layers.{0..6}.self_attn.{q|k|v|o}_proj.weight": (40, 40),
            "audio_encoder.encoder_transformer.layers.{0..6}.mlp.fc{1|2}.weight": (40, 40),
        },
        4,
        "decoder.model.layers",
        6,
        stacks={
            "audio_encoder.encoder_transformer.layers": 7,
            "depth_decoder.embed_tokens": 4,
            "depth_decoder.layers": 6,
            "embed_tokens": 4,
        },
    ),
    "albert: one stored block, used twelve times": Case(
        {
            "albert.embeddings.word_embeddings.weight": (V, 16),
            "albert.encoder.embedding_hidden_mapping_in.weight": (D, 16),
            "albert.encoder.albert_layer_groups.0.albert_layers.0.attention"
            ".{query|key|value|dense}.weight": (D, D),
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": (F, D),
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight": (D, F),
            "albert.pooler.weight": (D, D),
            "predictions.dense.weight": (16, D),
            "predictions.decoder.weight": (V, 16),
        },
        1,
        "albert.encoder.albert_layer_groups.0.albert_layers",
        6,
        tied=False,
        config={"num_hidden_layers": 12, "architectures": ["AlbertForMaskedLM"]},
        note="uses 12 times",
    ),
    "jamba: mamba, attention, experts": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0|2}.mamba.in_proj.weight": (4 * D, D),
            "model.layers.{0|2}.mamba.conv1d.weight": (2 * D, 1, 4),
            "model.layers.{0|2}.mamba.conv1d.bias": (2 * D,),
            "model.layers.{0|2}.mamba.x_proj.weight": (36, 2 * D),
            "model.layers.{0|2}.mamba.dt_proj.weight": (2 * D, 4),
            "model.layers.{0|2}.mamba.A_log": (2 * D, 16),
            "model.layers.{0|2}.mamba.D": (2 * D,),
            "model.layers.{0|2}.mamba.out_proj.weight": (D, 2 * D),
            "model.layers.1.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.{0|2}.feed_forward.{gate|up}_proj.weight": (F, D),
            "model.layers.{0|2}.feed_forward.down_proj.weight": (D, F),
            "model.layers.1.feed_forward.router.weight": (8, D),
            "model.layers.1.feed_forward.experts.{0..7}.{gate|up}_proj.weight": (F, D),
            "model.layers.1.feed_forward.experts.{0..7}.down_proj.weight": (D, F),
        },
        3,
        "model.layers",
        [7, 29, 7],
    ),
    "nemotron-h: each block is one mixer": Case(
        {
            "backbone.embeddings.weight": (V, D),
            "backbone.layers.{0|2}.mixer.in_proj.weight": (4 * D, D),
            "backbone.layers.{0|2}.mixer.out_proj.weight": (D, 2 * D),
            "backbone.layers.{0|2}.mixer.{A_log|D|dt_bias}": (8,),
            "backbone.layers.{1|3}.mixer.up_proj.weight": (F, D),
            "backbone.layers.{1|3}.mixer.down_proj.weight": (D, F),
            "backbone.layers.4.mixer.{q|k|v|o}_proj.weight": (D, D),
            "backbone.layers.{0..4}.norm.weight": (D,),
            "lm_head.weight": (V, D),
        },
        5,
        "backbone.layers",
        [2, 2, 2, 2, 4],
    ),
    "zamba2: a shared block inside some blocks": Case(
        {
            "model.embed_tokens.weight": (V, D),
            "model.layers.{0..3}.mamba.in_proj.weight": (4 * D, D),
            "model.layers.{0..3}.mamba.out_proj.weight": (D, 2 * D),
            "model.layers.{0..3}.mamba.conv1d.weight": (2 * D, 1, 4),
            "model.layers.{1|3}.linear.weight": (D, D),
            "model.layers.1.shared_transformer.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.1.shared_transformer.feed_forward.gate_up_proj.weight": (F, D),
            "model.layers.{1|3}.shared_transformer.feed_forward.gate_up_proj_adapter_list"
            ".{0|1}.{0|1}.weight": (8, D),
            "model.layers.1.shared_transformer.feed_forward.down_proj.weight": (D, F),
        },
        4,
        "model.layers",
        [2, 13, 2, 7],
        tied=True,
    ),
    "falcon-mamba": Case(
        {
            "backbone.embeddings.weight": (V, D),
            "backbone.layers.{0..3}.mixer.in_proj.weight": (4 * D, D),
            "backbone.layers.{0..3}.mixer.x_proj.weight": (36, 2 * D),
            "backbone.layers.{0..3}.mixer.dt_proj.weight": (2 * D, 4),
            "backbone.layers.{0..3}.mixer.A_log": (2 * D, 16),
            "backbone.layers.{0..3}.mixer.conv1d.weight": (2 * D, 1, 4),
            "backbone.layers.{0..3}.mixer.out_proj.weight": (D, 2 * D),
            "backbone.norm_f.weight": (D,),
        },
        4,
        "backbone.layers",
        4,
        tied=True,
    ),
    "rwkv": Case(
        {
            "rwkv.embeddings.weight": (V, D),
            "rwkv.blocks.{0..3}.attention.{key|value|receptance|output}.weight": (D, D),
            "rwkv.blocks.{0..3}.attention.time_{decay|first}": (D,),
            "rwkv.blocks.{0..3}.attention.time_mix_{key|value|receptance}": (1, 1, D),
            "rwkv.blocks.{0..3}.feed_forward.{key|value|receptance}.weight": (D, D),
            "rwkv.blocks.0.pre_ln.weight": (D,),
            "head.weight": (V, D),
        },
        4,
        "rwkv.blocks",
        7,
    ),
    "rwkv-6's own names": Case(
        {
            "emb.weight": (V, D),
            "blocks.{0..3}.att.{key|value|receptance|output|gate}.weight": (D, D),
            "blocks.{0..3}.att.time_maa_w1": (D, 160),
            "blocks.{0..3}.att.time_maa_w2": (5, 32, D),
            "blocks.{0..3}.att.time_decay_w1": (D, 64),
            "blocks.{0..3}.att.time_decay_w2": (64, D),
            "blocks.{0..3}.att.time_faaaa": (4, 16),
            "blocks.{0..3}.ffn.{key|value|receptance}.weight": (D, D),
            "head.weight": (V, D),
        },
        4,
        "blocks",
        8,
    ),
    "xlm: attention and feed-forward in lists beside each other": Case(
        {
            "transformer.embeddings.weight": (V, D),
            "transformer.position_embeddings.weight": (40, D),
            "transformer.attentions.{0..3}.{q|k|v|out}_lin.weight": (D, D),
            "transformer.attentions.{0..3}.{q|k|v|out}_lin.bias": (D,),
            "transformer.layer_norm{1|2}.{0..3}.{weight|bias}": (D,),
            "transformer.ffns.{0..3}.lin1.weight": (F, D),
            "transformer.ffns.{0..3}.lin2.weight": (D, F),
            "pred_layer.proj.weight": (V, D),
        },
        4,
        "transformer.attentions + transformer.ffns",
        6,
    ),
    "distilbert": Case(
        {
            "distilbert.embeddings.word_embeddings.weight": (V, D),
            "distilbert.transformer.layer.{0..3}.attention.{q|k|v|out}_lin.weight": (D, D),
            "distilbert.transformer.layer.{0..3}.ffn.lin1.weight": (F, D),
            "distilbert.transformer.layer.{0..3}.ffn.lin2.weight": (D, F),
            "vocab_transform.weight": (D, D),
            "vocab_projector.weight": (V, D),
        },
        4,
        "distilbert.transformer.layer",
        6,
    ),
    "esm, with a contact head": Case(
        {
            "esm.embeddings.word_embeddings.weight": (33, D),
            "esm.embeddings.position_ids": ("I64", 1, 40),
            **bert("esm.encoder.layer.{0..3}."),
            "esm.encoder.layer.{0..3}.attention.self.rotary_embeddings.inv_freq": (8,),
            "esm.contact_head.regression.weight": (1, 16),
            "lm_head.dense.weight": (D, D),
            "lm_head.decoder.weight": (33, D),
        },
        4,
        "esm.encoder.layer",
        6,
    ),
    "wav2vec2": Case(
        {
            "wav2vec2.feature_extractor.conv_layers.0.conv.weight": (40, 1, 10),
            "wav2vec2.feature_extractor.conv_layers.{1..5}.conv.weight": (40, 40, 3),
            "wav2vec2.feature_projection.projection.weight": (D, 40),
            "wav2vec2.encoder.pos_conv_embed.conv.weight_g": (1, 1, 128),
            "wav2vec2.encoder.pos_conv_embed.conv.weight_v": (D, 4, 128),
            "wav2vec2.encoder.layers.{0..3}.attention.{q|k|v|out}_proj.weight": (D, D),
            "wav2vec2.encoder.layers.{0..3}.feed_forward.intermediate_dense.weight": (F, D),
            "wav2vec2.encoder.layers.{0..3}.feed_forward.output_dense.weight": (D, F),
            "lm_head.weight": (32, D),
        },
        4,
        "wav2vec2.encoder.layers",
        6,
        config={"architectures": ["Wav2Vec2ForCTC"]},
    ),
    "vit": Case(
        {
            "vit.embeddings.cls_token": (1, 1, D),
            "vit.embeddings.patch_embeddings.projection.weight": (D, 3, 8, 8),
            "vit.embeddings.position_embeddings": (1, 17, D),
            **bert("vit.encoder.layer.{0..3}."),
            "classifier.weight": (10, D),
        },
        4,
        "vit.encoder.layer",
        6,
        config={"architectures": ["ViTForImageClassification"]},
    ),
    "swin: stages of blocks": Case(
        {
            "swin.embeddings.patch_embeddings.projection.weight": (D, 3, 4, 4),
            **bert("swin.encoder.layers.0.blocks.{0..1}."),
            **bert("swin.encoder.layers.1.blocks.{0..5}.", 2 * D, 4 * D),
            "swin.encoder.layers.{0|1}.blocks.{0..1}.attention.self"
            ".relative_position_bias_table": (49, 4),
            "swin.encoder.layers.{0|1}.blocks.{0..1}.attention.self"
            ".relative_position_index": ("I64", 16, 16),
            "swin.encoder.layers.0.downsample.reduction.weight": (2 * D, 4 * D),
            "classifier.weight": (10, 2 * D),
        },
        8,
        "swin.encoder.layers",
        6,
        config={"architectures": ["SwinForImageClassification"]},
    ),
    "dinov2": Case(
        {
            "embeddings.patch_embeddings.projection.weight": (D, 3, 8, 8),
            "encoder.layer.{0..3}.attention.attention.{query|key|value}.weight": (D, D),
            "encoder.layer.{0..3}.attention.output.dense.weight": (D, D),
            "encoder.layer.{0..3}.layer_scale{1|2}.lambda1": (D,),
            "encoder.layer.{0..3}.mlp.fc1.weight": (F, D),
            "encoder.layer.{0..3}.mlp.fc2.weight": (D, F),
        },
        4,
        "encoder.layer",
        6,
        config={"architectures": ["Dinov2Model"]},
    ),
    "bitsandbytes, 4 bits": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": ("U8", D * D // 2, 1),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight.absmax": ("U8", D * D // 64),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight.nested_absmax": (1,),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight.quant_map": (16,),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight"
            ".quant_state.bitsandbytes__nf4": ("U8", 80),
            "model.layers.{0..2}.input_layernorm.weight": (D,),
        },
        3,
        "model.layers",
        0,
    ),
    "bitsandbytes, int8": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": ("I8", D, D),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.SCB": (D,),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight_format": ("U8",),
        },
        3,
        "model.layers",
        0,
    ),
    "gptq": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.qweight": ("I32", D // 8, D),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.qzeros": ("I32", 2, D // 8),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.scales": ("F16", 2, D),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.g_idx": ("I32", D),
            "model.layers.{0..2}.input_layernorm.weight": ("F16", D),
        },
        3,
        "model.layers",
        0,
    ),
    "compressed-tensors, 4 bits packed": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight_packed": ("I32", D, D // 8),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight_scale": ("BF16", D, 2),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight_shape": ("I64", 2),
        },
        3,
        "model.layers",
        0,
    ),
    "compressed-tensors, fp8 with a scale per row": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": ("F8_E4M3", D, D),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight_scale": ("BF16", D, 1),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.input_scale": ("BF16", 1),
        },
        3,
        "model.layers",
        4,
    ),
    "hqq": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.W_q": ("U8", D // 2, D),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.{scale|zero}": ("F16", D, 1),
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.{nbits|group_size}": ("I32",),
            "model.layers.{0..2}.input_layernorm.weight": ("F16", D),
        },
        3,
        "model.layers",
        0,
    ),
    "unseen names: a longer tower of eyes beside a brain": Case(
        {
            "brain.symbols.weight": (V, D),
            "brain.units.{0..2}.focus.{a|b|c|d}.weight": (D, D),
            "brain.units.{0..2}.think.{up|down}.weight": (D, D),
            "eyes.pixels.weight": (48, 3, 8, 8),
            "eyes.blocks.{0..6}.focus.{a|b|c|d}.weight": (48, 48),
            "eyes.blocks.{0..6}.think.{up|down}.weight": (48, 48),
            "speak.weight": (V, D),
        },
        3,
        "brain.units",
        6,
        stacks={"eyes.blocks": 7},
    ),
    "unseen names: the tower is wider, too, and has no convolution": Case(
        {
            "brain.symbols.weight": (V, D),
            "brain.units.{0..2}.focus.{a|b|c|d}.weight": (D, D),
            "eyes.units.{0..6}.focus.{a|b|c|d}.weight": (2 * D, 2 * D),
            "eyes.pixels.weight": (2 * D, 192),
            "speak.weight": (V, D),
        },
        3,
        "brain.units",
        4,
        stacks={"eyes.units": 7},
    ),
    "unseen names: 64 specialists in each of 2 blocks": Case(
        {
            "trunk.symbols.weight": (V, D),
            "trunk.rungs.{0..1}.mix.{a|b|c|d}.weight": (D, D),
            "trunk.rungs.{0..1}.crowd.chooser.weight": (64, D),
            "trunk.rungs.{0..1}.crowd.members.{0..63}.{in|out}.weight": (D, D),
        },
        2,
        "trunk.rungs",
        4 + 1 + 128,
        tied=True,
    ),
    "unseen names: specialists in one tensor": Case(
        {
            "trunk.symbols.weight": (V, D),
            "trunk.rungs.{0..1}.mix.{a|b|c|d}.weight": (D, D),
            "trunk.rungs.{0..1}.crowd.chooser.weight": (16, D),
            "trunk.rungs.{0..1}.crowd.w_in": (16, F, D),
            "trunk.rungs.{0..1}.crowd.w_out": (16, D, F),
        },
        2,
        "trunk.rungs",
        4 + 1 + 32,
        tied=True,
    ),
    "one block": Case({**LLAMA_ENDS, **llama("model.layers.0.")}, 1, "model.layers", 7),
    "one block of experts": Case(
        {
            **LLAMA_ENDS,
            "model.layers.0.self_attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.0.mlp.gate.weight": (8, D),
            "model.layers.0.mlp.experts.{0..7}.{gate|up|down}_proj.weight": (D, D),
        },
        1,
        "model.layers",
        29,
    ),
    "one block of experts with attention-like names": Case(
        {
            **LLAMA_ENDS,
            "model.layers.0.attn.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.0.moe.{0..7}.{q_proj|k_proj|up|down}.weight": (D, D),
        },
        1,
        "model.layers",
        4 + 32,
    ),
    "numbers glued to words": Case(
        {
            "tok_embeddings.weight": (V, D),
            "layer_{0..3}.attn.{q|k|v|o}.weight": (D, D),
            "layer_{0..3}.mlp.{up|down}.weight": (D, D),
            "layer_{0..3}.ln1.weight": (D,),
            "head.weight": (V, D),
        },
        4,
        "layer",
        6,
    ),
    "numbers glued to words, deeper, ten and more": Case(
        {
            "model.embed.weight": (V, D),
            "model.block10.attn.{q|k|v|o}.weight": (D, D),
            "model.block{0..9}.attn.{q|k|v|o}.weight": (D, D),
        },
        11,
        "model.block",
        4,
        tied=True,
    ),
    "lists inside blocks": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.attns.{0|1}.{q|k|v|o}_proj.weight": (D, D),
            "model.layers.{0..2}.mlps.{0|1}.{gate|up|down}_proj.weight": (D, D),
        },
        3,
        "model.layers",
        14,
    ),
    "megatron-core": Case(
        {
            "embedding.word_embeddings.weight": (V, D),
            "decoder.layers.{0..2}.self_attention.linear_{qkv|proj}.weight": (D, D),
            "decoder.layers.{0..2}.self_attention.linear_qkv.layer_norm_weight": (D,),
            "decoder.layers.{0..2}.mlp.linear_fc{1|2}.weight": (D, D),
            "output_layer.weight": (V, D),
        },
        3,
        "decoder.layers",
        4,
    ),
    "blocks without weights: gaps in the numbers": Case(
        {
            **LLAMA_ENDS,
            **llama("model.layers.{0|1|4|5}."),
            "model.layers.{2|3}.input_layernorm.weight": (D,),
        },
        4,
        "model.layers",
        7,
        config={"num_hidden_layers": 6},
        note="blocks 2-3",
    ),
    "no list at all": Case({"encode.weight": (V, D), "decode.weight": (D, V)}, 0, None, [],
        note="no list of blocks"),
    "a plain multi-layer perceptron": Case(
        {"net.{0|2|4}.weight": (D, D), "net.{0|2|4}.bias": (D,)}, 3, "net", 1
    ),
    "peft state, saved whole": Case(
        {
            "base_model.model.model.embed_tokens.weight": (V, D),
            "base_model.model.lm_head.weight": (V, D),
            "base_model.model.model.layers.{0..2}.self_attn.{q|v}_proj.base_layer.weight": (D, D),
            "base_model.model.model.layers.{0..2}.self_attn.{q|v}_proj.lora_A.default.weight": (4, D),
            "base_model.model.model.layers.{0..2}.self_attn.{q|v}_proj.lora_B.default.weight": (D, 4),
            "base_model.model.model.layers.{0..2}.self_attn.{k|o}_proj.weight": (D, D),
            "base_model.model.model.layers.{0..2}.mlp.{gate|up|down}_proj.weight": (D, D),
        },
        3,
        "model.layers",
        7,
    ),
    "bfloat16 and int8 side by side": Case(
        {
            **LLAMA_ENDS,
            "model.layers.{0..2}.self_attn.{q|k|v|o}_proj.weight": ("BF16", D, D),
            "model.layers.{0..2}.mlp.{gate|up|down}_proj.weight": ("I8", D, D),
            "model.layers.{0..2}.mlp.{gate|up|down}_proj.weight_scale": ("F32", D, 1),
        },
        3,
        "model.layers",
        7,
    ),
    "norm weights of two dimensions": Case(
        {
            **LLAMA_ENDS,
            **llama(),
            "model.layers.{0..2}.self_attn.q_norm.weight": (8, 8),
            "model.layers.{0..2}.self_attn.k_layernorm.norms.{0|1}.weight": (8, 8),
        },
        3,
        "model.layers",
        7,
    ),
    "an audio encoder beside a language model: no encoder-decoder": Case(
        {
            **LLAMA_ENDS,
            **llama(),
            "encoder.conv1.weight": (48, 20, 3),
            **bart("encoder.layers.{0..6}.", cross=False, width=48),
            "projection.weight": (D, 48),
        },
        3,
        "model.layers",
        7,
        stacks={"encoder.layers": 7},
    ),
    "an encoder beside a language model called decoder: no encoder-decoder": Case(
        {
            "decoder.model.embed_tokens.weight": (V, D),
            **llama("decoder.model.layers.{0..2}."),
            "decoder.lm_head.weight": (V, D),
            "encoder.layers.{0..6}.self_attn.{q|k|v|o}_proj.weight": (48, 48),
            "encoder.layers.{0..6}.fc{1|2}.weight": (48, 48),
            "encoder.patch.weight": (48, 3, 8, 8),
        },
        3,
        "decoder.model.layers",
        7,
        stacks={"encoder.layers": 7},
    ),
    "trocr: a vision encoder, a text decoder": Case(
        {
            "decoder.model.decoder.embed_tokens.weight": (V, D),
            **bart("decoder.model.decoder.layers.{0..2}.", cross=True),
            "encoder.embeddings.patch_embeddings.projection.weight": (48, 3, 8, 8),
            **bert("encoder.encoder.layer.{0..6}.", 48),
        },
        3,
        "decoder.model.decoder.layers",
        10,
        stacks={"encoder.encoder.layer": 7},
        tied=True,
    ),
    "a speech encoder with 2-D convolutions and a decoder of other names": Case(
        {
            "encoder.pre_encode.conv.{0|2}.weight": (32, 1, 3, 3),
            "encoder.layers.{0..3}.self_attn.linear_{q|k|v|out|pos}.weight": (D, D),
            "encoder.layers.{0..3}.self_attn.pos_bias_{u|v}": (4, 16),
            "encoder.layers.{0..3}.conv.pointwise_conv{1|2}.weight": (D, D, 1),
            "encoder.layers.{0..3}.feed_forward1.linear{1|2}.weight": (D, D),
            "transf_decoder._embedding.token_embedding.weight": (V, D),
            "transf_decoder._decoder.layers.{0..2}.{first|second}_sub_layer"
            ".{query|key|value}_net.weight": (D, D),
            "transf_decoder._decoder.layers.{0..2}.{first|second}_sub_layer"
            ".out_projection.weight": (D, D),
            "transf_decoder._decoder.layers.{0..2}.third_sub_layer.dense_{in|out}.weight": (D, D),
            "log_softmax.mlp.layer0.weight": (V, D),
        },
        7,
        "encoder.layers + transf_decoder._decoder.layers",
        [7] * 4 + [10] * 3,
    ),
    "prediction of further tokens in a list of its own": Case(
        {**LLAMA_ENDS, **llama(), **llama("mtp.layers.{0..0}."), "mtp.fc.weight": (D, 2 * D)},
        3,
        "model.layers",
        7,
        stacks={"mtp.layers": 1},
    ),
    "medusa heads": Case(
        {**LLAMA_ENDS, **llama(), "medusa_head.{0..4}.{0|1}.linear.weight": (D, D)},
        3,
        "model.layers",
        7,
        stacks={"medusa_head": 5},
    ),
}
