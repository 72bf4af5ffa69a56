"""The training loop, read from top to bottom: prepare, step, write down, stop, finish.

What a step does is in step.py, who trains in methods.py, what is written in run_directory.py and
what is reported at the end in finish.py.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from layerstats import runs
from layerstats.errors import LayerstatsError, UsageError
from layerstats.schedules import Schedule
from layerstats.train.config import TrainConfig
from layerstats.train.data import Batch, TrainingData, load_data, split
from layerstats.train.evaluate import held_out_loss, load_questions
from layerstats.train.finish import TrainResult, finish
from layerstats.train.high_water import HighWater, tensor_bytes
from layerstats.train.learning_rate import lr_factor
from layerstats.train.methods import Trainee, count_layers, make_trainee
from layerstats.train.model import (
    check_length,
    check_tokens,
    load_model,
    load_tokenizer,
    make_schedule,
)
from layerstats.train.run_directory import RunDirectory
from layerstats.train.step import optimizer_step
from layerstats.train.tracking import check_metrics, layout_of, track

__all__ = ["train"]

_LOG = logging.getLogger(__name__)

_NAMED_LINES = 5

Progress = Callable[[str, float, float], None]


class _Interrupted(Exception):
    """Ctrl-C arrived; raised where no weight has been touched."""


def train(
    config: TrainConfig, *, resume: bool = False, progress: Progress | None = None
) -> TrainResult:
    """Fine-tune a causal language model by the method of a config and leave a run directory.

    Parameters
    ----------
    config : TrainConfig
    resume : bool
        Go on with the run in `config.out` from its newest checkpoint: the weights will be, bit for
        bit, those of a run that was never interrupted.
    progress : callable, optional
        Called with a phase, what is done of it and its total.

    Returns
    -------
    TrainResult
        What the run came to; the same is in report.json.

    Raises
    ------
    UsageError, MissingError, CheckpointError
        Model, data, schedule and config do not fit, or are not there. Nothing is written then.
    LayerstatsError
        The loss is not a number (the last checkpoint stays), the disk is full.
    KeyboardInterrupt
        After Ctrl-C, once a checkpoint is written.

    References
    ----------
    Pan et al. 2024, LISA, arXiv 2403.17919; Li et al. 2024, OwLore, arXiv 2405.18380; Zhao et al.
    2024, GaLore, arXiv 2403.03507.

    Examples
    --------
    >>> config = TrainConfig(model="no/such", data="d.txt", out="run", method="full", steps=1)
    >>> train(config)
    Traceback (most recent call last):
    ...
    layerstats.errors.MissingError: no/such: no config.json here; training takes ...
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
    _check_never_empty(trainee, steps)
    if run is None:
        run = RunDirectory.create(config.out, config.to_dict())
        if trainee.schedule is not None:
            trainee.schedule.save(run.schedule_file)
        start, seconds = 0, 0.0
    else:
        start, seconds = _resume(run, trainee, data, steps)
        run.adopt(config.to_dict())
    loop = _Loop(config, run, trainee, data, held_out, steps, device)
    loop.seconds = seconds
    loop.go(start, progress or (lambda phase, done, total: None))
    return finish(config, run, trainee, tokenizer, seconds=loop.seconds)


