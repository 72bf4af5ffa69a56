"""Seconds of an iteration by method, and the ratio to full beside that of its products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import legend, panels
from layerstats.plots.style import BLUE, INK, MUTED, VERMILLION, finish

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw times on the left, ratios on the right, a row a method, full at the top."""
    figure, times, ratios = panels(1, 2, size=(10.4, 3.9), sharey=True)
    rows = result["methods"]
    at = np.arange(len(rows))
    _points(times, at, [row["seconds"] for row in rows.values()], "median step, 95%")
    for place, row in zip(at, rows.values(), strict=True):
        first = row["first_step_of_an_interval_seconds"]
        if first is not None:
            look = {"marker": "^", "ms": 6, "mfc": "white", "color": VERMILLION, "ls": ""}
            label = "first step of an interval" if place == _first_sampled(rows) else None
            times.plot([first["mean"]], [place - 0.22], label=label, **look)
    _points(ratios, at, [row["over_full"] for row in rows.values()], "measured, 95%")
    products = [row["products_over_full"] for row in rows.values()]
    look = {"ls": "", "marker": "|", "ms": 17, "mew": 2.2, "color": INK}
    ratios.plot(products, at, label="matrix products alone", **look)
    trained = [row["trained_over_full"] for row in rows.values()]
    look = {"ls": "", "marker": "x", "ms": 5.5, "mew": 1.4, "color": MUTED}
    ratios.plot(trained, at, label="weights that train", **look)
    published = result["published"]["speedup_of_lisa_over"]
    names = list(rows)
    values = [1 / published["full"], published["lora"] / published["full"]]
    look = {"ls": "", "marker": "D", "ms": 6, "mfc": "white", "color": VERMILLION}
    ratios.plot(values, [names.index(one) for one in ("lisa", "lora")],
                label="LISA's paper, as quoted", **look)  # fmt: skip
    ratios.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    times.set_yticks(at, names)
    times.set_ylim(len(rows) - 0.5, -0.5)
    for ax in (times, ratios):
        ax.set_xlim(left=0)
    batch, length = (result["inputs"][key] for key in ("batch_size", "seq_len"))
    finish(times, xlabel=f"Seconds of an iteration, {batch} x {length} tokens", ylabel="",
           title="(a) Time")  # fmt: skip
    finish(ratios, xlabel="Ratio to full fine-tuning", ylabel="", title="(b) Beside its work")
    for ax, columns in ((times, 2), (ratios, 2)):
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
    return figure


def _first_sampled(rows: Mapping[str, Any]) -> int:
    has = [row["first_step_of_an_interval_seconds"] is not None for row in rows.values()]
    return has.index(True)


def _points(ax: Any, at: Any, found: list[Any], label: str) -> None:
    """Draw mean and interval of each row, and the rounds as small points behind."""
    for place, one in zip(at, found, strict=True):
        many = len(one["rounds"])
        ax.plot(one["rounds"], np.full(many, place), ls="", marker="o", ms=2.6, color=MUTED)
    mean = np.array([one["mean"] for one in found])
    low, high = np.array([one["interval"] for one in found]).T
    look = {"fmt": "o", "ms": 5, "color": BLUE, "elinewidth": 1.4, "capsize": 2.5}
    ax.errorbar(mean, at, xerr=[mean - low, high - mean], label=label, **look)
