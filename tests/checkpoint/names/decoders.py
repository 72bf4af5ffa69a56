"""Decoders, dense and with experts, and what training wrappers make of their names."""

from __future__ import annotations

from typing import Any

from tests.checkpoint.names.spec import LLAMA_ENDS, Case, D, F, Spec, V, clip, gpt2, llama

__all__ = ["CASES"]

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
            "language_model.model.layers.{0..2}.feed_forward.shared_expert.{gate|up}_proj.weight": (
                F,
                D,
            ),
            "language_model.model.layers.{0..2}.feed_forward.shared_expert.down_proj.weight": (
                D,
                F,
            ),
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
}
