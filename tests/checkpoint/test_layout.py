"""What each tensor is: direction, experts, kinds, head and ties, what is left out and why."""

from __future__ import annotations

import re

import pytest

from layerstats.checkpoint.layout import Matrix, find_layout
from layerstats.checkpoint.roles import skip_reason, turned_conv1d, turned_experts
from tests.checkpoint.names import decoders, hybrids, multimodal
from tests.checkpoint.names.spec import LLAMA_ENDS, D, F, V, as_index, expand, llama
from tests.checkpoint.test_stacks import CASES

EXPERTS = ("qwen3-moe", "gpt-oss, bf16", "llama4")


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_right_tensors_are_turned(name: str) -> None:
    case = CASES[name]
    layout = find_layout(as_index(expand(case.spec)), case.config)
    turned = {matrix.name for matrix in layout.matrices if matrix.transposed}
    measured = {matrix.name for matrix in layout.matrices}
    assert turned == {key for key in measured if case.turned and re.search(case.turned, key)}


def test_conv1d_is_turned_to_out_in() -> None:
    layout = find_layout(as_index(expand(decoders.CASES["gpt-2 as saved today"].spec)))
    shapes = {matrix.path: matrix.shape for matrix in layout.of_layer(1)}
    assert shapes == {
        "attn.c_attn": (3 * D, D),
        "attn.c_proj": (D, D),
        "mlp.c_fc": (4 * D, D),
        "mlp.c_proj": (D, 4 * D),
    }


def test_a_square_conv1d_follows_the_others() -> None:
    rest = [("h.0.c_fc.weight", (4, 16), 16), ("h.0.c_proj.weight", (4, 4), 4)]
    assert turned_conv1d(rest) == {"h.0.c_fc.weight", "h.0.c_proj.weight"}
    straight = [("h.0.c_fc.weight", (16, 4), 16), ("h.0.c_proj.weight", (4, 4), 4)]
    assert turned_conv1d(straight) == set()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(EXPERTS)])
def test_fused_experts_have_rows_of_their_own(name: str) -> None:
    layout = find_layout(as_index(expand(CASES[name].spec)))
    rows = [matrix for matrix in layout.of_layer(0) if matrix.fused]
    count = len({matrix.expert for matrix in rows})
    assert len(rows) == 2 * count
    up = [matrix for matrix in rows if "up" in matrix.module]
    assert {matrix.shape for matrix in up} == {(2 * F, D)}
    assert {matrix.shape for matrix in rows if matrix not in up} == {(D, F)}
    assert up[3].key == f"{up[3].name}[3]"
    assert up[3].path == up[3].module.replace("experts", "experts.3")
    assert sum(matrix.nbytes for matrix in up) == count * 2 * F * D * 4


@pytest.mark.parametrize("width", [8, 12, 99])
@pytest.mark.parametrize("gated", [1, 2])
@pytest.mark.parametrize(
    ("up", "down"),
    [("gate_up_proj", "down_proj"), ("input_linear.weight", "output_linear.weight"), ("w1", "w2")],
)
def test_direction_of_fused_experts(width: int, gated: int, up: str, down: str) -> None:
    """Experts behind a narrower latent, too (`width` 99 is neither of their sizes)."""
    inner = 20
    size = width if width != 99 else 8
    straight = [(f"m.{up}", (gated * inner, size)), (f"m.{down}", (size, inner))]
    turned = [(name, shape[::-1]) for name, shape in straight]
    if width == 99 and gated == 1:
        return  # nothing in such shapes tells
    assert turned_experts(straight, width) == set()
    assert turned_experts(turned, width) == {f"m.{up}", f"m.{down}"}


def test_square_experts_follow_the_other_blocks() -> None:
    clear = [("a.up", (4, 16)), ("a.down", (8, 4))]
    square = [("b.up", (4, 4)), ("b.down", (4, 4))]
    assert turned_experts(clear + square, 4) == {"a.up", "a.down", "b.up", "b.down"}


