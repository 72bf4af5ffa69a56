"""How large a step is: the learning rate's factor over the run, and after a layer's activation.

Pure functions of step numbers; nothing here knows a model or an optimizer.
"""

from __future__ import annotations

import math

from layerstats.errors import UsageError, choices

__all__ = ["activation_factor", "lr_factor", "reset_correction"]


def lr_factor(step: int, *, steps: int, warmup: int, kind: str) -> float:
    """Return the factor of the peak learning rate at an optimizer step.

    ``step / warmup`` while step < warmup; then with u = (step - warmup) / (steps - warmup):
    "linear" 1 - u, "cosine" (1 + cos(pi u)) / 2, "constant" 1. These are transformers' schedules
    to the digit, so that runs can be compared; like theirs the first step of a warm-up has
    factor 0.

    Parameters
    ----------
    step : int
        Steps done before this one, 0 for the first.
    steps, warmup : int
        Steps of the whole run and of its warm-up.
    kind : str
        "linear", "cosine" or "constant".

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    UsageError
        Unknown kind.

    Examples
    --------
    >>> [lr_factor(step, steps=10, warmup=2, kind="linear") for step in (0, 1, 2, 6, 9)]
    [0.0, 0.5, 1.0, 0.5, 0.125]
    """
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if kind == "linear":
        return 1.0 - done
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if kind == "constant":
        return 1.0
    raise UsageError(choices("learning-rate schedule", kind, ("linear", "cosine", "constant")))


def reset_correction(step: int, beta1: float) -> float:
    """Return the factor that makes Adam's steps after a reset as large as they are later.

    For gradients that are noise, the root mean square of Adam's t-th update over the learning rate
    is sqrt((1 - b)(1 + b^t) / ((1 + b)(1 - b^t))): 1, 0.71, 0.58 ... and 0.23 in the end for
    b = 0.9. The factor is the last over the t-th: sqrt((1 - b^t) / (1 + b^t)).

    Parameters
    ----------
    step : int
        t, 1 for the first step after the reset.
    beta1 : float
        Adam's b, in [0, 1).

    Returns
    -------
    float
        In (0, 1].

    Examples
    --------
    >>> [round(reset_correction(t, 0.9), 3) for t in (1, 2, 3, 100)]
    [0.229, 0.324, 0.396, 1.0]
    """
    power: float = beta1**step
    return math.sqrt((1.0 - power) / (1.0 + power))


def activation_factor(active_steps: int, *, warmup: int, beta1: float | None) -> float:
    """Return the learning-rate factor of a layer that has trained for so many steps in a row.

    Parameters
    ----------
    active_steps : int
        Steps done since the layer was switched on, 0 for its first.
    warmup : int
        Steps of linear warm-up; the first has factor 1 / warmup.
    beta1 : float or None
        With a number, `reset_correction` is applied too.

    Returns
    -------
    float
        In (0, 1].

    Examples
    --------
    >>> [activation_factor(step, warmup=4, beta1=None) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    factor = min(1.0, (active_steps + 1) / warmup) if warmup else 1.0
    if beta1 is not None:
        factor *= reset_correction(active_steps + 1, beta1)
    return factor
