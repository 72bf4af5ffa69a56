"""What a run leaves behind: its settings, its log and its checkpoints in one directory.

Here belong the rules of that directory: who may write into it, how a log survives a kill, what may
differ when a run goes on. How a checkpoint becomes files is in snapshots.py, reading without torch
in `layerstats.runs`.
"""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstats import runs
from layerstats.checkpoint.writer import PARTIAL_SUFFIX
from layerstats.errors import UsageError
from layerstats.stats import replace_file, strict_json
from layerstats.train import snapshots

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import torch

__all__ = ["MAY_CHANGE", "RunDirectory"]

#: Settings that may differ when a run goes on, because they change no weight: where the run and how
#: often it writes and looks, where it computes (equal up to rounding) and what it recomputes.
MAY_CHANGE = (
    "out",
    "device",
    "checkpointing",
    "save_every",
    "eval_every",
    "exact_match",
    "exact_match_limit",
    "track",
    "track_every",
)
#: The length of a run; it may change too where the learning rate does not depend on it.
_LENGTH = ("steps", "epochs")


class RunDirectory:
    """The directory of one run: config.json, log.jsonl, checkpoints/, later model/ and report.json.

    A kill at any moment leaves a log whose whole lines can be read and the checkpoints that were
    finished. Nothing is held open but what `hold` takes.

    Attributes
    ----------
    path : Path
    config : dict
        The settings as config.json has them.

    Examples
    --------
    >>> import tempfile, torch
    >>> run = RunDirectory.create(Path(tempfile.mkdtemp()) / "run", {"lr": 0.1})
    >>> run.log({"kind": "step", "step": 1, "loss": 2.5})
    >>> _ = run.save(1, {"weight": torch.ones(2)}, {}, {"tokens": 512})
    >>> newest = run.latest()
    >>> newest.step, newest.load_model(["weight"])["weight"], newest.state
    (1, tensor([1., 1.]), {'tokens': 512})
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = dict(config)
        self._log_is_whole = False
        self._held: weakref.finalize[Any, Any] | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunDirectory:
        """Begin a run in a new or empty directory.

        Parameters
        ----------
        path
            Created with its parents if it is not there.
        config
            The settings, JSON-able.

        Raises
        ------
        UsageError
            The directory holds a run or something else, is a file, or cannot be written.
        """
        directory = Path(path)
        cls.check_new(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"{directory}: cannot be created ({error.strerror}); choose another --out"
            raise UsageError(msg) from error
        run = cls(directory, {})
        run._write_config(config)
        return run

    @staticmethod
    def check_new(path: str | os.PathLike[str]) -> None:
        """Refuse a place where `create` would refuse to begin a run; nothing is written.

        Raises
        ------
        UsageError
            As `create`.
        """
        _check_place(Path(path))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Open the directory of a run, to go on with it or to look at it.

        Raises
        ------
        MissingError
            There is no run.
        CheckpointError
            config.json is damaged or of another version.
        """
        return cls(Path(path), runs.read_config(path))

    def hold(self) -> None:
        """Keep other processes from training here, until `release` or the end of this process.

        The lock is the operating system's, so a killed process leaves none behind. Windows and
        some network file systems have no such lock; nothing is held there.

        Raises
        ------
        UsageError
            Another process holds it.
        """
        if sys.platform == "win32":
            return
        handle = os.open(self.path, os.O_RDONLY)
        self._held = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            msg = (
                f"{self.path}: another process is training here; wait for its end or choose "
                "another --out"
            )
            raise UsageError(msg) from error
        except OSError:
            self.release()

    def release(self) -> None:
        """Let others train here again; nothing happens where nothing is held."""
        if self._held is not None:
            self._held()
            self._held = None

    @property
    def model_directory(self) -> Path:
        """Where the trained model goes."""
        return self.path / runs.MODEL

    @property
    def report_file(self) -> Path:
        """Where the engagement report goes."""
        return self.path / runs.REPORT

    @property
    def schedule_file(self) -> Path:
        """Where the schedule of the run goes if it has one."""
        return self.path / runs.SCHEDULE

    def _write_config(self, config: Mapping[str, Any]) -> None:
        text = strict_json(
            {"format": runs.FORMAT, "version": runs.VERSION, "config": config}, indent=2
        )
        replace_file(self.path / runs.CONFIG, text + "\n")
        self.config = json.loads(text)["config"]

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Refuse to go on with settings that would make another run.

        What changes no weight may differ (`MAY_CHANGE`). The length (`steps`, `epochs`) may differ
        where the learning rate does not depend on it: with ``lr_schedule="constant"`` and a number
        for `warmup_steps`.

        Raises
        ------
        UsageError
            Names every setting that differs, with both values.
        """
        before, now = self.config, json.loads(strict_json(config))
        differing = [
            key
            for key in dict.fromkeys((*before, *now))
            if key not in MAY_CHANGE and before.get(key, _UNSET) != now.get(key, _UNSET)
        ]
        free_length = now.get("lr_schedule") == "constant" and now.get("warmup_steps") is not None
        wrong = [key for key in differing if not (key in _LENGTH and free_length)]
        if not wrong:
            return
        listed = "; ".join(
            f"{key} was {_shown(before, key)}, now {_shown(now, key)}" for key in wrong
        )
        why = ""
        if any(key in _LENGTH for key in wrong):
            why = (
                " (the learning rate and its warm-up depend on the length of the run; only with "
                "lr_schedule constant and warmup_steps given may it change)"
            )
        msg = (
            f"{self.path}: the run was begun with other settings: {listed}{why}; "
            "give the same ones to --resume, or choose another --out for a new run"
        )
        raise UsageError(msg)

    def adopt(self, config: Mapping[str, Any]) -> None:
        """Go on with settings that pass `check_same`: config.json then says what holds now.

        Raises
        ------
        UsageError
            As `check_same`.
        """
        self.check_same(config)
        if json.loads(strict_json(config)) != self.config:
            self._write_config(config)

    @property
    def _log_file(self) -> Path:
        return self.path / runs.LOG

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl; NaN and Infinity become null.

        The line is with the operating system when this returns: a kill of the process cannot take
        it back.

        Raises
        ------
        UsageError
            It cannot be written, as on a full disk; the log is as it was before.
        """
        line = (strict_json(entry) + "\n").encode("utf-8")
        try:
            self._cut_torn_line()
            with self._log_file.open("ab", buffering=0) as stream:
                end = stream.tell()
                try:
                    rest = memoryview(line)
                    while rest:
                        rest = rest[stream.write(rest) :]
                except BaseException:
                    stream.truncate(end)
                    raise
        except OSError as error:
            msg = (
                f"{self._log_file}: cannot be written ({error.strerror}); free space, then go on "
                "with --resume"
            )
            raise UsageError(msg) from error

    def _cut_torn_line(self) -> None:
        """Cut the half line that a killed run may have left, before the first line of this one."""
        if self._log_is_whole:
            return
        if self._log_file.exists():
            entries = self._log_file.read_bytes()
            whole = entries.rfind(b"\n") + 1
            if whole < len(entries):
                os.truncate(self._log_file, whole)
        self._log_is_whole = True

    def entries(self) -> list[runs.Entry]:
        """Return the log in the order written, without a torn last line; see `layerstats.runs`.

        Raises
        ------
        CheckpointError
            A line before the last is damaged.
        """
        return runs.read_log(self.path)

    def truncate(self, step: int) -> None:
        """Drop from the log what came after a checkpoint, before going on from it.

        Parameters
        ----------
        step : int
            Steps done at the checkpoint, -1 to drop all. An entry without a step belongs with the
            one before it; notes stay.
        """
        kept: list[str] = []
        at = 0
        for entry in self.entries():
            at = int(entry.get("step", at)) if entry["kind"] != "note" else at
            if at <= step or entry["kind"] == "note":
                kept.append(strict_json(entry) + "\n")
        if self._log_file.exists():
            replace_file(self._log_file, "".join(kept))
        self._log_is_whole = True

    def save(
        self,
        step: int,
        model: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint; it appears whole or not at all, and the last two are kept.

        Parameters
        ----------
        step : int
            Completed optimizer steps, at least 0. A checkpoint of the same step is replaced.
        model
            Name -> tensor, any device, dtype and layout; tied tensors are stored once.
        optimizer
            Parameter -> key -> tensor, `exp_avg` and the like.
        state
            Everything else that the run needs to go on, JSON-able.

        Returns
        -------
        Path
            checkpoints/step-000123.

        Raises
        ------
        UsageError
            It cannot be written, as on a full disk; the checkpoint before is untouched.
        """
        self._sync_log()
        return snapshots.save(self.path / runs.CHECKPOINTS, step, model, optimizer, state)

    def _sync_log(self) -> None:
        """Bring the log to the disk: it must never end before the newest checkpoint."""
        if self._log_file.exists():
            snapshots.sync(self._log_file)

    def latest(self) -> snapshots.Snapshot | None:
        """Return the newest whole checkpoint, or None.

        Damaged ones are passed over; the log then says which and why (kind "note").
        """
        found, problems = snapshots.newest(self.path / runs.CHECKPOINTS)
        step = found.step if found else 0
        said = {entry.get("message") for entry in runs.of_kind(self.entries(), "note")}
        for problem in problems:
            taken = f"; going on from step {step}" if found else "; no other checkpoint is there"
            if problem + taken not in said:
                self.log({"kind": "note", "step": step, "message": problem + taken})
        return found


class _Unset:
    """Stands for a setting that one of two configs does not have."""


_UNSET = _Unset()


def _shown(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], ensure_ascii=False) if key in config else "not there"


def _check_place(directory: Path) -> None:
    """Refuse a place where something would be overwritten."""
    if directory.exists() and not directory.is_dir():
        msg = f"{directory}: is a file; give a directory for --out"
        raise UsageError(msg)
    if (directory / runs.CONFIG).is_file() and (
        _is_run(directory) or (directory / runs.LOG).exists()
    ):
        msg = f"{directory}: holds a run; add --resume to go on with it or choose another --out"
        raise UsageError(msg)
    if directory.is_dir():
        # What a kill left of writing config.json is nothing.
        others = [one.name for one in directory.iterdir() if not one.name.endswith(PARTIAL_SUFFIX)]
        if others:
            msg = f"{directory}: holds other files ({min(others)}); choose another --out"
            raise UsageError(msg)


def _is_run(directory: Path) -> bool:
    try:
        page = json.loads((directory / runs.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(page, dict) and page.get("format") == runs.FORMAT
