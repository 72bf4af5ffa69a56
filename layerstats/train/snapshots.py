"""Checkpoints of a run as files: tensors in safetensors, the rest in strict JSON, no pickle.

`checkpoints/step-000123/` holds model.safetensors, optimizer.safetensors (tensors named
`parameter::key`) and state.json, which also says which names share a tensor. A directory is written
beside its place, brought to the disk and renamed; whatever a kill leaves has another name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from layerstats.checkpoint.writer import PARTIAL_SUFFIX, staged_directory
from layerstats.errors import CheckpointError, UsageError
from layerstats.stats import strict_json

__all__ = ["KEPT", "Snapshot", "newest", "save", "sync"]

#: How many checkpoints stay.
KEPT = 2

_FORMAT, _VERSION = "layerstats-run-checkpoint", 1
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{6,})")
#: A checkpoint that is being replaced by one of the same step waits under this ending.
_REPLACED = ".replaced"
_SEPARATOR = "::"


@dataclass(frozen=True)
class Snapshot:
    """A whole checkpoint; tensors are read when asked for.

    Attributes
    ----------
    directory : Path
    step : int
        Completed optimizer steps.
    state : dict
        What was given to `save`, as JSON brings it back.
    """

    directory: Path
    step: int
    state: dict[str, Any]
    _aliases: Mapping[str, Mapping[str, str]]

    def load_model(self, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Read the model's tensors, on the CPU, in dtype and shape as saved.

        Parameters
        ----------
        names
            What the model has, every name of a tied tensor; it must be exactly what was saved. None
            takes what is there.

        Returns
        -------
        dict
            Tied names have one and the same tensor.

        Raises
        ------
        CheckpointError
            A name is missing or unknown, or the file is damaged.
        """
        tensors = self._load(_MODEL)
        if names is not None:
            wanted = set(names)
            missing, unknown = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
            if missing or unknown:
                parts = [f"it lacks {missing[0]} ({len(missing)} in all)"] if missing else []
                parts += [f"it has {unknown[0]} too ({len(unknown)} in all)"] if unknown else []
                msg = (
                    f"{self.directory}: is not of this model: {', '.join(parts)}; "
                    "resume with the model that the run was begun with"
                )
                raise CheckpointError(msg)
        return tensors

    def load_optimizer(self) -> dict[str, dict[str, torch.Tensor]]:
        """Read the optimizer's state: parameter -> key -> tensor, on the CPU.

        Raises
        ------
        CheckpointError
            The file is damaged.
        """
        state: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in self._load(_OPTIMIZER).items():
            parameter, _, key = name.rpartition(_SEPARATOR)
            state.setdefault(parameter, {})[key] = tensor
        return state

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        file = self.directory / name
        try:
            tensors: dict[str, torch.Tensor] = load_file(file)
            return tensors | {
                alias: tensors[stored] for alias, stored in self._aliases[name].items()
            }
        except (OSError, SafetensorError, KeyError) as error:
            msg = f"{file}: cannot be read ({error}); remove {self.directory} and use --resume"
            raise CheckpointError(msg) from error


