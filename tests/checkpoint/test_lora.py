"""PEFT adapters: pairs, scales and names against PEFT's own merge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from layerstats.checkpoint.lora import Adapter, open_adapter
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError

# PEFT and transformers warn of each other's next versions, and of settings that are meant here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def tiny_llama() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
    )


def saved(model: torch.nn.Module, folder: Path, **settings: object) -> torch.nn.Module:
    """Give the model an adapter with random A and B, save it, return the wrapped model."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


def update_norm(adapter: Adapter, name: str, shape: tuple[int, int]) -> float:
    pair = adapter.pair_for(name)
    assert pair is not None
    a, b = adapter.read(pair, shape=shape)
    return float(pair.scale * torch.linalg.norm(b.double() @ a.double()))


LLAMA_CASES = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "rslora": {
        "r": 9,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": ["q_proj", "up_proj"],
    },
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {
            "layers.1.mlp.down_proj": 2,  # not layer 11
            "^model.layers.0.self_attn.q_proj": 6,
            r"layers\.[4-6]\.self_attn\..*": 3,
            "v_proj": 5,  # the first key that fits wins
        },
        "alpha_pattern": {"down_proj": 1, "layers.3.self_attn.v_proj": 32},
    },
    "rslora and patterns": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"k_proj": 3},
    },
}


@pytest.mark.parametrize("settings", LLAMA_CASES.values(), ids=LLAMA_CASES)
def test_norm_of_each_update_is_that_of_pefts_merge(tmp_path, settings):
    model = tiny_llama()
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    wrapped = saved(model, tmp_path, **settings)
    merged = wrapped.merge_and_unload().state_dict()
    adapter = open_adapter(tmp_path)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert len(adapter.pairs) == len(changed)
    assert adapter.skipped == ()
    assert adapter.unmatched(base) == ()
    for name, weight in base.items():
        if name not in changed:
            assert adapter.pair_for(name) is None
            continue
        expected = float(torch.linalg.norm((merged[name] - weight).double()))
        assert update_norm(adapter, name, tuple(weight.shape)) == pytest.approx(expected, rel=1e-4)


def test_conv1d_of_gpt2_is_compared_after_turning(tmp_path):
    model = tiny_gpt2()
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    wrapped = saved(model, tmp_path, r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    merged = wrapped.merge_and_unload().state_dict()
    adapter = open_adapter(tmp_path)
    assert len(adapter.pairs) == 4
    for module in adapter.pairs:
        name = f"{module}.weight"
        expected = float(torch.linalg.norm((merged[name] - base[name]).double()))
        turned = tuple(base[name].T.shape)
        assert update_norm(adapter, name, turned) == pytest.approx(expected, rel=1e-4)
        with pytest.raises(CheckpointError, match=r"c_(attn|fc)"):
            adapter.read(adapter.pairs[module], shape=tuple(base[name].shape))


def test_names_match_through_wrappers_but_never_by_guess(tmp_path):
    saved(tiny_gpt2(), tmp_path, r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    adapter = open_adapter(tmp_path)
    expected = adapter.pairs["transformer.h.1.attn.c_attn"]
    for name in (
        "transformer.h.1.attn.c_attn.weight",
        "h.1.attn.c_attn.weight",  # GPT-2's own checkpoint
        "module.transformer.h.1.attn.c_attn.weight",
        "_orig_mod.transformer.h.1.attn.c_attn.weight",
        "model.transformer.h.1.attn.c_attn.weight",
    ):
        assert adapter.pair_for(name) is expected, name
    for name in ("c_attn.weight", "attn.c_attn.weight", "h.11.attn.c_attn.weight", "xh.1.attn"):
        assert adapter.pair_for(name) is None, name


def test_pairs_without_a_base_matrix_are_named(tmp_path):
    saved(tiny_llama(), tmp_path, r=2, target_modules=["q_proj"])
    adapter = open_adapter(tmp_path)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(11)]
    (lost,) = adapter.unmatched(names)
    assert "model.layers.11.self_attn.q_proj" in lost.name
    assert "model.layers.11.self_attn.q_proj.weight" in lost.reason
    assert lost.lost


def test_what_is_no_pair_is_named_with_its_reason(tmp_path):
    model = tiny_llama()
    saved(
        model,
        tmp_path,
        r=2,
        target_modules=["q_proj", "embed_tokens"],
        modules_to_save=["lm_head"],
        use_dora=True,
        bias="none",
    )
    adapter = open_adapter(tmp_path)
    assert set(adapter.pairs) == {f"model.layers.{layer}.self_attn.q_proj" for layer in range(12)}
    reasons = {}
    for skipped in adapter.skipped:
        reasons.setdefault(skipped.reason.split(";")[0], []).append(skipped.name)
    words = " ".join(reasons)
    assert "magnitude vector of DoRA" in words
    assert "LoRA of an embedding" in words
    assert "modules_to_save" in words
    every = set(load_file(tmp_path / "adapter_model.safetensors"))
    of_pairs = {name for pair in adapter.pairs.values() for name in (pair.a_name, pair.b_name)}
    assert {skipped.name for skipped in adapter.skipped} == every - of_pairs
    assert {skipped.name for skipped in adapter.skipped if skipped.lost} == {
        name for name in every if "lora_embedding" in name
    }
    assert any("DoRA" in note for note in adapter.notes)


def test_fused_experts_are_named_and_the_rest_is_measured(tmp_path):
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        vocab_size=64,
    )
    saved(
        transformers.Qwen3MoeForCausalLM(config),
        tmp_path,
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    adapter = open_adapter(tmp_path)
    assert set(adapter.pairs) == {f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)}
    assert len(adapter.skipped) == 8
    assert all("fused experts" in skipped.reason for skipped in adapter.skipped)
    assert all(skipped.lost for skipped in adapter.skipped)


