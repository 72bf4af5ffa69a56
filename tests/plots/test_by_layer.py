"""The kinds with a line over layers: the artists carry the columns' numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from layerstats import plots
from layerstats.errors import UsageError
from layerstats.plots.breaks import bands_of, break_y_axis
from layerstats.plots.canvas import new_axes


def line_of(ax: Axes, label: str) -> np.ndarray:
    """The y data of the line with this label."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_ydata(), dtype=float)


def ends_of(ax: Axes, kind: str) -> list[float]:
    """The values of the markers for embedding or head."""
    return [float(line.get_ydata()[0]) for line in ax.lines if line.get_gid() == kind]


def test_norms_carry_the_column_and_the_ends(stats: Any) -> None:
    measured = stats(12, bad=[3])
    ax = plots.layer_norms(measured)
    np.testing.assert_array_equal(
        line_of(ax, "Frobenius norm"), measured.layer_column("frobenius_norm")
    )
    assert np.isnan(line_of(ax, "Frobenius norm")[3])
    assert ends_of(ax, "embed") == [1104.0]
    assert ends_of(ax, "head") == [812.0]


def test_norms_of_several_checkpoints_are_told_apart(stats: Any) -> None:
    checkpoints = {"base": stats(12), "tuned": stats(12, seed=1), "LISA": stats(12, seed=2)}
    ax = plots.layer_norms(checkpoints)
    for label, measured in checkpoints.items():
        np.testing.assert_array_equal(line_of(ax, label), measured.layer_column("frobenius_norm"))
    lines = [line for line in ax.lines if line.get_label() in checkpoints]
    for look in ("color", "marker", "linestyle"):
        assert len({getattr(line, f"get_{look}")() for line in lines}) == 3
    assert len({float(line.get_xdata()[0]) for line in ax.lines if line.get_gid() == "embed"}) == 3


def test_lora_beside_full_gets_a_band_of_its_own(stats: Any) -> None:
    measured = stats(30)
    ax = plots.layer_norms(measured, columns=["frobenius_norm", "lora_norm"])
    np.testing.assert_array_equal(line_of(ax, "LoRA update"), measured.layer_column("lora_norm"))
    height = ax.get_figure(root=True).bbox.height
    for label in ("Frobenius norm", "LoRA update"):
        places = ax.transData.transform([(0.0, y) for y in line_of(ax, label)])[:, 1]
        assert np.ptp(places) > 0.15 * height
    assert ax.get_ylabel() == "Frobenius norm (unit of the weights)"


def test_each_checkpoint_can_have_its_own_column(stats: Any) -> None:
    measured = stats(12)
    columns = {"full": "frobenius_norm", "LoRA": "lora_norm"}
    ax = plots.layer_norms({"full": measured, "LoRA": measured}, columns=columns)
    np.testing.assert_array_equal(line_of(ax, "LoRA"), measured.layer_column("lora_norm"))
    with pytest.raises(UsageError, match="no column given for 'base'"):
        plots.layer_norms({"base": measured}, columns=columns)


def test_a_far_embedding_does_not_press_the_blocks_flat(stats: Any) -> None:
    ax = plots.layer_norms(stats(30))
    low, high = ax.transAxes.inverted().transform(
        ax.transData.transform([(0.0, f(line_of(ax, "Frobenius norm"))) for f in (min, max)])
    )[:, 1]
    assert high - low > 0.5
    assert any(patch.get_gid() == "break" for patch in ax.patches)


def test_ends_within_reach_need_no_break() -> None:
    table = pd.DataFrame(
        {
            "layer": [None, 0, 1, 2, None],
            "kind": ["embed", "block", "block", "block", "head"],
            "frobenius_norm": [3.5, 2.0, 3.0, 4.0, 1.8],
        }
    )
    ax = plots.layer_norms(table)
    assert ax.get_yscale() == "linear"
    assert not [patch for patch in ax.patches if patch.get_gid() == "break"]


def test_a_forced_log_axis_refuses_what_it_would_hide() -> None:
    table = pd.DataFrame({"frobenius_norm": [0.0, 1.0]})
    assert plots.layer_norms(table).get_yscale() == "linear"
    with pytest.raises(UsageError, match="'log' cannot show the value 0"):
        plots.layer_norms(table, yscale="log")
    with pytest.raises(UsageError, match="available: auto, linear, log"):
        plots.layer_norms(table, yscale="cubic")


@example([[2.0], [7.0, 27.0]], [1.0])  # the single value reaches the far band over the near one
@given(
    st.lists(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 1e6), max_size=3),
)
def test_bands_hold_all_values_and_keep_their_order(
    lines: list[list[float]], singles: list[float]
) -> None:
    """No value is lost between the bands, and the broken scale is strictly increasing."""
    bands = bands_of(lines, singles)
    values = sorted({value for line in lines for value in line} | set(singles))
    assert all(any(band.lo <= value <= band.hi for band in bands) for value in values)
    assert all(below.hi < above.lo for below, above in pairwise(bands))
    ax = new_axes(size=(4.0, 3.0))
    if break_y_axis(ax, bands):
        heights = ax.transData.transform([(0.0, value) for value in values])[:, 1]
        assert (np.diff(heights) >= 0).all()
        assert ax.bbox.y0 <= heights[0]
        assert heights[-1] <= ax.bbox.y1


