"""The generated pages: the API by room, the command line by `--help`, the tables by registry.

Everything here is text in, text out and needs no Sphinx, so that the tests can read it too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import layerstats

PACKAGE = Path(layerstats.__file__).parent
GENERATED = "generated"
#: Modules that are used under their own names, beside what the door of their room offers.
FURTHER = {"layerstats.train": ("memory", "sweep", "budget", "presets")}


def rooms() -> list[str]:
    """Return the dotted names of all rooms: what stands directly below the package."""
    found = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    return sorted(f"layerstats.{p.stem}" for p in found if not p.name.startswith("_"))


def doors(room: str) -> list[str]:
    """Return the modules through which a room is used.

    The room itself where it names what it offers; where its door is empty (checkpoint/ and
    integrations/, which must not import torch or transformers) each of its modules. A package
    inside a room is a door of its own.
    """
    if not hasattr(importlib.import_module(room), "__path__"):
        return [room]
    folder = PACKAGE / room.split(".")[1]
    inner = sorted(f"{room}.{p.parent.name}" for p in folder.glob("*/__init__.py"))
    if public_names(room):
        return [room, *inner, *(f"{room}.{name}" for name in FURTHER.get(room, ()))]
    modules = [f"{room}.{p.stem}" for p in folder.glob("*.py") if not p.stem.startswith("_")]
    # What the front door offers comes first.
    front = {getattr(getattr(layerstats, name), "__module__", "") for name in layerstats.__all__}
    return [*sorted(modules, key=lambda name: (name not in front, name)), *inner]


def public_names(module: str) -> list[str]:
    """Return the names of `__all__`; without one, what the module re-exports from its own room."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return list(loaded.__all__)
    return sorted(
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith(f"{module}.")
        and not isinstance(value, types.ModuleType)
    )


def home(module: str, name: str) -> str:
    """Return where a public name is documented: in the door it belongs to."""
    value = getattr(importlib.import_module(module), name)
    if module == "layerstats":
        source = getattr(value, "__module__", "layerstats")
        for door in doors(".".join(source.split(".")[:2])):
            if name in public_names(door):
                return f"{door}.{name}"
    return f"{module}.{name}"


def documented() -> dict[str, str]:
    """Return every documented name -> the page (below generated/) that has it."""
    return {
        f"{door}.{name}": f"api/{room.split('.')[1]}"
        for room in rooms()
        for door in doors(room)
        for name in own_names(door)
    }


def own_names(door: str) -> list[str]:
    """Return the names that a door documents; one that another door of the room has stays there."""
    room = ".".join(door.split(".")[:2])
    if door == room:
        return public_names(door)
    taken, kept = set(public_names(room)), []
    for name in public_names(door):
        source = getattr(getattr(importlib.import_module(door), name), "__module__", door)
        if name not in taken and (source == door or source not in doors(room)):
            kept.append(name)
    return kept


def api_pages() -> dict[str, str]:
    """Return page (below generated/) -> reStructuredText, one a room."""
    return {f"api/{room.split('.')[1]}.rst": _api_page(room) for room in rooms()}


