"""The error family: every mistake a user can make is one of these, and each knows its exit code.

A message is one line and says what was given, what is allowed and what to do. The command line
prints it without a stack trace and leaves with `exit_code`; a Python user catches
`LayerstatsError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "IncompleteError",
    "LayerstatsError",
    "MissingError",
    "NetworkError",
    "UsageError",
    "choices",
]


class LayerstatsError(Exception):
    """Base of every error that layerstats raises on purpose (exit code 1)."""

    exit_code = 1


class UsageError(LayerstatsError):
    """An argument, option or combination of them that cannot work (exit code 2)."""

    exit_code = 2


class MissingError(LayerstatsError):
    """A file, directory, tensor or optional package that is not there (exit code 3)."""

    exit_code = 3


class CheckpointError(LayerstatsError):
    """A checkpoint, statistics directory or schedule that is corrupt (exit code 4)."""

    exit_code = 4


class NetworkError(LayerstatsError):
    """A registry or hub that does not answer (exit code 5)."""

    exit_code = 5


class IncompleteError(LayerstatsError):
    """Finished, but something was skipped and `--strict` was asked for (exit code 6)."""

    exit_code = 6


def choices(what: str, given: object, allowed: Iterable[str]) -> str:
    """Return the message for a name that is not in a list, with the nearest name that is.

    Examples
    --------
    >>> choices("metric", "alpha_hil", ["alpha_hill", "lod"])
    "unknown metric 'alpha_hil'; did you mean 'alpha_hill'? available: alpha_hill, lod"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {given!r};{hint} available: {', '.join(names)}"
