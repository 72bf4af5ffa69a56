"""Whether a ranking of layers can be told from noise: redrawn values in, verdicts out.

`ranks.py` draws and correlates, `verdicts.py` judges. Pure numbers: who redraws a metric is the
measurement.
"""

from __future__ import annotations

from layerstats.trust.ranks import Draws, agreement, chance_quantile, group_draws, interval
from layerstats.trust.ranks import rank_correlations as rank_correlations
from layerstats.trust.verdicts import RULES, Verdict, exact, from_ranges, from_windows

__all__ = [
    "RULES",
    "Draws",
    "Verdict",
    "agreement",
    "chance_quantile",
    "exact",
    "from_ranges",
    "from_windows",
    "group_draws",
    "interval",
    "rank_correlations",
]
