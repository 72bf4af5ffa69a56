"""A schedule inside Hugging Face's Trainer: `LayerScheduleCallback`.

Works with `transformers.Trainer` and everything built on it (TRL, sentence-transformers, axolotl):
the blocks are found from parameter names, the layers to train from the step alone, so that a
resumed run goes on where it was.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback

from layerstats.checkpoint.parts import Parts, find_parts
from layerstats.errors import LayerstatsError, UsageError, choices
from layerstats.integrations.surroundings import (
    NOT_REENTRANT,
    check_checkpointing,
    check_distributed,
    is_reentrant,
    warn_about_compiling,
)
from layerstats.layer_switch import LayerSwitch
from layerstats.schedules import Schedule

__all__ = ["ACTIVE_LAYERS", "LayerScheduleCallback"]

ACTIVE_LAYERS = "layerstats/active_layers"
"""Key in Trainer's log history: one entry per interval, with the layers that train in it."""

_LOG = logging.getLogger(__name__)


class LayerScheduleCallback(TrainerCallback):  # type: ignore[misc]
    """Train the layers that a schedule names, interval by interval, inside a Trainer.

    Interval i covers the optimizer steps ``i * interval_steps`` up to the next interval's; which
    layers train is worked out from `state.global_step` at every step, so gradient accumulation, a
    checkpoint in the middle of an interval and several ranks need no further care. Layers are
    frozen when training begins, after Trainer has made its optimizer, and unfrozen when it ends.
    Frozen weights do not move, by momentum or weight decay either.

    Outside the blocks, `always_active` of the schedule says whether embedding, head and final norm
    train; tied embeddings train if either name is active. What is neither (vision tower,
    projector, task head) is left as it is: freeze it before the Trainer is made, or give
    ``freeze_others=True``. What you froze yourself, such as the weights under LoRA adapters, stays
    frozen.

    Parameters
    ----------
    schedule : Schedule or path
        A schedule, or the file of one.
    state : str
        "drop" (default) frees the optimizer state of a layer when its interval ends, "keep" does
        not; see `layerstats.layer_switch.LayerSwitch`.
    freeze_others : bool
        As above.

    Attributes
    ----------
    schedule : Schedule
    history : dict of int to tuple of int
        Interval to layers, for the intervals of the last call of `train`. The same stands in
        `trainer.state.log_history` under ``layerstats/active_layers``, and so in
        trainer_state.json.

    Raises
    ------
    MissingError, CheckpointError
        When made: the schedule's file is not there or is no schedule.
    UsageError
        When training begins: the schedule is for another number of layers or another block list,
        the optimizer does not hold a layer, an interval would train nothing at all, or something
        around the model (DDP settings, DeepSpeed, FSDP 1, reentrant checkpointing) makes switching
        impossible.
    LayerstatsError
        At the first step of an interval, before the optimizer moves: no gradient came to any
        active layer.

    References
    ----------
    Pan et al. 2024, LISA, arXiv 2403.17919; Li et al. 2024, OwLore, arXiv 2405.18380.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> plan = schedule("lisa", num_layers=32, expected_active=2, seed=7)
    >>> callback = LayerScheduleCallback(plan)      # Trainer(..., callbacks=[callback])
    >>> callback.schedule.active_layers(0), callback.history
    ((2, 9), {})
    """

    def __init__(
        self,
        schedule: Schedule | str | os.PathLike[str],
        *,
        state: str = "drop",
        freeze_others: bool = False,
    ) -> None:
        # No "offload": Trainer would leave what waits on the host out of its checkpoints.
        if state not in ("drop", "keep"):
            raise UsageError(choices("state policy", state, ("drop", "keep")))
        self.schedule: Schedule = (
            schedule if isinstance(schedule, Schedule) else Schedule.from_json(schedule)
        )
        self.history: dict[int, tuple[int, ...]] = {}
        self._state = state
        self._freeze_others = freeze_others
        self._switch: LayerSwitch | None = None
        self._model: torch.nn.Module | None = None
        self._interval = -1
        self._is_checked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Check that model, optimizer and schedule fit, and freeze what does not train now."""
        # A run that broke off has left its layers frozen.
        self._release()
        model, optimizer = others.get("model"), others.get("optimizer")
        if model is None or optimizer is None:
            msg = (
                "the trainer gave its callbacks no model or no optimizer; layers cannot be switched"
            )
            raise UsageError(msg)
        check_distributed(args, model)
        named = dict(model.named_parameters(remove_duplicate=False))
        parts = find_parts({name: tuple(one.shape) for name, one in named.items()})
        _check_blocks(self.schedule, parts)
        schedule = self.schedule
        self._switch = LayerSwitch(
            named,
            parts,
            optimizer,
            always_active=schedule.always_active,
            required=self._reachable(),
            state=self._state,
            freeze_others=self._freeze_others,
        )
        self._model = model
        self.history = {}
        self._begin(args, state, [[named[name] for name in names] for names in parts.layers])
        first = self.schedule.interval_of(state.global_step)
        intervals = range(first, -(-state.max_steps // self.schedule.interval_steps))
        self._switch.check_never_empty(self._layers, intervals)
        self._warn(args, state)
        self._warn_about_outside(named, parts)
        try:
            self._enter(state)
            check_checkpointing(model, [named[name] for name in parts.outside["embed"]])
        except LayerstatsError:
            self._release()
            raise

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Switch layers when an interval begins; called once per accumulation window."""
        if self.schedule.interval_of(state.global_step) != self._interval:
            self._enter(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keep frozen weights from moving, and make sure that the active ones will."""
        if self._switch is None:
            return
        self._switch.clear_gradients()
        if self._is_checked:
            return
        self._is_checked = True
        if not self._switch.is_reached:
            layers = list(self.history[self._interval])
            reentrant = self._model is not None and is_reentrant(self._model)
            cause = (
                NOT_REENTRANT
                if reentrant
                else "look for a detached input or an optimizer that steps inside backward"
            )
            step = state.global_step
            msg = f"no gradient came to the active layers {layers} at step {step}; {cause}"
            raise LayerstatsError(msg)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Make trainable again what was so before."""
        self._release()

    def _begin(self, args: Any, state: Any, layers: list[list[torch.Tensor]]) -> None:
        """Prepare what a schedule that follows training needs; nothing for a fixed one."""

    def _layers(self, interval: int) -> tuple[int, ...]:
        return self.schedule.active_layers(interval)

    def _reachable(self) -> list[int]:
        probabilities = self.schedule.inclusion_probabilities
        return [layer for layer, p in enumerate(probabilities) if p > 0]

    def _release(self) -> None:
        if self._switch is not None:
            self._switch.restore()
        self._switch = self._model = None
        self._interval = -1

    def _enter(self, state: Any) -> None:
        """Switch to the interval of the step that comes next, and write it down."""
        if self._switch is None:
            return
        interval = self.schedule.interval_of(state.global_step)
        layers = self._layers(interval)
        self._switch.activate(layers)
        self._interval, self._is_checked = interval, False
        self.history[interval] = layers
        _LOG.info(
            "interval %d from step %d: layers %s train, %d of %d parameters",
            interval,
            state.global_step,
            list(layers),
            self._switch.trainable,
            self._switch.total,
        )
        last = _last_entry(state)
        if last.get("layerstats/interval") != interval or last[ACTIVE_LAYERS] != list(layers):
            entry = {"layerstats/interval": interval, ACTIVE_LAYERS: list(layers)}
            state.log_history.append({**entry, "epoch": state.epoch, "step": state.global_step})

    def _warn(self, args: Any, state: Any) -> None:
        """Say in the log what this callback cannot do, and that a resumed run changes its plan."""
        warn_about_compiling(args)
        if self.schedule.low_rank is not None:
            _LOG.warning(
                "the schedule asks for low-rank gradients of rank %d, which this callback does not "
                "make; set TrainingArguments(optim='galore_adamw', optim_target_modules=...)",
                self.schedule.low_rank.rank,
            )
        last = _last_entry(state)
        if last and state.global_step:
            planned = self._layers(self.schedule.interval_of(last["step"]))
            if list(planned) != last[ACTIVE_LAYERS]:
                _LOG.warning(
                    "the checkpoint was trained with another schedule: layers %s at step %d, this "
                    "one has %s there; from here on this one counts",
                    last[ACTIVE_LAYERS],
                    last["step"],
                    list(planned),
                )

    def _warn_about_outside(self, named: dict[str, torch.Tensor], parts: Parts) -> None:
        """Say in the log what trains outside the blocks although the schedule does not name it."""
        trained = [name for name in parts.outside["other"] if named[name].requires_grad]
        if trained and not self._freeze_others:
            _LOG.warning(
                "%d parameters outside the blocks train in every interval, %s first; if that is "
                "not meant, freeze them before the Trainer is made or give freeze_others=True",
                sum(named[name].numel() for name in trained),
                trained[0],
            )
        tables, heads = (
            {id(named[n]) for n in parts.outside[group]} for group in ("embed", "head")
        )
        one = {"embed", "head"} & set(self.schedule.always_active)
        if len(one) == 1 and not tables.isdisjoint(heads):
            _LOG.warning(
                "embedding and head are one tensor, which trains because %r is always active", *one
            )


def _last_entry(state: Any) -> dict[str, Any]:
    """Return the newest entry of this callback in the log history, empty if there is none."""
    entries = (entry for entry in reversed(state.log_history) if ACTIVE_LAYERS in entry)
    return dict(next(entries, {}))


def _check_blocks(schedule: Schedule, parts: Parts) -> None:
    """Compare the blocks of the model with those the schedule was made for.

    Of the paths only the last words are compared: wrappers and newer versions of transformers put
    the same blocks under other names (`language_model.model.layers`,
    `model.language_model.layers`).
    """
    if not parts.layers:
        msg = "no list of blocks found in the names of the model's parameters"
        raise UsageError(msg)
    schedule.require_layers(len(parts.layers))
    meant, found = schedule.model.layers_path, parts.layers_path
    if meant and found and _leaves(meant) != _leaves(found):
        msg = (
            f"the schedule is for the blocks {meant} but the model's are {found}; make a schedule "
            "for this model, or set model.layers_path in the file to null"
        )
        raise UsageError(msg)


def _leaves(path: str) -> list[str]:
    return [one.rpartition(".")[2] for one in path.split(" + ")]
