"""The training loop, read from top to bottom: begin, step, write down, stop, finish.

What comes before the first step is in begin.py, what a step does in step.py, who trains in
methods.py, what is written in run_directory.py, and what comes after the last in finish.py.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from layerstats.errors import LayerstatsError
from layerstats.train.begin import Start, begin, fingerprint
from layerstats.train.config import TrainConfig
from layerstats.train.data import Batch
from layerstats.train.evaluate import held_out_loss
from layerstats.train.finish import TrainResult, finish
from layerstats.train.high_water import HighWater, tensor_bytes
from layerstats.train.learning_rate import lr_factor
from layerstats.train.step import optimizer_step
from layerstats.train.tracking import layout_of, track

__all__ = ["train"]

_LOG = logging.getLogger(__name__)

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
    start = begin(config, resume=resume)
    try:
        loop = _Loop(config, start)
        loop.go(progress or (lambda phase, done, total: None))
        return finish(config, start.run, start.trainee, start.tokenizer, seconds=loop.seconds)
    finally:
        start.run.release()


class _Loop:
    """The steps of one run, with what they share."""

    def __init__(self, config: TrainConfig, start: Start) -> None:
        self.config, self.run, self.trainee = config, start.run, start.trainee
        self.data, self.held_out = start.data, start.held_out
        self.steps, self._done, self.seconds = start.steps, start.done, start.seconds
        model = self.trainee.model
        self.weight_bytes = tensor_bytes([*model.parameters(), *model.buffers()])
        self.high_water = HighWater(start.device, self.weight_bytes)
        self._stop = False
        self._gradient_bytes = 0
        self._batches: list[Batch] = []

    def go(self, progress: Progress) -> None:
        """Take all steps that are left."""
        with self._stopping_on_signals():
            if self._done == 0:
                self._record(0)
            for step in range(self._done, self.steps):
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
        state = {"seconds": self.seconds, "data": fingerprint(self.data)}
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
