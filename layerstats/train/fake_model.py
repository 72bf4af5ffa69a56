"""Models without memory: fake tensors that have a shape, a data type and a place, but no bytes.

Here is what it takes to run transformers' models on them as on real tensors. Fake tensors stand on
the CPU: torch's wheels without CUDA cannot differentiate fake CUDA tensors, and kernels that exist
for meta tensors alone keep other things for the backward pass than those of a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from layerstats.errors import CheckpointError, LayerstatsError

__all__ = ["fake_model", "fake_tensors", "load_code"]

_PATCHED = "find_packed_sequence_indices"


def load_code(config: Any, *, adapters: bool = False) -> None:
    """Import the model's code, and peft's for adapters, before tensors are fake.

    What a module makes when it is imported would be fake for the rest of the process.

    Raises
    ------
    CheckpointError
        transformers has no causal language model for this config.
    """
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        msg = (
            f"transformers has no causal language model of type {config.model_type!r}; "
            "training and its plan are for causal language models"
        )
        raise CheckpointError(msg)
    AutoModelForCausalLM._model_mapping[type(config)]
    if adapters:
        # Where it is missing, the trainer says so.
        with suppress(ImportError):
            importlib.import_module("peft")


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make every tensor that is made inside a fake one, and have transformers not mind.

    transformers takes fake tensors for a sign of tracing and then builds a mask of seq_len x
    seq_len and repeats the heads of keys and values, to be able to tell packed sequences apart.
    Inside, it is told that none are packed, which is what it finds out itself from real tensors of
    ours.

    Raises
    ------
    LayerstatsError
        The installed transformers has no function of the name that is replaced.

    Examples
    --------
    >>> with fake_tensors():
    ...     table = torch.zeros(1_000_000, 1_000_000)
    >>> table.untyped_storage().nbytes()
    4000000000000
    """
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import masking_utils

    original = getattr(masking_utils, _PATCHED, None)
    if original is None:
        msg = (
            f"transformers {transformers.__version__} has no masking_utils.{_PATCHED}, which the "
            "memory planner replaces while it simulates; install transformers 5.23"
        )
        raise LayerstatsError(msg)
    setattr(masking_utils, _PATCHED, lambda position_ids: None)
    mode = FakeTensorMode()
    # Its memo is of tensors that it has just made and will not meet again, and the weak references
    # in it keep `Module.to`, which peft calls, from exchanging a parameter.
    mode.fake_tensor_converter.set_tensor_memo = lambda t, v: None  # type: ignore[method-assign]
    try:
        with mode:
            yield
    finally:
        setattr(masking_utils, _PATCHED, original)


def fake_model(config: Any, *, dtype: str) -> Any:
    """Return the causal language model of a transformers config, of fake tensors.

    Call it inside `fake_tensors`.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
    dtype : str
        "float32" or "bfloat16", of the weights; buffers keep the type that the model gives them,
        as they do when a checkpoint is loaded.

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    CheckpointError
        transformers has no causal language model for this config, or cannot make it.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=False
        )
    except Exception as error:  # configs of others fail in any way there is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"transformers cannot make a causal language model of this config: {reason}"
        raise CheckpointError(msg) from error
