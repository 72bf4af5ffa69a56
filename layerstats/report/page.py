"""From what a page shows to its HTML: the template's files, plotly, and the data, escaped.

Facts, commands and notices are written as HTML here; charts and tables are drawn by the page from
the JSON inside it. A content security policy names the page's own scripts by their hashes and
allows no address, so nothing is loaded and no script that came in with the data would run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from layerstats.errors import MissingError
from layerstats.report.charts import Chart
from layerstats.report.notices import Notice, warnings_first
from layerstats.report.tables import Table
from layerstats.stats import strict_json

__all__ = ["Facts", "Page", "Part", "to_html"]

_SCRIPTS = ("data.js", "marks.js", "tables.js", "figures.js", "charts.js", "start.js")


@dataclass(frozen=True, slots=True)
class Facts:
    """A group of the model card: (name, value) each."""

    title: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a page; pieces are joined in order."""

    facts: tuple[Facts, ...] = ()
    commands: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable[Part]) -> Part:
        """Return all parts as one."""
        known = list(parts)
        return cls(
            tuple(one for part in known for one in part.facts),
            tuple(one for part in known for one in part.commands),
            tuple(one for part in known for one in part.notices),
            tuple(one for part in known for one in part.tables),
            tuple(one for part in known for one in part.charts),
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its title, one line below it, the layers that can be marked, and its contents."""

    title: str
    summary: str
    num_layers: int
    part: Part


def to_html(page: Page) -> bytes:
    """Return the page as one HTML document, UTF-8.

    Raises
    ------
    MissingError
        plotly is not installed.

    Examples
    --------
    >>> page = Page("<b>", "", 0, Part(notices=(Notice("note", "a </script> in a name"),)))
    >>> text = to_html(page).decode()
    >>> "<title>&lt;b&gt;</title>" in text, "a &lt;/script&gt; in a name" in text
    (True, True)
    """
    plotly, own = _plotly(), _own_script()
    policy = " ".join(f"'sha256-{_digest(script)}'" for script in (plotly, own))
    texts = {
        "policy": policy,
        "title": html.escape(page.title),
        "summary": html.escape(page.summary),
        "style": _file("page.css"),
        "notices": "\n".join(map(_notice, warnings_first(page.part.notices))),
        "facts": "\n".join(map(_facts, page.part.facts)),
        "commands": "\n".join(_command(one) for one in page.part.commands),
        "data": _json_for_html(_data(page)),
        "plotly": plotly,
        "script": own,
    }
    # One pass: a place-holder inside the data stays what it is.
    whole = re.sub(r"\{\{(\w+)\}\}", lambda found: texts[found[1]], _file("page.html"))
    # A name from a damaged file may hold half a surrogate pair, which UTF-8 cannot.
    return whole.encode("utf-8", "replace")


def _data(page: Page) -> dict[str, Any]:
    return {
        "num_layers": page.num_layers,
        "tables": [
            {
                "id": table.id,
                "title": table.title,
                "note": table.note,
                "shown": table.shown,
                "headline": list(table.headline),
                "columns": [asdict(column) for column in table.columns],
                "rows": table.num_rows,
                "values": table.values,
            }
            for table in page.part.tables
        ],
        "charts": [asdict(chart) for chart in page.part.charts],
    }


def _json_for_html(data: Mapping[str, Any]) -> str:
    """Write strict JSON that nothing in it can end: no tag, comment or line separator is left."""
    text = strict_json(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _notice(notice: Notice) -> str:
    words = {"warning": "Warning", "note": "Note", "good": "Good"}[notice.level]
    return (
        f'<li class="{notice.level}"><span class="level">{words}</span> '
        f"{html.escape(notice.text)}</li>"
    )


def _facts(group: Facts) -> str:
    rows = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in group.facts
    )
    return f'<section class="facts"><h3>{html.escape(group.title)}</h3><dl>{rows}</dl></section>'


def _command(command: str) -> str:
    return f'<pre tabindex="0"><code>{html.escape(command)}</code></pre>'


def _own_script() -> str:
    files = "\n".join(_file(name) for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{files}\n}})();'


def _file(name: str) -> str:
    return (resources.files("layerstats.report") / "template" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        msg = "a report needs plotly, which is not installed: pip install 'layerstats[report]'"
        raise MissingError(msg) from error
    return str(get_plotlyjs())


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
