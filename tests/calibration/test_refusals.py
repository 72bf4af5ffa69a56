"""What cannot be calibrated is refused by name, in one line, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.calibration import calibrate
from layerstats.checkpoint.reader import open_checkpoint
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from tests.calibration.conftest import Family
from tests.calibration.test_full_model import measured, rewrite, tensors_of


def refuse(
    directory: Path, text: Path, error: type[LayerstatsError], message: str, **options: Any
) -> None:
    with pytest.raises(error) as caught:
        measured(directory, text, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


CONFIGS: dict[str, tuple[str, dict[str, object], str]] = {
    "quantised": (
        "llama",
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"quantised \(gptq\).*dequantise",
    ),
    "unknown": (
        "llama",
        {"model_type": "brandnew", "architectures": ["BrandNewForCausalLM"]},
        "architecture BrandNewForCausalLM needs code from outside transformers",
    ),
    "remote code": (
        "llama",
        {
            "model_type": "brandnew",
            "auto_map": {"AutoModelForCausalLM": "m.X"},
            "architectures": ["X"],
        },
        "architecture X needs code from outside transformers",
    ),
    "no type": ("llama", {"model_type": None}, "no model_type"),
    "vision only": ("llama", {"model_type": "vit_mae_x"}, "outside transformers"),
    "other shape": (
        "llama",
        {"intermediate_size": 100},
        r"mlp\.\w+_proj\.weight: the file holds shape \[\d+, \d+\], config.json makes it",
    ),
    "other vocabulary": ("llama", {"vocab_size": 300}, r"shape \[258, 64\].*\[300, 64\]"),
    "more blocks": (
        "llama",
        {"num_hidden_layers": 5},
        r"block 4: no tensor .* gives model.layers.4",
    ),
    "nonsense": ("llama", {"hidden_size": "wide"}, "transformers cannot build LlamaForCausalLM"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(case: str, own: Family, text: Path) -> None:
    name, changes, message = CONFIGS[case]
    directory = own(name)
    rewrite(directory, **changes)
    refuse(directory, text, CheckpointError, message)


def test_no_config(own: Family, text: Path) -> None:
    directory = own("llama")
    (directory / "config.json").unlink()
    refuse(directory, text, MissingError, "no config.json")


def test_encoder_decoder(family: Family, text: Path) -> None:
    refuse(family("t5"), text, CheckpointError, "T5ForConditionalGeneration is an encoder-decoder")


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing in a block": (
        lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"),
        r"block 1: no tensor of the checkpoint gives model.layers.1.self_attn.k_proj.weight;",
    ),
    "missing embedding": (
        lambda t: t.pop("model.embed_tokens.weight"),
        "no tensor of the checkpoint gives model.embed_tokens.weight",
    ),
    "NaN weight": (
        lambda t: t["model.layers.2.mlp.up_proj.weight"].fill_(float("nan")),
        r"block 2: NaN or infinite activations \(input of model.layers.2.mlp.down_proj.weight\)",
    ),
    "huge weight": (
        lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(3e38),
        "block 1: NaN or infinite activations",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case: str, own: Family, text: Path) -> None:
    change, message = TENSORS[case]
    directory = own("llama")
    tensors = tensors_of(directory)
    change(tensors)
    rewrite(directory, tensors)
    refuse(directory, text, CheckpointError, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; available: bfloat16, float16, float32, float64"),
        ({"device": "tpu9"}, "unknown device 'tpu9'"),
        ({"device": "meta"}, "'meta' is not supported"),
        ({"device": "cuda:99"}, "torch sees"),
    ],
)
def test_arguments(options: dict[str, str], message: str, family: Family, text: Path) -> None:
    refuse(family("llama"), text, UsageError, message, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_windows_longer_than_the_positions(name: str, family: Family, text: Path) -> None:
    with pytest.raises(UsageError, match=r"seq_len=257 is more than the 256 positions .* <= 256"):
        calibrate(open_checkpoint(family(name)), text, seq_len=257)


def test_positions_that_start_at_two(family: Family, text: Path) -> None:
    """RoBERTa has two positions less than its config says."""
    checkpoint = open_checkpoint(family("roberta"))
    calibrate(checkpoint, text, samples=1, seq_len=254)
    with pytest.raises(UsageError, match="seq_len=255 asks for more positions"):
        calibrate(checkpoint, text, samples=1, seq_len=255)


def test_a_tokenizer_of_another_model(own: Family, text: Path) -> None:
    directory = own("llama")
    tensors = tensors_of(directory)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:40].contiguous()
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:40].contiguous()
    rewrite(directory, tensors, vocab_size=40, bos_token_id=None, eos_token_id=None)
    refuse(directory, text, CheckpointError, r"embed_tokens.weight: token id \d+ .* 40 rows")


def test_float16_overflow_advises_float32(own: Family, text: Path) -> None:
    directory = own("llama")
    tensors = tensors_of(directory)
    tensors["model.layers.1.mlp.up_proj.weight"].mul_(3000)
    tensors["model.layers.1.mlp.gate_proj.weight"].mul_(3000)
    rewrite(directory, tensors)
    refuse(directory, text, CheckpointError, "block 1: .*calibrate in float32", dtype="float16")
