"""Names nobody has used yet, odd lists, and things beside a model that are no layers."""

from __future__ import annotations

from tests.checkpoint.names.spec import LLAMA_ENDS, Case, D, F, V, bart, bert, llama

__all__ = ["CASES"]

CASES: dict[str, Case] = {
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
        note="blocks [2, 3]",
    ),
    "no list at all": Case(
        {"encode.weight": (V, D), "decode.weight": (D, V)}, 0, None, [], note="no list of blocks"
    ),
    "a plain multi-layer perceptron": Case(
        {"net.{0|2|4}.weight": (D, D), "net.{0|2|4}.bias": (D,)}, 3, "net", 1
    ),
    "peft state, saved whole": Case(
        {
            "base_model.model.model.embed_tokens.weight": (V, D),
            "base_model.model.lm_head.weight": (V, D),
            "base_model.model.model.layers.{0..2}.self_attn.{q|v}_proj.base_layer.weight": (D, D),
            "base_model.model.model.layers.{0..2}.self_attn.{q|v}_proj.lora_A.default.weight": (
                4,
                D,
            ),
            "base_model.model.model.layers.{0..2}.self_attn.{q|v}_proj.lora_B.default.weight": (
                D,
                4,
            ),
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
