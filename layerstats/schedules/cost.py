"""What an interval of a schedule costs in parameters and bytes, from the sizes in statistics.

Here belongs the arithmetic of weights, gradients and Adam states; activations, temporary memory
and the allocator are not counted (`layerstats memory` simulates those).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerstats.errors import UsageError
from layerstats.schedules.parts import LowRank
from layerstats.schedules.schedule import Schedule
from layerstats.stats import LayerStats

__all__ = ["Cost", "worst_cost"]

BYTES = {"bf16": 2, "fp32": 4}
ASSUMPTIONS = (
    "weights, gradients and both Adam moments all in the same type, bf16 (2 bytes) or fp32 (4)",
    "gradients and Adam states only of what trains; states of layers that are frozen again dropped",
    "weight matrices only: biases, norms and positions are left out, and so are activations",
)


@dataclass(frozen=True)
class Cost:
    """Parameters that train at most in one interval, and the bytes that follow.

    Parameters
    ----------
    layers : int
        Number of layers the interval has.
    layer_parameters : int
        Of the largest layers that can be drawn together.
    always_parameters : dict of str to int
        Of each always-active group with weight matrices.
    total_parameters : int
        Of the whole model.
    state_values : int
        Values of Adam's two moments (and GaLore's bases) of what trains.
    """

    layers: int
    layer_parameters: int
    always_parameters: dict[str, int]
    total_parameters: int
    state_values: int

    @property
    def active_parameters(self) -> int:
        """What trains: the layers and the always-active group."""
        return self.layer_parameters + sum(self.always_parameters.values())

    @property
    def always_share(self) -> float:
        """Share of the always-active group in what trains, 0 to 1."""
        active = self.active_parameters
        return sum(self.always_parameters.values()) / active if active else 0.0

    def bytes_in(self, dtype: str) -> dict[str, int]:
        """Return bytes by part, for values of `dtype` ("bf16" or "fp32")."""
        size = BYTES[dtype]
        parts = {
            "weights": self.active_parameters * size,
            "gradients": self.active_parameters * size,
            "adam_states": self.state_values * size,
        }
        frozen = (self.total_parameters - self.active_parameters) * size
        active = sum(parts.values())
        return {
            **parts,
            "active_sum": active,
            "frozen_weights": frozen,
            "with_frozen": active + frozen,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "layers": self.layers,
            "layer_parameters": self.layer_parameters,
            "always_active_parameters": self.always_parameters,
            "active_parameters": self.active_parameters,
            "total_parameters": self.total_parameters,
            "always_active_share": self.always_share,
            "bytes": {dtype: self.bytes_in(dtype) for dtype in BYTES},
        }


def worst_cost(schedule: Schedule, stats: LayerStats, layers: int) -> Cost:
    """Return the cost of an interval with the `layers` largest layers that can be drawn.

    Parameters
    ----------
    schedule : Schedule
    stats : LayerStats
        Of the model the schedule is for; sizes alone are read.
    layers : int
        How many layers the interval has.

    Returns
    -------
    Cost

    Raises
    ------
    UsageError
        The statistics are of a model with another number of layers.
    """
    schedule.require_layers(stats.num_layers)
    if "parameters" not in stats.layers.columns:
        msg = "the statistics have no column 'parameters'; measure again with this version"
        raise UsageError(msg)
    sizes = stats.blocks["parameters"].to_numpy(dtype=np.int64)
    can_train = np.array(schedule.inclusion_probabilities) > 0
    order = sorted(np.flatnonzero(can_train).tolist(), key=lambda layer: -sizes[layer])
    largest = order[:layers]
    always = _always(schedule, stats)
    states = 2 * sum(always.values()) + sum(
        _states(stats, layer, int(sizes[layer]), schedule.low_rank) for layer in largest
    )
    outside = stats.layers[stats.layers["kind"] != "block"]["parameters"]
    return Cost(
        layers=layers,
        layer_parameters=int(sizes[largest].sum()),
        always_parameters=always,
        total_parameters=int(sizes.sum() + outside.sum()),
        state_values=states,
    )


def _always(schedule: Schedule, stats: LayerStats) -> dict[str, int]:
    """Size the groups that have a row; a head tied to the embedding has none of its own."""
    result: dict[str, int] = {}
    asked = list(schedule.always_active)
    tied = bool(stats.meta.get("checkpoint", {}).get("tied_embeddings"))
    if tied and "head" in asked and "embed" not in asked:
        asked.append("embed")
    for kind in ("embed", "head"):
        rows = stats.layers[stats.layers["kind"] == kind]
        if kind in asked and len(rows) and not (tied and kind == "head"):
            result[kind] = int(rows["parameters"].sum())
    return result


def _states(stats: LayerStats, layer: int, parameters: int, low_rank: LowRank | None) -> int:
    """Values of Adam's moments of one layer; with GaLore ``2 r max(m, n) + r min(m, n)``."""
    if low_rank is None or "rows" not in stats.matrices.columns:
        return 2 * parameters
    total = 0
    own = stats.matrices[stats.matrices["layer"] == layer]
    for rows, cols in zip(own["rows"].astype(int), own["cols"].astype(int), strict=True):
        short, long = sorted((rows, cols))
        rank = low_rank.rank
        total += 2 * rows * cols if rank >= short else 2 * rank * long + rank * short
    return total
