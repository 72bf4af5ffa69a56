"""Running gradient norms, dated refreshes, and the log that keeps a changing run reproducible."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from layerstats.errors import CheckpointError, MissingError, UsageError
from layerstats.schedules import GradientNorms, Schedule, ScheduleLog, refresh, schedule


def lisa(**options: object) -> Schedule:
    return schedule("lisa", num_layers=6, expected_active=2, seed=3, **options)  # type: ignore[arg-type]


def test_the_mean_is_exponential_over_the_steps_a_layer_was_active_in() -> None:
    norms = GradientNorms.empty(3, decay=0.5)
    for seen in ({0: 8.0}, {1: 1.0}, {0: 4.0, 1: 3.0}):
        norms = norms.observe(seen)
    assert norms.means == (6.0, 2.0, None)
    assert norms.scores().tolist() == [6, 2, 4]
    assert GradientNorms.empty(2).scores().tolist() == [1, 1]


def test_norms_survive_a_checkpoint() -> None:
    norms = GradientNorms.empty(3).observe({0: 1 / 3})
    assert GradientNorms.from_dict(json.loads(json.dumps(norms.to_dict()))) == norms
    with pytest.raises(CheckpointError, match="damaged"):
        GradientNorms.from_dict({"means": "x"})


@pytest.mark.parametrize("norm", [-1.0, math.nan, math.inf])
def test_a_norm_that_is_none_is_refused(norm: float) -> None:
    with pytest.raises(UsageError, match="gradient norm of layer 1 is"):
        GradientNorms.empty(2).observe({1: norm})
    with pytest.raises(UsageError, match="layers are 0 to 1"):
        GradientNorms.empty(2).observe({2: 1.0})
    with pytest.raises(UsageError, match="decay"):
        GradientNorms.empty(2, decay=1.0)


def test_a_refresh_is_dated_and_keeps_the_rest() -> None:
    start = lisa(interval_steps=7, low_rank={"rank": 4}, model="m", always_active=("norm",))
    norms = GradientNorms((60.0, 20.0, 20.0, 20.0, 0.0, None))
    later = refresh(start, norms, interval=10, temperature=1)
    assert later.valid_from_interval == 10
    assert start.valid_from_interval == 0
    assert later.rule == "adaptive"
    assert later.metric == "gradient_norm"
    for field in ("model", "interval_steps", "seed", "sampling", "always_active", "low_rank"):
        assert getattr(later, field) == getattr(start, field)
    assert later.probabilities[4] == pytest.approx(0.1 * 2 / 6)
    assert math.fsum(later.probabilities) == pytest.approx(2)
    assert Schedule.from_json(later.to_json()) == later
    assert later.provenance.parameters["layers_seen"] == 5
    assert refresh(start, GradientNorms((0.0,) * 6), interval=1).probabilities == pytest.approx(
        [1 / 3] * 6
    )
    with pytest.raises(UsageError, match="the model has 5"):
        refresh(start, GradientNorms.empty(5), interval=1)
    with pytest.raises(UsageError, match="valid_from_interval"):
        refresh(start, norms, interval=-1)


def test_laws_that_ignore_probabilities_get_no_floor() -> None:
    made = refresh(lisa(sampling="successive"), GradientNorms((9.0, 1, 1, 1, 1, 1)), interval=1)
    assert "floor" not in made.provenance.parameters


def refreshed(interval: int, heavy: int) -> Schedule:
    means = tuple(100.0 if layer == heavy else 1.0 for layer in range(6))
    return refresh(lisa(), GradientNorms(means), interval=interval)


def test_each_interval_has_the_schedule_of_its_date(tmp_path: Path) -> None:
    file = tmp_path / "schedules.jsonl"
    log = ScheduleLog.start(file, lisa())
    log = log.append_to(file, refreshed(5, 0))
    log = log.append_to(file, refreshed(10, 1))
    again = ScheduleLog.load(file)
    assert again == log
    assert (again.num_layers, again.interval_steps, again.interval_of(130)) == (6, 20, 6)
    for interval in range(15):
        expected = log.entries[interval // 5].active_layers(interval)
        assert again.active_layers(interval) == expected
    assert [again.at(i).valid_from_interval for i in (0, 4, 5, 9, 10, 99)] == [0, 0, 5, 5, 10, 10]
    with pytest.raises(UsageError, match="interval"):
        log.at(-1)


def test_a_run_resumed_from_earlier_replays_and_nothing_is_deleted(tmp_path: Path) -> None:
    file = tmp_path / "schedules.jsonl"
    log = ScheduleLog.start(file, lisa())
    for interval in (5, 10, 15):
        log = log.append_to(file, refreshed(interval, interval % 6))
    before = file.read_bytes()
    resumed = ScheduleLog.load(file)  # the checkpoint was at interval 7; refreshed at 8 this time
    resumed = resumed.append_to(file, refreshed(8, 2))
    assert file.read_bytes().startswith(before)
    dates = [resumed.at(i).valid_from_interval for i in (4, 7, 8, 10, 15)]
    assert dates == [0, 5, 8, 8, 8]
    assert ScheduleLog.load(file) == resumed


def test_the_same_refresh_again_changes_no_plan(tmp_path: Path) -> None:
    file = tmp_path / "schedules.jsonl"
    log = ScheduleLog.start(file, lisa()).append_to(file, refreshed(5, 0))
    plan = [log.active_layers(interval) for interval in range(20)]
    twice = ScheduleLog.load(file).append_to(file, refreshed(5, 0))
    assert [twice.active_layers(interval) for interval in range(20)] == plan


def test_a_line_cut_off_by_a_crash_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "schedules.jsonl"
    log = ScheduleLog.start(file, lisa()).append_to(file, refreshed(5, 0))
    whole = file.read_bytes()
    last = len(whole.splitlines()[-1])
    for cut in (1, 30, last):
        file.write_bytes(whole[:-cut])
        torn = ScheduleLog.load(file)
        assert torn.entries == log.entries[:1]
        assert torn.append_to(file, refreshed(5, 0)) == log
        assert file.read_bytes() == whole


def test_a_log_is_not_overwritten_or_mixed(tmp_path: Path) -> None:
    file = tmp_path / "schedules.jsonl"
    log = ScheduleLog.start(file, lisa())
    with pytest.raises(UsageError, match="exists; load it"):
        ScheduleLog.start(file, lisa())
    log.append_to(file, refreshed(5, 0))
    with pytest.raises(UsageError, match="a later state"):
        log.append_to(file, refreshed(6, 0))
    with pytest.raises(UsageError, match="starts with a schedule that is valid from interval 0"):
        ScheduleLog((refreshed(5, 0),))
    other = schedule("lisa", num_layers=7, expected_active=2)
    with pytest.raises(UsageError, match="does not belong to a run of 6 layers"):
        log.add(other)
    with pytest.raises(UsageError, match="cannot be written"):
        ScheduleLog.start(tmp_path / "nowhere" / "log.jsonl", lisa())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a schedule log"),
        ('{"format": "other"}\n', "is not a schedule log"),
        ('{"format": "layerstats-schedule-log", "version": 2}\n', "of version 1"),
        ('{"format": "layerstats-schedule-log", "version": 1}\n', "starts with a schedule"),
        ('{"format": "layerstats-schedule-log", "version": 1}\n{\n', "log.jsonl:2: is not JSON"),
        ('{"format": "layerstats-schedule-log", "version": 1}\n{}\n', "log.jsonl:2: format is"),
    ],
)
def test_a_damaged_log_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=words) as error:
        ScheduleLog.load(file)
    assert "\n" not in str(error.value)
    with pytest.raises(MissingError, match="no such file"):
        ScheduleLog.load(tmp_path / "none.jsonl")
