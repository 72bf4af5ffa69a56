"""What several targets need: static sets of layers, names in the running model, notes, headers.

Here belongs nothing that only one target knows.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import numpy as np

from layerstats.errors import UsageError
from layerstats.schedules.exporters.registry import ExportRequest
from layerstats.schedules.parts import created_by
from layerstats.schedules.schedule import ALWAYS_ACTIVE, Schedule
from layerstats.schedules.scores import FloatArray, check_scores, map_scores

__all__ = [
    "always_active_names",
    "header",
    "layer_weights",
    "layers_path",
    "low_rank_notes",
    "matrix_names",
    "static_layers",
    "uniform_notes",
    "whole_active",
]

_OUTSIDE = {
    "model.layers": ("model.embed_tokens", "lm_head", "model.norm"),
    "model.language_model.layers": (
        "model.language_model.embed_tokens", "lm_head", "model.language_model.norm",
    ),
    "transformer.h": ("transformer.wte transformer.wpe", "lm_head", "transformer.ln_f"),
    "gpt_neox.layers": ("gpt_neox.embed_in", "embed_out", "gpt_neox.final_layer_norm"),
    "model.decoder.layers": (
        "model.decoder.embed_tokens model.decoder.embed_positions", "lm_head",
        "model.decoder.final_layer_norm",
    ),
}  # fmt: skip
"""Modules of a causal language model in transformers, by the path of its blocks: embed, head,
norm."""

_IN_FILE = {"h": "transformer.h", "layers": "model.layers"}
"""Block paths in files of a bare model, and in the causal language model that trainers build."""


def layers_path(request: ExportRequest) -> str:
    """Return where the running model keeps its blocks, such as ``model.layers``."""
    path = request.layers_path or request.schedule.model.layers_path
    if not path or path == "blk":
        where = "names of a GGUF file" if path else "no path of the layers"
        msg = (
            f"the schedule has {where}; say where the trainer's model keeps its layers, "
            "for example --layers-path model.layers"
        )
        raise UsageError(msg)
    # The path goes into shell and YAML files, and a schedule may come from anywhere.
    if not re.fullmatch(r"\w+(\.\w+)*", path, re.ASCII):
        msg = f"layers path {path!r} is no path such as model.layers; give --layers-path"
        raise UsageError(msg)
    return path if request.layers_path else _IN_FILE.get(path, path)


def static_layers(request: ExportRequest) -> tuple[list[int], str]:
    """Return a fixed set of layers and what it is in words; interval 0 unless asked otherwise."""
    schedule = request.schedule
    if request.interval is not None and request.top_fraction is not None:
        msg = "--interval and --top-fraction both choose the layers; give one of them"
        raise UsageError(msg)
    if request.top_fraction is None:
        interval = request.interval or 0
        layers = list(schedule.active_layers(interval))
        if not layers:
            msg = f"interval {interval} of this schedule has no layer; choose another --interval"
            raise UsageError(msg)
        return layers, f"the layers of interval {interval} only, for the whole training"
    if not 0 < request.top_fraction <= 1:
        msg = f"top_fraction must be above 0 and at most 1, got {request.top_fraction:g}"
        raise UsageError(msg)
    count = max(1, round(request.top_fraction * schedule.num_layers))
    order = sorted(
        range(schedule.num_layers),
        key=lambda layer: (-schedule.probabilities[layer], -schedule.scores[layer], layer),
    )
    words = f"the {count} layers with the largest probabilities, for the whole training"
    return sorted(order[:count]), words


def always_active_names(request: ExportRequest) -> tuple[list[str], list[str]]:
    """Return the modules outside the blocks that train, and what could not be named."""
    path = layers_path(request)
    known = dict(zip(ALWAYS_ACTIVE, _OUTSIDE.get(path, ("", "", "")), strict=True))
    if request.stats is not None and path not in _OUTSIDE:
        for kind in ("embed", "head"):
            rows = request.stats.layers[request.stats.layers["kind"] == kind]
            known[kind] = " ".join(str(name).removesuffix(".weight") for name in rows["name"])
    asked = request.schedule.always_active
    names = [name for group in asked for name in known[group].split()]
    unknown = [group for group in asked if not known[group]]
    notes = []
    if unknown:
        notes.append(
            f"{' and '.join(unknown)} should train too, but what the model calls them is not known "
            f"for layers at {path}: add them by hand"
        )
    return names, notes


def matrix_names(request: ExportRequest, target: str) -> list[tuple[int, str, str, int]]:
    """Return (layer, module path, short name, row of the table) of each block matrix, by name.

    Names are those of the statistics, with the block path of the running model in front.
    """
    if request.stats is None:
        msg = f"target {target!r} needs the names of the matrices: give --stats DIR"
        raise UsageError(msg)
    path = layers_path(request)
    found = []
    table = request.stats.matrices
    inside_file = request.stats.meta.get("checkpoint", {}).get("layers_path")
    for row in range(len(table)):
        if (
            table["kind"].iloc[row] not in ("attn", "mlp", "other")
            or table["layer"].isna().iloc[row]
        ):
            continue
        layer, name = int(table["layer"].iloc[row]), str(table["name"].iloc[row])
        marks = (f"{inside_file}.{layer}.", f".{layer}.")
        mark = next((mark for mark in marks if mark in name), marks[1])
        inside = name.partition(mark)[2].removesuffix(".weight")
        short = str(table["module"].iloc[row])
        found.append((layer, f"{path}.{layer}.{inside}", short, row))
    return found


def layer_weights(request: ExportRequest) -> tuple[FloatArray, str]:
    """Return one number a layer, not negative, and its name: a column, or the schedule's scores."""
    if request.metric is None:
        name = request.schedule.metric or request.schedule.rule
        return np.array(request.schedule.scores), f"the schedule's scores ({name})"
    assert request.stats is not None  # `export` has seen to it
    values = check_scores(
        request.stats.layer_column(request.metric), what=f"metric {request.metric!r}"
    )
    values, _ = map_scores(values, request.metric)
    if values.min() < 0 or values.max() == 0:
        msg = f"metric {request.metric!r} has negative values or is 0 everywhere; use another"
        raise UsageError(msg)
    return values, f"metric {request.metric}"


