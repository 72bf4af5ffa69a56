"""One self-contained HTML page of a measured checkpoint or of a training run.

statistics.py and training.py gather what such a page shows, schedules.py the part that both have;
tables.py, charts.py, notices.py and commands.py are its parts; page.py joins them with the files in
template/ and with plotly. The page draws its charts and tables itself, from the data inside it, and
asks no network for anything.
"""

from __future__ import annotations

from layerstats.report.page import Page, to_html
from layerstats.report.write import page_of, write_report

__all__ = ["Page", "page_of", "to_html", "write_report"]
