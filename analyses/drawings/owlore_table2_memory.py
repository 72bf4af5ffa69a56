"""Memory by layers of LISA and OwLore, and of the methods that sample none: printed, simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.drawings import legend, panels
from layerstats.plots.style import INK, finish, series_style

__all__ = ["draw"]

SHOWN = (
    ("published_gb", "printed", {"linestyle": "", "marker": "_", "markersize": 13, "color": INK,
                                 "markeredgewidth": 1.8}),
    ("sum_of_parts_gb", "sum of parts, simulated", series_style(1)),
    ("simulated_peak_gb", "true peak, simulated", series_style(0)),
)  # fmt: skip


def draw(result: Mapping[str, Any]) -> Any:
    """Draw the layerwise methods by layers, and the others side by side."""
    figure, lisa, owlore, others = panels(1, 3, size=(10.4, 3.6))
    for ax, method, title in (
        (lisa, "lisa", "(a) LISA"),
        (owlore, "owlore", "(b) OwLore, rank 128"),
    ):
        rows = [row for row in result["rows"] if row["method"] == method]
        seen = sorted({row["layers"]: row for row in rows}.items())
        for name, label, look in SHOWN:
            points = rows if name == "published_gb" else [row for _, row in seen]
            ax.plot([p["layers"] for p in points], [p[name] for p in points], label=label, **look)
        ax.set_xticks([layers for layers, _ in seen])
        ax.set_ylim(bottom=0)
        finish(ax, xlabel="Layers that train", ylabel="Memory (GB)", title=title)
    legend(lisa, loc="lower right")
    rows = [row for row in result["rows"] if row["layers"] is None]
    for name, _, look in SHOWN:
        others.plot(range(len(rows)), [row[name] for row in rows], **{**look, "linestyle": ""})
    ranks = [f"\nrank {row['rank']}" if row["rank"] else "" for row in rows]
    names = [row["method"] + rank for row, rank in zip(rows, ranks, strict=True)]
    others.set_xticks(range(len(rows)), names)
    others.set_xlim(-0.5, len(rows) - 0.5)
    others.set_ylim(bottom=0)
    finish(others, ylabel="Memory (GB)", title="(c) No layers sampled")
    return figure
