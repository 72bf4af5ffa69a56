"""Before the first step: every check, the model, the data, and what an earlier part of a run left.

Nothing is written before all of it has gone well.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layerstats import runs
from layerstats.devices import check_device
from layerstats.errors import UsageError
from layerstats.schedules import Schedule
from layerstats.train.config import TrainConfig
from layerstats.train.data import TrainingData, load_data, split
from layerstats.train.evaluate import load_questions
from layerstats.train.methods import Trainee, count_layers, make_trainee
from layerstats.train.model import (
    check_length,
    check_tokens,
    load_model,
    load_tokenizer,
    make_schedule,
)
from layerstats.train.run_directory import RunDirectory
from layerstats.train.tracking import check_metrics

__all__ = ["Start", "begin", "fingerprint"]

_LOG = logging.getLogger(__name__)

_NAMED_LINES = 5


@dataclass(frozen=True)
class Start:
    """Everything that a loop needs; `done` steps and `seconds` lie behind a resumed run."""

    run: RunDirectory
    trainee: Trainee
    tokenizer: Any
    data: TrainingData
    held_out: TrainingData | None
    steps: int
    device: torch.device
    done: int = 0
    seconds: float = 0.0


def begin(config: TrainConfig, *, resume: bool) -> Start:
    """Check a config against what it names, and make ready to train.

    Parameters
    ----------
    config : TrainConfig
    resume : bool
        Take the run in `config.out` up where its newest checkpoint stands.

    Raises
    ------
    UsageError, MissingError, CheckpointError
        Something does not fit or is not there, or another process trains in `config.out`.
    """
    device = _device(config)
    run = RunDirectory.open(config.out) if resume else None
    if run is not None:
        run.check_same(config.to_dict())
    else:
        RunDirectory.check_new(config.out)
    model = load_model(config, device)
    tokenizer = load_tokenizer(Path(config.model))
    check_length(model, config.seq_len)
    check_metrics(config.track)
    data, held_out = _data(config, tokenizer)
    for part in (data, held_out):
        if part is not None:
            check_tokens(model, part.largest_token, str(part.path))
    if config.exact_match is not None:
        load_questions(Path(config.exact_match), config.exact_match_limit)
    trainee = make_trainee(model, config, _schedule(config, run, count_layers(model)))
    steps = _number_of_steps(config, data)
    if trainee.schedule is not None and trainee.switch is not None:
        intervals = range(-(-steps // trainee.schedule.interval_steps))
        trainee.switch.check_never_empty(trainee.schedule.active_layers, intervals)
    if run is None:
        run = RunDirectory.create(config.out, config.to_dict())
        run.hold()
        if trainee.schedule is not None:
            trainee.schedule.save(run.schedule_file)
        return Start(run, trainee, tokenizer, data, held_out, steps, device)
    run.hold()
    try:
        done, seconds = _resume(run, trainee, data, steps)
        run.adopt(config.to_dict())
    except BaseException:
        run.release()
        raise
    return Start(run, trainee, tokenizer, data, held_out, steps, device, done, seconds)


def _device(config: TrainConfig) -> torch.device:
    return check_device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _data(config: TrainConfig, tokenizer: Any) -> tuple[TrainingData, TrainingData | None]:
    def read(file: str) -> TrainingData:
        found = load_data(file, tokenizer, seq_len=config.seq_len, packing=config.packing)
        for line in found.skipped.named[:_NAMED_LINES]:
            _LOG.warning("not trained on: %s", line)
        if found.skipped.lines > _NAMED_LINES:
            _LOG.warning("not trained on: %d lines of %s in all", found.skipped.lines, file)
        return found

    data = read(config.data)
    if config.validation is not None:
        return data, read(config.validation)
    if config.validation_fraction:
        return split(data, config.validation_fraction, config.seed)
    return data, None


def _schedule(config: TrainConfig, run: RunDirectory | None, num_layers: int) -> Schedule | None:
    """Return the schedule; on resume the one that the run began with."""
    if run is not None and run.schedule_file.exists():
        return Schedule.from_json(run.schedule_file)
    return make_schedule(config, num_layers)


def _number_of_steps(config: TrainConfig, data: TrainingData) -> int:
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    per_epoch = data.steps_per_epoch(config.batch_size, config.accumulation)
    return max(1, math.ceil(config.epochs * per_epoch))


def fingerprint(data: TrainingData) -> dict[str, int]:
    """Return what tells the data of a run from others: counts of windows and tokens."""
    return {"windows": data.num_windows, "tokens": data.num_tokens, "targets": data.target_tokens}


def _resume(
    run: RunDirectory, trainee: Trainee, data: TrainingData, steps: int
) -> tuple[int, float]:
    """Put the newest checkpoint back and return the steps and the seconds it has behind it."""
    found = run.latest()
    if run.report_file.exists() and runs.read_report(run.path)["steps"] >= steps:
        msg = f"{run.path}: the run is finished; give another out, or look at its report.json"
        raise UsageError(msg)
    if found is None:
        run.truncate(-1)
        return 0, 0.0
    if found.state["data"] != fingerprint(data):
        msg = f"{run.path}: the training data are not those that the run began with"
        raise UsageError(msg)
    trainee.restore(found.step, found.load_model(), found.load_optimizer())
    run.truncate(found.step)
    return int(found.step), float(found.state["seconds"])
