"""Exports of one number a layer: PEFT's ranks (the installed package decides) and sparsity."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from layerstats.errors import UsageError
from layerstats.schedules.exporters import export
from layerstats.schedules.exporters.peft import whole_ranks
from layerstats.schedules.exporters.sparsity import alphapruning_sparsity, owl_sparsity
from layerstats.stats import LayerStats
from tests.schedules.conftest import LAYERS, MODULES, SCORES, made, text

Stats = Callable[..., LayerStats]


# --- PEFT: the installed package decides --------------------------------------------------------


#: PEFT 0.21 asks transformers 5.23 for a property by its former name.
PEFT_ASKS_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def adapters(config: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Rank and scaling of every module that PEFT itself gives an adapter to."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(**config))
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@PEFT_ASKS_THE_OLD_NAME
def test_peft_gives_each_layer_its_rank(llama_stats: Stats) -> None:
    done = export("peft", made(), stats=llama_stats(LAYERS), mean_rank=6)
    config = json.loads(text(done, "lora_config.json"))
    found = adapters(config)
    assert len(found) == LAYERS * len(MODULES)
    ranks = whole_ranks(np.array(SCORES), 6)
    assert sum(ranks) == 6 * LAYERS
    assert len(set(ranks)) > 3
    for name, (rank, scaling) in found.items():
        assert rank == ranks[int(name.split(".")[2])]
        assert scaling == 2


@PEFT_ASKS_THE_OLD_NAME
def test_peft_layers_to_transform(llama_stats: Stats) -> None:
    plan = made(seed=2)
    done = export("peft", plan, stats=llama_stats(LAYERS), interval=1)
    found = adapters(json.loads(text(done, "lora_config.json")))
    assert {int(name.split(".")[2]) for name in found} == set(plan.active_layers(1))
    assert np.mean([rank for rank, _ in found.values()]) == 16


@PEFT_ASKS_THE_OLD_NAME
def test_peft_without_statistics_takes_every_linear_module() -> None:
    found = adapters(json.loads(text(export("peft", made()), "lora_config.json")))
    assert len(found) == LAYERS * len(MODULES)
    with pytest.raises(UsageError, match="give --stats DIR"):
        export("peft", made(), interval=0)


def test_peft_ranks_from_a_metric(llama_stats: Stats) -> None:
    stats = llama_stats(LAYERS, alpha_hill=[2.0] * 10 + [4.0] * 10)
    done = export("peft", made(), stats=stats, metric="heavy_tail", mean_rank=8)
    ranks = list(json.loads(text(done, "lora_config.json"))["rank_pattern"].values())
    assert ranks == [12] * 10 + [4] * 10


@pytest.mark.parametrize("mean", [1, 3, 16])
def test_ranks_are_whole_bounded_and_have_their_mean(mean: int) -> None:
    for weights in (SCORES, [0.0] * 19 + [5.0], [1.0] * 20, [0.0] * 20, [1e300, 1e-300] * 10):
        ranks = whole_ranks(np.array(weights), mean)
        assert sum(ranks) == mean * 20
        assert min(ranks) >= 1
        assert max(ranks) <= 4 * mean


# --- sparsity -----------------------------------------------------------------------------------


def test_owl_sparsity_is_one_minus_its_programs_density() -> None:
    ratio = np.array(SCORES)
    ratio = (ratio - ratio.min()) * (1 / (ratio.max() - ratio.min()) * 0.08 * 2)
    density = ratio - np.mean(ratio) + (1 - 0.7)
    done = export("sparsity", made())
    data = json.loads(text(done, "sparsity.json"))
    assert data["sparsity"] == pytest.approx(1 - density)
    assert np.mean(data["sparsity"]) == pytest.approx(0.7)
    lines = text(done, "sparsity.txt").splitlines()
    ratios = [float(line) for line in lines if not line.startswith("#")]
    assert ratios == data["sparsity"]


def test_alphapruning_sparsity_has_its_mean_over_parameters(llama_stats: Stats) -> None:
    alphas = np.linspace(2, 5, LAYERS)
    stats = llama_stats(LAYERS, alpha_hill=alphas)
    stats.layers.loc[0, "parameters"] = 999_999
    done = export(
        "sparsity", made(), stats=stats, metric="heavy_tail", method="alphapruning", sparsity=0.5
    )
    data = json.loads(text(done, "sparsity.json"))
    sizes = stats.blocks["parameters"].to_numpy(dtype=float)
    theirs = (alphas - alphas.min()) / (alphas.max() - alphas.min()) * 0.6 + 0.7
    theirs = theirs * (sizes.sum() * 0.5 / (sizes * theirs).sum())
    assert data["sparsity"] == pytest.approx(theirs)
    assert np.average(data["sparsity"], weights=sizes) == pytest.approx(0.5)


def test_equal_scores_get_the_mean() -> None:
    same = np.ones(4)
    assert owl_sparsity(same, 0.6, 0.1) == pytest.approx(0.6)
    assert alphapruning_sparsity(same, 0.6, 0.1) == pytest.approx(0.6)


def test_peft_leaves_experts_and_routers_alone(llama_stats: Stats) -> None:
    stats = llama_stats(LAYERS)
    table = stats.matrices
    table.loc[table["module"] == "mlp.up_proj", "expert"] = 0
    table.loc[table["module"] == "mlp.gate_proj", "module"] = "mlp.gate"
    done = export("peft", made(), stats=stats)
    modules = json.loads(text(done, "lora_config.json"))["target_modules"]
    assert modules == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert any("experts and routers get no adapter" in note for note in done.notes)
