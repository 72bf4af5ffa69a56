"""Rules beyond lisa, lisa-d and owlore: formulas restated, mappings, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import UsageError
from layerstats.schedules import RULES, schedule, water_fill
from layerstats.schedules.scores import mirror, shares, sharpen
from layerstats.stats import LayerStats

Stats = Callable[..., LayerStats]
columns = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=12)


def test_the_mirror_of_lisa_d_is_owlores_increase() -> None:
    rising = schedule("lisa-d-mirror", num_layers=32, expected_active=8)
    falling = schedule("lisa-d", num_layers=32, expected_active=8)
    theirs = np.arange(1, 33) / np.arange(1, 33).sum()
    assert rising.probabilities == pytest.approx(8 * theirs)
    assert rising.probabilities == falling.probabilities[::-1]


def test_owlore_reverse_starves_its_top_layer_unless_a_floor_is_set() -> None:
    p = np.array([0.5, 0.3, 0.2])
    theirs = (p.max() - p) / (p.max() - p).sum()
    made = schedule("owlore-reverse", p, expected_active=1)
    assert made.probabilities == pytest.approx(theirs)
    assert made.probabilities[0] == 0
    kept = schedule("owlore-reverse", p, expected_active=1, floor=0.1)
    assert kept.probabilities[0] == 0.1
    assert math.fsum(kept.probabilities) == pytest.approx(1, abs=1e-15)


def test_any_column_both_ways(llama_stats: Stats) -> None:
    stats = llama_stats(3, stable_rank=[4.0, 1.0, 2.0])
    up = schedule("metric", stats, metric="stable_rank", expected_active=1)
    down = schedule(
        "metric", stats, metric="stable_rank", direction="decreasing", expected_active=1
    )
    assert up.scores == (4, 1, 2)
    assert down.scores == (1, 4, 3)
    assert down.provenance.parameters == {"direction": "decreasing"}
    assert down.metric == "stable_rank"


def test_heavy_tail_is_mapped_before_it_is_turned_round(llama_stats: Stats) -> None:
    stats = llama_stats(3, alpha_hill=[2.0, 3.0, 4.0])
    ways = {
        way: schedule("metric", stats, metric="heavy_tail", direction=way, expected_active=1)
        for way in ("increasing", "decreasing")
    }
    assert ways["increasing"].scores == (1.5, 1.0, 0.5)
    assert ways["decreasing"].scores == (0.5, 1.0, 1.5)


def test_a_blend_is_a_mean_of_shares(llama_stats: Stats) -> None:
    stats = llama_stats(3, lod_m7=[6.0, 3.0, 1.0], alpha_hill=[4.0, 3.0, 2.0])
    made = schedule("blend", stats, metric="lod_m7=0.7,heavy_tail=0.3", expected_active=1)
    lod, tail = np.array([0.6, 0.3, 0.1]), np.array([0.5, 1.0, 1.5]) / 3
    assert made.scores == pytest.approx(0.7 * lod + 0.3 * tail)
    assert made.metric == "lod_m7=0.7,heavy_tail=0.3"
    assert made.provenance.parameters["normalise"] == "sum"
    same = schedule("blend", stats, metric={"lod_m7": 7, "heavy_tail": 3}, expected_active=1)
    assert same.scores == pytest.approx(made.scores)
    ranks = schedule(
        "blend", stats, metric="lod_m7=1,heavy_tail=-1", normalise="rank", expected_active=1
    )
    assert ranks.scores == pytest.approx((3 / 6, 2 / 6, 1 / 6))


def test_lisa_theory_is_lora_over_full(llama_stats: Stats) -> None:
    lora = llama_stats(3, lora_updated_norm=[2.0, 3.0, 4.0], lora_norm=[1.0, 0.5, 0.5])
    full = llama_stats(3, frobenius_norm=[4.0, 4.0, 4.0])
    made = schedule("lisa-theory", lora, full=full, expected_active=1, full_source="runs/full")
    assert made.scores == (0.5, 0.75, 1.0)
    assert made.probabilities == pytest.approx((2 / 9, 3 / 9, 4 / 9))
    assert made.metric == "lora_updated_norm/frobenius_norm"
    assert made.provenance.parameters == {"full": "runs/full"}
    update = schedule("lisa-theory", lora, full=full, metric="lora_norm", expected_active=1)
    assert update.probabilities == pytest.approx((0.5, 0.25, 0.25))


def test_temperature_by_its_formula() -> None:
    made = schedule("owlore", [4.0, 1.0], expected_active=1, temperature=2)
    assert made.probabilities == pytest.approx((2 / 3, 1 / 3))
    assert made.provenance.parameters == {"temperature": 2.0}
    hot = schedule("owlore", [4.0, 1.0], expected_active=1, temperature=1e9)
    assert hot.probabilities == pytest.approx((0.5, 0.5))
    plain = schedule("owlore", [4.0, 1.0], expected_active=1, temperature=1)
    assert plain.to_json() == schedule("owlore", [4.0, 1.0], expected_active=1).to_json()


def test_a_floor_is_kept_exactly_and_written_down() -> None:
    made = schedule("owlore", [100.0, 1.0, 1.0, 0.0], expected_active=2, floor=0.2)
    assert made.probabilities == pytest.approx((1, 0.4, 0.4, 0.2))
    assert made.provenance.parameters == {"floor": 0.2}
    everyone = schedule("owlore", [5.0, 1.0], expected_active=1, floor=0.5)
    assert everyone.probabilities == (0.5, 0.5)


@given(values=columns)
@settings(deadline=None)
def test_turning_round_twice_is_nothing(values: list[float]) -> None:
    column = np.array(values)
    turned = mirror(column)
    assert mirror(turned) == pytest.approx(column, rel=1e-9)
    assert turned.min() >= 0
    assert sorted(turned) == pytest.approx(sorted(mirror(column[::-1])))
    assert np.argmax(turned) in np.flatnonzero(column == column.min())


@given(values=columns, normalise=st.sampled_from(["sum", "rank"]), unit=st.integers(-20, 20))
@settings(deadline=None)
def test_shares_sum_to_one_and_know_no_unit(values: list[float], normalise: str, unit: int) -> None:
    column = np.array(values)
    part = shares(column, normalise)
    assert part.sum() == pytest.approx(1)
    assert shares(column * 2.0**unit, normalise) == pytest.approx(part, rel=1e-12)
    assert np.array_equal(np.argsort(part, kind="stable"), np.argsort(column, kind="stable"))


@given(values=columns, temperature=st.floats(0.2, 50))
@settings(deadline=None)
def test_temperature_keeps_the_order(values: list[float], temperature: float) -> None:
    column = np.array(values)
    sharp = sharpen(column, temperature)
    assert np.all(np.diff(sharp[np.argsort(column)]) >= 0)
    if temperature > 1:
        assert sharp.max() / sharp.min() <= column.max() / column.min() * (1 + 1e-9)


def test_water_filling_after_every_step_is_unchanged(llama_stats: Stats) -> None:
    stats = llama_stats(4, lod_m7=[1.0, 2.0, 3.0, 4.0])
    made = schedule("metric", stats, temperature=0.5, floor=0.1, expected_active=2)
    assert made.probabilities == pytest.approx(water_fill([1, 4, 9, 16], 2, floor=0.1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "lisa", "num_layers": 3, "direction": "increasing"}, "'lisa' has no direction"),
        ({"rule": "metric", "direction": "up"}, "unknown direction 'up'"),
        ({"rule": "metric", "metric": "lod_m7=1"}, "is a blend, .* use rule blend"),
        ({"rule": "metric", "metric": {"lod_m7": 1.0}}, "is a blend"),
        ({"rule": "owlore", "normalise": "rank"}, "nothing to normalise"),
        ({"rule": "owlore", "full": [1.0]}, "takes no second checkpoint"),
        ({"rule": "blend"}, "needs columns with factors"),
        ({"rule": "blend", "metric": "lod_m7"}, "cannot read 'lod_m7' in a blend"),
        ({"rule": "blend", "metric": "lod_m7=0"}, "cannot read 'lod_m7=0'"),
        ({"rule": "blend", "metric": "lod_m7=x"}, "cannot read 'lod_m7=x'"),
        ({"rule": "blend", "metric": "lod_m7=inf"}, "cannot read"),
        ({"rule": "blend", "metric": "lod_m7=1,lod_m7=2"}, "each once"),
        ({"rule": "blend", "metric": ","}, "has no columns"),
        ({"rule": "blend", "metric": "lod=1"}, "unknown metric 'lod'"),
        ({"rule": "blend", "metric": "zero=1"}, "metric 'zero': every layer is 0"),
        ({"rule": "blend", "metric": "below=1"}, "metric 'below': layer 0 is -1, and a share"),
        ({"rule": "blend", "metric": "lod_m7=1", "normalise": "max"}, "unknown normalise 'max'"),
        ({"rule": "blend", "metric": "a=1", "stats": [1.0]}, "needs a statistics directory"),
        ({"rule": "lisa-theory"}, "needs two measurements"),
        ({"rule": "lisa-theory", "stats": [1.0, 2], "full": [1.0]}, "2 layers, the full ones 1"),
        ({"rule": "lisa-theory", "stats": [1.0], "full": [0.0]}, "layer 0 is 0; a norm must be"),
        ({"rule": "lisa-theory", "full": [1.0] * 3}, "no column 'lora_updated_norm' .* --adapter"),
        ({"rule": "metric", "temperature": 0}, "temperature must be above 0"),
        ({"rule": "metric", "temperature": math.nan}, "temperature must be above 0"),
        ({"rule": "metric", "floor": -0.1}, "floor must be from 0 to .* = 0.333"),
        ({"rule": "metric", "floor": 0.4}, "makes all layers alike"),
        ({"rule": "metric", "floor": math.nan}, "floor must be"),
        ({"rule": "metric", "floor": 0.2, "sampling": "successive"}, "below the floor 0.2"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], words: str, llama_stats: Stats) -> None:
    stats = llama_stats(3, lod_m7=[3.0, 1.0, 0.5], zero=[0.0] * 3, below=[-1.0, 1.0, 2.0])
    if "num_layers" not in arguments:
        arguments = {"stats": stats, **arguments}
    with pytest.raises(UsageError, match=words) as error:
        schedule(**{"expected_active": 1, **arguments})
    assert "\n" not in str(error.value)


def test_every_rule_says_what_it_is() -> None:
    for name, rule in RULES.items():
        assert rule.summary, name
        assert rule.reference, name
