"""Making schedules: rules, metrics, mappings, and what bad scores get."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layerstats.errors import UsageError
from layerstats.schedules import RULES, LowRank, ModelRef, Schedule, schedule
from layerstats.schedules.rules import RuleInput
from layerstats.schedules.rules import schedule as register
from layerstats.stats import LayerStats


def stats(**columns: list[float]) -> LayerStats:
    count = len(next(iter(columns.values())))
    layers = pd.DataFrame({"layer": range(count), "kind": "block", **columns})
    ends = pd.DataFrame({"layer": [None], "kind": ["embed"], "alpha_hill": [9.0]})
    meta: dict[str, Any] = {"checkpoint": {"path": "some/where", "layers_path": "model.layers"}}
    return LayerStats(matrices=pd.DataFrame(), layers=pd.concat([layers, ends]), meta=meta)


def test_lisa_is_exactly_uniform() -> None:
    made = schedule("lisa", num_layers=32, expected_active=2)
    assert made.probabilities == (2 / 32,) * 32
    assert made.inclusion_probabilities == made.probabilities
    assert made.scores == (1.0,) * 32
    assert made.metric is None


def test_lisa_d_falls() -> None:
    made = schedule("lisa-d", num_layers=32, expected_active=8)
    assert made.scores == tuple(range(32, 0, -1))
    assert made.probabilities[0] == pytest.approx(0.485, abs=5e-4)
    assert made.probabilities[31] == pytest.approx(0.0152, abs=5e-5)


def test_owlore_follows_the_metric() -> None:
    measured = stats(lod_m7=[3.0, 1.0, 1.0, 1.0], lod_m13=[1.0, 1.0, 1.0, 3.0])
    made = schedule("owlore", measured, expected_active=1)
    assert made.metric == "lod_m7"
    assert made.probabilities == pytest.approx((0.5, 1 / 6, 1 / 6, 1 / 6))
    assert made.model == ModelRef("some/where", 4, "model.layers")
    other = schedule("owlore", measured, expected_active=1, metric="lod_m13")
    assert other.probabilities[3] == pytest.approx(0.5)


def test_the_only_lod_column_is_the_default() -> None:
    assert schedule("owlore", stats(lod_m13=[1.0, 2.0]), expected_active=1).metric == "lod_m13"
    several = stats(lod_m5=[1.0, 2.0], lod_m13=[1.0, 2.0])
    with pytest.raises(UsageError, match=r"hold lod_m5, lod_m13 and not lod_m7, .* such as lod_m5"):
        schedule("owlore", several, expected_active=1)
    with pytest.raises(UsageError, match=r"no column 'lod_m3' .* --metrics lod --m 3 --tokens"):
        schedule("owlore", several, metric="lod_m3", expected_active=1)


@pytest.mark.parametrize("rule", ["owlore", "owlore-reverse", "metric"])
def test_without_lod_the_rule_says_what_it_takes_and_what_else_there_is(rule: str) -> None:
    with pytest.raises(UsageError) as caught:
        schedule(rule, stats(alpha_hill=[2.0, 3.0]), expected_active=1)
    assert str(caught.value) == (
        f"the statistics hold no LOD, which rule {rule!r} takes by default; measure it with "
        "--metrics lod --m 7 --tokens TEXT, or name another column with --metric (for instance "
        "heavy_tail)"
    )
    both = stats(mean_abs=[2.0, 3.0])
    norms = LayerStats(both.matrices, both.layers.drop(columns="alpha_hill"), both.meta)
    with pytest.raises(UsageError, match=r"for instance mean_abs\)"):
        schedule(rule, norms, expected_active=1)


def test_heavy_tail_is_mapped_and_says_so() -> None:
    made = schedule(
        "owlore", stats(alpha_hill=[2.0, 3.0, 4.0]), metric="heavy_tail", expected_active=1
    )
    assert made.scores == (1.5, 1.0, 0.5)
    assert made.provenance.parameters == {"score_map": {"kind": "linear", "low": 0.5, "high": 1.5}}
    flat = schedule("owlore", stats(alpha_hill=[2.0, 2.0]), metric="heavy_tail", expected_active=1)
    assert flat.probabilities == (0.5, 0.5)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_makes_a_valid_schedule(rule: str) -> None:
    measured = stats(lod_m7=[3.0, 2.0, 1.0], lora_updated_norm=[1.0, 2.0, 3.0])
    more: dict[str, Any] = {"blend": {"metric": "lod_m7=1"}, "lisa-theory": {"full": [2.0, 1, 1]}}
    made = schedule(rule, measured, expected_active=2, num_layers=3, **more.get(rule, {}))
    assert math.fsum(made.probabilities) == pytest.approx(2)
    assert Schedule.from_json(made.to_json()) == made


def test_more_than_all_is_all() -> None:
    made = schedule("owlore", [3.0, 0.0, 1.0], expected_active=5)
    assert made.probabilities == (1.0, 1.0, 1.0)
    assert made.expected_active == 3
    assert made.provenance.parameters == {"expected_active_asked": 5.0}
    assert made.active_layers(9) == (0, 1, 2)


def test_a_fraction_of_a_layer() -> None:
    made = schedule("lisa", num_layers=8, expected_active=2.5)
    sizes = [len(made.active_layers(interval)) for interval in range(400)]
    assert set(sizes) == {2, 3}
    assert np.mean(sizes) == pytest.approx(2.5, abs=5 * 0.5 / math.sqrt(400))


def test_numpy_numbers_make_the_same_file() -> None:
    numbers = {"expected_active": 2, "interval_steps": 5, "seed": 3}
    plain = schedule("lisa", num_layers=4, **numbers)  # type: ignore[arg-type]
    wrapped = {name: np.int64(value) for name, value in numbers.items()}
    assert schedule("lisa", num_layers=4, **wrapped).to_json() == plain.to_json()  # type: ignore[arg-type]


def test_numpy_numbers_and_paths_can_be_saved_too() -> None:
    made = schedule(
        "owlore",
        [2.0, 1.0],
        expected_active=1,
        source=Path("stats"),  # type: ignore[arg-type]
        low_rank={"rank": np.int64(8), "scale": np.float32(0.5)},
    )
    assert Schedule.from_json(made.to_json()) == made
    assert made.provenance.stats == "stats"
    assert schedule("lisa", num_layers=np.int64(4), expected_active=1).num_layers == 4  # type: ignore[arg-type]


def test_a_blend_is_the_same_as_text_and_as_a_mapping(llama_stats: Any) -> None:
    stats = llama_stats(3, lod_m7=[1.0, 2.0, 3.0], mean_abs=[3.0, 1.0, 2.0])
    factors = {"lod_m7": 1 / 3, "mean_abs": 1e-3 + 1e-10}
    text = ",".join(f"{name}={factor!r}" for name, factor in factors.items())
    one, other = (
        schedule("blend", stats, metric=metric, expected_active=1) for metric in (factors, text)
    )
    assert one == other
    for bad in (["lod_m7"], {"lod_m7": "much"}):
        with pytest.raises(UsageError, match="blend"):
            schedule("blend", stats, metric=bad, expected_active=1)  # type: ignore[arg-type]


def test_low_rank_and_model() -> None:
    made = schedule("lisa", model=ModelRef("m", 4), expected_active=1, low_rank={"rank": 8})
    assert made.low_rank == LowRank(8, 200, 1.0)
    assert made.model.id == "m"
    assert schedule("lisa", num_layers=4, model="name", expected_active=1).model.id == "name"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "lissa", "num_layers": 4}, "unknown rule 'lissa'; did you mean 'lisa'"),
        ({"rule": "owlore", "num_layers": 4}, "needs scores"),
        ({"rule": "lisa"}, "needs num_layers"),
        ({"rule": "owlore"}, "needs scores"),
        ({"rule": "lisa", "num_layers": 0}, "num_layers must be a whole number from 1, got 0"),
        ({"rule": "lisa", "num_layers": 4, "sampling": "x"}, "unknown sampling 'x'"),
        (
            {"rule": "lisa", "num_layers": 4, "expected_active": 0},
            "expected_active must be above 0",
        ),
        ({"rule": "lisa", "num_layers": 4, "seed": -1}, "seed must be a whole number"),
        ({"rule": "lisa", "num_layers": 4, "seed": 1.5}, "seed must be a whole number"),
        ({"rule": "lisa", "num_layers": 4, "interval_steps": 0}, "interval_steps must be"),
        ({"rule": "lisa", "num_layers": 4, "always_active": ("lm_head",)}, "unknown 'lm_head'"),
        ({"rule": "lisa", "num_layers": 4, "always_active": ("head", "head")}, "a name twice"),
        ({"rule": "lisa", "num_layers": 4, "low_rank": {"ranks": 4}}, "low_rank takes rank"),
        ({"rule": "lisa", "num_layers": 4, "low_rank": {"rank": 0}}, "low_rank.rank must be"),
        ({"rule": "owlore", "stats": [1.0, -2.0]}, "layer 1 is -2, .* negative score"),
        ({"rule": "owlore", "stats": [1.0, math.nan]}, "layer 1 has no finite value"),
        ({"rule": "owlore", "stats": [0.0, 0.0]}, "every layer is 0"),
        ({"rule": "owlore", "stats": []}, "one number a layer"),
        ({"rule": "owlore", "stats": [[1.0]]}, "one number a layer"),
        ({"rule": "owlore", "stats": ["a"]}, "not a list of numbers"),
        ({"rule": "owlore", "stats": [1.0, 0, 0], "expected_active": 2}, "the 1 layers"),
        ({"rule": "owlore", "stats": [1.0, 2.0], "num_layers": 3}, "num_layers is 3, .* 2 layers"),
        ({"rule": "lisa", "num_layers": 3, "model": ModelRef("m", 4)}, "num_layers is 4"),
        (
            {"rule": "lisa", "num_layers": 4, "sampling": "successive", "expected_active": 1.5},
            "whole number of layers",
        ),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        schedule(**{"expected_active": 1, **arguments})
    assert "\n" not in str(error.value)


def test_a_layer_without_a_value_is_named() -> None:
    with pytest.raises(UsageError, match="metric 'lod_m7': layer 1 has no finite value"):
        schedule("owlore", stats(lod_m7=[1.0, math.nan]), expected_active=1)


def test_a_new_rule_is_one_function() -> None:
    @register("last", summary="rising", reference="this test")
    def last(given: RuleInput) -> Any:
        return np.arange(given.num_layers) + 1.0

    try:
        assert schedule("last", num_layers=3, expected_active=1).scores == (1, 2, 3)
    finally:
        del RULES["last"]
