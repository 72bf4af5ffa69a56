"""Fails first, and says why, when transformers moves an inside that `calibration/hf.py` uses."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

ADVICE = "transformers changed: adapt layerstats/calibration/hf.py (the function that uses it)"

#: module, name, parameters that are passed
USED = [
    ("transformers.conversion_mapping", "get_model_conversion_mapping", ["model"]),
    (
        "transformers.core_model_loading",
        "rename_source_key",
        [
            "source_key",
            "weight_renamings",
            "weight_converters",
            "base_model_prefix",
            "meta_state_dict",
        ],
    ),
    (
        "transformers.core_model_loading",
        "convert_and_load_state_dict_in_model",
        ["model", "state_dict", "load_config"],
    ),
    ("transformers.core_model_loading", "dot_natural_key", ["s"]),
    ("transformers.core_model_loading", "WeightRenaming", []),
    (
        "transformers.core_model_loading",
        "WeightConverter",
        ["source_patterns", "target_patterns", "operations"],
    ),
    (
        "transformers.modeling_utils",
        "LoadStateDictConfig",
        ["dtype", "dtype_plan", "device_map", "weight_mapping"],
    ),
    ("transformers.initialization", "guard_torch_init_functions", []),
]
METHODS = [
    "_get_dtype_plan",
    "_initialize_weights",
    "base_model",
    "get_decoder",
    "set_experts_implementation",
]


@pytest.mark.parametrize(("module", "name", "parameters"), USED)
def test_functions_are_where_they_were(module: str, name: str, parameters: list[str]) -> None:
    found = getattr(importlib.import_module(module), name, None)
    assert found is not None, f"{module}.{name} is gone. {ADVICE}"
    accepted = list(inspect.signature(found).parameters)
    missing = [parameter for parameter in parameters if parameter not in accepted]
    assert not missing, f"{name} does not take {missing} any more, but {accepted}. {ADVICE}"


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_where_they_were(name: str) -> None:
    from transformers import PreTrainedModel

    assert hasattr(PreTrainedModel, name), f"PreTrainedModel.{name} is gone. {ADVICE}"


def test_converters_can_be_run_by_hand() -> None:
    from transformers.core_model_loading import WeightConverter

    parameters = list(inspect.signature(WeightConverter.add_tensor).parameters)
    assert parameters == ["self", "target_key", "source_key", "source_pattern", "future"], ADVICE
    parameters = list(inspect.signature(WeightConverter.convert).parameters)
    assert parameters[:4] == ["self", "layer_name", "model", "config"], ADVICE


def test_serial_loading_switch_is_still_read() -> None:
    from transformers import core_model_loading

    from layerstats.calibration.quiet import _SERIAL_LOADING

    source = inspect.getsource(core_model_loading.convert_and_load_state_dict_in_model)
    assert _SERIAL_LOADING in source, f"{_SERIAL_LOADING} is not read any more. {ADVICE}"


def test_a_subset_of_keys_loads_and_the_rest_stays_on_meta() -> None:
    """The one habit the whole walk rests on: loading takes a part of the checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from layerstats.calibration import hf
    from layerstats.calibration.quiet import quiet

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    cpu = torch.device("cpu")
    with quiet(cpu):
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        names = {name: name for name in model.state_dict()}
        plan = hf.make_plan(model, names)
        assert plan.unexpected == (), ADVICE
        some = [name for name in names if ".layers.1." in name]

        def read(name: str) -> torch.Tensor:
            return torch.ones(tuple(model.state_dict()[name].shape))

        hf.load(model, plan, some, read=read, device=cpu, dtype=torch.float32)
        real = {name for name, value in model.named_parameters() if not value.is_meta}
        assert real == set(some), ADVICE
        hf.free(model.model.layers[1])
        assert all(value.is_meta for value in model.parameters())
