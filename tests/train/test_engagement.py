"""The report of a run: what moved, what had a turn, what was to be expected, and what disagrees."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from layerstats.checkpoint.parts import find_parts
from layerstats.errors import CheckpointError, MissingError
from layerstats.schedules import Schedule
from layerstats.schedules import schedule as make
from layerstats.schedules.adaptive import GradientNorms, refresh
from layerstats.schedules.log import ScheduleLog
from layerstats.train import movement as module
from layerstats.train.engagement import Engagement, engagement

LAYERS = 6
NAMES = ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
Weights = dict[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]


def weights(dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{n}.{NAMES[0]}": (8, 8) for n in range(LAYERS)}
    shapes |= {f"model.layers.{n}.{NAMES[1]}": (16, 8) for n in range(LAYERS)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made |= {f"model.layers.{n}.{NAMES[2]}": torch.ones(8) for n in range(LAYERS)}
    made["model.embed_tokens.weight"] = torch.randn(32, 8, generator=generator)
    made["lm_head.weight"] = torch.randn(32, 8, generator=generator)
    made["model.norm.weight"] = torch.ones(8)
    return {name: one.to(dtype) for name, one in made.items()}


PARTS = find_parts({name: tuple(one.shape) for name, one in weights().items()})


def trained(start: Weights, layers: Any, outside: Any = ("embed", "head", "norm")) -> Weights:
    """The weights with a step of 0.25 in every tensor of these parts."""
    names = {name for layer in layers for name in PARTS.layers[layer]}
    names |= {name for group in outside for name in PARTS.outside[group]}
    return {name: one + 0.25 if name in names else one.clone() for name, one in start.items()}


def steps(schedule: Schedule | None, count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "kind": "step",
            "step": step + 1,
            "loss": 3.0 - step / count,
            "lr": 1e-3,
            "active_layers": None
            if schedule is None
            else list(schedule.active_layers(schedule.interval_of(step))),
            "trainable": 100,
            "memory": {"optimizer": 800},
            **more,
        }
        for step in range(count)
    ]


def lisa(seed: int = 0, **more: Any) -> Schedule:
    return make("lisa", num_layers=LAYERS, expected_active=2, seed=seed, interval_steps=5, **more)


def run(schedule: Schedule, count: int) -> tuple[Weights, Weights, list[dict[str, Any]]]:
    """A run in which everything went as it should."""
    log = steps(schedule, count)
    start = weights()
    return start, trained(start, {n for entry in log for n in entry["active_layers"]}), log


def test_a_run_without_fault_has_no_verdict() -> None:
    schedule = lisa()
    start, end, log = run(schedule, 12)
    report = engagement(start, end, PARTS, schedule, log)
    assert report.verdicts == ()
    assert (report.steps, report.intervals) == (12, 3)
    active = {n for interval in range(3) for n in schedule.active_layers(interval)}
    assert 0 < len(active) < LAYERS
    assert {one.layer for one in report.layers if one.movement.moved} == active
    assert report.never_active == tuple(sorted(set(range(LAYERS)) - active))
    for one in report.layers:
        mine = [n for n in range(3) if one.layer in schedule.active_layers(n)]
        assert one.active_intervals == len(mine)
        assert one.active_steps == sum({0: 5, 1: 5, 2: 2}[n] for n in mine)
    assert all(movement.moved for movement in report.outside.values())
    assert list(report.outside) == ["embed", "head", "norm"]


def test_norms_are_those_of_the_joined_tensors() -> None:
    start = weights(torch.bfloat16)
    end = {name: (one.float() * 1.5 - 0.1).bfloat16() for name, one in start.items()}
    report = engagement(start, end, PARTS, None, steps(None, 3))
    for layer, one in enumerate(report.layers):
        before = np.concatenate([start[n].double().numpy().ravel() for n in PARTS.layers[layer]])
        after = np.concatenate([end[n].double().numpy().ravel() for n in PARTS.layers[layer]])
        norm = np.linalg.norm(after - before)
        assert one.movement.update_norm == pytest.approx(norm, rel=1e-14)
        assert one.movement.relative_update == pytest.approx(
            norm / np.linalg.norm(before), rel=1e-14
        )
        assert (one.movement.tensors, one.movement.tensors_moved) == (3, 3)
    embed = start["model.embed_tokens.weight"].double() - end["model.embed_tokens.weight"].double()
    assert report.outside["embed"].update_norm == pytest.approx(float(embed.norm()), rel=1e-14)


def test_chunks_do_not_change_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    start = weights()
    end = trained(start, [1, 2])
    whole = engagement(start, end, PARTS, None, [])
    monkeypatch.setattr(module, "_CHUNK", 7)
    pieces = engagement(start, end, PARTS, None, [])
    for one, other in zip(whole.layers, pieces.layers, strict=True):
        assert one.movement.update_norm == pytest.approx(other.movement.update_norm, rel=1e-14)
        assert one.movement.moved == other.movement.moved


@pytest.mark.parametrize("value", [1e-45, -0.0, float("nan")])
def test_moved_is_a_matter_of_bits(value: float) -> None:
    start, end = weights(), weights()
    name = PARTS.layers[3][1]
    start[name].view(-1)[-1] = end[name].view(-1)[-1] = 0.0
    assert not engagement(start, end, PARTS, None, []).layers[3].movement.moved
    end[name].view(-1)[-1] = value
    report = engagement(start, end, PARTS, None, [])
    assert [one.layer for one in report.layers if one.movement.moved] == [3]
    assert report.layers[3].movement.tensors_moved == 1
    start[name].view(-1)[-1] = value
    assert not engagement(start, end, PARTS, None, []).layers[3].movement.moved


def test_a_start_of_another_dtype_is_what_loading_makes_of_it() -> None:
    file = weights(torch.float32)
    loaded = {name: one.bfloat16() for name, one in file.items()}
    report = engagement(file, loaded, PARTS, None, [])
    assert not any(one.movement.moved for one in report.layers)
    assert report.layers[0].movement.dtype == "bfloat16"


def test_one_tensor_of_each_model_at_a_time() -> None:
    start, end = weights(), trained(weights(), [0])

    class Lazy(Mapping[str, torch.Tensor]):
        def __init__(self, held: Weights) -> None:
            self.held = held
            self.asked: dict[str, int] = {}

        def __getitem__(self, name: str) -> torch.Tensor:
            self.asked[name] = self.asked.get(name, 0) + 1
            return self.held[name].clone()

        def __iter__(self) -> Iterator[str]:
            return iter(self.held)

        def __contains__(self, name: object) -> bool:
            return name in self.held

        def __len__(self) -> int:
            return len(self.held)

    lazy = Lazy(start), Lazy(end)
    assert engagement(*lazy, PARTS, None, []) == engagement(start, end, PARTS, None, [])
    for one in lazy:
        assert {one.asked[name] for layer in PARTS.layers for name in layer} == {1}


def test_what_is_missing_or_of_another_shape_is_named() -> None:
    start = weights()
    with pytest.raises(MissingError, match=r"at the end: unknown parameter 'model.layers.0"):
        engagement(start, {}, PARTS, None, [])
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \[33, 8\]"):
        engagement(start, start | {"lm_head.weight": torch.ones(33, 8)}, PARTS, None, [])


# Verdicts


def test_a_layer_that_was_scheduled_and_did_not_move() -> None:
    schedule = lisa()
    start, end, log = run(schedule, 10)
    layer = schedule.active_layers(0)[0]
    end |= {name: start[name] for name in PARTS.layers[layer]}
    [verdict] = engagement(start, end, PARTS, schedule, log).verdicts
    count = sum(layer in entry["active_layers"] for entry in log)
    assert verdict == f"layer {layer} was scheduled ({count} steps) and did not move"
    start = {name: one.bfloat16() for name, one in start.items()}
    end = {name: one.bfloat16() for name, one in end.items()}
    [verdict] = engagement(start, end, PARTS, schedule, log).verdicts
    assert "smaller than bfloat16 can hold" in verdict


def test_steps_without_a_learning_rate_move_nothing_and_nobody_wonders() -> None:
    """The first step of a warm-up has rate 0."""
    log = steps(lisa(), 1, lr=0.0)
    report = engagement(weights(), weights(), PARTS, lisa(), log)
    assert report.verdicts == ()
    assert sum(one.active_steps for one in report.layers) == 2
    assert sum(one.effective_steps for one in report.layers) == 0


def test_a_layer_that_moved_and_was_never_active() -> None:
    schedule = lisa()
    start, end, log = run(schedule, 5)
    layer = next(n for n in range(LAYERS) if n not in schedule.active_layers(0))
    end = trained(end, [layer], [])
    [verdict] = engagement(start, end, PARTS, schedule, log).verdicts
    assert verdict == f"layer {layer} moved and was never active"


def test_embedding_head_and_norm_are_judged_by_what_was_to_train() -> None:
    start = weights()
    end = trained(start, range(LAYERS), ["embed"])
    log = steps(None, 4)
    assert engagement(start, end, PARTS, None, log).verdicts == (
        "head was to train and did not move",
        "norm was to train and did not move",
    )
    assert engagement(start, end, PARTS, None, log, trained=["embed"]).verdicts == ()
    assert engagement(start, end, PARTS, None, log, trained=[]).verdicts == (
        "embed moved and was not to train",
    )
    only_norm = lisa(always_active=("norm",))
    log = steps(only_norm, 5)
    end = trained(start, only_norm.active_layers(0), ["norm", "head"])
    assert engagement(start, end, PARTS, only_norm, log).verdicts == (
        "head moved and was not to train",
    )


def test_a_tied_head_moves_with_the_embedding() -> None:
    start = weights()
    start["lm_head.weight"] = start["model.embed_tokens.weight"]
    end = trained(start, range(LAYERS))
    end["lm_head.weight"] = end["model.embed_tokens.weight"]
    log = steps(None, 4)
    assert engagement(start, end, PARTS, None, log, trained=["embed", "norm"]).verdicts == ()


def test_steps_that_trained_other_layers_than_the_schedule_says() -> None:
    schedule = lisa()
    log = steps(schedule, 10)
    log[6]["active_layers"] = [0, 1, 2]
    log[8]["active_layers"] = None
    start = weights()
    end = trained(start, range(LAYERS))
    verdicts = engagement(start, end, PARTS, schedule, log).verdicts
    planned = list(schedule.active_layers(1))
    assert (
        f"step 7 trained layers [0, 1, 2], the schedule says {planned} (2 steps of 10 differ)"
        in (verdicts)
    )


def test_an_unusual_count_is_named_with_what_was_expected() -> None:
    schedule = lisa()
    start = weights()
    log = steps(schedule, 300)
    for entry in log:
        entry["active_layers"] = [0, 1]
    end = trained(start, [0, 1])
    report = engagement(start, end, PARTS, schedule, log)
    assert report.layers[0].expected_intervals == pytest.approx(60 * 2 / 6)
    assert report.layers[0].expected_sd == pytest.approx(math.sqrt(60 * (1 / 3) * (2 / 3)))
    assert (
        "layer 0 was active in 60 intervals, expected were 20.0 with standard deviation 3.7"
        in report.verdicts
    )


@pytest.mark.parametrize("sampling", ["systematic", "bernoulli", "successive"])
def test_honest_draws_are_not_called_unusual(sampling: str) -> None:
    """Twenty seeds of sixty intervals."""
    start = weights()
    for seed in range(20):
        schedule = lisa(seed, sampling=sampling)
        log = steps(schedule, 300)
        end = trained(start, {n for entry in log for n in entry["active_layers"]})
        assert engagement(start, end, PARTS, schedule, log).verdicts == ()


def test_one_turn_of_a_rare_layer_is_not_called_unusual() -> None:
    """A single interval is eight standard deviations off for a layer with probability 1/65."""
    schedule = make(
        "owlore",
        [60.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        expected_active=1,
        seed=1,
        interval_steps=1,
        sampling="bernoulli",
    )
    interval = next(n for n in range(500) if 1 in schedule.active_layers(n))
    start = weights()
    log = steps(schedule, interval + 1)
    end = trained(start, {n for entry in log for n in entry["active_layers"]})
    assert engagement(start, end, PARTS, schedule, log).verdicts == ()


def test_a_layer_that_is_always_drawn_and_was_not() -> None:
    schedule = make("lisa", num_layers=LAYERS, expected_active=LAYERS, interval_steps=5)
    log = steps(schedule, 10)
    start = weights()
    for entry in log[5:]:
        entry["active_layers"] = [0, 1, 2, 3, 4]
    verdicts = engagement(start, trained(start, range(LAYERS)), PARTS, schedule, log).verdicts
    assert any(
        one.startswith("layer 5 was active in 1 interval, expected were 2.0") for one in verdicts
    )


def test_a_law_that_remembers_has_no_standard_deviation() -> None:
    schedule = lisa(sampling="quota")
    start, end, log = run(schedule, 30)
    report = engagement(start, end, PARTS, schedule, log)
    assert [one.expected_sd for one in report.layers] == [None] * LAYERS
    assert [one.expected_intervals for one in report.layers] == pytest.approx([2.0] * LAYERS)
    assert report.verdicts == ()


def test_a_schedule_that_changed_is_followed() -> None:
    first = lisa()
    log = ScheduleLog((first,))
    log = log.add(refresh(first, GradientNorms((9.0, 5.0, 1.0, 1.0, 1.0, 1.0)), interval=2))
    entries = steps(log, 20)  # type: ignore[arg-type]
    start = weights()
    end = trained(start, {n for entry in entries for n in entry["active_layers"]})
    report = engagement(start, end, PARTS, log, entries)
    chances = [log.at(n).inclusion_probabilities[0] for n in range(4)]
    assert chances[0] != chances[3]
    assert report.layers[0].expected_intervals == pytest.approx(sum(chances))
    assert report.verdicts == ()


# Optimizer and loss


def sizes(bytes_by_step: list[int], trainable: list[int] | None = None) -> Engagement:
    schedule = lisa()
    log = steps(schedule, len(bytes_by_step))
    for at, entry in enumerate(log):
        entry["memory"] = {"optimizer": bytes_by_step[at]}
        entry["trainable"] = 100 if trainable is None else trainable[at]
    start = weights()
    end = trained(start, {n for entry in log for n in entry["active_layers"]})
    return engagement(start, end, PARTS, schedule, log)


def test_optimizer_bytes_flat_over_intervals() -> None:
    """Inside an interval states come into being; at its end they must be as large as before."""
    report = sizes([400, 800, 800, 800, 800, 100, 800, 800, 800, 800])
    state = report.optimizer_bytes
    assert state is not None
    assert (state.first, state.max, state.last, state.flat) == (400, 800, 800, True)
    assert report.verdicts == ()


def test_optimizer_bytes_that_grow_are_named() -> None:
    report = sizes([800] * 5 + [1600] * 5)
    assert report.optimizer_bytes is not None
    assert report.optimizer_bytes.flat is False
    assert any(verdict.startswith("optimizer state is not flat") for verdict in report.verdicts)


def test_intervals_with_more_layers_may_need_more() -> None:
    state = sizes([800] * 5 + [1200] * 5, [100] * 5 + [150] * 5).optimizer_bytes
    assert state is not None
    assert state.flat is None
    state = sizes([800] * 5 + [1200] * 5 + [800] * 5, [100] * 5 + [150] * 5 + [100] * 5)
    assert state.optimizer_bytes is not None
    assert state.optimizer_bytes.flat is True


def test_loss_at_both_ends() -> None:
    log = steps(None, 100)
    for at, entry in enumerate(log):
        entry["loss"] = 100.0 - at
    start = weights()
    end = trained(start, range(LAYERS))
    loss = engagement(start, end, PARTS, None, log).loss
    assert loss is not None
    assert (loss.first, loss.last, loss.mean_over) == (100.0, 1.0, 20)
    assert (loss.first_mean, loss.last_mean) == (90.5, 10.5)
    log[-1]["loss"] = None
    for entry in log[:-1]:
        entry["loss"] = 200.0 - entry["loss"]
    report = engagement(start, end, PARTS, None, log)
    rose = "the loss rose: 109.5000 over the first 20 steps, 189.0000 over the last"
    assert report.verdicts == (rose,)


def test_a_run_that_took_no_step() -> None:
    report = engagement(weights(), weights(), PARTS, lisa(), [])
    assert (report.steps, report.intervals, report.loss, report.optimizer_bytes) == (
        0,
        0,
        None,
        None,
    )
    assert report.verdicts == ()


# Out of here


def test_the_page_is_strict_json_with_the_names_of_the_contract() -> None:
    schedule = lisa()
    start, end, log = run(schedule, 10)
    page = engagement(start, end, PARTS, schedule, log).to_dict()
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    assert {"layer", "active_intervals", "expected_intervals", "moved"} <= set(page["layers"][0])
    assert "movement" not in page["layers"][0]
    assert set(page["outside"]) == {"embed", "head", "norm"}


def test_the_table_has_a_row_a_part_from_input_to_output() -> None:
    start = weights()
    rows = engagement(start, trained(start, [1]), PARTS, None, []).rows()
    assert [row["part"] for row in rows] == [
        "embed",
        *(f"layer {n}" for n in range(LAYERS)),
        "head",
        "norm",
    ]
    assert len({tuple(row) for row in rows}) == 1
    assert [row["moved"] for row in rows[1:4]] == [False, True, False]
