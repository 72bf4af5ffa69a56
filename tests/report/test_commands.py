"""The commands on the page are commands of ours, and give the same numbers again."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from layerstats.cli import run, training
from layerstats.measurement import measure
from layerstats.report.commands import (
    USUAL,
    measure_command,
    schedule_command,
    train_command,
)
from layerstats.schedules import LowRank, Schedule, schedule
from layerstats.stats import LayerStats
from layerstats.train.config import TrainConfig


def test_measuring_by_the_pages_command_gives_the_same_tables(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = measure(tiny, metrics=["mean_abs", "alpha_hill"], trust=True, lower_bound="intended")
    command = shlex.split(measure_command(first.meta))
    assert run(command[1:]) == 0
    again = LayerStats.load("stats")
    pd.testing.assert_frame_equal(first.layers, again.layers)
    pd.testing.assert_frame_equal(first.matrices, again.matrices)


@pytest.mark.parametrize(
    "options",
    [
        {
            "rule": "owlore",
            "metric": "frobenius_norm",
            "temperature": 0.5,
            "floor": 0.01,
            "seed": 3,
        },
        {"rule": "metric", "metric": "alpha_hill", "direction": "decreasing", "always_active": ()},
        {"rule": "owlore", "metric": "heavy_tail", "low_rank": LowRank(8, 50, 0.25)},
    ],
)
def test_a_schedules_command_makes_the_same_schedule(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    stats = measure(tiny, metrics=["frobenius_norm", "alpha_hill"], out="stats")
    rule = options.pop("rule")
    made = schedule(
        rule, stats, expected_active=1.5, interval_steps=7, source="stats", **options
    )  # fmt: skip
    command = schedule_command(made)
    assert command is not None
    assert run(shlex.split(command)[1:]) == 0
    assert Schedule.from_json("schedule.json") == made


def test_a_schedule_that_does_not_say_its_origin_has_no_command() -> None:
    assert schedule_command(schedule("owlore", [1.0, 2.0], expected_active=1)) is None


def test_what_a_command_leaves_out_is_what_the_trainer_assumes() -> None:
    defaults = {
        one.name: list(one.default) if isinstance(one.default, tuple) else one.default
        for one in fields(TrainConfig)
        if one.default not in (MISSING, None)
    }
    assert dict(USUAL) == defaults


def test_a_runs_command_asks_for_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(
        model="my model", data="d", out="run", method="owlore", schedule="s", steps=9, lr=0.0,
        max_grad_norm=None, packing=False, always_active=(), rank_per_layer=(4, 8), autocast=True,
        track=("frobenius_norm",), warmup_steps=0,
    )  # fmt: skip
    taken: dict[str, object] = {}

    def keep(given: dict[str, object], *, resume: bool) -> TrainConfig:
        taken["config"] = real(given, resume=resume)
        raise SystemExit

    real = training._config
    monkeypatch.setattr(training, "_config", keep)
    with pytest.raises(SystemExit):
        run(shlex.split(train_command(config.to_dict() | _lists(config)))[1:])
    assert taken["config"] == config


def _lists(config: TrainConfig) -> dict[str, object]:
    """What JSON makes of tuples."""
    return {key: list(value) for key, value in vars(config).items() if isinstance(value, tuple)}


def test_every_setting_of_the_trainer_is_an_option_or_said_to_be_pythons() -> None:
    options = set(inspect.signature(training.train).parameters) | {"model", "betas", "eps"}
    assert {one.name for one in fields(TrainConfig)} <= options
    command = train_command({"model": "m", "betas": [0.5, 0.9], "eps": 1e-8})
    assert command.endswith("# and betas, by TrainConfig in Python")
