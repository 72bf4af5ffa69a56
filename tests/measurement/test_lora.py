"""A PEFT adapter beside its base: norms of update and updated weights, as peft merges them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from layerstats.cli import run
from layerstats.errors import UsageError
from layerstats.measurement import measure
from tests.conftest import llama_tensors, write_checkpoint
from tests.families import make_family

# peft asks transformers for names that transformers is about to retire.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def adapted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Base directory, adapter directory, base weights, weights with the adapter merged by peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    base = make_family(request.param, folder / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets = {"llama": ["q_proj", "down_proj", "lm_head"], "gpt2": ["c_attn", "c_fc"]}[
        request.param
    ]
    config = LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=targets,
        rank_pattern={targets[1]: 6},
        use_rslora=True,
        fan_in_fan_out=request.param == "gpt2",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw)
    # peft then saves the whole head beside its update too.
    tuned.save_pretrained(folder / "adapter", save_embedding_layers="lm_head" in targets)
    after = tuned.merge_and_unload().state_dict()
    return base, folder / "adapter", before, after


def test_lora_columns_equal_pefts_merge(adapted: tuple[Path, Path, dict, dict]) -> None:  # type: ignore[type-arg]
    base, adapter, before, after = adapted
    stats = measure(base, metrics=["lora_norm"], adapter=adapter)
    changed = 0
    for _, row in stats.matrices[stats.matrices["kind"] != "embed"].iterrows():
        old, new = before[row["name"]].double(), after[row["name"]].double()
        update = float((new - old).norm())
        changed += update > 0
        assert row["lora_norm"] == pytest.approx(update, rel=1e-5)
        assert row["lora_relative_norm"] == pytest.approx(update / float(old.norm()), rel=1e-5)
        assert row["lora_updated_norm"] == pytest.approx(float(new.norm()), rel=1e-5)
    with_head = "lm_head.weight" in before and row["kind"] == "head"
    assert changed == 8 + with_head
    ends = stats.layers.set_index("kind")["lora_norm"]
    assert np.isnan(ends["embed"])
    assert ("head" not in ends) or (ends["head"] > 0) == with_head
    of_matrices = stats.matrices[stats.matrices["layer"] == 2]
    block = stats.blocks.loc[2]
    assert block["lora_norm"] == pytest.approx(
        np.sqrt((of_matrices["lora_norm"] ** 2).sum()), rel=1e-12
    )
    whole = np.sqrt((of_matrices["frobenius_norm"] ** 2).sum())
    assert block["lora_relative_norm"] == pytest.approx(block["lora_norm"] / whole, rel=1e-12)
    assert stats.meta["adapter"]["pairs"] == changed
    by_default = measure(base, adapter=adapter)
    assert (by_default.layer_column("lora_norm") == stats.layer_column("lora_norm")).all()


def test_an_adapter_of_another_model_is_refused(
    adapted: tuple[Path, Path, dict, dict],  # type: ignore[type-arg]
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = {
        name.replace("model.layers", "encoder.stage"): w for name, w in llama_tensors().items()
    }
    other = write_checkpoint(tmp_path / "other", tensors)
    with pytest.raises(UsageError, match=r"none of its [89] updates fits"):
        measure(other, metrics=["lora_norm"], adapter=adapted[1])
    assert run(["measure", str(adapted[1])]) == 2
    assert "--adapter" in capsys.readouterr().err


def test_updates_that_fit_nothing_are_named(
    adapted: tuple[Path, Path, dict, dict],  # type: ignore[type-arg]
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A base with fewer blocks than the adapter: the updates left over are said, not dropped."""
    base, adapter, *_ = adapted
    from safetensors.torch import load_file

    tensors = {}
    for shard in sorted(base.glob("*.safetensors")):
        tensors |= load_file(shard)
    short = {name: w for name, w in tensors.items() if ".3." not in name}
    other = write_checkpoint(tmp_path / "short", short)
    assert (
        run(["measure", str(other), "--metrics", "lora_norm", "--adapter", str(adapter), "--json"])
        == 0
    )
    page = json.loads(capsys.readouterr().out)
    updates = [skip for skip in page["skipped"] if ".base_layer." not in skip["name"]]
    assert len(updates) == 2
    assert all(".3." in skip["name"] for skip in updates)
