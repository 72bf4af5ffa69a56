"""One optimizer step, the same for training and for the planner that counts its memory.

Forward and backward over the micro-batches of an accumulation window, the gradient cut to its
norm, the optimizer. Each phase is announced before it begins: the loop may stop there, the planner
counts there. Nothing here reads a file, a clock or a config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from layerstats.errors import LayerstatsError
from layerstats.train.methods import Trainee

if TYPE_CHECKING:
    from layerstats.train.data import Batch

__all__ = ["PHASES", "StepResult", "optimizer_step"]

PHASES = ("forward", "backward", "clip", "optimizer")
"""The phases of a step; the first two once a micro-batch."""

#: Loss (mean over the target tokens of the window) and norm of the whole gradient, both 0-dim.
StepResult = tuple[torch.Tensor, torch.Tensor]


def optimizer_step(
    trainee: Trainee,
    batches: Sequence[Batch],
    *,
    step: int,
    announce: Callable[[str], None] = lambda phase: None,
    check: Callable[[torch.Tensor, torch.Tensor], None] = lambda loss, norm: None,
) -> StepResult:
    """Take one optimizer step on the micro-batches of one window.

    The loss is the mean over all target tokens of the window, whichever micro-batch they are in:
    each micro-batch's mean counts by its share of them.

    Parameters
    ----------
    trainee : Trainee
        Switched to this step's layers, learning rates set.
    batches : sequence of Batch
        The micro-batches.
    step : int
        Steps done before; decides, with the config's seed, what dropout drops.
    announce : callable
        Told the name of each phase before it begins; may raise to stop the step. Until "optimizer"
        no weight has changed.
    check : callable
        Given loss and gradient norm before the optimizer moves; may raise.

    Returns
    -------
    tuple of torch.Tensor
        Loss in nats per token and gradient norm before it was cut.

    Raises
    ------
    LayerstatsError
        No gradient came to any layer that is to train.
    """
    config = trainee.config
    device = next(trainee.model.parameters()).device
    targets = sum(batch.target_tokens for batch in batches)
    loss = torch.zeros((), device=device)
    for number, batch in enumerate(batches):
        announce("forward")
        with _seeded((config.seed, step, number), device):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast):
                output = trainee.model(
                    input_ids=batch.input_ids.to(device),
                    labels=batch.labels.to(device),
                    use_cache=False,
                )
            part = output.loss * (batch.target_tokens / targets)
            del output
            announce("backward")
            # Inside the seeded block: checkpointing draws the same dropout again.
            part.backward()
        loss = loss + part.detach().float()
        del part
    announce("clip")
    _require_gradients(trainee, step)
    norm = _clip(trainee, config.max_grad_norm)
    check(loss, norm)
    announce("optimizer")
    trainee.optimizer.step()
    trainee.clear_gradients()
    return loss, norm


def _require_gradients(trainee: Trainee, step: int) -> None:
    """Keep frozen weights from moving, and make sure that the active ones will."""
    if trainee.switch is None:
        return
    trainee.switch.clear_gradients()
    if not trainee.switch.is_reached:
        msg = (
            f"no gradient came to the active layers {list(trainee.active or ())} at step {step}; "
            "look for a detached input or reentrant checkpointing over frozen embeddings"
        )
        raise LayerstatsError(msg)


def _clip(trainee: Trainee, limit: float | None) -> torch.Tensor:
    """Cut the gradient to a norm and return the norm it had."""
    moving = [one for one in trainee.model.parameters() if one.grad is not None]
    norm = torch.nn.utils.get_total_norm([one.grad for one in moving if one.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(moving, limit, norm)
    return norm


@contextmanager
def _seeded(key: tuple[int, int, int], device: torch.device) -> Iterator[None]:
    """Give dropout a random state that depends on the key alone, and put the old one back.

    So a resumed run drops the same as one that never stopped, and nothing of the user's is touched.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