def whole_active(schedule: Schedule, program: str) -> int:
    """Return the number of layers an interval has, which these programs take only as a whole."""
    if not schedule.target.whole_number:
        msg = (
            f"{program} trains a whole number of layers at a time, this schedule "
            f"{schedule.expected_active:g} on average; make one with a whole --expected-active"
        )
        raise UsageError(msg)
    return int(schedule.expected_active)


def uniform_notes(schedule: Schedule, program: str) -> list[str]:
    """Say what is lost in a program that draws all layers alike by itself."""
    notes = []
    low, high = min(schedule.probabilities), max(schedule.probabilities)
    if high - low > 1e-12:
        capped = sum(value == 1.0 for value in schedule.probabilities)
        always = f", {capped} of them in every interval" if capped else ""
        notes.append(
            f"NOT this schedule: {program} draws all layers alike "
            f"({schedule.expected_active / schedule.num_layers:.4g} each); rule {schedule.rule} "
            f"wants {low:.4g} to {high:.4g}{always}. The probabilities cannot be expressed"
        )
    notes.append(
        f"{program} draws with its own random numbers: seed {schedule.seed} and the plan of "
        f"sampling {schedule.sampling} are not followed, and a resumed run draws again"
    )
    return notes + outside_notes(schedule, program) + low_rank_notes(schedule)


def outside_notes(schedule: Schedule, program: str) -> list[str]:
    """Say what is lost where a program always trains everything outside the blocks."""
    missing = [name for name in ALWAYS_ACTIVE if name not in schedule.always_active]
    if not missing:
        return []
    return [
        f"{program} trains everything outside the blocks in every interval; the schedule keeps "
        f"{' and '.join(missing)} frozen"
    ]


def low_rank_notes(schedule: Schedule) -> list[str]:
    """Say that low-rank gradients are not part of the file."""
    if schedule.low_rank is None:
        return []
    low_rank = schedule.low_rank
    return [
        f"low-rank gradients (rank {low_rank.rank}, new basis every {low_rank.update_interval} "
        f"steps, scale {low_rank.scale:g}) are not in this file: set the optimizer yourself"
    ]


def header(title: str, schedule: Schedule, notes: Sequence[str]) -> str:
    """Return comment lines: what the file is, what it is made from, what it cannot say."""
    model = f" of {schedule.model.id}" if schedule.model.id else ""
    made = (
        f"Made by {created_by()} from a schedule{model}: rule {schedule.rule}, "
        f"{schedule.expected_active:g} of {schedule.num_layers} layers, "
        f"{schedule.interval_steps} steps an interval."
    )
    lines = [f"# {title}"]
    for text in (made, *(f"Note: {note}." for note in notes)):
        # Words stay whole, so that a name or path can be searched for.
        wrapped = textwrap.wrap(" ".join(text.split()), 96, break_long_words=False)
        lines += [f"# {line}" for line in wrapped]
    return "\n".join(lines) + "\n"
