"""--explain's numbers against slow restatements: coverage, counts, bytes, warnings."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from layerstats.errors import UsageError
from layerstats.schedules import LAWS, Explanation, explain, schedule
from layerstats.schedules.cost import worst_cost
from layerstats.stats import LayerStats
from tests.schedules.conftest import MODULES

DATA = Path(__file__).parents[1] / "data"
LOD = np.loadtxt(DATA / "llama2_7b_lod_m13_percent.txt")
BLOCK = sum(rows * cols for rows, cols in MODULES.values())
Stats = Callable[..., LayerStats]


@pytest.mark.parametrize("law", sorted(LAWS))
@pytest.mark.parametrize("steps", [1, 50, 122])
def test_numbers_of_every_law(law: str, steps: int) -> None:
    made = schedule("owlore", LOD, expected_active=4, sampling=law)
    found = explain(made, steps=steps)
    assert found.intervals == math.ceil(steps / 20)
    inclusion = np.array(made.inclusion_probabilities)
    rows = found.layers
    assert [row.layer for row in rows] == list(range(32))
    assert [row.inclusion for row in rows] == inclusion.tolist()
    assert [row.target for row in rows] == list(made.probabilities)
    never = np.array([row.chance_never for row in rows])
    assert found.expected_untrained == pytest.approx(never.sum())
    trained = np.array([row.expected_steps for row in rows])
    if LAWS[law].independent:
        assert never == pytest.approx((1 - inclusion) ** found.intervals)
        assert trained == pytest.approx(inclusion * steps)
    else:
        plan = [set(made.active_layers(step // 20)) for step in range(steps)]
        assert trained.tolist() == [sum(i in active for active in plan) for i in range(32)]
        assert never.tolist() == [float(not any(i in a for a in plan)) for i in range(32)]
    assert trained.sum() == pytest.approx(4 * steps)
    json.dumps(found.to_dict(), allow_nan=False)


def test_coverage_by_enumeration() -> None:
    """All pairs of systematic draws of 3 layers, 1 at a time: chances by counting."""
    made = schedule("owlore", [2.0, 1.0, 1.0], expected_active=1, interval_steps=1)
    chances = {0: 0.5, 1: 0.25, 2: 0.25}
    untrained = 0.0
    for draw in itertools.product(chances, repeat=2):
        untrained += math.prod(chances[i] for i in draw) * (3 - len(set(draw)))
    assert explain(made, steps=2).expected_untrained == pytest.approx(untrained)


def test_counts_of_active_layers() -> None:
    def found(**options: object) -> Explanation:
        return explain(schedule("owlore", LOD, **options), steps=2000)  # type: ignore[arg-type]

    fixed = found(expected_active=2)
    assert (fixed.expected_active, fixed.active_99, fixed.active_max) == (2, 2, 2)
    assert fixed.empty_chance == 0
    half = found(expected_active=2.5)
    assert (half.active_99, half.active_max) == (3, 3)
    rare = found(expected_active=2.005)
    assert (rare.active_99, rare.active_max) == (2, 3)
    free = found(expected_active=2, sampling="bernoulli")
    assert (free.active_99, free.active_max) == (6, 32)
    assert free.empty_chance == pytest.approx(0.119, abs=5e-4)


def test_cost_of_the_worst_interval(llama_stats: Stats) -> None:
    stats = llama_stats(12)
    stats.layers.loc[3, "parameters"] = 2 * BLOCK
    made = schedule("lisa", stats, expected_active=2)
    found = explain(made, steps=100, stats=stats).cost
    assert found is not None
    assert found.layer_parameters == 3 * BLOCK
    assert found.always_parameters == {"embed": 640, "head": 640}
    assert found.active_parameters == 3 * BLOCK + 1280
    assert found.always_share == pytest.approx(1280 / (3 * BLOCK + 1280))
    assert found.total_parameters == 13 * BLOCK + 1280
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        part = found.bytes_in(dtype)
        assert part["weights"] == part["gradients"] == found.active_parameters * size
        assert part["adam_states"] == 2 * found.active_parameters * size
        assert part["active_sum"] == 4 * size * found.active_parameters
        assert part["frozen_weights"] == (10 * BLOCK) * size
        assert part["with_frozen"] == part["active_sum"] + part["frozen_weights"]


def test_cost_with_galore_and_without_embeddings(llama_stats: Stats) -> None:
    stats = llama_stats(4)
    made = schedule("lisa", stats, expected_active=1, low_rank={"rank": 4}, always_active=("norm",))
    found = worst_cost(made, stats, 1)
    assert found.always_parameters == {}
    states = sum(2 * 4 * max(shape) + 4 * min(shape) for shape in MODULES.values())
    assert found.state_values == states
    full = schedule("lisa", stats, expected_active=1, low_rank={"rank": 64}, always_active=())
    assert worst_cost(full, stats, 1).state_values == 2 * BLOCK


def test_a_tied_head_is_the_embedding(llama_stats: Stats) -> None:
    stats = llama_stats(4)
    stats.meta["checkpoint"]["tied_embeddings"] = True
    tied = LayerStats(stats.matrices, stats.layers[stats.layers["kind"] != "head"], stats.meta)
    for always in (("head",), ("embed", "head")):
        made = schedule("lisa", tied, expected_active=1, always_active=always)
        assert worst_cost(made, tied, 1).always_parameters == {"embed": 640}


def test_layers_that_cannot_be_drawn_cost_nothing(llama_stats: Stats) -> None:
    stats = llama_stats(3)
    stats.layers.loc[0, "parameters"] = 99 * BLOCK
    made = schedule("owlore", [0.0, 1.0, 2.0], expected_active=1, sampling="bernoulli")
    found = explain(made, steps=10, stats=stats)
    assert found.active_max == 2
    assert found.cost is not None
    assert found.cost.layer_parameters == 2 * BLOCK


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stats": [0.0, 1.0, 1.0]}, "never trains at all .*: layer 0; see --floor"),
        (
            {"stats": [1.0] + [50.0] * 9, "interval_steps": 1},
            "will rather not train in 60 steps: layer 0;",
        ),
        ({"stats": [1.0] * 9, "interval_steps": 5}, "2.2 of 9 layers will not train in 60"),
        ({"stats": [9.0, 1, 1, 1], "expected_active": 2}, "capped, .*: layer 0"),
        ({"stats": [3.0, 1, 1], "sampling": "reshuffle"}, "reshuffle ignores the scores"),
        (
            {"stats": [3.0, 1, 1], "expected_active": 2, "sampling": "successive"},
            "successive does not give the target probabilities: layer 0 gets 0.9",
        ),
        ({"stats": [1.0, 1, 1], "sampling": "bernoulli"}, "29.6 % of the intervals train no"),
        ({"stats": [1.01, 1, 1]}, "nearly equal .*= 1.01"),
        (
            {"stats": [1.0] * 9 + [0.001, 0.001], "sampling": "quota", "interval_steps": 1},
            "does not train in 60 steps: layers 9-10; .*more layers, or",
        ),
    ],
)
def test_warnings(options: dict[str, object], words: str) -> None:
    made = schedule("owlore", **{"expected_active": 1, **options})  # type: ignore[arg-type]
    found = explain(made, steps=60)
    assert any(re.search(words, text) for text in found.warnings), found.warnings


def test_the_always_active_group_is_warned_about(llama_stats: Stats) -> None:
    stats = llama_stats(4)
    stats.layers.loc[stats.layers["kind"] == "embed", "parameters"] = 10 * BLOCK
    made = schedule("lisa", stats, expected_active=1)
    [warning] = explain(made, steps=2000, stats=stats).warnings
    assert warning.startswith("the always-active group is 91 % of what trains")


def test_no_warnings_where_there_is_nothing_to_warn_of() -> None:
    assert explain(schedule("lisa", num_layers=8, expected_active=2), steps=2000).warnings == ()


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_are_whole(steps: object) -> None:
    made = schedule("lisa", num_layers=8, expected_active=2)
    with pytest.raises(UsageError, match="steps must be a whole number from 1"):
        explain(made, steps=steps)  # type: ignore[arg-type]


def test_statistics_of_another_model_are_refused(llama_stats: Stats) -> None:
    made = schedule("lisa", num_layers=8, expected_active=2)
    with pytest.raises(UsageError, match="8 layers but the model has 12"):
        explain(made, steps=10, stats=llama_stats(12))
