"""Statistics and schedules made on the spot, and the texts of a drawn figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from layerstats.stats import LayerStats

MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def make_stats(num_layers: int = 12, *, seed: int = 0, bad: Iterable[int] = ()) -> LayerStats:
    """Statistics as of a real model: heavy first layers, embedding far above the blocks."""
    rng = np.random.default_rng(seed)
    depth = np.linspace(0.0, 1.0, num_layers)
    alphas = 2.0 + 2.0 * depth[:, None] + rng.uniform(-0.8, 1.5, (num_layers, len(MODULES)))
    matrices = pd.DataFrame(
        {
            "layer": layer,
            "name": f"model.layers.{layer}.{module}.weight",
            "module": module,
            "kind": "attn" if "attn" in module else "mlp",
            "alpha_hill": alphas[layer, at],
            "alpha_mid": alphas[layer, at] + 0.4,
        }
        for layer in range(num_layers)
        for at, module in enumerate(MODULES)
    )
    mean = alphas.mean(axis=1)
    lod = 0.28 * np.exp(-2.5 * depth) + 0.01 * rng.random(num_layers)
    tied = np.where(np.arange(num_layers) % 3 == 0, 0.2, 0.0)
    blocks = pd.DataFrame(
        {
            "layer": range(num_layers),
            "name": [f"model.layers.{layer}" for layer in range(num_layers)],
            "kind": "block",
            "frobenius_norm": 280.0 + 50.0 * depth + 8.0 * rng.standard_normal(num_layers),
            "lora_norm": 2.0 - depth + 0.1 * rng.random(num_layers),
            "lod_m7": 3.0 * lod,
            "lod_m13": lod,
            "alpha_hill": mean,
            "alpha_hill_lo": mean - tied,
            "alpha_hill_hi": mean + 0.5 * tied,
            "alpha_mid": mean + 0.4,
        }
    )
    for layer in bad:
        blocks.loc[layer, blocks.columns[3:]] = np.nan
        matrices.loc[matrices["layer"] == layer, ["alpha_hill", "alpha_mid"]] = np.nan
    ends = pd.DataFrame(
        {
            "layer": pd.NA,
            "name": ["model.embed_tokens", "lm_head"],
            "kind": ["embed", "head"],
            "frobenius_norm": [1104.0, 812.0],
        }
    )
    layers = pd.concat([ends.iloc[:1], blocks, ends.iloc[1:]], ignore_index=True)
    layers["layer"] = layers["layer"].astype("Int64")
    return LayerStats(matrices=matrices, layers=layers, meta={})


@dataclass(frozen=True)
class FakeSchedule:
    """The parts of a Schedule that are drawn, with a target that the sampling misses."""

    probabilities: tuple[float, ...]
    inclusion_probabilities: tuple[float, ...]
    expected_active: float
    interval_steps: int = 20
    rule: str = "owlore"
    sampling: str = "successive"

    def active_layers(self, interval: int) -> tuple[int, ...]:
        """One layer an interval, in turn."""
        return (interval % len(self.probabilities),)


def make_schedule(num_layers: int = 12) -> FakeSchedule:
    """A schedule with decreasing probabilities."""
    weights = np.arange(num_layers, 0, -1, dtype=float)
    target = weights / weights.sum()
    return FakeSchedule(tuple(target), tuple(0.9 * target + 0.1 / num_layers), 1.0)


def make_run(
    num_layers: int = 12,
    *,
    seed: int = 0,
    steps: int = 200,
    interval_steps: int = 10,
    bad: Iterable[int] = (),
) -> list[dict[str, Any]]:
    """The log of a run that sampled one layer an interval; of `bad` layers no norm is known."""
    rng = np.random.default_rng(seed)
    norms = 280.0 + 50.0 * np.linspace(0.0, 1.0, num_layers) + 8.0 * rng.standard_normal(num_layers)
    log: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        interval = (step - 1) // interval_steps
        active = [int(np.random.default_rng((seed, interval)).integers(num_layers))]
        if (step - 1) % interval_steps == 0:
            begins = {"kind": "interval", "step": step, "interval": interval}
            log.append({**begins, "active_layers": active, "skipped_blocks": 0})
        gradients = 1e9 * (1 + active[0] % 2)
        memory = {"weights": 13.5e9, "gradients": gradients, "optimizer": 4 * gradients}
        log.append(
            {
                "kind": "step",
                "step": step,
                "loss": 1.9 + 1.6 * np.exp(-step / 40) + 0.1 * rng.standard_normal(),
                "lr": 3e-4,
                "active_layers": active,
                "trainable": int(gradients / 2),
                "memory": {**memory, "peak": 24e9, "measured_by": "cuda allocator"},
            }
        )
        if step % 50 == 0:
            log.append({"kind": "eval", "step": step, "loss": 2.0 + 1.5 * np.exp(-step / 40)})
        if step % 50 == 1:
            layers = [None if n in bad else float(w + 0.01 * step) for n, w in enumerate(norms)]
            record = {"layers": layers, "embed": 1104.0, "head": 812.0 + step}
            metrics = {"frobenius_norm": record}
            log.append({"kind": "track", "step": step, "metrics": metrics})
    return log


@dataclass(frozen=True)
class FakeFit:
    """A power-law fit with numbers that are easy to check."""

    alpha: float = 3.0
    xmin: float = 2.0
    k: int = 40
    ks_distance: float = 0.05


def make_spectrum(seed: int = 0, size: int = 400) -> tuple[np.ndarray, FakeFit]:
    """Eigenvalues with a power-law tail, and a fit."""
    rng = np.random.default_rng(seed)
    return 0.5 * (1.0 - rng.random(size)) ** -0.6, FakeFit()


@pytest.fixture
def stats() -> Callable[..., LayerStats]:
    """Make statistics of a number of layers."""
    return make_stats


@pytest.fixture
def layer_schedule() -> Callable[..., FakeSchedule]:
    """Make a schedule of a number of layers."""
    return make_schedule


@pytest.fixture
def run_log() -> Callable[..., list[dict[str, Any]]]:
    """Make the log of a training run."""
    return make_run


@pytest.fixture
def spectrum() -> Callable[..., tuple[np.ndarray, FakeFit]]:
    """Make eigenvalues and a fit."""
    return make_spectrum


class Texts:
    """All texts of a figure that can be seen, with their places in pixels."""

    def __init__(self, figure: Figure) -> None:
        figure.draw_without_rendering()
        self.figure = figure
        # Text's own extent: an annotation's would count its leader line too.
        self.boxes = {text: Text.get_window_extent(text) for text in self._seen(figure)}

    @staticmethod
    def _seen(figure: Figure) -> list[Text]:
        """Texts with ink; matplotlib keeps tick labels beyond the limits but does not draw them."""
        of_ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
        drawn = {
            label
            for ax in figure.axes
            for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
            if min(limits) <= tick.get_loc() <= max(limits)
            for label in (tick.label1, tick.label2)
        }
        return [
            text
            for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and text not in of_ticks - drawn
        ]

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of texts that lie on each other by more than a pixel."""
        return [
            (one.get_text(), other.get_text())
            for one, other in combinations(self.boxes, 2)
            if (both := Bbox.intersection(self.boxes[one], self.boxes[other])) is not None
            and both.width > 1.0
            and both.height > 1.0
        ]

    def cut_off(self) -> list[str]:
        """Texts that leave the picture."""
        page = self.figure.bbox
        return [
            text.get_text()
            for text, box in self.boxes.items()
            if box.x0 < page.x0 - 1
            or box.y0 < page.y0 - 1
            or box.x1 > page.x1 + 1
            or box.y1 > page.y1 + 1
        ]


@pytest.fixture
def texts() -> Callable[[Figure], Texts]:
    """Return what can be read in a figure."""
    return Texts