def test_a_linear_map_with_its_heads_apart_is_no_stack_of_experts() -> None:
    spec = {
        "transformer.word_embedding.weight": (V, D),
        "transformer.layer.{0..2}.rel_attn.{q|k|v|o|r}": (D, 4, 16),
        "transformer.layer.{0..2}.ff.layer_1.weight": (F, D),
        "transformer.layer.{0..2}.ff.layer_2.weight": (D, F),
    }
    layout = find_layout(as_index(expand(spec)))
    assert len(layout.of_layer(0)) == 2
    lost = [skip for skip in layout.skipped if skip.lost]
    assert len(lost) == 15
    assert all("no stack of experts" in skip.reason for skip in lost)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "reason"),
    [
        ("h.0.attn.bias", (1, 1, 8, 8), "F32", "stored mask"),
        ("h.0.attn.masked_bias", (), "F32", "stored mask"),
        ("h.0.attn.rotary_emb.inv_freq", (8,), "F32", "stored mask"),
        ("h.0.attn.c_attn.bias", (8,), "F32", "bias"),
        ("h.0.experts.down_proj_bias", (8, 8), "F32", "bias"),
        ("h.0.attn.pos_bias_u", (8, 8), "F32", "bias or position"),
        ("h.0.attn.relative_attention_bias.weight", (32, 8), "F32", "bias or position"),
        ("h.0.attn.distance_embedding.weight", (32, 8), "F32", "bias or position"),
        ("h.0.ln_1.weight", (8,), "F32", "norm weight"),
        ("h.0.q_norm.weight", (8, 8), "F32", "norm weight"),
        ("h.0.k_layernorm.norms.3.weight", (8, 8), "F32", "norm weight"),
        ("h.0.mixer.A_log", (8, 16), "F32", "state-space"),
        ("h.0.mixer.conv1d.weight", (8, 1, 4), "F32", "convolution"),
        ("h.0.patch.weight", (8, 3, 4, 4), "F32", "4-D tensor"),
        ("h.0.layer_scale", (8,), "F32", "quantisation data"),
        ("h.0.gate", (1,), "F32", "vector or scalar"),
        ("h.0.w.weight", (0, 8), "F32", "empty"),
        ("h.0.w.weight", (8, 8), "F4", "cannot be measured"),
        ("h.0.w.weight", (8, 8), "Q9_Z", "cannot be dequantised"),
        ("h.0.w.qweight", (8, 8), "I32", "packed weights"),
        ("h.0.w.weight_packed", (8, 8), "I32", "packed weights"),
        ("h.0.w.W_q", (8, 8), "U8", "packed weights"),
        ("h.0.experts.down_proj_blocks", (2, 8, 2, 16), "U8", "packed weights"),
        ("h.0.table.index", (8, 8), "I64", "stored buffer"),
        ("h.0.q.lora_A.default.weight", (4, 8), "F32", "--adapter"),
    ],
)
def test_what_is_left_out_says_why(
    name: str, shape: tuple[int, ...], dtype: str, reason: str
) -> None:
    assert reason in str(skip_reason(name, dtype, shape, in_block=True))


@pytest.mark.parametrize(
    "name",
    [
        "h.0.gate.weight",
        "h.0.attn.qkv_bias_mlp.0.weight",
        "h.0.shared_expert_gate.weight",
        "h.0.attn.in_proj_weight",
        "h.0.att.time_maa",
    ],
)
def test_what_is_a_matrix(name: str) -> None:
    wanted = "state-space parameter" if "time_" in name else None
    assert skip_reason(name, "BF16", (4, 8), in_block=True) == wanted


@pytest.mark.parametrize("name", hybrids.CASES)
def test_packed_weights_are_named_as_lost_and_scales_are_not(name: str) -> None:
    layout = find_layout(as_index(expand(hybrids.CASES[name].spec)))
    for skip in layout.skipped:
        weights = re.search(r"_proj(\.weight|\.qweight|\.weight_packed|\.W_q|_blocks)$", skip.name)
        assert skip.lost == bool(weights), skip


