"""Numbers over layers, to probabilities, to which layers train when.

columns.py finds a rule's columns, rules.py turns them into weights, water_filling.py weights into
probabilities, sampling.py probabilities into draws; schedule.py keeps the result as a `Schedule`
and its JSON, explain.py says what it will do, adaptive.py and log.py change it during a run,
exporters/ puts it into other programs' formats. A new rule, sampling law or target is one function
with one registration.
"""

from __future__ import annotations

# The two laws with modules of their own are imported for their registration.
from layerstats.schedules import quota as _quota
from layerstats.schedules import successive as _successive
from layerstats.schedules.adaptive import GradientNorms, refresh
from layerstats.schedules.build import schedule as schedule
from layerstats.schedules.explain import Explanation, explain
from layerstats.schedules.log import ScheduleLog
from layerstats.schedules.outlook import (
    active_count_distribution,
    expected_untrained,
    never_trained,
)
from layerstats.schedules.parts import LowRank, ModelRef, Provenance
from layerstats.schedules.reading import json_schema
from layerstats.schedules.rules import RULES, describe_rules
from layerstats.schedules.sampling import LAWS
from layerstats.schedules.schedule import Schedule
from layerstats.schedules.water_filling import water_fill

del _quota, _successive

__all__ = [
    "LAWS",
    "RULES",
    "Explanation",
    "GradientNorms",
    "LowRank",
    "ModelRef",
    "Provenance",
    "Schedule",
    "ScheduleLog",
    "active_count_distribution",
    "describe_rules",
    "expected_untrained",
    "explain",
    "json_schema",
    "never_trained",
    "refresh",
    "schedule",
    "water_fill",
]