def _api_page(room: str) -> str:
    short = room.split(".")[1]
    parts = [_title(short, "="), f".. automodule:: {room}\n   :no-members:\n"]
    for door in doors(room):
        names = own_names(door)
        if not names:
            continue
        if door != room:
            parts += [_title(door.removeprefix("layerstats."), "-")]
            parts += [f".. automodule:: {door}\n   :no-members:\n"]
        parts += [_entry(door, name) for name in names]
    return "\n".join(parts)


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _entry(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        bases = "" if value.__bases__ == (object,) else "   :show-inheritance:\n"
        return f".. autoclass:: {module}.{name}\n   :members:\n{bases}"
    if inspect.isroutine(value):
        return f".. autofunction:: {module}.{name}\n"
    told = _comment(module, name)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        told += f"\n\nKeys: {', '.join(f'``{key}``' for key in value)}."
    lines = [f".. py:data:: {module}.{name}", f"   :type: {type(value).__name__}"]
    if len(shown := repr(value)) <= 80:
        lines += [f"   :value: {shown}"]
    body = "\n".join(f"   {line}".rstrip() for line in told.strip().splitlines())
    return "\n".join([*lines, "", body, ""])


def _comment(module: str, name: str) -> str:
    """Return what stands above (`#:`) or below (a string) the assignment of a constant."""
    folder = Path(str(importlib.import_module(module).__file__))
    files = folder.parent.glob("*.py") if folder.name == "__init__.py" else [folder]
    for file in files:
        source = file.read_text(encoding="utf-8")
        lines, body = source.splitlines(), ast.parse(source).body
        for number, node in enumerate(body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            if not any(isinstance(one, ast.Name) and one.id == name for one in targets):
                continue
            after = body[number + 1] if number + 1 < len(body) else None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
            above: list[str] = []
            while lines[node.lineno - 2 - len(above)].startswith("#:"):
                above.insert(0, lines[node.lineno - 2 - len(above)][2:].strip())
            return "\n".join(above)
    return ""


def api_index() -> str:
    """Return the page that lists the rooms and what each offers."""
    lines = ["# Python API", "", "The names that `import layerstats as ls` offers:", ""]
    lines += ["| name | what it is |", "|---|---|"]
    for name in layerstats.__all__:
        value = getattr(layerstats, name)
        lines += [f"| {{py:obj}}`ls.{name} <{home('layerstats', name)}>` | {_first_line(value)} |"]
    lines += ["", "One page a room, made of the docstrings:", "", "| room | what lives there |"]
    lines += ["|---|---|"]
    for room in rooms():
        short = room.split(".")[1]
        lines += [f"| [{short}](api/{short}.rst) | {_first_line(importlib.import_module(room))} |"]
    lines += ["", "```{toctree}", ":hidden:", ""]
    return "\n".join([*lines, *(f"api/{room.split('.')[1]}" for room in rooms()), "```", ""])


def _first_line(value: Any) -> str:
    """Return the first sentence or paragraph of a docstring, as one line of a table."""
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def command_line() -> dict[str, str]:
    """Return command -> its help, as `layerstats COMMAND --help` prints it."""
    import typer

    from layerstats.cli import app

    group = typer.main.get_command(app)
    outer = group.make_context("layerstats", [], resilient_parsing=True, terminal_width=88)
    pages = {"": outer.get_help()}
    for name in group.list_commands(outer):
        command = group.get_command(outer, name)
        context = type(outer)(command, parent=outer, info_name=name, terminal_width=88)
        pages[name] = command.get_help(context)
    return pages


def cli_page() -> str:
    """Return the reference of the command line."""
    from layerstats import errors

    lines = [
        "# Command line",
        "",
        "As `--help` prints it. Data go to stdout, progress and errors to stderr; `--json` prints",
        "one JSON document in which NaN and Infinity are null. Nothing asks questions.",
        "",
    ]
    for name, text in command_line().items():
        lines += [f"## layerstats {name}".rstrip(), "", "```text", text.rstrip(), "```", ""]
    lines += ["## Exit codes", "", "| code | when |", "|---|---|", "| 0 | all went well |"]
    kinds = [getattr(errors, name) for name in errors.__all__]
    codes = {
        kind.exit_code: _first_line(kind).split(" (exit code")[0]
        for kind in kinds
        if inspect.isclass(kind) and kind is not errors.LayerstatsError
    }
    codes |= {1: "an internal error: a bug of layerstats", 130: "interrupted"}
    lines += [f"| {code} | {text} |" for code, text in sorted(codes.items())]
    return "\n".join([*lines, ""])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("$", "\\$")


def tables() -> dict[str, str]:
    """Return page (below generated/) -> table of one registry, in Markdown."""
    from layerstats import metrics, plots, schedules
    from layerstats.plots.registry import KINDS
    from layerstats.schedules.exporters import EXPORTERS
    from layerstats.train import METHODS

    found = {
        "metrics": _table(
            ("metric", "what it is", "belongs to a", "needs", "source"),
            (
                (f"`{m.name}`", m.summary, m.grain, m.needs or "weights", m.reference)
                for m in metrics.METRICS.values()
            ),
        ),
        "rules": _table(
            ("rule", "which layers it favours", "takes", "source"),
            (
                (f"`{r.name}`", r.summary, _TAKES[r.takes], r.reference)
                for r in schedules.RULES.values()
            ),
        ),
        "sampling": _table(
            ("law", "what it does", "layers in an interval", "gives", "source"),
            (
                (
                    f"`{law.name}`",
                    law.summary,
                    "always as many" if law.fixed_size else "varies",
                    "the probabilities asked for" if law.follows_target else "its own, stated",
                    law.reference,
                )
                for law in schedules.LAWS.values()
            ),
        ),
        "exporters": _table(
            ("target", "what is written", "options", "source"),
            (
                (
                    f"`{e.name}`",
                    e.summary,
                    ", ".join(f"`--{o.replace('_', '-')}`" for o in e.options) or "none",
                    e.reference,
                )
                for e in EXPORTERS.values()
            ),
        ),
        "plots": _table(
            ("kind", "what it shows"),
            ((f"`{kind}`", _first_line(KINDS[kind])) for kind in plots.available()),
        ),
        "methods": _table(
            ("method", "who trains", "how it moves", "rule of its schedule", "needs"),
            (
                (
                    f"`{name}`",
                    _WHO[m.who],
                    _HOW[m.how],
                    f"`{m.rule}`" if m.rule else "no schedule",
                    "a schedule or statistics" if m.needs_scores else "nothing",
                )
                for name, m in METHODS.items()
            ),
        ),
    }
    found["schedule-file"] = _schedule_file(schedules.json_schema())
    return {f"tables/{name}.md": text for name, text in found.items()}


def _schedule_file(schema: Mapping[str, Any]) -> str:
    """Return the table of the keys of a schedule file, from its JSON Schema."""
    return _table(("key", "type", "what it is"), _keys(schema["properties"]))


def _keys(properties: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, ...]]:
    for name, about in properties.items():
        kind = about.get("type", "integer" if about.get("const") == 1 else "string")
        words = " or ".join([kind] if isinstance(kind, str) else kind)
        choice = about.get("enum", [about["const"]] if "const" in about else [])
        told = [about.get("description", ""), ", ".join(f"`{one}`" for one in choice)]
        yield f"`{prefix}{name}`", words, ": ".join(part for part in told if part)
        yield from _keys(about.get("properties", {}), f"{prefix}{name}.")


_TAKES = {
    "nothing": "the number of layers",
    "scores": "one column",
    "blend": "several columns with factors",
    "pair": "a column of two checkpoints",
}
_WHO = {
    "everything": "everything",
    "adapters": "LoRA adapters",
    "layers": "the layers of the interval, embedding, head and final norm",
}
_HOW = {"adamw": "AdamW", "galore": "AdamW on low-rank gradients (GaLore)"}


def pages() -> dict[str, str]:
    """Return all generated pages, by their path below generated/."""
    made = {**api_pages(), **tables(), "api.md": api_index(), "cli.md": cli_page()}
    return {path: text.rstrip() + "\n" for path, text in made.items()}


def write(folder: Path) -> None:
    """Write all pages below folder/generated; one that has not changed is left alone."""
    made = pages()
    target = folder / GENERATED
    for path, text in made.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in target.rglob("*.*"):
        if file.relative_to(target).as_posix() not in made:
            file.unlink()
