"""The picture of a schedule: bars are probabilities, the raster is what active_layers returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from layerstats import plots
from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.schedules import schedule as make


def test_bars_and_dots_are_the_probabilities(layer_schedule: Any) -> None:
    chosen = layer_schedule(12)
    ax = plots.schedule(chosen)
    assert [bar.get_height() for bar in ax.containers[0]] == list(chosen.probabilities)
    (dots,) = [line for line in ax.lines if line.get_label() == "exact, as sampled"]
    assert list(dots.get_ydata()) == list(chosen.inclusion_probabilities)


def test_the_title_holds_expected_active(layer_schedule: Any) -> None:
    title = plots.schedule(layer_schedule(12), title="run 7").get_title(loc="left")
    assert title.splitlines()[0] == "run 7"
    assert "expected active: 1 of 12 layers" in title
    assert "successive sampling" in title
    assert "every 20 steps" in title


def test_the_raster_shows_the_active_layers() -> None:
    chosen = make("lisa", num_layers=30, expected_active=3, seed=4)
    ax = plots.schedule(chosen, intervals=25)
    raster = ax.get_figure(root=True).axes[1]
    (mesh,) = [group for group in raster.collections if isinstance(group, QuadMesh)]
    cells = np.asarray(mesh.get_array()).reshape(25, 30)
    for interval, row in enumerate(cells):
        assert tuple(np.flatnonzero(row)) == chosen.active_layers(interval)
    top, bottom = ax.get_xlim(), raster.get_xlim()
    assert top == bottom  # a layer's bar stands over its column


def test_the_raster_can_be_left_out_or_placed(layer_schedule: Any) -> None:
    assert len(plots.schedule(layer_schedule(5), intervals=0).get_figure(root=True).axes) == 1
    below = new_axes(size=(4.0, 3.0))
    plots.schedule(layer_schedule(5), ax=new_axes(size=(4.0, 3.0)), raster_ax=below)
    assert len(below.collections) == 1


def test_what_is_no_schedule_is_refused(layer_schedule: Any) -> None:
    with pytest.raises(UsageError, match="cannot plot a dict as a schedule"):
        plots.schedule({"rule": "lisa"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="intervals must be 0 or more, not -1"):
        plots.schedule(layer_schedule(5), intervals=-1)