def save(
    checkpoints: Path,
    step: int,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write checkpoints/step-NNNNNN and remove older ones; see `RunDirectory.save`."""
    target = checkpoints / f"step-{step:06d}"
    moments = {
        f"{parameter}{_SEPARATOR}{key}": tensor
        for parameter, values in optimizer.items()
        for key, tensor in values.items()
    }
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        _tidy(checkpoints)
        with _set_aside(target), staged_directory(target) as stage:
            aliases = {
                _MODEL: _write(stage / _MODEL, model),
                _OPTIMIZER: _write(stage / _OPTIMIZER, moments),
            }
            page = {
                "format": _FORMAT,
                "version": _VERSION,
                "step": step,
                "aliases": aliases,
                "state": state,
            }
            (stage / _STATE).write_text(strict_json(page, indent=2) + "\n", encoding="utf-8")
            for name in (_MODEL, _OPTIMIZER, _STATE):
                sync(stage / name)
            sync(stage)
        sync(checkpoints)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        msg = (
            f"{target}: cannot be written ({reason}); free space, then go on with --resume from "
            "the checkpoint before"
        )
        raise UsageError(msg) from error
    _rotate(checkpoints, step)
    return target


def newest(checkpoints: Path) -> tuple[Snapshot | None, list[str]]:
    """Return the newest whole checkpoint, and what is wrong with those that are newer."""
    problems: list[str] = []
    if not checkpoints.is_dir():
        return None, problems
    _put_back(checkpoints)
    for directory in reversed(_steps(checkpoints)):
        try:
            return _opened(directory), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def _opened(directory: Path) -> Snapshot:
    """Open a checkpoint; reads state.json and the files' headers, which also know their lengths."""
    try:
        page = json.loads((directory / _STATE).read_text(encoding="utf-8"))
        if (page["format"], page["version"]) != (_FORMAT, _VERSION):
            msg = f"{_STATE} is of another program or version"
            raise ValueError(msg)
        snapshot = Snapshot(directory, int(page["step"]), page["state"], page["aliases"])
        for name in (_MODEL, _OPTIMIZER):
            with safe_open(directory / name, framework="pt") as file:
                file.keys()
    except FileNotFoundError as error:
        msg_0 = f"{directory}: damaged checkpoint ({Path(str(error.filename)).name} is missing)"
        raise CheckpointError(msg_0) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        msg_0 = f"{directory}: damaged checkpoint ({error})"
        raise CheckpointError(msg_0) from error
    return snapshot


def _steps(checkpoints: Path) -> list[Path]:
    """List the checkpoints, oldest first; whether they are whole is not looked at."""
    found = [(int(hit[1]), one) for one in checkpoints.iterdir() if (hit := _match(one))]
    return [directory for _, directory in sorted(found)]


def _match(directory: Path) -> re.Match[str] | None:
    return _NAME.fullmatch(directory.name)


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Write tensors to a file, tied ones once; return alias -> the name that is stored."""
    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        same = _identity(tensor)
        if same in first:
            aliases[name] = first[same]
            continue
        if tensor.numel():
            first[same] = name
        values = tensor.detach().to("cpu").contiguous()
        storage = values.untyped_storage().data_ptr()
        # The format refuses tensors that overlap; a view of a stored one becomes its own.
        if storage in storages and values.numel():
            values = values.clone()
            storage = values.untyped_storage().data_ptr()
        storages.add(storage)
        stored[name] = values
    save_file(stored, file)
    return aliases


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two names of one tensor have in common."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def sync(path: Path) -> None:
    """Bring a file or the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _set_aside(target: Path) -> Iterator[None]:
    """Keep a checkpoint of the same step under another name until the new one is in its place."""
    aside = target.with_name(f".{target.name}{_REPLACED}")
    if target.exists():
        target.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    _remove(aside)


def _put_back(checkpoints: Path) -> None:
    """Give a checkpoint its name again that a killed save had set aside."""
    for aside in checkpoints.glob(f".step-*{_REPLACED}"):
        target = aside.with_name(aside.name[1 : -len(_REPLACED)])
        if target.exists():
            _remove(aside)
        else:
            aside.rename(target)


def _tidy(checkpoints: Path) -> None:
    """Remove what killed saves have left."""
    _put_back(checkpoints)
    for leftover in checkpoints.glob(f".step-*{PARTIAL_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _rotate(checkpoints: Path, step: int) -> None:
    """Keep the checkpoint just written and the newest whole ones before it.

    Those of later steps belong to a line that was given up (their checkpoint was damaged), and a
    damaged one must not push a whole one out.
    """
    kept = 0
    for directory in reversed(_steps(checkpoints)):
        hit = _match(directory)
        assert hit is not None
        if int(hit[1]) <= step and kept < KEPT:
            with contextlib.suppress(CheckpointError):
                _opened(directory)
                kept += 1
                continue
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a checkpoint, never leaving half of one under its name.

    A failure is left to the next save to mend: it is no reason to end a run.
    """
    if not directory.exists():
        return
    going = directory.with_name(f".{directory.name.lstrip('.')}.removed{PARTIAL_SUFFIX}")
    with contextlib.suppress(OSError):
        directory.rename(going)
        shutil.rmtree(going)
