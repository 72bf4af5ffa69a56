"""LISA and LISA-D: held-out loss by step, its end seed by seed, steps that each layer trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from analyses.drawings.by_seed import SPREAD, band, interval_dots, look, over_steps
from analyses.run_summary import NAMES, signed
from layerstats.plots.style import INK, MUTED, finish, layer_axis

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw three panels: curves, ends joined by seed, layers' steps beside what chance expects."""
    figure, curves, ends, layers = panels(1, 3, size=(11.4, 3.9), width_ratios=(1.1, 0.75, 1.35))
    count = len(result["inputs"]["seeds"])
    for method, found in result["curves"].items():
        band(curves, found["held_out"], look(method), label=NAMES[method])
    over_steps(curves, [found["held_out"] for found in result["curves"].values()])
    legend(curves, loc="upper right", title=SPREAD if count > 1 else "one seed")
    finish(curves, xlabel="Optimizer step", ylabel="Held-out loss (nats per token)",
           title="(a) While training")  # fmt: skip
    _ends(ends, result)
    for place, (method, found) in enumerate(result["layers"].items()):
        at = np.arange(len(found["mean"])) + 0.4 * (place - 0.5)
        color = look(method)["color"]
        layers.bar(at, found["mean"], width=0.4, color=color, alpha=0.75, label=NAMES[method])
        layers.plot(found["expected"], color=color, linewidth=1.3, linestyle="--")
    layers.plot([], [], color=INK, linewidth=1.3, linestyle="--", label="expected by chance")
    layer_axis(layers, len(found["mean"]))
    layers.set_ylim(top=1.16 * layers.get_ylim()[1])
    legend(layers, loc="upper right", ncols=3, columnspacing=1.2, handlelength=1.6)
    finish(layers, ylabel="Steps that the layer trained",
           title=f"(c) Layers, mean of {count} seed{'s' if count > 1 else ''}")  # fmt: skip
    return figure


def _ends(ax: Any, result: Mapping[str, Any]) -> None:
    found = {m: row["held_out_loss"] for m, row in result["methods"].items()}
    pairs = np.array([list(one["per_seed"].values()) for one in found.values()])
    places = np.arange(len(found))
    ax.plot(places - 0.14, pairs, color=MUTED, linewidth=0.8, zorder=1)
    for place, (method, one) in enumerate(found.items()):
        interval_dots(ax, place, one, look(method)["color"])
    ax.set_xticks(places, [NAMES[method] for method in found])
    ax.set_xlim(-0.6, len(found) - 0.4)
    gap = result["lisa_d_minus_lisa"]["held_out_loss"]
    ends = ", ".join(signed(end) for end in gap["interval"])
    width = f"\n95% interval [{ends}]" if len(gap["per_seed"]) > 1 else ""
    finish(ax, xlabel=f"difference {signed(gap['mean'])}{width}", ylabel="",
           title="(b) At the end, by seed")  # fmt: skip