class _Loop:
    """The steps of one run, with what they share."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        trainee: Trainee,
        data: TrainingData,
        held_out: TrainingData | None,
        steps: int,
        device: torch.device,
    ) -> None:
        self.config, self.run, self.trainee = config, run, trainee
        self.data, self.held_out, self.steps = data, held_out, steps
        self.weight_bytes = tensor_bytes([*trainee.model.parameters(), *trainee.model.buffers()])
        self.high_water = HighWater(device, self.weight_bytes)
        self.seconds = 0.0
        self._stop = False
        self._gradient_bytes = 0
        self._batches: list[Batch] = []
        self._done = 0

    def go(self, start: int, progress: Progress) -> None:
        """Take all steps that are left."""
        with self._stopping_on_signals():
            self._done = start
            if start == 0:
                self._record(0)
            for step in range(start, self.steps):
                try:
                    self._step(step)
                except _Interrupted:
                    self._leave(step)
                self._done = step + 1
                self._record(step + 1)
                progress("train", step + 1, self.steps)

    def _step(self, step: int) -> None:
        config, trainee = self.config, self.trainee
        began = time.perf_counter()
        if trainee.enter(step):
            self._write_interval(step)
        factor = lr_factor(
            step, steps=self.steps, warmup=config.warmup_of(self.steps), kind=config.lr_schedule
        )
        rate = trainee.set_learning_rate(step, factor)
        self._batches = self.data.micro_batches(
            step, batch_size=config.batch_size, accumulation=config.accumulation, seed=config.seed
        )
        loss, norm = optimizer_step(
            trainee, self._batches, step=step, announce=self._announce, check=self._check
        )
        seconds = time.perf_counter() - began
        self.seconds += seconds
        tokens = sum(batch.input_ids.numel() for batch in self._batches)
        self.run.log(
            {
                "kind": "step",
                "step": step + 1,
                "loss": float(loss),
                "lr": rate,
                "gradient_norm": float(norm),
                "active_layers": None if trainee.active is None else list(trainee.active),
                "trainable": trainee.trainable,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
                "memory": self._memory(),
            }
        )

    def _announce(self, phase: str) -> None:
        """Stop where a signal asked for it, as long as no weight of this step has moved."""
        if self._stop and phase != "optimizer":
            raise _Interrupted

    def _check(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Refuse to step on a loss or a gradient that is no number."""
        self._gradient_bytes = tensor_bytes(one.grad for one in self.trainee.model.parameters())
        if bool(torch.isfinite(loss)) and bool(torch.isfinite(norm)):
            return
        what = "gradient norm" if bool(torch.isfinite(loss)) else "loss"
        value = float(norm if what == "gradient norm" else loss)
        windows = [window for batch in self._batches for window in batch.windows]
        kept = self.run.latest()
        msg = (
            f"{what} is {value} at step {self._done + 1}, on {self.data.describe(windows)}; "
            + (
                f"the checkpoint of step {kept.step} is kept"
                if kept
                else "no checkpoint was written"
            )
            + "; lower lr, or give more warmup_steps"
        )
        raise LayerstatsError(msg)

    def _memory(self) -> dict[str, Any]:
        states = self.trainee.optimizer.state.values()
        return {
            "weights": self.weight_bytes,
            "gradients": self._gradient_bytes,
            "optimizer": tensor_bytes(one for state in states for one in state.values()),
            "peak": self.high_water.peak,
            "base": self.high_water.base,
            "measured_by": self.high_water.measured_by,
        }

    def _write_interval(self, step: int) -> None:
        trainee = self.trainee
        assert trainee.schedule is not None
        self.run.log(
            {
                "kind": "interval",
                "step": step + 1,  # the first step that it governs
                "interval": trainee.schedule.interval_of(step),
                "active_layers": list(trainee.active or ()),
                "skipped_blocks": trainee.skipped_blocks,
            }
        )

    def _record(self, done: int) -> None:
        """Write what is due after so many steps: layer metrics, held-out loss, a checkpoint."""
        config = self.config
        if config.track and done % config.track_every == 0:
            layout = layout_of({n: tuple(one.shape) for n, one in self.trainee.named.items()})
            found = track(self.trainee.weights(), layout, config.track)
            self.run.log({"kind": "track", "step": done, "metrics": found})
        last = done == self.steps
        if self.held_out is not None and (done == 0 or last or _is_due(done, config.eval_every)):
            score = held_out_loss(self.trainee.model, self.held_out, batch_size=config.batch_size)
            self.run.log(
                {
                    "kind": "eval",
                    "step": done,
                    "loss": score.loss,
                    "perplexity": score.perplexity,
                    "tokens": score.tokens,
                }
            )
        if done and (_is_due(done, config.save_every) or (last and config.save_every)):
            self._save(done)

    def _save(self, done: int) -> None:
        state = {"seconds": self.seconds, "data": _fingerprint(self.data)}
        self.run.save(done, self.trainee.trained(), self.trainee.optimizer_state(), state)

    def _leave(self, done: int) -> None:
        """Write a checkpoint of the last whole step and let the interrupt go on."""
        self.trainee.clear_gradients()
        if done:
            # The switch may stand at the interval that was about to begin; on resume it is entered
            # again, with the same draw.
            self._save(done)
        _LOG.warning("interrupted after step %d; resume goes on from there", done)
        raise KeyboardInterrupt

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Turn the first Ctrl-C into a wish; the second one acts at once, as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

        def wish(number: int, frame: Any) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        for one in old:
            signal.signal(one, wish)
        try:
            yield
        finally:
            for one, handler in old.items():
                signal.signal(one, handler)


def _is_due(done: int, every: int | None) -> bool:
    return every is not None and done > 0 and done % every == 0


def _device(config: TrainConfig) -> torch.device:
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        msg = "device cuda: torch sees no CUDA device here; give device cpu"
        raise UsageError(msg)
    return device


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


def _check_never_empty(trainee: Trainee, steps: int) -> None:
    """Refuse a plan that draws no layer at all (bernoulli can) where nothing else trains."""
    schedule, switch = trainee.schedule, trainee.switch
    if schedule is None or switch is None or switch.has_constant_part:
        return
    for interval in range(-(-steps // schedule.interval_steps)):
        if not schedule.active_layers(interval):
            msg = (
                f"interval {interval} of the schedule trains no layer and nothing is always "
                "active; use systematic sampling, or keep 'norm' always active"
            )
            raise UsageError(msg)


def _fingerprint(data: TrainingData) -> dict[str, int]:
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
    if found.state["data"] != _fingerprint(data):
        msg = f"{run.path}: the training data are not those that the run began with"
        raise UsageError(msg)
    trainee.restore(found.step, found.load_model(), found.load_optimizer())
    run.truncate(found.step)
    return int(found.step), float(found.state["seconds"])
