"""LOD by layer with tensors rescaled, with the first token out, and its stability over windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.drawings import guide, legend, panels
from layerstats.plots.style import finish, layer_axis, series_style, set_value_scale

__all__ = ["draw"]

SCALES = ("joined, as OWL and OwLore", "tensors of equal mean score", "weights alone")
TOKENS = ("all tokens", "first token out", "BOS before", "BOS before, BOS out")


def draw(result: Mapping[str, Any]) -> Any:
    """Draw three panels: tensors rescaled, the first token, calibration windows."""
    figure, scale, first, windows = panels(1, 3, size=(11.4, 3.7), width_ratios=(1.1, 1.1, 0.9))
    _by_layer(scale, result, SCALES)
    _by_layer(first, result, TOKENS)
    finish(scale, ylabel="LOD, M = 7 (%)", title="(a) Scale between tensors")
    finish(first, ylabel="", title="(b) The first token")
    for place, m in enumerate(("m7", "m13")):
        found = {int(n): row[m] for n, row in result["windows"].items()}
        at = np.array(list(found)) * 1.06 ** (2 * place - 1)
        mean, low, high = (
            np.array([row[key] for row in found.values()]) for key in ("mean", "least", "largest")
        )
        style = {**series_style(place), "markersize": 4.5, "linewidth": 1}
        windows.errorbar(at, mean, [mean - low, high - mean], label=f"M = {m[1:]}", **style)
    windows.set_xscale("log", base=2)
    windows.set_xticks(list(found), [str(n) for n in found])
    guide(windows, result["chance"], "random orders, 95%")
    length = result["inputs"]["seq_len"]
    finish(windows, xlabel=f"Windows of {length} tokens", title="(c) Size of the calibration",
           ylabel=r"Spearman $\rho$ of two samples")  # fmt: skip
    windows.set_ylim(None, 1.01)
    legend(windows, loc="center right")
    return figure


def _by_layer(ax: Any, result: Mapping[str, Any], names: Sequence[str]) -> None:
    shown = {name: result["lod_percent"][name]["m7"] for name in names}
    for place, (name, values) in enumerate(shown.items()):
        style = {**series_style(place), "markersize": 3.5, "linewidth": 1}
        ax.plot(range(len(values)), values, label=name, **style)
    layer_axis(ax, len(next(iter(shown.values()))))
    set_value_scale(ax, [v for one in shown.values() for v in one if v > 0], scale="log")
    legend(ax, loc="best")
