"""Rank correlation between columns over layers, and the reading of published scores.

pairs.py says which columns are compared and what comes back, ranks.py has the statistics, scores.py
reads text and CSV files, sources.py goes from paths to correlations.
"""

from __future__ import annotations

from layerstats.correlation.pairs import Correlation, correlate, correlation_table
from layerstats.correlation.ranks import METHODS
from layerstats.correlation.scores import read_scores
from layerstats.correlation.sources import correlate_sources

__all__ = [
    "METHODS",
    "Correlation",
    "correlate",
    "correlate_sources",
    "correlation_table",
    "read_scores",
]
