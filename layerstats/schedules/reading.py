"""Strict reading of schedule files: JSON text to checked fields, or one line on what is wrong.

Here belong the checks of form (keys, types, version, strict JSON); the checks of values are
`Schedule`'s own. Every error is a CheckpointError that begins with the file's name.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from layerstats.errors import CheckpointError, MissingError, UsageError, choices

__all__ = ["FORMAT", "VERSION", "check_form", "json_schema", "read_source"]

FORMAT = "layerstats-schedule"
VERSION = 1

_TOP: Mapping[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "model": (dict,),
    "rule": (str,),
    "metric": (str, type(None)),
    "scores": (list,),
    "expected_active": (int, float),
    "interval_steps": (int,),
    "seed": (int,),
    "probabilities": (list,),
    "sampling": (str,),
    "inclusion_probabilities": (list,),
    "always_active": (list,),
    "low_rank": (dict, type(None)),
    "provenance": (dict,),
}
_MODEL: Mapping[str, tuple[type, ...]] = {
    "id": (str, type(None)),
    "num_layers": (int,),
    "layers_path": (str, type(None)),
}
_LOW_RANK: Mapping[str, tuple[type, ...]] = {
    "rank": (int,),
    "update_interval": (int,),
    "scale": (int, float),
}
_PROVENANCE: Mapping[str, tuple[type, ...]] = {
    "created_by": (str,),
    "stats": (str, type(None)),
    "parameters": (dict,),
}
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the schedule file, as shipped with the package.

    Examples
    --------
    >>> json_schema()["properties"]["version"]
    {'const': 1}
    """
    file = importlib.resources.files("layerstats.schedules").joinpath("schedule.schema.json")
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema


def read_source(source: str | os.PathLike[str]) -> tuple[object, str]:
    """Return the JSON of a file, or of a text that starts with a brace, and its name."""
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return _parse(source, "schedule"), "schedule"
    file = Path(source)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"{file}: no such file; make one with `layerstats schedule --out`"
        raise MissingError(msg) from None
    except IsADirectoryError:
        raise UsageError(_directory(file)) from None
    except UnicodeDecodeError:
        _bad(str(file), "is not UTF-8 text; give a schedule's JSON file")
    except (OSError, ValueError) as error:
        _bad(str(file), f"cannot be read ({getattr(error, 'strerror', None) or error})")
    return _parse(text, str(file)), str(file)


def _directory(folder: Path) -> str:
    """Return the message for a directory in the place of a schedule's file."""
    inside = folder / "schedule.json"
    if inside.is_file():
        return f"{folder}: a directory, not a schedule; give {inside}"
    statistics = (folder / "meta.json").is_file()
    what = "a directory of statistics" if statistics else "a directory"
    source = shlex.quote(str(folder)) if statistics else "STATS"
    return (
        f"{folder}: {what}, not a schedule; make one first: layerstats schedule {source} "
        "--rule owlore --expected-active 2 --out schedule.json"
    )


def check_form(data: object, source: str) -> dict[str, Any]:
    """Return the fields of a schedule's JSON object once keys, types and version are right."""
    if not isinstance(data, dict):
        _bad(source, "is not a JSON object; give a schedule that `layerstats schedule` wrote")
    _check_version(data, source)
    _check_keys(data, _TOP, source, "")
    _check_keys(data["model"], _MODEL, source, "model.")
    _check_keys(data["provenance"], _PROVENANCE, source, "provenance.")
    if data["low_rank"] is not None:
        _check_keys(data["low_rank"], _LOW_RANK, source, "low_rank.")
    for key in ("scores", "probabilities", "inclusion_probabilities"):
        _check_items(data[key], (int, float), source, key)
    _check_items(data["always_active"], (str,), source, "always_active")
    return {key: data[key] for key in _TOP if key not in ("format", "version")}


def _bad(source: str, problem: str) -> NoReturn:
    msg = f"{source}: {problem}"
    raise CheckpointError(msg)


def _parse(text: str, source: str) -> object:
    def no_constant(name: str) -> NoReturn:
        _bad(source, f"contains {name}, which is not a number of JSON; make the schedule again")

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            _bad(source, f"has the key {twice!r} twice")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_twins)
    except json.JSONDecodeError as error:
        _bad(source, f"is not JSON (line {error.lineno}: {error.msg})")
    except (RecursionError, ValueError):  # nested too deeply; a whole number of thousands of digits
        _bad(source, "is not a schedule: its JSON is nested too deeply or has a number too long")


def _check_version(data: Mapping[str, Any], source: str) -> None:
    if data.get("format") != FORMAT:
        _bad(source, f"format is {data.get('format')!r}, expected {FORMAT!r}; give a schedule file")
    version = data.get("version")
    if type(version) is not int or version < 1:
        _bad(source, f"version is {version!r}, expected {VERSION}")
    if version > VERSION:
        _bad(
            source,
            f"version {version} is newer than this program reads ({VERSION}); update layerstats",
        )


def _check_keys(
    data: Mapping[str, Any], allowed: Mapping[str, tuple[type, ...]], source: str, prefix: str
) -> None:
    for key in data:
        if key not in allowed:
            _bad(source, choices("key", prefix + key, [prefix + name for name in allowed]))
    for key, types in allowed.items():
        if key not in data:
            _bad(source, f"lacks the key '{prefix}{key}'")
        if type(data[key]) not in types:
            expected = " or ".join(_WORDS[kind] for kind in types)
            _bad(source, f"{prefix}{key} must be {expected}, got {_shown(data[key])}")


def _check_items(items: list[object], types: tuple[type, ...], source: str, key: str) -> None:
    for place, item in enumerate(items):
        if type(item) not in types:
            _bad(source, f"{key}[{place}] must be {_WORDS[types[-1]]}, got {_shown(item)}")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
