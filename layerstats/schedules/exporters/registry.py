"""Export targets: what one is given, what it gives back, and the registry of them.

Here belong `ExportRequest`, `Export`, the decorator `@exporter` and the one function `export` that
picks a target. A target is one function `ExportRequest -> Export`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstats.errors import UsageError, choices
from layerstats.schedules.schedule import Schedule
from layerstats.stats import LayerStats, replace_file

__all__ = ["EXPORTERS", "Export", "ExportRequest", "ExportedFile", "Exporter", "export", "exporter"]


@dataclass(frozen=True)
class ExportRequest:
    """What a target is given; None stands for "not asked".

    Parameters
    ----------
    schedule : Schedule
    source : str or None
        The schedule's file, for targets that point to it.
    interval : int or None
        A static set of layers: those of this interval.
    top_fraction : float or None
        A static set of layers: this share with the largest probabilities; above 0, at most 1.
    stats : LayerStats or None
        Statistics of the model, for names and sizes of its matrices.
    metric : str or None
        Column of the statistics to use instead of the schedule's scores.
    layers_path : str or None
        Path of the block list in the model, where the schedule does not say it or says another.
    model_name : str or None
        The model's name, where the schedule does not say it or says another.
    mean_rank : int or None
        Mean rank of an adapter over the layers.
    sparsity : float or None
        Mean sparsity, 0 to 1.
    spread : float or None
        How far a layer's sparsity may be from the mean (OWL's lambda, AlphaPruning's epsilon).
    method : str or None
        "owl" or "alphapruning".
    """

    schedule: Schedule
    source: str | None = None
    interval: int | None = None
    top_fraction: float | None = None
    stats: LayerStats | None = None
    metric: str | None = None
    layers_path: str | None = None
    model_name: str | None = None
    mean_rank: int | None = None
    sparsity: float | None = None
    spread: float | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file to write: its path below the output directory, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Export:
    """What a target makes of a schedule: files, and what they cannot say."""

    target: str
    files: tuple[ExportedFile, ...]
    notes: tuple[str, ...]

    def write(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write the files below a directory, which is made, and return their paths."""
        paths = []
        for file in self.files:
            path = Path(directory) / file.name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                msg = f"{path.parent}: cannot be made ({error.strerror}); choose another place"
                raise UsageError(msg) from error
            replace_file(path, file.text)
            paths.append(path)
        return paths


Writer = Callable[[ExportRequest], Export]


@dataclass(frozen=True, slots=True)
class Exporter:
    """A registered target.

    Parameters
    ----------
    name : str
    write : callable
        ``ExportRequest -> Export``.
    summary, reference : str
        One line for people, and where the format is described.
    options : tuple of str
        Fields of `ExportRequest` that the target looks at, beside schedule and source.
    """

    name: str
    write: Writer
    summary: str
    reference: str
    options: tuple[str, ...] = field(default=())


#: Name -> exporter, in the order of registration.
EXPORTERS: dict[str, Exporter] = {}


def exporter(
    name: str, *, summary: str, reference: str, options: tuple[str, ...] = ()
) -> Callable[[Writer], Writer]:
    """Register a function of an `ExportRequest` as the target `name` (decorator)."""

    def register(write: Writer) -> Writer:
        EXPORTERS[name] = Exporter(name, write, summary, reference, options)
        return write

    return register


def export(target: str, schedule: Schedule, *, source: str | None = None, **options: Any) -> Export:
    """Put a schedule into the format of another program.

    Parameters
    ----------
    target : str
        "axolotl", "spectrum", "peft", "lmflow", "owlore", "ms-swift" or "sparsity".
    schedule : Schedule
    source : str, optional
        The schedule's file.
    **options
        Fields of `ExportRequest`; None is as if left out.

    Returns
    -------
    Export
        Nothing is written yet: `Export.write` does that.

    Raises
    ------
    UsageError
        An unknown target, an option that the target does not look at, or something it needs and
        does not have.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> lisa = schedule("lisa", num_layers=32, expected_active=2)
    >>> done = export("lmflow", lisa, layers_path="model.layers")
    >>> [file.name for file in done.files]
    ['lmflow-lisa.sh']
    """
    if target not in EXPORTERS:
        raise UsageError(choices("target", target, EXPORTERS))
    found = EXPORTERS[target]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in found.options:
            able = ", ".join(sorted(f"--{option}" for option in found.options)).replace("_", "-")
            shown = name.replace("_", "-")
            msg = f"target {target!r} does not use --{shown}; it uses {able or 'no options'}"
            raise UsageError(msg)
    if "stats" in given:
        schedule.require_layers(given["stats"].num_layers)
    if "metric" in given and "stats" not in given:
        msg = "a metric is a column of statistics: give --stats too"
        raise UsageError(msg)
    return found.write(ExportRequest(schedule, source, **given))
