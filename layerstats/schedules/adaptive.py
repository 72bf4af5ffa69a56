"""Schedules that follow training: running gradient norms, and a fresh, dated schedule from them.

Here belong `GradientNorms` (a value, updated by making a new one) and `refresh`. What a run did is
kept by log.py's `ScheduleLog`. Nothing here touches a model: the trainer hands over numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerstats.errors import CheckpointError, UsageError
from layerstats.schedules.build import schedule as build
from layerstats.schedules.parts import Provenance
from layerstats.schedules.schedule import Schedule
from layerstats.schedules.scores import FloatArray

__all__ = ["GradientNorms", "refresh"]

FLOOR_SHARE = 0.1
"""Default floor of a refreshed schedule, as a share of the uniform gamma / N: a layer that is never
drawn shows no gradient, so it could never win its place back."""


@dataclass(frozen=True, slots=True)
class GradientNorms:
    """Running gradient norm of each layer: an exponential mean over the steps it was active in.

    ``m <- decay * m + (1 - decay) * norm``; the first norm of a layer is taken as it is. A layer
    that was not active keeps its mean.

    Parameters
    ----------
    means : tuple of float or None, length num_layers
        None for a layer without any norm yet.
    decay : float
        From 0 (only the last norm counts) to below 1.

    Examples
    --------
    >>> norms = GradientNorms.empty(3).observe({0: 2.0, 2: 4.0}).observe({0: 1.0})
    >>> norms.means
    (1.9, None, 4.0)
    >>> norms.scores().tolist()
    [1.9, 2.95, 4.0]
    """

    means: tuple[float | None, ...]
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            msg = f"decay must be from 0 to below 1, got {self.decay}"
            raise UsageError(msg)

    @classmethod
    def empty(cls, num_layers: int, *, decay: float = 0.9) -> GradientNorms:
        """Return the start of a run: no layer has a norm yet."""
        return cls((None,) * num_layers, decay)

    def observe(self, norms: Mapping[int, float]) -> GradientNorms:
        """Return the means after one optimizer step in which these layers had these norms.

        Raises
        ------
        UsageError
            A layer out of range, or a norm that is negative or not finite (leave such steps out).
        """
        means = list(self.means)
        for layer, norm in norms.items():
            if not 0 <= layer < len(means):
                msg = f"gradient norm of layer {layer}: layers are 0 to {len(means) - 1}"
                raise UsageError(msg)
            if not (math.isfinite(norm) and norm >= 0):
                msg = f"gradient norm of layer {layer} is {norm}; leave steps without a norm out"
                raise UsageError(msg)
            old = means[layer]
            means[layer] = (
                float(norm) if old is None else self.decay * old + (1 - self.decay) * norm
            )
        return GradientNorms(tuple(means), self.decay)

    def scores(self) -> FloatArray:
        """Return one score a layer; a layer not seen yet gets the mean of the others, or 1."""
        seen = [mean for mean in self.means if mean is not None]
        neutral = math.fsum(seen) / len(seen) if seen else 1.0
        return np.array([neutral if mean is None else mean for mean in self.means])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for a run's checkpoint."""
        return {"decay": self.decay, "means": list(self.means)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GradientNorms:
        """Read what `to_dict` wrote."""
        try:
            means = tuple(None if mean is None else float(mean) for mean in data["means"])
            return cls(means, float(data["decay"]))
        except (KeyError, TypeError, ValueError) as error:
            msg = f"gradient norms are damaged ({error!r}); go on from an earlier checkpoint"
            raise CheckpointError(msg) from error


def refresh(
    current: Schedule,
    norms: GradientNorms,
    *,
    interval: int,
    temperature: float = 1.0,
    floor: float | None = None,
) -> Schedule:
    """Make the schedule that holds from `interval` on: probabilities follow the gradient norms.

    Everything but the scores stays as in `current`: model, expected_active, interval_steps, seed,
    sampling law, always_active, low_rank. So the new schedule draws with the same random words,
    and the run is reproduced by its log alone.

    Parameters
    ----------
    current : Schedule
    norms : GradientNorms
    interval : int
        First interval of the new schedule; recorded as `valid_from_interval`.
    temperature, floor : float
        As in `schedule`. By default the floor is a tenth of gamma / N where the sampling law
        follows the probabilities, else 0.

    Returns
    -------
    Schedule
        Rule "adaptive".

    References
    ----------
    GRASS (2026), arXiv:2604.07808, the idea; the formulas here are our own.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> start = schedule("lisa", num_layers=4, expected_active=2, seed=5)
    >>> later = refresh(start, GradientNorms((4.0, 2.0, 1.0, 1.0)), interval=10)
    >>> later.probabilities, later.valid_from_interval
    ((1.0, 0.5, 0.25, 0.25), 10)
    """
    scores = norms.scores()
    current.require_layers(scores.size)
    if floor is None:
        share = current.expected_active / current.num_layers
        floor = FLOOR_SHARE * share if current.law.follows_target else 0.0
    made = build(
        "adaptive",
        scores if scores.max() > 0 else np.ones_like(scores),
        expected_active=current.expected_active,
        interval_steps=current.interval_steps,
        seed=current.seed,
        metric="gradient_norm",
        temperature=temperature,
        floor=floor,
        sampling=current.sampling,
        always_active=current.always_active,
        low_rank=current.low_rank,
        model=current.model,
    )
    parameters = {
        "valid_from_interval": int(interval),
        "decay": norms.decay,
        "layers_seen": sum(mean is not None for mean in norms.means),
        **made.provenance.parameters,
    }
    origin = Provenance(created_by=made.provenance.created_by, parameters=parameters)
    dated = dataclasses.replace(made, provenance=origin)
    assert dated.valid_from_interval == interval  # which checks its range, too
    return dated
