"""The schedule itself: a frozen value that says which layers train in which interval, and its JSON.

Here belong `Schedule`, its parts, their checks and writing. Strict reading of files is in
reading.py, making a schedule from a rule and scores in build.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layerstats.errors import CheckpointError, UsageError
from layerstats.schedules.parts import LowRank, ModelRef, Provenance
from layerstats.schedules.reading import FORMAT, VERSION, check_form, read_source
from layerstats.schedules.sampling import SamplingLaw, Target, get_law
from layerstats.stats import replace_file

__all__ = ["ALWAYS_ACTIVE", "Schedule"]

ALWAYS_ACTIVE = ("embed", "head", "norm")
"""What stands outside the blocks and may be trained in every interval."""

SUM_TOLERANCE = 1e-9
"""Relative; doubles written in full are far closer, rounded ones are not."""
LAW_TOLERANCE = 1e-8
"""By layer; the exact laws are computed to about 1e-13."""
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Schedule:
    """Which layers train when: a pure function of (seed, interval), with the numbers it rests on.

    Parameters
    ----------
    model : ModelRef
    rule : str
        Name of the rule the scores came from.
    metric : str or None
        Metric column behind the scores, None for a rule without one or for scores without a name.
    scores : tuple of float, length num_layers
        What the probabilities are proportional to before water-filling.
    expected_active : float
        Layers per interval in expectation (gamma), above 0, at most num_layers.
    interval_steps : int
        Optimizer steps per interval (K), at least 1.
    seed : int
        0 .. 2**63 - 1.
    probabilities : tuple of float, length num_layers
        Target inclusion probabilities in [0, 1], sum `expected_active`.
    sampling : str
        Name of the sampling law.
    inclusion_probabilities : tuple of float, length num_layers
        What the law really gives, exact.
    always_active : tuple of str
        Of "embed", "head", "norm": what trains in every interval beside the blocks drawn.
    low_rank : LowRank or None
    provenance : Provenance

    Raises
    ------
    UsageError
        When a value is out of range or two of them do not fit together.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> lisa = schedule("lisa", num_layers=32, expected_active=2, seed=7)
    >>> lisa.active_layers(0), lisa.active_layers(1_000_000)
    ((2, 9), (3, 31))
    >>> Schedule.from_json(lisa.to_json()) == lisa
    True
    """

    model: ModelRef
    rule: str
    metric: str | None
    scores: tuple[float, ...]
    expected_active: float
    interval_steps: int
    seed: int
    probabilities: tuple[float, ...]
    sampling: str
    inclusion_probabilities: tuple[float, ...]
    always_active: tuple[str, ...] = ALWAYS_ACTIVE
    low_rank: LowRank | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        for name in ("scores", "probabilities", "inclusion_probabilities"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "always_active", tuple(self.always_active))
        _check_numbers(self)
        # NumPy's numbers become Python's, so that equal schedules write equal files.
        object.__setattr__(self, "expected_active", _short(self.expected_active))
        for name in ("interval_steps", "seed"):
            object.__setattr__(self, name, int(getattr(self, name)))
        _check_vectors(self)
        _check_law(self)

    @property
    def num_layers(self) -> int:
        """Number of blocks of the model."""
        return self.model.num_layers

    @property
    def target(self) -> Target:
        """What the sampling law is asked to meet."""
        return Target(self.scores, self.probabilities, self.expected_active)

    @property
    def law(self) -> SamplingLaw:
        """The sampling law."""
        return get_law(self.sampling)

    @property
    def valid_from_interval(self) -> int:
        """First interval this schedule is for: 0, or the date of a refresh (`ScheduleLog`)."""
        value: int = self.provenance.parameters.get("valid_from_interval", 0)
        _check_integer("provenance.parameters.valid_from_interval", value, low=0)
        return int(value)

    def active_layers(self, interval: int) -> tuple[int, ...]:
        """Return the blocks that train in an interval, ascending.

        A pure function of (seed, interval) and the schedule's numbers: no state, any order, the
        same in every process, on every platform and after a resume.

        Parameters
        ----------
        interval : int
            From 0; interval i covers the optimizer steps ``i * interval_steps`` up to the next
            interval's.

        Returns
        -------
        tuple of int
            Distinct, in 0 .. num_layers - 1.
        """
        _check_integer("interval", interval, low=0)
        return tuple(self.law.draw(self.target, self.seed, int(interval)))

    def plan(self, intervals: int, *, start: int = 0) -> list[tuple[int, ...]]:
        """Return `active_layers` of the intervals start .. start + intervals - 1."""
        return [self.active_layers(interval) for interval in range(start, start + intervals)]

    def interval_of(self, step: int) -> int:
        """Return the interval that an optimizer step (from 0) belongs to."""
        _check_integer("step", step, low=0)
        return int(step) // self.interval_steps

    def require_layers(self, num_layers: int) -> None:
        """Raise UsageError unless a model with `num_layers` blocks is what this schedule is for."""
        if num_layers != self.num_layers:
            msg = (
                f"the schedule is for {self.num_layers} layers but the model has {num_layers}; "
                "make a schedule for this model"
            )
            raise UsageError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as the JSON object of the file format."""
        low_rank = self.low_rank
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": {
                "id": self.model.id,
                "num_layers": self.model.num_layers,
                "layers_path": self.model.layers_path,
            },
            "rule": self.rule,
            "metric": self.metric,
            "scores": list(self.scores),
            "expected_active": self.expected_active,
            "interval_steps": self.interval_steps,
            "seed": self.seed,
            "probabilities": list(self.probabilities),
            "sampling": self.sampling,
            "inclusion_probabilities": list(self.inclusion_probabilities),
            "always_active": list(self.always_active),
            "low_rank": low_rank
            and {
                "rank": low_rank.rank,
                "update_interval": low_rank.update_interval,
                "scale": low_rank.scale,
            },
            "provenance": {
                "created_by": self.provenance.created_by,
                "stats": self.provenance.stats,
                "parameters": dict(self.provenance.parameters),
            },
        }

    def to_json(self) -> str:
        """Return the text of a schedule file: strict JSON, one key a line, numbers in full."""
        lines = (
            f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False, ensure_ascii=False)}"
            for key, value in self.to_dict().items()
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the schedule file: beside its place first, then renamed."""
        file = Path(path)
        replace_file(file, self.to_json())
        return file

    @classmethod
    def from_dict(cls, data: object, *, source: str = "schedule") -> Schedule:
        """Read the JSON object of a schedule file, strictly; `source` names it in errors.

        Raises
        ------
        CheckpointError
            A key is missing, unknown or of the wrong type, a value is out of range, sums do not
            fit, or the version is unknown.
        """
        fields = check_form(data, source)
        fields["model"] = ModelRef(**fields["model"])
        fields["provenance"] = Provenance(**fields["provenance"])
        fields["low_rank"] = fields["low_rank"] and LowRank(**fields["low_rank"])
        try:
            return cls(**fields)
        except UsageError as error:
            msg = f"{source}: {error}"
            raise CheckpointError(msg) from error
        except OverflowError as error:
            msg = f"{source}: has a number too large for a double"
            raise CheckpointError(msg) from error

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Schedule:
        """Read a schedule file (a path), or the text of one (a string that starts with a brace).

        Raises
        ------
        MissingError
            No such file.
        CheckpointError
            The file is not a schedule that this version can read.
        """
        data, name = read_source(source)
        return cls.from_dict(data, source=name)


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _check_integer(name: str, value: object, *, low: int, high: int = _MAX_INTEGER) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and low <= int(value) <= high):  # type: ignore[call-overload]
        limit = f"from {low} to 2**63 - 1" if high == _MAX_INTEGER else f"from {low} to {high}"
        msg = f"{name} must be a whole number {limit}, got {value!r}"
        raise UsageError(msg)


def _check_positive(name: str, value: object) -> None:
    number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not number or not (0 < float(value) < math.inf):  # type: ignore[arg-type]
        msg = f"{name} must be a number above 0, got {value!r}"
        raise UsageError(msg)


def _check_numbers(schedule: Schedule) -> None:
    _check_integer("model.num_layers", schedule.model.num_layers, low=1)
    _check_integer("interval_steps", schedule.interval_steps, low=1)
    _check_integer("seed", schedule.seed, low=0)
    _check_positive("expected_active", schedule.expected_active)
    if schedule.expected_active > schedule.num_layers:
        msg = (
            f"expected_active {schedule.expected_active:g} is more than the {schedule.num_layers} "
            f"layers; at most {schedule.num_layers}"
        )
        raise UsageError(msg)
    if schedule.low_rank is not None:
        _check_integer("low_rank.rank", schedule.low_rank.rank, low=1)
        _check_integer("low_rank.update_interval", schedule.low_rank.update_interval, low=1)
        _check_positive("low_rank.scale", schedule.low_rank.scale)
    always = schedule.always_active
    unknown = [name for name in always if name not in ALWAYS_ACTIVE]
    if unknown or len(set(always)) != len(always):
        wrong = f"unknown {unknown[0]!r}" if unknown else "a name twice"
        msg = f"always_active has {wrong}; give any of {', '.join(ALWAYS_ACTIVE)}, each once"
        raise UsageError(msg)


def _check_vectors(schedule: Schedule) -> None:
    for name in ("scores", "probabilities", "inclusion_probabilities"):
        values = getattr(schedule, name)
        if len(values) != schedule.num_layers:
            msg = f"{name} has {len(values)} values, but model.num_layers is {schedule.num_layers}"
            raise UsageError(msg)
        _check_range(name, values, (-math.inf, math.inf) if name == "scores" else (0.0, 1.0))
    total = math.fsum(schedule.probabilities)
    if abs(total - schedule.expected_active) > SUM_TOLERANCE * max(1.0, schedule.expected_active):
        msg = (
            f"probabilities sum to {total:.12g}, not to expected_active "
            f"{schedule.expected_active:g}; make the schedule again, or write the numbers in full"
        )
        raise UsageError(msg)


def _check_range(name: str, values: Iterable[float], limits: tuple[float, float]) -> None:
    for layer, value in enumerate(values):
        if not (math.isfinite(value) and limits[0] <= value <= limits[1]):
            allowed = "finite" if limits[0] == -math.inf else "from 0 to 1"
            msg = f"{name}[{layer}] is {value}; it must be {allowed}"
            raise UsageError(msg)


def _check_law(schedule: Schedule) -> None:
    law = schedule.law
    law.check(schedule.target)
    exact = law.inclusion(schedule.target)
    error = np.abs(exact - np.array(schedule.inclusion_probabilities))
    if error.max() > LAW_TOLERANCE:
        layer = int(error.argmax())
        msg = (
            f"inclusion_probabilities[{layer}] is {schedule.inclusion_probabilities[layer]:g}, but "
            f"{schedule.sampling} sampling of these probabilities gives {exact[layer]:.9g}; "
            "make the schedule again"
        )
        raise UsageError(msg)