def test_lod_draws_each_m_smallest_first(stats: Any) -> None:
    measured = stats(12, bad=[3])
    ax = plots.lod(measured)
    assert [line.get_label() for line in ax.lines][:2] == ["M = 7", "M = 13"]
    for m in (7, 13):
        np.testing.assert_array_equal(line_of(ax, f"M = {m}"), measured.layer_column(f"lod_m{m}"))


def test_lod_of_chosen_m(stats: Any) -> None:
    ax = plots.lod(stats(12), m=[13])
    assert [line.get_label() for line in ax.lines] == ["M = 13"]
    with pytest.raises(UsageError, match=r"no column 'lod_m3' .*--metrics lod --m 3 --tokens TEXT"):
        plots.lod(stats(12), m=[3])


def test_a_lod_of_zero_stays_visible() -> None:
    """No layer may vanish because a logarithmic axis has no zero."""
    ax = plots.lod(pd.DataFrame({"lod_m7": [5.0, 0.001, 0.0]}))
    assert ax.get_yscale() == "linear"
    assert line_of(ax, "M = 7").tolist() == [5.0, 0.001, 0.0]


def test_alpha_draws_means_matrices_and_ties(stats: Any) -> None:
    measured = stats(12, bad=[3])
    ax = plots.alpha(measured)
    means = measured.layer_column("alpha_hill")
    np.testing.assert_array_equal(line_of(ax, "block mean"), means)
    dots = {str(group.get_label()): group for group in ax.collections}
    rows = measured.matrices[measured.matrices["module"] == "mlp.up_proj"].dropna()
    np.testing.assert_allclose(dots["up_proj"].get_offsets(), rows[["layer", "alpha_hill"]])
    (bars,) = [group for group in ax.collections if hasattr(group, "get_segments")]
    segments = {int(segment[0, 0]): segment[:, 1] for segment in bars.get_segments()}
    assert sorted(segments) == [0, 6, 9]  # every third layer is tied, layer 3 has no value
    np.testing.assert_allclose(segments[6], [means[6] - 0.2, means[6] + 0.1])


def test_alpha_of_another_kind_has_no_bars(stats: Any) -> None:
    measured = stats(12)
    ax = plots.alpha(measured, column="alpha_mid", matrices=False)
    np.testing.assert_array_equal(line_of(ax, "block mean"), measured.layer_column("alpha_mid"))
    assert len(ax.collections) == 0


def test_many_types_of_matrices_share_the_last_entry(stats: Any) -> None:
    measured = stats(4)
    measured.matrices["module"] = [f"part.m{at}" for at in range(len(measured.matrices))]
    ax = plots.alpha(measured)
    labels = [str(group.get_label()) for group in ax.collections]
    assert "17 other types" in labels
    dots = sum(len(g.get_offsets()) for g in ax.collections if not hasattr(g, "get_segments"))
    assert dots == len(measured.matrices)


@pytest.mark.parametrize(
    ("kind", "options", "hint"),
    [
        ("layer-norms", {}, "--metrics frobenius_norm"),
        ("layer-norms", {"columns": "lora_norm"}, "--adapter LORA_DIR"),
        ("lod", {}, "--metrics lod --m 7 --tokens TEXT"),
        ("alpha", {}, "--metrics alpha_hill"),
        ("alpha", {"column": "alpha_ks"}, "--metrics alpha_ks"),
        ("correlation", {"x": "mean_abs", "y": "heavy_tail"}, "--metrics alpha_hill"),
    ],
)
def test_a_missing_column_names_what_to_measure(
    kind: str, options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(UsageError, match=r"no column .* \(they have mean_abs\); ") as caught:
        plots.plot(kind, pd.DataFrame({"mean_abs": [0.1, 0.2]}), **options)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_without_any_value_is_drawn_empty(texts: Any) -> None:
    ax = plots.lod(pd.DataFrame({"lod_m7": [np.nan, np.nan]}))
    notes = [text.get_text() for text in ax.texts]
    assert notes == ["\N{MULTIPLICATION SIGN} no value: layers 0-1"]
    assert texts(ax.get_figure(root=True)).overlaps() == []


def test_statistics_without_blocks_are_refused() -> None:
    table = pd.DataFrame({"layer": [None], "kind": ["embed"], "frobenius_norm": [1.0]})
    with pytest.raises(UsageError, match="hold no block"):
        plots.layer_norms(table)


def test_intervals_of_lod_lie_behind_its_line() -> None:
    table = pd.DataFrame({"lod_m7": [0.9, 0.4, 0.2], "lod_m13": [0.3, 0.2, 0.1]})
    assert not plots.lod(table).collections
    ends = table.assign(lod_m7_lo=[0.8, 0.3, 0.1], lod_m7_hi=[1.0, 0.6, np.nan])
    ax = plots.lod(ends)
    assert [str(line.get_label()) for line in ax.lines] == ["M = 7", "M = 13"]
    (band,) = ax.collections
    corners = {tuple(point) for path in band.get_paths() for point in path.vertices.round(6)}
    assert {(0.0, 0.8), (0.0, 1.0), (1.0, 0.3), (1.0, 0.6)} <= corners
    assert not {x for x, _ in corners} - {0.0, 1.0}
    assert ax.get_ylim()[1] > 1.0
