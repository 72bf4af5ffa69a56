"""What a reader of the numbers must know: flags, gaps, what was left out, verdicts on rankings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerstats.stats import LayerStats

__all__ = ["LEVELS", "Notice", "listed", "of_statistics", "warnings_first"]

LEVELS = ("warning", "good", "note")

_FLAGS = {
    "tie": "several histogram bins tie for the fullest, so alpha is one of a range of values",
    "edge": "xmin is at the edge of its search window, so the window's bound made the choice",
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the reader; `level` is "warning", "note" or "good"."""

    level: str
    text: str


def listed(names: Iterable[str], *, most: int = _SHOWN) -> str:
    """Name the first few and count the rest.

    Examples
    --------
    >>> listed("abc", most=2)
    'a, b and 1 more'
    """
    known = list(names)
    rest = len(known) - most
    return ", ".join(known[:most]) + (f" and {rest} more" if rest > 0 else "")


def of_statistics(stats: LayerStats) -> list[Notice]:
    """Gather the warnings and notes of a measurement."""
    return [*_gaps(stats), *_flags(stats), *_left_out(stats.meta), *_verdicts(stats.meta)]


def warnings_first(notices: Iterable[Notice]) -> list[Notice]:
    """Sort by level, and else leave them in order."""
    return sorted(notices, key=lambda notice: LEVELS.index(notice.level))


def _gaps(stats: LayerStats) -> list[Notice]:
    """Values that are missing, by their reason."""
    found: list[Notice] = []
    for table, what in ((stats.matrices, "matrices"), (stats.layers, "rows of layers")):
        if "status" not in table or (what == "rows of layers" and found):
            continue  # a block's status repeats those of its matrices
        wrong = table[table["status"] != "ok"]
        for status, rows in wrong.groupby("status", sort=False):
            names = listed(map(str, rows["name"]))
            found.append(Notice("warning", f"{len(rows)} {what}: {status} ({names})"))
    return found


def _flags(stats: LayerStats) -> list[Notice]:
    if "alpha_flag" not in stats.matrices:
        return []
    measured = stats.matrices
    if "alpha_hill" in measured:
        measured = measured[measured["alpha_hill"].notna()]
    flags = Counter(
        flag for text in measured["alpha_flag"].fillna("") for flag in str(text).split("+") if flag
    )
    return [
        Notice(
            "warning",
            f"alpha_flag {flag}: {count} of {len(measured)} matrices"
            + (f"; {_FLAGS[flag]}" if flag in _FLAGS else ""),
        )
        for flag, count in flags.items()
    ]


def _left_out(meta: Mapping[str, Any]) -> list[Notice]:
    skipped = meta.get("skipped") or []
    found = [
        *_by_reason(skipped, lost=True, level="warning", said="could not be measured"),
        *_by_reason(skipped, lost=False, level="note", said="not measured, and need not be"),
    ]
    for stack in meta.get("stacks") or []:
        text = f"not measured: the stack {stack['path']} of {stack['num_blocks']} blocks"
        found.append(Notice("note", text))
    for name, reason in dict(meta.get("unseen") or {}).items():
        found.append(Notice("warning", f"{name}: {reason}"))
    adapter = meta.get("adapter") or {}
    skips = [{**skip, "lost": True} for skip in adapter.get("skipped") or []]
    found += _by_reason(skips, lost=True, level="warning", said="of the adapter left out")
    calibration = meta.get("calibration") or {}
    for key, said in (
        ("unexpected_tensors", "tensors that the model has no place for"),
        ("parameters_without_norms", "parameters without activation norms"),
    ):
        if names := calibration.get(key):
            found.append(Notice("warning", f"{len(names)} {said}: {listed(map(str, names))}"))
    notes = [*(meta.get("notes") or []), *(adapter.get("notes") or [])]
    return found + [Notice("note", str(note)) for note in notes]


def _by_reason(
    skipped: Sequence[Mapping[str, Any]], *, lost: bool, level: str, said: str
) -> list[Notice]:
    groups: dict[str, list[str]] = {}
    for skip in skipped:
        if bool(skip.get("lost")) == lost:
            groups.setdefault(str(skip["reason"]), []).append(str(skip["name"]))
    return [
        Notice(level, f"{len(names)} tensors {said}: {reason} ({listed(names, most=2)})")
        for reason, names in groups.items()
    ]


def _verdicts(meta: Mapping[str, Any]) -> list[Notice]:
    page = meta.get("trust")
    if not isinstance(page, dict):
        text = (
            "measured without --trust: how far these rankings of layers can be told from noise is "
            "not known"
        )
        return [Notice("note", text)]
    columns: dict[tuple[str, str], list[str]] = {}
    for column, verdict in page["metrics"].items():
        level = {True: "good", False: "warning"}.get(verdict["distinguishable"], "note")
        columns.setdefault((level, verdict["text"] + _overlap(verdict)), []).append(column)
    found = [
        Notice(level, f"{', '.join(names)}: {text}") for (level, text), names in columns.items()
    ]
    for source, rule in page["rules"].items():
        if source in ("windows", "bins"):
            found.append(Notice("note", f"rule {source}: {rule}"))
    if page.get("alpha_rules"):
        pairs = ", ".join(
            f"{pair} {'undefined' if rho is None else format(rho, '.3f')}"
            for pair, rho in page["alpha_rules"].items()
        )
        found.append(Notice("note", f"rank correlation of the rules for xmin over layers: {pairs}"))
    return found


def _overlap(verdict: Mapping[str, Any]) -> str:
    if verdict["distinguishable"] is None or verdict.get("top_layer") is None:
        return ""
    return (
        f"; the 95 % intervals of {verdict['overlapping']} of {verdict['layers'] - 1} other layers "
        f"overlap that of the first, layer {verdict['top_layer']}"
    )
