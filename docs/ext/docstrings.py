"""How Sphinx reads the docstrings of layerstats: they are plain text with a little mark-up.

Formulas such as ``||W||_F`` stand in them as they are written on paper, and a name in single
backticks is a name of the package or simply code. Both are no valid reStructuredText; this makes
them so, and turns the names that are documented into links.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import reference
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_FILE = re.compile(r"(?<![\w/])(\w+\.(?:py|jsonl?|csv|html|safetensors))\b(?!`)")
#: A word in stars is meant to stand out; any other star, and every bar, is a sign of a formula.
_MARKS = re.compile(r"(?<![\w*\\])(\*\w[\w ]*\*)(?![\w*])|(?<!\\)([|*])")
_ALIGNED = re.compile(r"\S {3,}\S")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything to the build."""
    app.connect("builder-inited", _write)
    # Before napoleon (500), which adds mark-up of its own.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("missing-reference", _resolve)
    app.add_role("name", _name_role)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Sphinx) -> None:
    reference.write(Path(app.srcdir))


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = readable(lines, tables=what == "module")


def readable(lines: list[str], *, tables: bool = False) -> list[str]:
    r"""Escape what docutils would take for mark-up; keep `tables` drawn with spaces as they are.

    Examples
    --------
    >>> readable(["The norm ||W||_F of `a|b`."])
    ['The norm \\|\\|W\\|\\|_F of `a|b`.']
    """
    done: list[str] = []
    literal = False
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
            continue
        start = paragraph[0].strip() if paragraph else ""
        indent = len(paragraph[0]) - len(paragraph[0].lstrip()) if paragraph else 0
        code = start.startswith(">>>") or (literal and indent > 0)
        if start.startswith(".. math::"):
            done.append(" " * indent + " ".join(one.strip() for one in paragraph))
        elif tables and sum(bool(_ALIGNED.search(one)) for one in paragraph) >= 2:
            done += [".. code-block:: text", "", *(f"    {one}" for one in paragraph)]
        else:
            done += paragraph if code else [_escaped(one) for one in paragraph]
        if paragraph and not (literal and indent > 0):
            literal = paragraph[-1].rstrip().endswith("::")
        done.append("")
        paragraph = []
    return done


def _escaped(line: str) -> str:
    """Escape bars and stars outside code; a line of a doctest is code from end to end."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = _CODE.split(line)
    for number in range(0, len(parts), 2):
        parts[number] = _MARKS.sub(lambda found: found[1] or "\\" + found[2], parts[number])
        parts[number] = _FILE.sub(r"``\1``", parts[number])
        parts[number] = re.sub(r"(\w)_(?=[\s.,;:)\-=]|$)", r"\1\\_", parts[number])
    return "".join(parts)


def _name_role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Single backticks: a link where the name is documented, else code."""
    plain = nodes.unescape(text)
    shown = nodes.literal(plain, plain, classes=["xref", "py"])
    environment: BuildEnvironment = inliner.document.settings.env
    link = addnodes.pending_xref(
        rawtext,
        shown,
        reftype="name",
        reftarget=plain,
        refdoc=environment.docname,
        room=_room(environment.ref_context.get("py:module") or environment.docname),
    )
    return [link], []


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.TextElement
) -> nodes.Node | None:
    """Find names as people write them: a bare name, or with the module it was defined in.

    What is written in pages (an explicit role) must exist. A name in backticks that does not is
    code, and types of other packages are text.
    """
    in_backticks = node.get("reftype") == "name"
    if not in_backticks and node.get("refdomain") != "py":
        return None
    found = _find(env, node["reftarget"], node.get("room") if in_backticks else None)
    if found:
        entry = env.domains.python_domain.objects[found]
        refuri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
        link = nodes.reference("", "", contnode, internal=True, refuri=f"{refuri}#{entry.node_id}")
        link["reftitle"] = found
        return link
    return contnode if in_backticks or node.get("reftype") == "class" else None


def _find(env: BuildEnvironment, target: str, room: str | None) -> str | None:
    """Return the documented name that a target stands for, if there is exactly one.

    A bare name in small letters is found in its own room alone: `loss` is a plot, and a key of a
    log elsewhere.
    """
    objects = env.domains.python_domain.objects
    name = target.removesuffix("()")
    if name in objects:
        return name
    ours = name.startswith("layerstats.")
    if "." in name and not ours:
        return None
    wanted = _room(name) if ours else room if name.islower() else None
    near = [
        key
        for key, entry in objects.items()
        if key.split(".")[-1] == name.split(".")[-1]
        and entry.objtype in ("class", "function", "exception", "data")
        and not entry.aliased
        and (wanted is None or _room(key) == wanted)
    ]
    return near[0] if len(near) == 1 else None


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _mathml(formula: str, *, block: bool) -> str:
    """Turn a formula into MathML, which browsers draw by themselves: no script, no network."""
    # Two commands that docutils does not know, or not everywhere.
    known = formula.replace(r"\dots", r"\ldots").replace(r"\textstyle", "")
    return tex2mathml(" ".join(known.split()), as_block=block)


def _room(name: str) -> str:
    """Return the room of a module's name, or of the page generated for it."""
    short = name.removeprefix("generated/api/").removeprefix("layerstats.")
    return short.split(".")[0]
