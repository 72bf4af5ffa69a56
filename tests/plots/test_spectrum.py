"""The eigenvalue histogram: heights, tail line and xmin follow from the numbers given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from layerstats import plots
from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes


def test_heights_are_a_density_over_all_eigenvalues(spectrum: Any) -> None:
    eigenvalues, fit = spectrum()
    ax = plots.esd({"a": (eigenvalues, fit)}, cut=0.0, bins=50)
    stairs = next(patch for patch in ax.patches if isinstance(patch, StepPatch))
    heights, edges, _ = stairs.get_data()
    assert len(heights) == 50
    for height, lo, hi in zip(heights, edges, edges[1:], strict=False):
        inside = np.sum((eigenvalues >= lo) & (eigenvalues < hi)) / len(eigenvalues)
        assert np.nan_to_num(height) * (hi - lo) == pytest.approx(inside, abs=1e-12)
    assert np.nansum(heights * np.diff(edges)) == pytest.approx(1.0)


def test_the_tail_line_is_the_fitted_density(spectrum: Any) -> None:
    """Its integral from xmin up is the share of eigenvalues in the tail, k / n."""
    eigenvalues, fit = spectrum()
    ax = plots.esd({"a": (eigenvalues, fit)})
    (tail,) = [line for line in ax.lines if line.get_gid() == "tail"]
    x, y = (np.asarray(values, dtype=float) for values in tail.get_data())
    assert x[0] == fit.xmin
    assert x[-1] == pytest.approx(eigenvalues.max())
    np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), -fit.alpha)
    whole = y[0] * fit.xmin / (fit.alpha - 1.0)  # the integral of y0 (x/xmin)^-alpha to infinity
    assert whole == pytest.approx(fit.k / len(eigenvalues))
    marks = [line.get_xdata() for line in ax.lines if line.get_gid() == "xmin"]
    assert [list(mark) for mark in marks] == [[fit.xmin, fit.xmin]]


def test_what_a_log_axis_cannot_show_is_counted(spectrum: Any) -> None:
    eigenvalues, fit = spectrum(size=100)
    ax = plots.esd({"a": (np.concatenate([np.zeros(7), [1e-9], eigenvalues]), fit)})
    assert [text.get_text() for text in ax.texts] == [
        "a: eigenvalues, 7 of 108 are 0, 2 of 108 left of the axis"
    ]
    everything = plots.esd({"a": ([1e-9, *eigenvalues], fit)}, cut=0.0)
    assert not everything.texts


def test_several_matrices_get_panels_of_one_scale(spectrum: Any, texts: Any) -> None:
    data = {f"layer {at} self_attn.q_proj": spectrum(at) for at in range(5)}
    first = plots.esd(data)
    figure = first.get_figure(root=True)
    assert len(figure.axes) == 5
    assert {ax.get_xlim() for ax in figure.axes} == {first.get_xlim()}
    assert [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes] == list(data)
    assert "= 3.00" in first.get_title(loc="left")
    seen = texts(figure)
    assert seen.overlaps() == []
    assert seen.cut_off() == []


def test_one_axes_takes_several_matrices(spectrum: Any) -> None:
    data = {name: spectrum(seed) for seed, name in enumerate("abc")}
    ax = plots.esd(data, ax=new_axes(size=(6.0, 4.0)))
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text().split("\n")[0] for text in legend.get_texts()] == list("abc")


def test_a_matrix_without_fit_has_no_line(spectrum: Any) -> None:
    ax = plots.esd({"a": (spectrum()[0], None)})
    assert not ax.lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "at least one matrix"),
        ({"zero": ([0.0, 0.0], None)}, "no positive eigenvalue in 'zero'"),
        ({"none": ([], None)}, "no positive eigenvalue in 'none'"),
        ({str(at): ([1.0, 2.0], None) for at in range(30)}, "30 matrices are too many"),
    ],
)
def test_nothing_to_draw_is_said(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plots.esd(data)


def test_a_single_eigenvalue_is_drawn() -> None:
    ax = plots.esd({"one": ([4.0], None)})
    low, high = ax.get_xlim()
    assert low < 4.0 < high
