"""Presets against the parameter counts that the models' publishers print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstats.errors import CheckpointError, MissingError
from layerstats.train.fake_model import fake_model, fake_tensors, load_code
from layerstats.train.presets import PRESETS, model_config

#: As summed over the published checkpoints' tensors, tied tables once.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "smollm2-135m": 134_515_008,
}


def test_every_preset_has_a_published_count() -> None:
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published(name: str) -> None:
    config = model_config(name.upper())
    load_code(config)
    with fake_tensors():
        model = fake_model(config, dtype="bfloat16")
    assert sum(one.numel() for one in model.parameters()) == PUBLISHED[name]
    assert {str(one.dtype) for one in model.parameters()} == {"torch.bfloat16"}
    assert config.max_position_embeddings >= 4096
    assert config.hidden_size % config.num_attention_heads == 0
    assert config.num_attention_heads % config.num_key_value_heads == 0


def test_sources_are_files_and_directories_too(tmp_path: Path) -> None:
    settings = {**PRESETS["llama-2-7b"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for source in (".", "config.json", "model.safetensors.index.json", "model.safetensors"):
        assert model_config(tmp_path / source).hidden_size == 64


def test_a_real_config_is_the_preset(smollm2: Path) -> None:
    """The config.json that SmolLM2-135M is published with, where it decides memory."""
    real, ours = model_config(smollm2), model_config("smollm2-135m")
    for name in PRESETS["smollm2-135m"]:
        if name not in ("rope_theta", "model_type"):
            assert getattr(real, name) == getattr(ours, name), name


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", CheckpointError, "cannot be read as JSON"),
        ("[]", CheckpointError, "no model_type"),
        ('{"model_type": 3}', CheckpointError, "no model_type"),
        ('{"model_type": "lama"}', CheckpointError, "does not know the model type 'lama'"),
        ('{"model_type": "llama", "hidden_size": "x"}', CheckpointError, "cannot make a config"),
    ],
)
def test_damaged_configs_are_refused(
    tmp_path: Path, text: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=words) as caught:
        model_config(tmp_path)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


def test_what_is_not_there_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"did you mean 'qwen2\.5-7b'"):
        model_config("qwen2.5-7")
    with pytest.raises(MissingError, match=r"no config\.json"):
        model_config(tmp_path)
