"""What around a Trainer keeps layers from being switched, told before the first step.

Each check looks at the model, the training arguments and accelerate's state, and either raises one
clear line or returns. The callback itself is in transformers.py.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterable
from typing import Any

import torch

from layerstats.errors import UsageError

__all__ = [
    "NOT_REENTRANT",
    "check_checkpointing",
    "check_distributed",
    "is_reentrant",
    "warn_about_compiling",
]

NOT_REENTRANT = "set use_reentrant: False in gradient_checkpointing_kwargs"
"""The remedy; transformers 5.23 calls it activation_checkpointing_kwargs and takes both names."""

_LOG = logging.getLogger(__name__)


def check_distributed(args: Any, model: torch.nn.Module) -> None:
    """Refuse the ways of spreading a model that do not let layers be switched.

    Raises
    ------
    UsageError
        DeepSpeed, FSDP 1, or DDP that does not look for unused parameters.
    """
    try:
        state = importlib.import_module("accelerate.state").AcceleratorState()
    except ValueError:  # never set up: a trainer that does without accelerate
        return
    kind = str(getattr(state.distributed_type, "value", state.distributed_type))
    if kind == "DEEPSPEED":
        msg = (
            "DeepSpeed keeps all parameters and their optimizer state in flat copies of its own, "
            "so layers cannot be switched; use FSDP 2, DDP or one device"
        )
        raise UsageError(msg)
    if kind == "FSDP":
        if getattr(state.fsdp_plugin, "fsdp_version", 1) != 2:
            msg = (
                "FSDP 1 joins the parameters of a block with others into one flat tensor, so "
                "layers cannot be switched; use FSDP 2 (fsdp_version: 2)"
            )
            raise UsageError(msg)
        return
    if kind.startswith("MULTI_") and state.num_processes > 1:
        _check_ddp(args, model)


def _check_ddp(args: Any, model: torch.nn.Module) -> None:
    """DDP waits for the gradient of each parameter that was trainable when it wrapped the model."""
    find_unused = args.ddp_find_unused_parameters
    if find_unused is None:
        # Trainer's own rule, as of transformers 5.23 (`_build_accelerator_args`).
        find_unused = not any(_checkpointed(model))
    if not find_unused or getattr(args, "ddp_static_graph", None):
        msg = (
            "DDP would wait for the gradients of frozen layers; set "
            "TrainingArguments(ddp_find_unused_parameters=True) and no ddp_static_graph"
        )
        raise UsageError(msg)


def check_checkpointing(model: torch.nn.Module, embedding: Iterable[torch.Tensor]) -> None:
    """Refuse reentrant checkpointing where nothing before the blocks requires a gradient.

    It gives the parameters inside a block gradients only if an input of the block requires one;
    with frozen embeddings none does, and the active layers would silently get no gradient.

    Raises
    ------
    UsageError
        As above; not where `enable_input_require_grads` was called, as newer versions of
        transformers do.
    """
    if not is_reentrant(model) or any(table.requires_grad for table in embedding):
        return
    modules = list(model.modules())
    hooked = any(
        getattr(module, "_require_grads_hooks", None) or hasattr(module, "_require_grads_hook")
        for module in modules
    )
    if not hooked:
        msg = (
            "reentrant gradient checkpointing over frozen embeddings gives the active layers no "
            f"gradient; {NOT_REENTRANT}, or let the schedule keep 'embed' always active"
        )
        raise UsageError(msg)


def is_reentrant(model: torch.nn.Module) -> bool:
    """Tell whether a part of the model is checkpointed the reentrant way, torch's default."""
    return any(
        isinstance(how := getattr(module, "_gradient_checkpointing_func", None), functools.partial)
        and how.keywords.get("use_reentrant", True)
        for module in _checkpointed(model)
    )


def _checkpointed(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False)
    ]


def warn_about_compiling(args: Any) -> None:
    """Say in the log that a compiled model is compiled again for each new set of layers."""
    if getattr(args, "torch_compile", False):
        _LOG.warning(
            "torch.compile compiles the model again for each new set of active layers and gives up "
            "after torch._dynamo.config.recompile_limit of them; raise it, or train without"
        )
