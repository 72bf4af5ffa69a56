"""The order of a calibration: check arguments, cut the text, walk, lead the sums back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layerstats.calibration.attribute import attribute, complete_experts
from layerstats.calibration.lockstep import lockstep
from layerstats.calibration.norms import ActivationNorms
from layerstats.calibration.quiet import quiet
from layerstats.calibration.stack import Stack
from layerstats.calibration.tokens import token_windows
from layerstats.calibration.visit import Progress, Visits
from layerstats.calibration.walk import Refused, replay
from layerstats.devices import check_device
from layerstats.errors import UsageError, choices

if TYPE_CHECKING:
    from layerstats.checkpoint.reader import Checkpoint

__all__ = ["DTYPES", "calibrate_with"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def calibrate_with(
    checkpoint: Checkpoint,
    text: Path,
    *,
    samples: int,
    seq_len: int,
    sample_seed: int | None,
    dtype: str,
    device: str,
    hidden_budget_bytes: int,
    groups: int,
    progress: Progress | None,
) -> ActivationNorms:
    """Do what `layerstats.calibration.calibrate` says."""
    if groups < 1:
        msg = f"groups is {groups}; give at least 1"
        raise UsageError(msg)
    if dtype not in DTYPES:
        raise UsageError(choices("dtype", dtype, DTYPES))
    place = check_device(device)
    with quiet(place):
        stack = Stack(checkpoint, dtype=DTYPES[dtype], device=place)
        _check_length(stack, seq_len)
        windows = token_windows(
            checkpoint.index.directory,
            text,
            samples=samples,
            seq_len=seq_len,
            sample_seed=sample_seed,
        )
        stack.settle(windows.ids[:1])
        group_of = contiguous_groups(len(windows.ids), groups)
        visits = Visits(stack, progress=progress, group_of=group_of)
        how = _walk(stack, windows.ids, visits, budget_bytes=hidden_budget_bytes)
        shapes = dict(stack.parameter_shapes())
        complete_experts(visits.totals, shapes)
        found = attribute(stack, visits.totals, visits.odd)
    info = {
        "checkpoint": str(checkpoint.path),
        "header_hash": checkpoint.index.header_hash,
        "weights_sample_hash": checkpoint.weights_sample_hash,
        **windows.info,
        "dtype": dtype,
        "device": device,
        **how,
        **_describe(stack),
        "matrices_without_tokens": sum(count == 0 for count in found.tokens.values()),
        "parameters_without_norms": _without_norms(stack, visits, shapes),
    }
    if group_of is not None:
        info["groups"] = visits.groups
    norms = {key: np.sqrt(value) for key, value in found.sums.items()}
    group_norms = {key: np.sqrt(value) for key, value in found.groups.items()}
    return ActivationNorms(norms, found.tokens, found.unseen, info, group_norms)


def contiguous_groups(windows: int, groups: int) -> list[int] | None:
    """Put windows in groups of neighbours, sizes equal up to one; None where there is one group.

    Examples
    --------
    >>> contiguous_groups(5, 2), contiguous_groups(2, 16), contiguous_groups(5, 1)
    ([0, 0, 0, 1, 1], [0, 1], None)
    """
    groups = min(groups, windows)
    return [window * groups // windows for window in range(windows)] if groups > 1 else None


def _check_length(stack: Stack, seq_len: int) -> None:
    longest = getattr(stack.config, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < seq_len:
        msg = (
            f"seq_len={seq_len} is more than the {longest} positions the model was made for; "
            f"pass seq_len (--seq-len) <= {longest}"
        )
        raise UsageError(msg)


def _walk(stack: Stack, ids: torch.Tensor, visits: Visits, *, budget_bytes: int) -> dict[str, Any]:
    """Replay, or lockstep where replay would not be exact."""
    try:
        return {"walk": "replay", **replay(stack, ids, visits, budget_bytes=budget_bytes)}
    except Refused as refused:
        reason = str(refused)
    visits.forget()
    how = lockstep(stack, ids, visits, budget_bytes=budget_bytes)
    return {"walk": "lockstep", "replay_refused": reason, **how}


def _describe(stack: Stack) -> dict[str, Any]:
    import transformers

    return {
        "model_class": type(stack.model).__name__,
        "attention": stack.attention,
        "attends_both_ways": stack.bidirectional,
        "experts": "eager",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
        "unexpected_tensors": list(stack.plan.unexpected),
    }


def _without_norms(stack: Stack, visits: Visits, shapes: dict[str, torch.Size]) -> list[str]:
    """Name the parameters of two or more dimensions that no linear map used (2-D biases, …)."""
    used = {slot.parameter for slot in visits.totals}
    return [name for name, shape in shapes.items() if len(shape) >= 2 and name not in used]
