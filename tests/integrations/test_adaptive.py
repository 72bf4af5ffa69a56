"""A schedule that follows the gradients: dated refreshes, kept in a log, exact after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.errors import CheckpointError, UsageError
from layerstats.integrations.adaptive import NORMS_FILE, AdaptiveScheduleCallback
from layerstats.schedules import ScheduleLog
from tests.integrations.test_trainer_runs import words
from tests.integrations.tiny import Snapshots, lisa, make_model, make_trainer, moved, weights

EVERY, REFRESH, STEPS = 4, 2, 34


def run(folder: Path, stop: int, resume: str | None = None) -> tuple[Any, Any, Snapshots]:
    callback = AdaptiveScheduleCallback(
        lisa(every=EVERY), log=folder / "schedules.jsonl", refresh_intervals=REFRESH, decay=0.5
    )
    seen = Snapshots()
    trainer = make_trainer(
        make_model(), folder, [callback, seen], steps=STEPS, save_strategy="steps", save_steps=stop
    )
    trainer.train(resume_from_checkpoint=resume)
    return callback, trainer, seen


def test_probabilities_follow_the_gradients(tmp_path: Path) -> None:
    callback, _, seen = run(tmp_path, stop=30)
    log = ScheduleLog.load(tmp_path / "schedules.jsonl")
    dates = [schedule.valid_from_interval for schedule in log.entries]
    assert dates == [0, 2, 4, 6, 8]
    assert [schedule.rule for schedule in log.entries] == ["lisa"] + 4 * ["adaptive"]
    assert len({schedule.probabilities for schedule in log.entries[1:]}) > 1
    for schedule in log.entries:
        assert sum(schedule.probabilities) == pytest.approx(2, abs=1e-9)
        assert min(schedule.probabilities) > 0
    assert callback.history == {i: log.active_layers(i) for i in range(9)}
    # What the log says is what moved, step by step.
    for step, (before, after) in enumerate(zip(seen.weights, seen.weights[1:], strict=False)):
        expected = words(log.active_layers(step // EVERY)) | {"embed", "head", "norm"}
        assert moved(before, after) == expected, step


@pytest.mark.parametrize("stop", [14, 16, 24])
def test_a_resumed_run_makes_the_same_schedules(tmp_path: Path, stop: int) -> None:
    """Inside an interval, at the first step of one, and where the next refresh is due."""
    whole, first, _ = run(tmp_path, stop)
    before = ScheduleLog.load(tmp_path / "schedules.jsonl")
    again, second, _ = run(tmp_path, stop, resume=str(tmp_path / f"checkpoint-{stop}"))
    after = ScheduleLog.load(tmp_path / "schedules.jsonl")
    assert [after.active_layers(i) for i in range(9)] == [before.active_layers(i) for i in range(9)]
    assert again.norms == whole.norms
    assert again.history == {i: whole.history[i] for i in range(stop // EVERY, 9)}
    ours, theirs = weights(second.model), weights(first.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_does_not_write_into_the_log_of_another(tmp_path: Path) -> None:
    run(tmp_path, stop=30)
    with pytest.raises(UsageError, match="exists"):
        run(tmp_path, stop=30)


def test_a_checkpoint_without_norms_is_one_line(tmp_path: Path) -> None:
    run(tmp_path, stop=30)
    (tmp_path / "checkpoint-30" / NORMS_FILE).unlink()
    with pytest.raises(CheckpointError, match=NORMS_FILE):
        run(tmp_path, stop=30, resume=str(tmp_path / "checkpoint-30"))


def test_refreshing_never_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="refresh_intervals"):
        AdaptiveScheduleCallback(lisa(), log=tmp_path / "log", refresh_intervals=0)
