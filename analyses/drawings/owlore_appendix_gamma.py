"""OwLore by gamma: training and held-out loss, and memory beside what was printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.drawings import legend, panels
from analyses.drawings.by_seed import band, interval_dots
from layerstats.plots.style import INK, finish, series_style

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw three panels: training curves, held-out loss at the end, peak memory by gamma."""
    figure, training, loss, memory = panels(1, 3, size=(11.4, 3.8), width_ratios=(1.25, 0.9, 0.95))
    given, gammas = result["inputs"], list(result["values"])
    count = len(given["seeds"])
    for place, (gamma, found) in enumerate(result["curves"].items()):
        style = {**series_style(place), "marker": ""}
        band(training, found["training"], style, label=rf"$\gamma$ = {gamma}")
        row = result["values"][gamma]["held_out_loss"]
        interval_dots(loss, place, row, series_style(place)["color"])
    legend(training, loc="upper right", title=f"mean and range\nof {count} seeds"
           if count > 1 else "one seed")  # fmt: skip
    width = given["training_loss_smoothed_over_steps"]
    finish(training, xlabel="Optimizer step", ylabel="Loss (nats per token)",
           title=f"(a) Training, smoothed over {width} steps")  # fmt: skip
    loss.set_xticks(range(len(gammas)), gammas)
    loss.set_xlim(-0.6, len(gammas) - 0.4)
    what = "dots: seeds; bars: mean, 95%" if count > 1 else "one seed"
    finish(loss, xlabel=rf"$\gamma$, layers an interval{chr(10)}{what}",
           ylabel="Held-out loss (nats per token)", title="(b) At the end")  # fmt: skip
    _memory(memory, result)
    return figure


def _memory(ax: Any, result: Mapping[str, Any]) -> None:
    peaks = result["peak_relative_to_gamma_1"]
    measured = {g: one["mean"] for g, one in peaks["measured"].items()}
    shown = (("measured here", measured, series_style(0)),
             ("LLaMA-2-7B, printed", peaks["published"], {"color": INK, "marker": "s",
                                                          "linestyle": "--"}))  # fmt: skip
    for label, found, style in shown:
        at = [int(gamma) for gamma in found]
        ax.plot(at, list(found.values()), label=label, markersize=5, linewidth=1.1, **style)
    ax.set_xticks([int(gamma) for gamma in measured])
    legend(ax, loc="upper left")
    ax.set_ylim(top=1 + 1.35 * (ax.get_ylim()[1] - 1))
    finish(ax, xlabel=r"$\gamma$, layers an interval", title="(c) Memory",
           ylabel=r"Peak, times that of $\gamma$ = 1")  # fmt: skip
