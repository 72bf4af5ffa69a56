"""Sums with one block in memory equal those of the whole model to float64's last digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from layerstats.calibration import ActivationNorms, calibrate, run
from layerstats.calibration.walk import Refused
from layerstats.checkpoint.reader import open_checkpoint
from tests.calibration.conftest import SAMPLES, SEQ_LEN, Family
from tests.families import FAMILIES, LOCKSTEP, MOE
from tests.oracles.calibration import full_model_sums

#: Both sides add the same numbers in float64, in another order.
EXACT = 1e-12


def measured(directory: Path, text: Path, **options: object) -> ActivationNorms:
    return calibrate(directory, text, samples=SAMPLES, seq_len=SEQ_LEN, **options)  # type: ignore[arg-type]


def assert_equals_full_model(
    found: ActivationNorms,
    directory: Path,
    ids: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    sums, tokens, kernel = full_model_sums(directory, ids, dtype=dtype)
    assert found.info["attention"] == kernel
    blocks = [m for m in open_checkpoint(directory).layout.matrices if m.layer is not None]
    assert {m.key for m in blocks} == set(found.norms)
    assert found.unseen == {}
    for matrix in blocks:
        norm = found.norms[matrix.key]
        assert norm.dtype == np.float64
        assert norm.shape == (matrix.shape[1],)
        expected = sums.get(matrix.key, np.zeros(matrix.shape[1]))
        np.testing.assert_allclose(norm**2, expected, rtol=EXACT, atol=0, err_msg=matrix.key)
        assert found.tokens[matrix.key] == tokens.get(matrix.key, 0), matrix.key


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_full_model(name: str, family: Family, text: Path, ids: torch.Tensor) -> None:
    found = measured(family(name), text)
    assert found.info["walk"] == ("lockstep" if name in LOCKSTEP else "replay")
    assert_equals_full_model(found, family(name), ids)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bloom", "opt", "mixtral", "gpt_oss"])
def test_lockstep_equals_replay(
    name: str, family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measured(family(name), text)

    def refuse(*args: object, **kwargs: object) -> None:
        raise Refused("for the test")

    monkeypatch.setattr(run, "replay", refuse)
    # A budget of less than one window's states: every window is a group of its own.
    for budget in (2_000_000_000, 1):
        found = measured(family(name), text, hidden_budget_bytes=budget)
        assert found.info["walk"] == "lockstep"
        assert found.info["replay_refused"] == "for the test"
        assert found.info["window_groups"] == (SAMPLES if budget == 1 else 1)
        assert found.tokens == expected.tokens
        for key, norm in expected.norms.items():
            np.testing.assert_allclose(found.norms[key], norm, rtol=EXACT)


@pytest.mark.parametrize("name", MOE)
def test_every_routed_token_is_counted_once(name: str, family: Family, text: Path) -> None:
    found = measured(family(name), text)
    matrices = [m for m in open_checkpoint(family(name)).layout.matrices if m.layer is not None]
    for module in {(m.layer, m.module) for m in matrices if m.expert is not None}:
        counts = [found.tokens[m.key] for m in matrices if (m.layer, m.module) == module]
        chosen = 1 if name == "llama4" else 2
        assert sum(counts) == SAMPLES * SEQ_LEN * chosen


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4"])
def test_an_expert_without_tokens_has_norm_zero(
    name: str, family: Family, text: Path, ids: torch.Tensor
) -> None:
    directory = family(name)
    found = calibrate(open_checkpoint(directory), text, samples=1, seq_len=1)
    idle = [key for key, count in found.tokens.items() if count == 0]
    assert idle
    assert all((found.norms[key] == 0).all() for key in idle)
    assert_equals_full_model(found, directory, ids[:1, :1])


def rewrite(
    directory: Path, change: dict[str, torch.Tensor] | None = None, **config: object
) -> None:
    """Replace all shards of a checkpoint by one file with other tensors; edit its config."""
    if change is not None:
        for file in [*directory.glob("*.safetensors"), *directory.glob("*.index.json")]:
            file.unlink()
        save_file(change, directory / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(settings | config), encoding="utf-8")


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def test_gpt2_without_prefix_and_with_stored_masks(own: Family, text: Path) -> None:
    """The form in which GPT-2 itself is published."""
    directory = own("gpt2")
    expected = measured(directory, text)
    tensors = {k.removeprefix("transformer."): v for k, v in tensors_of(directory).items()}
    tensors.pop("lm_head.weight", None)
    mask = torch.ones(1, 1, 8, 8).tril()
    rewrite(directory, tensors | {f"h.{i}.attn.bias": mask.clone() for i in range(4)})
    found = measured(directory, text)
    assert found.info["unexpected_tensors"] == [f"h.{i}.attn.bias" for i in range(4)]
    assert len(found.norms) == 16
    for key, norm in found.norms.items():
        np.testing.assert_array_equal(norm, expected.norms[f"transformer.{key}"])


def test_a_file_with_only_the_head_of_a_tied_pair(own: Family, text: Path) -> None:
    directory = own("llama_tied")
    expected = measured(directory, text)
    tensors = tensors_of(directory)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    rewrite(directory, tensors)
    assert_same(measured(directory, text), expected)


def test_training_wrappers_in_names_change_nothing(own: Family, text: Path) -> None:
    directory = own("llama")
    expected = measured(directory, text)
    tensors = {f"module._orig_mod.{name}": tensor for name, tensor in tensors_of(directory).items()}
    rewrite(directory, tensors)
    found = measured(directory, text)
    assert {k.removeprefix("module._orig_mod.") for k in found.norms} == set(expected.norms)
    for key, norm in found.norms.items():
        np.testing.assert_array_equal(norm, expected.norms[key.removeprefix("module._orig_mod.")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_stored_bfloat16_in_any_compute_dtype(
    dtype: str, own: Family, text: Path, ids: torch.Tensor
) -> None:
    directory = own("mixtral")
    tensors = {k: v.to(torch.bfloat16) for k, v in tensors_of(directory).items()}
    rewrite(directory, tensors, dtype="bfloat16")
    found = measured(directory, text, dtype=dtype)
    assert_equals_full_model(found, directory, ids, dtype=getattr(torch, dtype))


def test_a_router_cast_to_float32_is_still_seen(own: Family, text: Path, ids: torch.Tensor) -> None:
    """DeepSeek computes its routing in float32 from a copy of the router's weight."""
    directory = own("deepseek_v3")
    found = measured(directory, text, dtype="bfloat16")
    assert "model.layers.1.mlp.gate.weight" in found.norms
    assert_equals_full_model(found, directory, ids, dtype=torch.bfloat16)