@pytest.mark.parametrize("ending", ["_scale", "_scale_inv", "_scale_2"])
def test_two_numbers_in_a_byte_are_not_measured_as_one(ending: str) -> None:
    tensors = expand({**LLAMA_ENDS, "model.layers.{0..1}.mlp.{up|down}.weight": ("U8", D, D // 2)})
    beside = {name + ending: ("F32", (1,)) for name in tensors if "mlp" in name}
    layout = find_layout(as_index(tensors | beside))
    assert layout.num_layers == 2
    assert sum(skip.lost for skip in layout.skipped) == 4


def test_fused_eight_bit_experts_know_their_scale() -> None:
    spec = {
        **LLAMA_ENDS,
        "model.layers.{0..1}.self_attn.{q|k|v|o}_proj.weight": (D, D),
        "model.layers.{0..1}.mlp.experts.gate_up_proj": ("F8_E4M3", 4, 2 * F, D),
        "model.layers.{0..1}.mlp.experts.gate_up_proj_scale_inv": (4, 2, 1),
    }
    rows = [m for m in find_layout(as_index(expand(spec))).of_layer(0) if m.fused]
    assert {matrix.scale_name for matrix in rows} == {
        "model.layers.0.mlp.experts.gate_up_proj_scale_inv"
    }


def kinds(spec: dict[str, tuple[int, ...]]) -> dict[str, str]:
    matrices = find_layout(as_index(expand(spec))).matrices
    return {matrix.name: matrix.kind for matrix in matrices if matrix.layer is None}


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("model.embed_tokens", "lm_head"),
        ("gpt_neox.embed_in", "embed_out"),
        ("tok_embeddings", "output"),
        ("model.llm.embed", "model.llm.unembed"),
        ("embedding.word_embeddings", "output_layer"),
        ("backbone.symbols", "speak"),
    ],
)
def test_embedding_and_head(embedding: str, head: str) -> None:
    assert kinds(
        {f"{embedding}.weight": (V, D), f"{head}.weight": (V, D), **llama("backbone.h.{0..2}.")}
    ) == {
        f"{embedding}.weight": "embed",
        f"{head}.weight": "head",
    }


def test_embedding_and_head_in_the_list_of_the_blocks() -> None:
    spec = {
        "sequential.0.word_embeddings.weight": (V, D),
        **llama("sequential.{2..4}."),
        "sequential.6.final_linear.weight": (V, D),
    }
    assert list(kinds(spec).values()) == ["embed", "head"]


@pytest.mark.parametrize("rows", [2, 1000])
def test_a_classifier_is_no_embedding(rows: int) -> None:
    spec = {"classifier.weight": (rows, D), **llama("encoder.layers.{0..2}.")}
    layout = find_layout(as_index(expand(spec)))
    assert layout.token_embedding is None
    assert not layout.tied_embeddings


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        (None, True),
        ({}, True),
        ({"tie_word_embeddings": False}, False),
        ({"architectures": ["LlamaForCausalLM"]}, True),
        ({"architectures": ["GPT2LMHeadModel"]}, True),
        ({"architectures": ["LlamaModel"]}, False),
        ({"architectures": ["LlamaForSequenceClassification"], "tie_word_embeddings": True}, False),
        ({"architectures": ["XForCausalLM"], "text_config": {"tie_word_embeddings": False}}, True),
    ],
)
def test_a_missing_head_is_tied_unless_the_architecture_has_none(
    config: dict[str, object] | None, tied: bool
) -> None:
    index = as_index(expand({"model.embed_tokens.weight": (V, D), **llama()}))
    assert find_layout(index, config).tied_embeddings is tied


@pytest.mark.parametrize("said", [True, False])
def test_with_both_stored_the_config_says_whether_they_are_tied(said: bool) -> None:
    index = as_index(expand({**LLAMA_ENDS, **llama()}))
    assert find_layout(index, {"tie_word_embeddings": said}).tied_embeddings is said


def test_matrices_come_in_the_order_of_the_model() -> None:
    index = as_index(expand(multimodal.CASES["llava"].spec))
    kinds_in_order = [_group(matrix) for matrix in find_layout(index).matrices]
    assert kinds_in_order == sorted(kinds_in_order)


def _group(matrix: Matrix) -> tuple[int, int]:
    if matrix.layer is not None:
        return 1, matrix.layer
    return {"embed": 0, "head": 2, "other": 3}[matrix.kind], 0
