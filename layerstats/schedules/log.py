"""The schedules of one run, each dated by its first interval, in a file that only ever grows.

Here belongs `ScheduleLog`: a run whose probabilities change keeps every schedule it used, so that
`active_layers(interval)` is still a pure function, of the log instead of one schedule.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerstats.errors import CheckpointError, MissingError, UsageError
from layerstats.schedules.schedule import Schedule
from layerstats.stats import replace_file

__all__ = ["ScheduleLog"]

FORMAT = "layerstats-schedule-log"
VERSION = 1


@dataclass(frozen=True)
class ScheduleLog:
    """Dated schedules in the order in which they were written.

    Interval i belongs to the schedule written last among those that are valid from i or earlier.
    So a run that is resumed from an older checkpoint simply writes its refreshes again: they take
    the place of later ones of the attempt before, and nothing is ever deleted.

    Parameters
    ----------
    entries : tuple of Schedule
        The first is valid from interval 0; all are for the same layers and interval_steps.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> from layerstats.schedules.adaptive import GradientNorms, refresh
    >>> log = ScheduleLog((schedule("lisa", num_layers=4, expected_active=1),))
    >>> log = log.add(refresh(log.at(0), GradientNorms((9.0, 0.0, 0.0, 0.0)), interval=10))
    >>> [log.at(interval).rule for interval in (9, 10)]
    ['lisa', 'adaptive']
    """

    entries: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if not self.entries or self.entries[0].valid_from_interval != 0:
            msg = "a schedule log starts with a schedule that is valid from interval 0"
            raise UsageError(msg)
        first = self.entries[0]
        for entry in self.entries[1:]:
            if (entry.num_layers, entry.interval_steps) != (first.num_layers, first.interval_steps):
                msg = (
                    f"a schedule of {entry.num_layers} layers and {entry.interval_steps} steps an "
                    f"interval does not belong to a run of {first.num_layers} layers and "
                    f"{first.interval_steps} steps"
                )
                raise UsageError(msg)

    @property
    def num_layers(self) -> int:
        """Number of blocks of the model."""
        return self.entries[0].num_layers

    @property
    def interval_steps(self) -> int:
        """Optimizer steps per interval, the same for all entries."""
        return self.entries[0].interval_steps

    def interval_of(self, step: int) -> int:
        """Return the interval that an optimizer step (from 0) belongs to."""
        return self.entries[0].interval_of(step)

    def at(self, interval: int) -> Schedule:
        """Return the schedule that an interval belongs to."""
        for entry in reversed(self.entries):
            if entry.valid_from_interval <= interval:
                return entry
        msg = f"interval must be a whole number from 0, got {interval!r}"
        raise UsageError(msg)

    def active_layers(self, interval: int) -> tuple[int, ...]:
        """Return the blocks that train in an interval, ascending; a function of the log alone."""
        return self.at(interval).active_layers(interval)

    def add(self, schedule: Schedule) -> ScheduleLog:
        """Return the log with one more schedule."""
        return ScheduleLog((*self.entries, schedule))

    def append_to(self, path: str | os.PathLike[str], schedule: Schedule) -> ScheduleLog:
        """Write one more schedule at the end of the log's file and return the longer log.

        The first schedule makes the file. In a run of several processes one of them writes.

        Raises
        ------
        UsageError
            The file cannot be written, or its log is not this one.
        """
        longer = self.add(schedule)
        file = Path(path)
        if _complete_lines(file)[1:] != [_line(entry) for entry in self.entries]:
            msg = f"{file}: is the log of another run, or of a later state of this one; read it"
            raise UsageError(msg)
        _append(file, _line(schedule))
        return longer

    @classmethod
    def start(cls, path: str | os.PathLike[str], schedule: Schedule) -> ScheduleLog:
        """Make the file of a new run with its first schedule.

        Raises
        ------
        UsageError
            There is a file already (read it with `load` to go on), or it cannot be written.
        """
        file = Path(path)
        log = cls((schedule,))
        if file.exists() and len(_complete_lines(file)) > 1:
            msg = f"{file}: exists; load it to go on with its run, or choose another place"
            raise UsageError(msg)
        head = json.dumps({"format": FORMAT, "version": VERSION})
        replace_file(file, f"{head}\n{_line(schedule)}\n")
        return log

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScheduleLog:
        """Read a log's file; a last line that was cut off in writing does not count.

        Raises
        ------
        MissingError
            No such file.
        CheckpointError
            The file is not a schedule log that this version can read.
        """
        file = Path(path)
        if not file.is_file():
            msg = f"{file}: no such file; a run with a schedule that changes writes one"
            raise MissingError(msg)
        lines = _complete_lines(file)
        head = _parse(lines[0], f"{file}:1") if lines else None
        expected = {"format": FORMAT, "version": VERSION}
        if head != expected:
            msg = f"{file}: is not a schedule log of version {VERSION} (its first line: {head})"
            raise CheckpointError(msg)
        entries = [
            Schedule.from_dict(_parse(line, f"{file}:{number}"), source=f"{file}:{number}")
            for number, line in enumerate(lines[1:], start=2)
        ]
        try:
            return cls(tuple(entries))
        except UsageError as error:
            msg = f"{file}: {error}"
            raise CheckpointError(msg) from error


def _line(schedule: Schedule) -> str:
    return json.dumps(schedule.to_dict(), allow_nan=False, ensure_ascii=False)


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        msg = f"{place}: is not JSON ({error}); restore the file, its run cannot be repeated"
        raise CheckpointError(msg) from error


def _complete_lines(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode("utf-8", errors="replace") if file.exists() else ""
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from error
    return text.split("\n")[:-1]


def _append(file: Path, line: str) -> None:
    """Add a line and wait until it is on the disk; half a line left by a crash is cut off first."""
    try:
        file.touch()
        with file.open("r+b") as stream:
            kept = stream.read().rfind(b"\n") + 1
            stream.truncate(kept)
            stream.seek(kept)
            stream.write(line.encode("utf-8") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        msg = f"{file}: cannot be written ({error.strerror}); free space or choose another place"
        raise UsageError(msg) from error
