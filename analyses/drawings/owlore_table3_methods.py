"""Seven methods: held-out loss by seed, memory, and the search of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from analyses.drawings.by_seed import interval_dots, look
from analyses.run_summary import NAMES
from layerstats.plots.style import INK, MUTED, SKY, TEXT_SIZE, finish, outside_legend

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw three panels: losses, memory, search; methods from above in one order."""
    figure, loss, memory, search = panels(1, 3, size=(12.6, 3.9), width_ratios=(1.15, 1, 1.1))
    rows = result["methods"]
    places = np.arange(len(rows))
    _losses(loss, rows, len(result["inputs"]["seeds"]))
    gb = np.array(
        [[row[name]["mean"] / 1e9 for name in ("training_peak_bytes", "optimizer_bytes")]
         for row in rows.values()]
    )  # fmt: skip
    memory.barh(places, gb[:, 0], color=SKY, height=0.62, label="peak of training")
    memory.barh(places, gb[:, 1], color=INK, height=0.2, label="optimizer state")
    for place, (peak, _) in enumerate(gb):
        look_of_text = {"va": "center", "fontsize": TEXT_SIZE, "color": INK}
        memory.annotate(f"{peak:.2f}", (peak, place), xytext=(3, 0),
                        textcoords="offset points", **look_of_text)  # fmt: skip
    memory.set_xlim(0, 1.2 * gb.max())
    memory.set_ylim(len(rows) - 0.4, -1.6)
    memory.set_yticks(places, [])
    finish(memory, xlabel="Memory (GB)", ylabel="", title="(b) Memory, measured")
    memory.grid(visible=False)
    legend(memory, loc="upper left", ncols=2, columnspacing=1.0, handlelength=1.2)
    _search(search, result)
    return figure


def _losses(ax: Any, rows: Mapping[str, Any], count: int) -> None:
    beside = {"xycoords": ax.get_yaxis_transform(), "va": "center", "fontsize": TEXT_SIZE}
    for place, (method, row) in enumerate(rows.items()):
        interval_dots(ax, place, row["held_out_loss"], look(method)["color"], across=True)
        right = ", ".join(str(number) for number in row["correct"].values())
        ax.annotate(right, (1.02, place), color=MUTED, **beside)
    first = next(iter(rows.values()))
    asked = "" if len(first["correct"]) == count else ",\nfirst seed"
    ax.annotate(f"right\nof {first['questions']}{asked}", (1.02, -0.95), color=MUTED, **beside)
    ax.set_yticks(range(len(rows)), [NAMES[method] for method in rows])
    ax.set_ylim(len(rows) - 0.4, -1.6)
    what = "dots: seeds; bars: mean, 95% interval" if count > 1 else "one seed"
    finish(ax, xlabel=f"Held-out loss (nats per token)\n{what}", ylabel="",
           title="(a) Learned, at the best learning rate")  # fmt: skip
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)


def _search(ax: Any, result: Mapping[str, Any]) -> None:
    before, least, largest = result["held_out_before"], np.inf, -np.inf
    for method, row in result["methods"].items():
        rates = np.array([float(rate) for rate in row["tried"]])
        # A rate at which training broke down has no finite loss.
        losses = np.array([np.nan if x is None else x for x in row["tried"].values()], dtype=float)
        losses[~np.isfinite(losses)] = np.nan
        style = {**look(method), "markersize": 4.5, "linewidth": 1.1}
        ax.plot(rates, losses, label=NAMES[method], **style)
        best = np.isclose(rates, row["lr"])
        ring = {"linestyle": "", "marker": "o", "markersize": 11, "markerfacecolor": "none"}
        ring |= {"markeredgecolor": style["color"], "markeredgewidth": 1.3}
        ax.plot(rates[best], losses[best], **ring)
        least = min(least, float(np.nanmin(losses)))
        largest = max(largest, float(np.nanmax(losses)))
    ax.set_xscale("log")
    # What is worse than no training is cut off (the loss before it is that of other problems).
    top = min(before, largest)
    room = 0.06 * abs(top - least)
    ax.set_ylim(least - room, top + room)
    finish(ax, xlabel="Peak learning rate; rings: chosen", ylabel="Loss on the search's problems",
           title="(c) Search, half as long")  # fmt: skip
    outside_legend(ax)
