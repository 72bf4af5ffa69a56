"""Sampling probabilities by layer for each M, held-out loss by M, the published scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.drawings import legend, panels
from analyses.drawings.by_seed import interval_dots
from layerstats.plots.style import INK, finish, layer_axis, series_style

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw three panels: probabilities, our losses, published scores (higher is better)."""
    figure, chance, loss, published = panels(1, 3, size=(11.4, 3.7), width_ratios=(1.35, 0.85, 0.9))
    for place, (m, found) in enumerate(result["probabilities"].items()):
        style = {**series_style(place), "markersize": 3.5, "linewidth": 1}
        chance.plot(found["by_layer"], label=f"M = {m}", **style)
    layer_axis(chance, len(found["by_layer"]))
    chance.set_ylim(bottom=0)
    legend(chance, loc="upper center", title=_rho(result))
    gamma = result["inputs"]["gamma"]
    finish(chance, ylabel="Chance to train in an interval",
           title=rf"(a) $\gamma$ D / $\Sigma$D, $\gamma$ = {gamma:g}")  # fmt: skip
    for place, row in enumerate(result["values"].values()):
        interval_dots(loss, place, row["held_out_loss"], series_style(place)["color"])
    loss.set_xticks(range(len(result["values"])), list(result["values"]))
    loss.set_xlim(-0.6, len(result["values"]) - 0.4)
    several = len(result["inputs"]["seeds"]) > 1
    what = "dots: seeds; bars: mean, 95%" if several else "one seed"
    finish(loss, xlabel=f"M\n{what}", ylabel="Held-out loss (nats per token)",
           title="(b) Measured, lower is better")  # fmt: skip
    scores = result["published"]["score_by_m"]
    published.plot([int(m) for m in scores], list(scores.values()), color=INK, marker="o",
                   markersize=4, linewidth=1)  # fmt: skip
    published.set_xticks([int(m) for m in scores])
    finish(published, xlabel="M (inferred)\nas printed, OwLore App. B", ylabel="Downstream score",
           title="(c) Published, higher is better")  # fmt: skip
    return figure


def _rho(result: Mapping[str, Any]) -> str:
    rho = [pair["rho"] for pair in result["spearman_of_lod"].values()]
    return rf"Spearman $\rho$ of two M: {min(rho):.2f} to {max(rho):.2f}"
