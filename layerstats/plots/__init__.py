"""Statistics and schedules as figures fit for a paper: `plot(kind, data)`, `save(ax, path)`.

One module a kind: norms, outliers, tails, spectrum, scatter, intervals; a new kind is one function
under `@plot_kind("name")` in a module that is imported here. Shared: registry (the list of kinds),
style (look), canvas (figures and files), columns (what the statistics call things), breaks and
labels (two drawing tasks). matplotlib is imported in this package alone, and pyplot nowhere.

Examples
--------
>>> import layerstats.plots as plots
>>> plots.available()
('alpha', 'correlation', 'esd', 'layer-norms', 'lod', 'schedule')
"""

from __future__ import annotations

from layerstats.plots.canvas import save
from layerstats.plots.intervals import schedule
from layerstats.plots.norms import layer_norms
from layerstats.plots.outliers import lod
from layerstats.plots.registry import available, plot, plot_kind
from layerstats.plots.scatter import correlation
from layerstats.plots.spectrum import esd
from layerstats.plots.tails import alpha

__all__ = [
    "alpha",
    "available",
    "correlation",
    "esd",
    "layer_norms",
    "lod",
    "plot",
    "plot_kind",
    "save",
    "schedule",
]