def test_two_runs_give_the_same_bits(family: Family, text: Path) -> None:
    for name in ("mixtral", "rwkv"):
        assert_same(measured(family(name), text), measured(family(name), text))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "mixtral", "rwkv"])
def test_cuda_agrees_with_cpu(name: str, family: Family, text: Path) -> None:
    expected, found = measured(family(name), text), measured(family(name), text, device="cuda")
    for key, norm in expected.norms.items():
        np.testing.assert_allclose(found.norms[key], norm, rtol=1e-3)
    assert_same(found, measured(family(name), text, device="cuda"))


def assert_same(one: ActivationNorms, other: ActivationNorms) -> None:
    assert one.tokens == other.tokens
    assert one.unseen == other.unseen
    assert one.norms.keys() == other.norms.keys()
    for key, norm in one.norms.items():
        np.testing.assert_array_equal(norm, other.norms[key], err_msg=key)


def test_a_gguf_file_with_config_and_tokenizer_beside_it(own: Family, text: Path) -> None:
    pytest.importorskip("gguf")
    from tests.checkpoint.tiny_gguf import LAYERS, write

    directory = own("llama")
    kept = {
        name: tensor
        for name, tensor in tensors_of(directory).items()
        if not any(f"layers.{number}." in name for number in range(LAYERS, 4))
    }
    rewrite(directory, kept, num_hidden_layers=LAYERS)
    expected = measured(directory, text)
    (directory / "model.safetensors").unlink()
    write(directory / "model.gguf", {name: tensor.numpy() for name, tensor in kept.items()})
    found = measured(directory, text)
    assert_same(found, expected)
