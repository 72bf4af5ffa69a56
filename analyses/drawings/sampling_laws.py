"""Inclusion by layer, the code's error, layers never trained, Bernoulli's count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.drawings import guide, legend, panels
from layerstats.plots.style import INK, SKY, VERMILLION, finish, layer_axis, series_style

__all__ = ["draw"]

SHOWN = "8"


def draw(result: Mapping[str, Any]) -> Any:
    """Draw inclusion by layer, the code's error, layers never trained, Bernoulli's count."""
    figure, by_layer, error, never, count = panels(2, 2, size=(9.6, 6.6))
    shown = result["gammas"][SHOWN]
    layers = np.arange(len(shown["code"]))
    by_layer.bar(layers, shown["formula"], color=SKY, label="formula, capped at 1")
    by_layer.step(
        layers, shown["naive"], where="mid", color=INK, lw=0.9, label="formula as written"
    )
    by_layer.errorbar(layers, shown["code_simulated"], 1.96 * np.array(shown["standard_error"]),
                      fmt="o", ms=3.2, color=VERMILLION, label="code, simulated, 95%")  # fmt: skip
    layer_axis(by_layer, layers.size)
    finish(by_layer, ylabel="Probability to train", title=rf"(a) $\gamma$ = {SHOWN} of 32 layers")
    legend(by_layer, loc="upper right")
    for place, (gamma, found) in enumerate(result["gammas"].items()):
        order = np.argsort(found["formula"])
        formula, code = (np.array(found[key])[order] for key in ("formula", "code"))
        style = {**series_style(place), "markersize": 3.5, "linewidth": 0.9}
        error.plot(formula, 100 * (code / formula - 1), label=rf"$\gamma$ = {gamma}", **style)
    error.axhline(0, color=INK, linewidth=0.8)
    error.set_xscale("log")
    finish(error, xlabel="Probability by the formula, capped", ylabel="Code against formula (%)",
           title="(b) The published code, exactly")  # fmt: skip
    legend(error, loc="lower left")
    for place, (label, rows) in enumerate(result["never_trained"].items()):
        look = {**series_style(place), "marker": ""}
        at = [row["intervals"] for row in rows]
        never.plot(at, [row["mean_of_runs"] for row in rows], label=label, **look)
        low, high = np.array([row["nine_of_ten_runs"] for row in rows]).T
        never.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)
    never.set_xscale("log")
    finish(never, xlabel="Intervals in the run", ylabel="Layers that never trained",
           title=r"(c) $\gamma$ = 2; bands: nine of ten runs")  # fmt: skip
    legend(never, loc="upper right")
    chance, seen = (result["bernoulli_count"][key][:9] for key in ("chance", "simulated"))
    count.bar(range(len(chance)), 100 * np.array(chance), color=SKY, label="exact")
    half = 196 * np.sqrt(np.array(seen) * (1 - np.array(seen)) / result["inputs"]["draws"])
    count.errorbar(range(len(seen)), 100 * np.array(seen), half, fmt="o", ms=3.2, color=VERMILLION,
                   label="simulated, 95%")  # fmt: skip
    guide(count, 2.0, "every other law", axis="x")
    finish(count, xlabel="Layers that train in an interval", ylabel="Intervals (%)",
           title=r"(d) Bernoulli draws, $\gamma$ = 2")  # fmt: skip
    legend(count, loc="upper right")
    return figure
