"""Numbers over layers, to probabilities, to which layers train when.

rules.py turns a rule and scores into weights, sampling.py weights into probabilities and draws,
schedule.py keeps the result as a `Schedule` and its JSON. A new rule or sampling law is one
function with one registration.
"""

from __future__ import annotations

# The two laws with modules of their own are imported for their registration.
from layerstats.schedules import quota as _quota
from layerstats.schedules import successive as _successive
from layerstats.schedules.build import schedule as schedule
from layerstats.schedules.outlook import active_count_distribution, expected_untrained
from layerstats.schedules.parts import LowRank, ModelRef, Provenance
from layerstats.schedules.reading import json_schema
from layerstats.schedules.rules import RULES, describe_rules
from layerstats.schedules.sampling import LAWS, water_fill
from layerstats.schedules.schedule import Schedule

del _quota, _successive

__all__ = [
    "LAWS",
    "RULES",
    "LowRank",
    "ModelRef",
    "Provenance",
    "Schedule",
    "active_count_distribution",
    "describe_rules",
    "expected_untrained",
    "json_schema",
    "schedule",
    "water_fill",
]
