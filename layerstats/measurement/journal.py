"""What makes a measurement resumable: a line per layer, written as soon as the layer is done.

`OUT/journal.jsonl` begins with a line that says which question it answers; a resumed run must ask
the same one. Numbers are written so that they read back to the same bits. At the end the tables
replace the journal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from layerstats.errors import CheckpointError, UsageError
from layerstats.measurement.tables import LayerResult, MatrixResult
from layerstats.stats import LayerStats

__all__ = ["Journal", "open_journal"]

_FORMAT = "layerstats-journal"
_ACTIVATIONS = "activations.partial.safetensors"
_FILES = (
    "layers.csv",
    "matrices.csv",
    "meta.json",
    "journal.jsonl",
    _ACTIVATIONS,
)


class Journal:
    """The results of a running measurement, in a directory or (without one) nowhere.

    Use it as a context: when the run fails before anything was worth keeping, the directory goes
    again.
    """

    def __init__(
        self, directory: Path | None, results: dict[int | None, LayerResult], *, fresh: bool
    ) -> None:
        self.directory = directory
        self.results = results
        self._fresh = fresh
        self._stream: IO[str] | None = None

    @property
    def activations_file(self) -> Path | None:
        """Where a finished calibration is kept until the run ends."""
        return self.directory / _ACTIVATIONS if self.directory else None

    def begin(self, question: Mapping[str, Any]) -> None:
        """Write the first line, or open the file of an earlier run behind its last whole line."""
        if self.directory is None:
            return
        file = self.directory / "journal.jsonl"
        try:
            if self.results or (not self._fresh and file.exists()):
                self._stream = file.open("r+", encoding="utf-8")
                self._stream.seek(_whole_bytes(file))
                self._stream.truncate()
                return
            self.directory.mkdir(parents=True, exist_ok=True)
            self._stream = file.open("w", encoding="utf-8")
            self._append({"format": _FORMAT, "version": 1, "question": dict(question)})
        except OSError as error:
            msg = (
                f"{file}: cannot be written ({error.strerror}); free space or choose another --out"
            )
            raise UsageError(msg) from error

    def write(self, layer: int | None, result: LayerResult) -> None:
        """Keep the result of one layer."""
        self.results[layer] = result
        if self._stream is not None:
            matrices = {
                key: {"values": _packed(found.values), "problems": found.problems}
                for key, found in result.matrices.items()
            }
            line = {
                "layer": layer,
                "block": _packed(result.block),
                "problems": result.problems,
                "matrices": matrices,
                **({"redraws": result.redraws} if result.redraws else {}),
            }
            try:
                self._append(line)
            except OSError as error:
                msg = (
                    f"{self.directory}: cannot be written ({error.strerror}); free space, "
                    "then use --resume"
                )
                raise UsageError(msg) from error

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def finish(self, stats: LayerStats) -> None:
        """Write the tables and remove the journal."""
        if self.directory is None:
            return
        stats.save(self.directory)
        self._close()
        for name in ("journal.jsonl", _ACTIVATIONS):
            (self.directory / name).unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        nothing_done = not self.results and not (
            self.activations_file and self.activations_file.exists()
        )
        if kind is not None and self._fresh and nothing_done and self.directory is not None:
            (self.directory / "journal.jsonl").unlink(missing_ok=True)
            if self.directory.is_dir() and not any(self.directory.iterdir()):
                self.directory.rmdir()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def open_journal(
    out: str | os.PathLike[str] | None, question: Mapping[str, Any], resume: bool, overwrite: bool
) -> Journal:
    """Begin a journal in `out`, or go on with the one that is there.

    Raises
    ------
    UsageError
        The directory holds something and neither `resume` nor `overwrite` says what to do with it;
        or the journal in it answers another question.
    """
    if out is None:
        if resume:
            msg = "resume needs the directory of the unfinished run: add --out DIR"
            raise UsageError(msg)
        return Journal(None, {}, fresh=True)
    directory = Path(out)
    _check_place(directory, resume, overwrite)
    question = json.loads(json.dumps(question))
    file = directory / "journal.jsonl"
    results: dict[int | None, LayerResult] = {}
    going_on = resume and file.is_file()
    if going_on:
        results = _read(file, question)
    elif overwrite:
        for name in _FILES:
            (directory / name).unlink(missing_ok=True)
    journal = Journal(directory, results, fresh=not going_on)
    journal.begin(question)
    return journal


def _check_place(directory: Path, resume: bool, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        msg = f"{directory}: is a file; give a directory for --out"
        raise UsageError(msg)
    if not directory.is_dir() or not any(directory.iterdir()) or overwrite:
        return
    if (directory / "journal.jsonl").is_file():
        if not resume:
            msg = (
                f"{directory}: holds an unfinished measurement; add --resume to go on or "
                "--overwrite to start anew"
            )
            raise UsageError(msg)
        return
    what = "a finished measurement" if (directory / "meta.json").is_file() else "other files"
    msg_0 = f"{directory}: exists and holds {what}; choose another --out or add --overwrite"
    raise UsageError(msg_0)


def _whole_bytes(file: Path) -> int:
    """Count the bytes up to the end of the last whole line: a kill may leave half of one."""
    return file.read_bytes().rfind(b"\n") + 1


def _read(file: Path, question: Mapping[str, Any]) -> dict[int | None, LayerResult]:
    lines = file.read_bytes()[: _whole_bytes(file)].decode("utf-8").splitlines()
    results: dict[int | None, LayerResult] = {}
    try:
        if not lines:
            msg = "no first line"
            raise ValueError(msg)
        head, *rest = (json.loads(line) for line in lines)
        if head["format"] != _FORMAT:
            msg = "not a journal of layerstats"
            raise ValueError(msg)
        for line in rest:
            matrices = {
                key: MatrixResult(_unpacked(found["values"]), tuple(found["problems"]))
                for key, found in line["matrices"].items()
            }
            results[line["layer"]] = LayerResult(
                _unpacked(line["block"]),
                matrices,
                tuple(line["problems"]),
                line.get("redraws", {}),
            )
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{file}: damaged ({error}); start anew with --overwrite"
        raise CheckpointError(msg) from error
    different = [key for key in question if head["question"].get(key) != question[key]]
    if different:
        msg = (
            f"{file}: was begun with another {' and '.join(different)}; ask the same or "
            "add --overwrite"
        )
        raise UsageError(msg)
    return results


def _packed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make values strict JSON: what is no finite number is written as text."""
    return {
        key: {"float": repr(value)}
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
    }


def _unpacked(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: float(value["float"]) if isinstance(value, dict) else value
        for key, value in values.items()
    }
