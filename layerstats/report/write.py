"""From a directory to a file: finds out what the directory holds, gathers its page, writes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from layerstats import runs
from layerstats.errors import MissingError, UsageError
from layerstats.report.commands import report_command
from layerstats.report.page import Page, Part, to_html
from layerstats.report.statistics import statistics_page
from layerstats.report.training import run_page
from layerstats.schedules import Schedule
from layerstats.stats import LayerStats, replace_file

__all__ = ["page_of", "write_report"]


def write_report(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    schedule: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one self-contained HTML page; it loads nothing when it is opened.

    Parameters
    ----------
    source
        A statistics directory (`measure --out`) or a training run's (`train --out`).
    out
        The file; an existing one is replaced, whole or not at all.
    schedule
        A schedule file for the model of a statistics directory.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    MissingError
        The directory holds neither, or plotly is not installed.
    UsageError
        The schedule does not fit, or `out` cannot be written.
    CheckpointError
        A file in the directory is damaged.
    """
    file = Path(out)
    if file.is_dir():
        msg = f"{file}: is a directory; give a file such as {file / 'report.html'}"
        raise UsageError(msg)
    replace_file(file, to_html(page_of(source, schedule=schedule)))
    return file


def page_of(
    source: str | os.PathLike[str], *, schedule: str | os.PathLike[str] | None = None
) -> Page:
    """Gather the page of a directory, without writing it; errors as `write_report`."""
    folder = Path(source)
    if _holds_statistics(folder):
        plan = None if schedule is None else Schedule.from_json(schedule)
        page = statistics_page(LayerStats.load(folder), plan)
    elif _holds_run(folder):
        if schedule is not None:
            msg = f"{folder}: is a training run, which has its own schedule; leave --schedule out"
            raise UsageError(msg)
        page = run_page(folder)
    else:
        msg = (
            f"{folder}: neither statistics (meta.json) nor a training run ({runs.CONFIG}, "
            f"{runs.LOG}); give a directory that `measure --out` or `train --out` wrote"
        )
        raise MissingError(msg)
    command = report_command(str(source), None if schedule is None else str(schedule))
    return replace(page, part=Part.joined([page.part, Part(commands=(command,))]))


def _holds_statistics(folder: Path) -> bool:
    # An unfinished measurement has only its journal; loading it says what to do.
    return (folder / "meta.json").is_file() or (folder / "journal.jsonl").is_file()


def _holds_run(folder: Path) -> bool:
    """Tell a run from a checkpoint, whose directory has a config.json too."""
    if (folder / runs.LOG).is_file():
        return True
    if not (folder / runs.CONFIG).is_file():
        return False
    return f'"{runs.FORMAT}"' in (folder / runs.CONFIG).read_text("utf-8", "replace")
