"""Reader and metrics joined to one run.

`pipeline.py` streams, `journal.py` makes the run resumable, `tables.py` writes it up.
"""

from layerstats.measurement.pipeline import DEFAULT_METRICS, Progress, measure

__all__ = ["DEFAULT_METRICS", "Progress", "measure"]
