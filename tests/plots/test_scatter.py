"""The correlation scatter: points are columns, the title is the result, numbers hide nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layerstats import plots
from layerstats.errors import UsageError

RESULT = {
    "x": "lod_m13",
    "y": "heavy_tail",
    "method": "spearman",
    "rho": 0.7754,
    "p_value": 1.9e-7,
    "n": 12,
    "interval": [0.551, 0.893],
}


def test_points_are_the_pairs(stats: Any) -> None:
    measured = stats(12, bad=[3])
    ax = plots.correlation(measured, result={**RESULT, "n": 11})
    points = ax.collections[0]
    wanted = np.column_stack([measured.layer_column(RESULT[key]) for key in ("x", "y")])
    np.testing.assert_array_equal(points.get_offsets(), np.delete(wanted, 3, axis=0))
    np.testing.assert_array_equal(points.get_array(), np.delete(np.arange(12), 3))


def test_the_title_holds_the_result(stats: Any) -> None:
    for result in (RESULT, SimpleNamespace(**RESULT)):
        title = plots.correlation(stats(12), result=result, title="model").get_title(loc="left")
        assert title.startswith("model\nSpearman")
        for part in ("= 0.775", "interval [0.55, 0.89]", r"1.9 $\times$ $10^{-7}$", "$n$ = 12"):
            assert part in title


def test_a_result_without_numbers_says_so(stats: Any) -> None:
    """JSON has null where rho is undefined, such as for a constant column."""
    empty = {**RESULT, "rho": None, "p_value": None, "interval": [None, None]}
    title = plots.correlation(stats(12), result=empty).get_title(loc="left")
    assert title.splitlines() == [r"Spearman $\rho$ is undefined", "$n$ = 12"]


def test_without_result_the_title_has_n_alone(stats: Any) -> None:
    assert plots.correlation(stats(12, bad=[3])).get_title(loc="left") == "$n$ = 11"


def test_a_result_over_other_layers_is_refused(stats: Any) -> None:
    with pytest.raises(UsageError, match="over 10 layers but 12 have both"):
        plots.correlation(stats(12), result={**RESULT, "n": 10})


def test_ends_left_out_are_hollow(stats: Any) -> None:
    ax = plots.correlation(stats(12), result={**RESULT, "n": 10}, exclude_ends=True)
    used, ends = ax.collections[:2]
    assert len(used.get_offsets()) == 10
    assert len(ends.get_offsets()) == 2
    assert len(ends.get_facecolor()) == 0


def test_ranks(stats: Any) -> None:
    ax = plots.correlation(stats(12), result=RESULT, ranks=True)
    offsets = np.asarray(ax.collections[0].get_offsets())
    assert sorted(offsets[:, 0]) == list(range(1, 13))
    assert "Rank of LOD, M = 13" in ax.get_xlabel()


@pytest.mark.parametrize("num_layers", [12, 80])
def test_numbers_lie_on_no_point(num_layers: int, stats: Any) -> None:
    ax = plots.correlation(stats(num_layers), x="lod_m13")
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()
    points = ax.transData.transform(ax.collections[0].get_offsets())
    numbers = [text for text in ax.texts if text.get_gid() == "layer"]
    assert {"0", str(num_layers - 1)} <= {text.get_text() for text in numbers}
    assert len(numbers) >= 10
    for text in numbers:
        box = text.get_window_extent()
        assert not any(box.contains(*point) for point in points)


def test_one_colour_for_all_points() -> None:
    table = pd.DataFrame({"lod_m7": [0.9, 0.4, 0.2], "alpha_hill": [1.8, 2.9, 3.1]})
    for colour in ({"color": "k"}, {"c": "k"}):
        drawn = plots.correlation(table, **colour).collections[0]
        assert drawn.get_facecolors().tolist() == [[0.0, 0.0, 0.0, 1.0]]
