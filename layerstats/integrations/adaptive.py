"""A schedule that follows training, inside Hugging Face's Trainer: `AdaptiveScheduleCallback`.

The gradient norms of the layers that train are kept as running means; every few intervals a new
schedule is made of them, dated, and added to the run's log of schedules.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from layerstats.errors import CheckpointError, UsageError
from layerstats.integrations.transformers import LayerScheduleCallback
from layerstats.schedules import GradientNorms, Schedule, ScheduleLog, refresh
from layerstats.stats import replace_file, strict_json

__all__ = ["NORMS_FILE", "AdaptiveScheduleCallback"]

#: What a checkpoint of the Trainer holds beside its own files.
NORMS_FILE = "layerstats_gradient_norms.json"


class AdaptiveScheduleCallback(LayerScheduleCallback):
    """Train the layers whose gradients were large more often, and keep what was decided.

    Every `refresh_intervals` intervals the probabilities become proportional to the running means
    of the layers' gradient norms (after clipping, as the optimizer sees them). Each refresh is a
    schedule of its own, dated by its first interval, in a log that only grows; a resumed run reads
    the norms from the Trainer's checkpoint and comes to the same schedules.

    Parameters
    ----------
    schedule : Schedule or path
        The schedule of the beginning.
    log : path
        Where the schedules of this run are kept, one line each.
    refresh_intervals : int
        Intervals between refreshes.
    decay : float
        Of the running means, 0 to below 1.
    **options
        As `LayerScheduleCallback`.

    Raises
    ------
    UsageError
        `refresh_intervals` below 1; at the beginning of a new run: the log is there already.
    CheckpointError
        A resumed run finds no norms in its checkpoint.

    References
    ----------
    GRASS (2026), arXiv 2604.07808, the idea; the formulas are those of `refresh`.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> start = schedule("lisa", num_layers=32, expected_active=2)
    >>> callback = AdaptiveScheduleCallback(start, log="schedules.jsonl", refresh_intervals=5)
    """

    def __init__(
        self,
        schedule: Schedule | str | os.PathLike[str],
        *,
        log: str | os.PathLike[str],
        refresh_intervals: int = 10,
        decay: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(schedule, **options)
        if refresh_intervals < 1:
            msg = f"refresh_intervals is {refresh_intervals}; give at least 1"
            raise UsageError(msg)
        self.norms = GradientNorms.empty(self.schedule.num_layers, decay=decay)
        self._file = Path(log)
        self._every = refresh_intervals
        self._log = ScheduleLog((self.schedule,))
        self._parameters: list[list[torch.Tensor]] = []

    def _begin(self, args: Any, state: Any, layers: list[list[torch.Tensor]]) -> None:
        self._parameters = layers
        if not state.global_step:
            self.norms = GradientNorms.empty(len(layers), decay=self.norms.decay)
            self._log = ScheduleLog((self.schedule,))
            if state.is_world_process_zero:
                ScheduleLog.start(self._file, self.schedule)
            return
        self._log = ScheduleLog.load(self._file)
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / NORMS_FILE
        try:
            self.norms = GradientNorms.from_dict(json.loads(kept.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            msg = f"{kept}: cannot be read ({error}); resume from a checkpoint this callback wrote"
            raise CheckpointError(msg) from error

    def _layers(self, interval: int) -> tuple[int, ...]:
        return self._log.active_layers(interval)

    def _reachable(self) -> list[int]:
        # A refreshed schedule keeps a floor under every layer, so each must be in the optimizer.
        return list(range(self.schedule.num_layers))

    def _enter(self, state: Any) -> None:
        interval, step = divmod(state.global_step, self.schedule.interval_steps)
        if step == 0 and interval and interval % self._every == 0:
            made = refresh(self._log.at(interval - 1), self.norms, interval=interval)
            if state.is_world_process_zero:
                self._log = self._log.append_to(self._file, made)
            else:
                self._log = self._log.add(made)
        super()._enter(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keep frozen weights still, then take the gradient norms of the layers that train."""
        super().on_pre_optimizer_step(args, state, control, **others)
        seen = {}
        for layer in self.history.get(self._interval, ()):
            gradients = [one.grad for one in self._parameters[layer] if one.grad is not None]
            norms = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]
            norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else float("nan")
            if norm < float("inf"):  # steps that overflowed are left out
                seen[layer] = norm
        self.norms = self.norms.observe(seen)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Put the norms beside the checkpoint that was just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            replace_file(folder / NORMS_FILE, strict_json(self.norms.to_dict()) + "\n")
