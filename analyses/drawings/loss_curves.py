"""Training and held-out loss by step, a line and a band a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.drawings import panels
from analyses.drawings.by_seed import SPREAD, band, look, over_steps
from analyses.run_summary import NAMES
from layerstats.plots.style import finish, outside_legend

__all__ = ["draw"]


def draw(result: Mapping[str, Any]) -> Any:
    """Draw two panels: smoothed training loss, held-out loss from its second measurement on."""
    figure, training, held_out = panels(1, 2, size=(10.6, 4.2))
    for method, curves in result["curves"].items():
        style = look(method)
        band(training, curves["training"], {**style, "marker": ""})
        band(held_out, curves["held_out"], style, label=NAMES[method])
    over_steps(held_out, [curves["held_out"] for curves in result["curves"].values()])
    before = next(iter(result["runs"].values()))["held_out_before"]
    given = result["inputs"]
    count = len(given["seeds"])
    width = given["training_loss_smoothed_over_steps"]
    finish(training, xlabel="Optimizer step", ylabel="Loss (nats per token)",
           title=f"(a) Training, smoothed over {width} steps")  # fmt: skip
    told = f"(b) {given['held_out_problems']} held-out problems; {before:.2f} before training"
    finish(held_out, xlabel="Optimizer step", ylabel="", title=told)
    training.set_xlim(0, 1.02 * given["steps"])
    seeds = f"mean of {count} seeds,\n{SPREAD.replace(' to ', ' to' + chr(10))}"
    outside_legend(held_out, title=seeds if count > 1 else "one seed")
    return figure
