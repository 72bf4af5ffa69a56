"""What a training run's directory holds, by name, and its log as plain objects; no torch here.

The trainer writes these files (`layerstats.train.run_directory`); pictures and reports read them,
also while the run goes on. `log.jsonl` has one JSON object a line, each with a "kind":

- ``step``: `step` (completed optimizer steps, from 1), `loss`, `lr`, `gradient_norm`,
  `active_layers` (None where no layer is sampled), `trainable`, `tokens`, `tokens_per_second`,
  `memory` {`weights`, `gradients`, `optimizer`, `peak`, `base` in bytes, `measured_by`}; `base` is
  what a process holds beside the model, so training took `peak` - `base`
- ``eval``: `step`, `loss`, `perplexity`, `tokens`; or `step` and `exact_match`, at the end
- ``track``: `step`, `metrics` {name: {`layers`: [...], `embed`, `head`}}
- ``interval``: `step`, `interval`, `active_layers`, `skipped_blocks`
- ``note``: `step`, `message`, what a reader of the run should know
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from layerstats.errors import CheckpointError, MissingError

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "LOG",
    "MODEL",
    "REPORT",
    "SCHEDULE",
    "of_kind",
    "read_config",
    "read_log",
    "read_report",
]

CONFIG = "config.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"
REPORT = "report.json"
SCHEDULE = "schedule.json"

FORMAT = "layerstats-run"
VERSION = 1

Entry = dict[str, Any]


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the settings that a run was begun with.

    Raises
    ------
    MissingError
        There is no run in the directory.
    CheckpointError
        config.json is damaged, or of another program or version.
    """
    file = Path(directory) / CONFIG
    if not file.is_file():
        msg = f"{directory}: no run here (no {CONFIG}); give a directory that `train --out` wrote"
        raise MissingError(msg)
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{file}: not valid JSON ({error}); choose another --out and train again"
        raise CheckpointError(msg) from error
    if not isinstance(page, dict) or page.get("format") != FORMAT:
        msg = f"{file}: not the config of a layerstats run; give a directory that `train` wrote"
        raise CheckpointError(msg)
    if page.get("version") != VERSION or not isinstance(page.get("config"), dict):
        msg = f"{file}: expected {FORMAT} {VERSION}, found {page.get('version')}; train again"
        raise CheckpointError(msg)
    return dict(page["config"])


def read_log(run: str | os.PathLike[str]) -> list[Entry]:
    """Return the log of a run, line by line.

    A run that was killed may leave half a line at the end; it is left out.

    Parameters
    ----------
    run
        A run directory, or a log file.

    Returns
    -------
    list of dict
        In the order written; empty if the run has logged nothing.

    Raises
    ------
    MissingError
        There is neither run nor log.
    CheckpointError
        A line before the last is damaged; the message names it.
    """
    file = Path(run)
    if file.is_dir():
        file = file / LOG
        if not file.is_file():
            read_config(run)
            return []
    elif not file.is_file():
        msg = f"{file}: no such run directory or log; give a directory that `train --out` wrote"
        raise MissingError(msg)
    return list(_parsed(file, file.read_bytes()))


def _parsed(file: Path, data: bytes) -> Iterator[Entry]:
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
                msg = 'no object with a "kind"'
                raise ValueError(msg)
        except ValueError as error:
            if number == len(lines):  # a machine that lost power may leave zeros at the end
                return
            msg_0 = f"{file}: line {number} is damaged ({error}); remove the line or train again"
            raise CheckpointError(msg_0) from error
        yield entry


def of_kind(entries: Iterable[Entry], kind: str) -> list[Entry]:
    """Return the entries of one kind; of an interval logged twice, around a resume, the first.

    Examples
    --------
    >>> of_kind([{"kind": "step", "step": 1}, {"kind": "note"}], "step")
    [{'kind': 'step', 'step': 1}]
    """
    found = [entry for entry in entries if entry["kind"] == kind]
    if kind != "interval":
        return found
    first: dict[Any, Entry] = {}
    for entry in found:
        first.setdefault(entry.get("interval"), entry)
    return list(first.values())


def read_report(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a finished run came to (report.json).

    Raises
    ------
    MissingError
        There is no report: no run, or one that is not finished.
    CheckpointError
        It is damaged.
    """
    file = Path(run) / REPORT
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{file}: not there; the run is not finished, go on with it by --resume"
        raise MissingError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{file}: cannot be read ({error})"
        raise CheckpointError(msg) from error
    if not isinstance(page, dict):
        msg = f"{file}: is no report of a run"
        raise CheckpointError(msg)
    return page
