"""LoRA adapters through peft: put into a model, and added to its weights again.

Only here are peft's names known.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from layerstats.checkpoint.parts import Parts
from layerstats.errors import MissingError, UsageError
from layerstats.train.config import TrainConfig

__all__ = ["MergedWeights", "add_adapters", "merge"]

_LOG = logging.getLogger(__name__)
_RANK = 8


def add_adapters(
    model: Any, named: Mapping[str, torch.Tensor], parts: Parts, config: TrainConfig
) -> Any:
    """Put LoRA adapters into a model and freeze all the rest.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    named, parts
        Its parameters and where they belong.
    config : TrainConfig
        `rank` (default 8), `lora_alpha` (default twice the rank), `lora_dropout`, `lora_targets`.

    Returns
    -------
    peft.PeftModel

    Raises
    ------
    MissingError
        peft is not installed.
    UsageError
        The model has no linear map that an adapter can stand on.

    References
    ----------
    Hu et al. 2021, LoRA, arXiv 2106.09685.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        msg = "method lora needs the package peft; pip install 'layerstats[peft]'"
        raise MissingError(msg) from error
    rank = config.rank or _RANK
    linear = _linear_modules(model)
    wanted = {name.rpartition(".")[0] for name in parts.matrices} & linear.keys()
    left = len({name.rpartition(".")[0] for name in parts.matrices} - wanted)
    if left:
        _LOG.warning(
            "%d weight matrices of the blocks are no linear modules; no adapters there", left
        )
    if config.lora_targets == "all":
        outside = [*parts.outside["embed"], *parts.outside["head"]]
        wanted |= {name.rpartition(".")[0] for name in outside} & linear.keys()
    if not wanted:
        msg = f"{config.model}: no linear map found in its blocks; lora cannot train it"
        raise UsageError(msg)
    settings = LoraConfig(
        r=rank,
        lora_alpha=config.lora_alpha or 2 * rank,
        lora_dropout=config.lora_dropout,
        target_modules=sorted(wanted),
        fan_in_fan_out=any(type(linear[name]).__name__ == "Conv1D" for name in wanted),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft tells of each Conv1D that it sets fan_in_fan_out itself.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        # It asks transformers for settings by names that are on their way out.
        warnings.simplefilter("ignore", FutureWarning)
        # The adapters' first values come from torch's own generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return get_peft_model(model, settings)


def _linear_modules(model: Any) -> dict[str, Any]:
    """Return the modules that peft can stand an adapter on, by name."""
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) or type(module).__name__ == "Conv1D"
    }


class MergedWeights(Mapping[str, torch.Tensor]):
    """The weights of a model by their own names, each with its adapter added when it is asked for.

    Without adapters it is the parameters themselves.
    """

    def __init__(self, model: Any, named: Mapping[str, torch.Tensor]) -> None:
        self._named = named
        self._adapted = {
            id(module.get_base_layer().weight): module
            for module in model.modules()
            if hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer")
        }

    @torch.no_grad()
    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._named[name].detach()
        module = self._adapted.get(id(self._named[name]))
        if module is None:
            return weight
        for adapter in module.active_adapters:
            weight = weight + module.get_delta_weight(adapter)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


def merge(model: Any) -> Any:
    """Return the model as it was before `add_adapters`, the adapters added to its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
