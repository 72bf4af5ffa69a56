"""Statistics, schedules and runs as figures fit for a paper: `plot(kind, data)`, `save(ax, path)`.

One module a kind: norms, outliers, tails, spectrum, scatter, intervals; of training runs losses,
raster, memory_use, tracked; memory_plan draws plans. A new kind is one function under
`@plot_kind("name")` in a module that is imported here. Shared: registry (the list of kinds), style
(look), canvas (figures and files), columns and logs (what statistics and runs call things), breaks
and labels (two drawing tasks).
matplotlib is imported in this package alone, and pyplot nowhere.

Examples
--------
>>> import layerstats.plots as plots
>>> plots.available()
('activity', 'alpha', 'correlation', 'esd', 'layer-norms', 'lod', 'loss', 'memory', ...)
"""

from __future__ import annotations

from layerstats.plots.canvas import save
from layerstats.plots.intervals import schedule
from layerstats.plots.losses import loss
from layerstats.plots.memory_plan import memory_plan
from layerstats.plots.memory_use import memory
from layerstats.plots.norms import layer_norms
from layerstats.plots.outliers import lod
from layerstats.plots.raster import activity
from layerstats.plots.registry import available, plot, plot_kind
from layerstats.plots.scatter import correlation
from layerstats.plots.spectrum import esd
from layerstats.plots.tails import alpha
from layerstats.plots.tracked import weight_norms

__all__ = [
    "activity",
    "alpha",
    "available",
    "correlation",
    "esd",
    "layer_norms",
    "lod",
    "loss",
    "memory",
    "memory_plan",
    "plot",
    "plot_kind",
    "save",
    "schedule",
    "weight_norms",
]