def test_a_start_that_changes_the_base_is_noted(tmp_path):
    saved(tiny_llama(), tmp_path, r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    (note,) = open_adapter(tmp_path).notes
    assert "pissa" in note


def test_adapter_names_in_the_keys_are_understood(tmp_path):
    """Some trainers save `lora_A.default.weight`, with or without the prefix."""
    a, b = torch.ones(2, 8), torch.ones(6, 2)
    save_file(
        {
            "base_model.model.model.layers.0.q.lora_A.default.weight": a,
            "base_model.model.model.layers.0.q.lora_B.default.weight": b,
            "_orig_mod.model.layers.1.q.lora_A.weight": a.clone(),
            "_orig_mod.model.layers.1.q.lora_B.weight": b.clone(),
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 3}')
    adapter = open_adapter(tmp_path)
    assert set(adapter.pairs) == {"model.layers.0.q", "model.layers.1.q"}
    pair = adapter.pairs["model.layers.0.q"]
    assert (pair.rank, pair.alpha, pair.scale, pair.shape) == (2, 3.0, 1.5, (6, 8))


def by_hand(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    plain = {f"{stem}A.weight": torch.ones(4, 8), f"{stem}B.weight": torch.ones(6, 4)}
    save_file(plain if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("tensors", "config", "error", "word"),
    [
        (None, {}, CheckpointError, "'r'"),
        (None, {"r": 0}, CheckpointError, "rank of .*q_proj is 0"),
        (None, {"r": "four"}, CheckpointError, "'four', not a number"),
        (None, {"r": True}, CheckpointError, "not a number"),
        (None, {"r": 4, "lora_alpha": math.inf}, CheckpointError, "lora_alpha"),
        (None, {"r": 4, "peft_type": "IA3"}, UsageError, "'IA3'"),
        (None, {"r": 3}, CheckpointError, r"lora_A.weight' has shape \[4, 8\]"),
        (None, {"r": 4, "rank_pattern": {"q_proj": 5}}, CheckpointError, "rank 5"),
        (None, {"r": 4, "rank_pattern": {"q_proj(": 5}}, CheckpointError, "no valid pattern"),
        (None, {"r": 4, "rank_pattern": [1]}, CheckpointError, "rank_pattern"),
        ({f"{Q}A.weight": torch.ones(4, 8)}, {"r": 4}, CheckpointError, "no lora_B"),
        ({f"{Q}B.weight": torch.ones(8, 4)}, {"r": 4}, CheckpointError, "no lora_A"),
        (
            {f"{Q}A.weight": torch.ones(4, 8), f"{Q}B.weight": torch.ones(6, 5)},
            {"r": 4},
            CheckpointError,
            r"lora_B.weight' has shape \[6, 5\]",
        ),
        (
            {
                f"{Q}A.weight": torch.ones(4, 8),
                f"{Q}A.second.weight": torch.ones(4, 8),
                f"{Q}B.weight": torch.ones(6, 4),
            },
            {"r": 4},
            CheckpointError,
            "belong to one layer",
        ),
        ({"lm_head.weight": torch.ones(2, 2)}, {"r": 4}, CheckpointError, "modules_to_save"),
        (
            {f"{Q}A.weight": torch.ones(4, 8, 1, 1), f"{Q}B.weight": torch.ones(6, 4, 1, 1)},
            {"r": 4},
            CheckpointError,
            "convolution",
        ),
    ],
)
def test_damage_is_named(tmp_path, tensors, config, error, word):
    folder = by_hand(tmp_path / "a", tensors, **config)
    with pytest.raises(error, match=word) as caught:
        open_adapter(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingError, match="no such directory"):
        open_adapter(tmp_path / "none")
    with pytest.raises(MissingError, match=r"adapter_config\.json"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(MissingError, match=r"adapter_model\.safetensors"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match=r"adapter_model\.bin.*safe_serialization"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(LayerstatsError, match="adapter_config"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(CheckpointError, match="adapter_model"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["A", "B"])
def test_values_that_are_not_finite_are_named(tmp_path, bad, side):
    tensors = {f"{Q}A.weight": torch.ones(4, 8), f"{Q}B.weight": torch.ones(6, 4)}
    tensors[f"{Q}{side}.weight"][1, 2] = bad
    adapter = open_adapter(by_hand(tmp_path / "a", tensors, r=4))
    (pair,) = adapter.pairs.values()
    with pytest.raises(CheckpointError, match=f"lora_{side}.weight"):
        adapter.read(pair)


def test_tensors_come_in_their_stored_dtype(tmp_path):
    tensors = {
        f"{Q}A.weight": torch.ones(4, 8, dtype=torch.bfloat16),
        f"{Q}B.weight": torch.ones(6, 4, dtype=torch.float16),
    }
    adapter = open_adapter(by_hand(tmp_path / "a", tensors, r=4))
    (pair,) = adapter.pairs.values()
    assert pair.alpha == 8  # PEFT's default
    a, b = adapter.read(pair, shape=(6, 8))
    assert (a.dtype, b.dtype) == (torch.bfloat16, torch.float16)
