"""What holds for every registered kind: units, readable texts, no overlaps, no global state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from layerstats import plots
from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes

Draw = Callable[..., Axes]

#: The unit that each kind's axes must state, and whether it must have a legend.
EXPECTED = {
    "activity": ("Intervals", True),
    "alpha": ("exponent", True),
    "correlation": ("% of weights", False),
    "esd": ("squared weight units", True),
    "layer-norms": ("unit of the weights", True),
    "lod": ("%", True),
    "loss": ("nats per token", True),
    "memory": ("GB = 10⁹ bytes", True),
    "schedule": ("Probability", True),
    "weight-norms": ("unit of the weights", True),
}
#: Kinds without an axis of layers.
NO_LAYERS = ("esd", "loss", "memory")


@pytest.fixture
def draw(stats: Any, layer_schedule: Any, spectrum: Any, run_log: Any) -> Draw:
    """Draw any kind with data of a number of layers; some layers have no value."""

    def drawing(kind: str, num_layers: int, **options: Any) -> Axes:
        bad = (3, 7, 8, 9) if num_layers > 10 else ()
        measured = stats(num_layers, bad=bad)
        used = num_layers - len(bad)
        result = {
            "method": "spearman",
            "rho": 0.5,
            "p_value": 1e-7,
            "n": used,
            "interval": [0.1, 0.7],
        }
        trained = {"lisa": run_log(num_layers, bad=bad), "full": run_log(num_layers, seed=1)}
        data: dict[str, tuple[Any, dict[str, Any]]] = {
            "activity": (trained["lisa"], {"schedule": layer_schedule(num_layers)}),
            "alpha": (measured, {}),
            "correlation": (measured, {"result": result}),
            "esd": ({"layer 0 q_proj": spectrum()}, {}),
            "layer-norms": ({"base": measured, "tuned": stats(num_layers, seed=1)}, {}),
            "lod": (measured, {}),
            "loss": (trained, {}),
            "memory": (trained["lisa"], {}),
            "schedule": (layer_schedule(num_layers), {}),
            "weight-norms": (trained, {}),
        }
        given, own = data[kind]
        return plots.plot(kind, given, **own, **options)

    return drawing


def test_every_kind_is_in_the_tables_of_these_tests() -> None:
    """A new kind is added to EXPECTED and to `draw` above; then all tests here hold for it."""
    assert set(plots.available()) == set(EXPECTED)


@pytest.mark.parametrize(
    ("kind", "num_layers"),
    [
        (kind, n)
        for kind in plots.available()
        for n in ((1, 12, 30, 80) if kind not in NO_LAYERS else (1,))
    ],
)
def test_all_texts_can_be_read(kind: str, num_layers: int, draw: Draw, texts: Any) -> None:
    figure = draw(kind, num_layers).get_figure(root=True)
    seen = texts(figure)
    assert len(seen.boxes) > 5
    assert seen.overlaps() == []
    assert seen.cut_off() == []
    assert min(text.get_fontsize() for text in seen.boxes) >= 9.0


@pytest.mark.parametrize("kind", plots.available())
def test_axes_are_labelled_with_units(kind: str, draw: Draw, texts: Any) -> None:
    ax = draw(kind, 12)
    unit, legend = EXPECTED[kind]
    assert unit in ax.get_xlabel() + ax.get_ylabel()
    readable = " ".join(text.get_text() for text in texts(ax.get_figure(root=True)).boxes)
    assert ax.get_ylabel()
    assert "Layer (index" in readable or kind in NO_LAYERS
    assert (ax.get_legend() is not None) == legend


@pytest.mark.parametrize("kind", [kind for kind, (_, legend) in EXPECTED.items() if legend])
@pytest.mark.parametrize("num_layers", [1, 80])
def test_legends_hide_no_data(kind: str, num_layers: int, draw: Draw) -> None:
    ax = draw(kind, num_layers)
    ax.get_figure(root=True).draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    assert not ax.bbox.overlaps(legend.get_window_extent())


@pytest.mark.parametrize("kind", plots.available())
def test_drawing_into_given_axes_returns_them(kind: str, draw: Draw) -> None:
    ax = new_axes(size=(7.0, 4.0))
    assert draw(kind, 12, ax=ax) is ax


@pytest.mark.parametrize("kind", plots.available())
def test_drawing_leaves_the_settings_alone(kind: str, draw: Draw, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plots.save(draw(kind, 12), tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("kind", ["alpha", "layer-norms", "lod", "weight-norms"])
@pytest.mark.parametrize("num_layers", [1, 12, 30, 80])
def test_layers_are_numbered_in_whole_numbers(kind: str, num_layers: int, draw: Draw) -> None:
    ax = draw(kind, num_layers)
    ax.get_figure(root=True).draw_without_rendering()
    shown = [text.get_text() for text in ax.get_xticklabels()]
    numbers = [int(text) for text in shown if text not in ("embed", "head")]
    assert numbers[0] == 0
    assert len(set(np.diff(numbers))) <= 1
    assert max(numbers) < num_layers


@pytest.mark.parametrize("kind", ["alpha", "layer-norms", "lod", "correlation", "weight-norms"])
def test_layers_without_value_are_named(kind: str, draw: Draw, texts: Any) -> None:
    seen = texts(draw(kind, 12).get_figure(root=True))
    notes = [text.get_text() for text in seen.boxes if text.get_gid() == "note"]
    assert len(notes) == 1
    assert "layers 3, 7-9" in notes[0]


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'layer-norms'") as caught:
        plots.plot("layer-norm", None)
    assert all(kind in str(caught.value) for kind in plots.available())


@pytest.mark.parametrize("kind", ["alpha", "layer-norms", "lod", "correlation"])
def test_data_that_are_no_statistics_are_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="cannot plot a str; give a LayerStats"):
        plots.plot(kind, "out/stats")


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    """pyplot keeps every figure alive and chooses a window system: a library must not start it."""
    program = (
        "import sys, pandas as pd, layerstats.plots as plots;"
        "plots.save(plots.lod(pd.DataFrame({'lod_m7': [1.0, 2.0]})), sys.argv[1]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    file = tmp_path / "lod.png"
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)
    assert file.is_file()
