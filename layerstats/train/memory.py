"""The memory of a training run before it is run: simulated, no GPU and no weights needed.

`plan_memory` makes the model of fake tensors, has it take the trainer's own steps with the layers
that need the most, and counts every byte. How bytes are counted is in live_bytes.py, which layers
are the heaviest in worst_case.py, the steps in rehearsal.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from layerstats.checkpoint.parts import find_parts
from layerstats.errors import LayerstatsError, UsageError
from layerstats.schedules import ModelRef, Schedule
from layerstats.schedules import schedule as make_schedule
from layerstats.train.config import METHODS, TrainConfig
from layerstats.train.fake_model import fake_model, fake_tensors, load_code
from layerstats.train.model import check_length, prepare
from layerstats.train.presets import model_config
from layerstats.train.rehearsal import Rehearsal, rehearse
from layerstats.train.worst_case import WorstCase, worst_case

__all__ = ["MemoryPlan", "plan_memory"]

_IN_MEMORY = "(not read)"
_SETTINGS = ("seq_len", "batch_size", "accumulation", "dtype", "autocast", "checkpointing", "steps")
_SETTINGS_OF = {
    "layers": ("state", "expected_active", "sampling", "rank", "always_active"),
    "adapters": ("rank", "lora_targets", "lora_dropout"),
    "everything": ("rank",),
}


@dataclass(frozen=True)
class MemoryPlan:
    """What a run would take at most: simulated, everything in bytes.

    Parameters
    ----------
    model, method : str
    peak_bytes : int
        Largest number of bytes of tensors alive at one moment.
    peak_phase : str
        "switch", "forward", "backward", "clip" or "optimizer".
    parts_at_peak_bytes : mapping of str to int
        `weights`, `gradients`, `optimizer` and `activations` at that moment; they sum to the peak.
    part_peaks_bytes : mapping of str to int
        The most of each part, at moments of their own.
    sum_of_parts_bytes : int
        Their sum, which papers print; above the peak.
    reserved_bytes_estimate : int
        What CUDA's caching allocator would hold, an estimate by its rules.
    host_bytes : int
        Optimizer state that waits on the host, with ``state="offload"``; in no peak.
    phase_peaks_bytes : mapping of str to int
        The most in each phase.
    active_layers : tuple of int or None
        Layers on at the peak; None where all train.
    intervals : tuple of dict
        What was simulated one after the other: `layers`, `peak_bytes`, `peak_phase`.
    worst_case : dict or None
        How many layers an interval has at most; see `WorstCase`.
    parameters, trainable_parameters : int
        Of the whole model, and those that train at the peak.
    settings : dict
        What the run was to be: sequence length, batch, data type and so on.
    seconds : float
        What the simulation took.
    assumptions : tuple of str
        What the numbers rest on, and what is not in them.
    """

    model: str
    method: str
    peak_bytes: int
    peak_phase: str
    parts_at_peak_bytes: Mapping[str, int]
    part_peaks_bytes: Mapping[str, int]
    sum_of_parts_bytes: int
    reserved_bytes_estimate: int
    host_bytes: int
    phase_peaks_bytes: Mapping[str, int]
    active_layers: tuple[int, ...] | None
    intervals: tuple[Mapping[str, Any], ...]
    worst_case: Mapping[str, Any] | None
    parameters: int
    trainable_parameters: int
    settings: Mapping[str, Any]
    seconds: float
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name, ready for JSON; `simulated` is True."""
        return {"simulated": True, **asdict(self)}


def plan_memory(
    source: str | Path | Any,
    *,
    method: str,
    expected_active: float = 2.0,
    rank: int | None = None,
    seq_len: int = 512,
    batch_size: int = 16,
    accumulation: int = 1,
    dtype: str = "bfloat16",
    checkpointing: bool = False,
    state: str = "drop",
    always_active: Collection[str] | None = None,
    schedule: Schedule | str | Path | None = None,
    steps: int = 1000,
    layers: Sequence[int] | None = None,
    **settings: Any,
) -> MemoryPlan:
    """Simulate the memory of a training run: its true peak, when it occurs and what it consists of.

    The trainer's own optimizer step runs on fake tensors, twice for each set of layers that could
    be the heaviest, so that states are there and layers have been switched.

    Parameters
    ----------
    source : str, Path or transformers config
        A preset, a config.json or a checkpoint directory; see `model_config`.
    method : str
        A name in `METHODS`.
    expected_active : float
        Layers that train in an interval, for the methods that sample layers.
    rank : int, optional
        GaLore's (default 128) or LoRA's (default 8).
    seq_len, batch_size, accumulation : int
        Tokens in a window, windows in a micro-batch, micro-batches in a step.
    dtype : str
        "bfloat16" or "float32", of weights, gradients and optimizer state.
    checkpointing : bool
        Whether activations are computed again in the backward pass.
    state : str
        Optimizer state of layers that stop training: "drop", "offload", "keep" (late in a run, all
        layers have had their turn then).
    always_active : collection of str, optional
        Of "embed", "head", "norm"; default: the schedule's, which is all of them.
    schedule : Schedule or path, optional
        Default: one in which all layers are alike.
    steps : int
        Length of the run, for the number of intervals that are looked at for the heaviest.
    layers : sequence of int, optional
        Plan for exactly these layers instead of the heaviest ones.
    **settings
        Any other setting of `TrainConfig` that memory depends on, such as `lora_targets`,
        `sampling`, `rank_per_layer`, `projection`, `autocast`.

    Returns
    -------
    MemoryPlan

    Raises
    ------
    UsageError
        A setting is not allowed, or model and settings do not fit together.
    MissingError, CheckpointError
        `source` or the schedule's file is not there or is not what it should be.
    LayerstatsError
        The model has operations that cannot be simulated.

    References
    ----------
    Pan et al. 2024, LISA, arXiv 2403.17919; Li et al. 2024, OwLore, arXiv 2405.18380.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> small = LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    >>> plan = plan_memory(small, method="lisa", seq_len=32, batch_size=1)
    >>> plan.parameters
    10486208
    >>> plan.peak_bytes == sum(plan.parts_at_peak_bytes.values()) <= plan.sum_of_parts_bytes
    True
    """
    began = time.perf_counter()
    given = {
        "expected_active": expected_active, "rank": rank, "seq_len": seq_len,
        "batch_size": batch_size, "accumulation": accumulation, "dtype": dtype,
        "checkpointing": checkpointing, "state": state, "steps": steps,
        "always_active": None if always_active is None else tuple(always_active),
    }  # fmt: skip
    sampled = method in METHODS and METHODS[method].who == "layers"
    drawn = Schedule.from_json(schedule) if isinstance(schedule, str | Path) else schedule
    shape = model_config(source)
    name = str(source) if isinstance(source, str | Path) else shape.model_type
    config = TrainConfig.from_dict({
        "model": name, "data": _IN_MEMORY, "out": _IN_MEMORY, "method": method,
        "schedule": _IN_MEMORY if sampled or drawn is not None else None, **given, **settings,
    })  # fmt: skip
    load_code(shape, adapters=config.kind.who == "adapters")
    with fake_tensors(), _as_ours(name):
        model = prepare(fake_model(shape, dtype=config.dtype), config)
        check_length(model, config.seq_len)
        sizes = _layer_sizes(model)
        plan = _schedule(config, drawn, len(sizes)) if sampled else None
        worst = None if plan is None else worst_case(plan, sizes, steps=steps)
        draws = () if worst is None else worst.draws
        if worst is not None and drawn is not None:
            draws = (worst.heaviest_layers, *draws)
        if layers is not None:
            draws = (_checked(layers, config, len(sizes)),)
        # Each simulated step renews GaLore's bases: the one that does so is the heaviest.
        found = rehearse(model, replace(config, update_interval=1), plan, draws)
    return _plan(config, found, worst, model.config, time.perf_counter() - began)


def _schedule(config: TrainConfig, given: Schedule | None, num_layers: int) -> Schedule:
    """Return the schedule with the groups that are always active in this run."""
    if given is None:
        # Which layers are likelier does not matter: any of them can be drawn.
        given = make_schedule(
            "lisa",
            expected_active=config.expected_active,
            interval_steps=config.interval_steps,
            sampling=config.sampling,
            seed=config.seed,
            model=ModelRef(None, num_layers),
        )
    given.require_layers(num_layers)
    if config.always_active is not None:
        given = replace(given, always_active=config.always_active)
    return given


def _checked(layers: Sequence[int], config: TrainConfig, num_layers: int) -> tuple[int, ...]:
    if config.kind.who != "layers" or any(not 0 <= at < num_layers for at in layers):
        msg = (
            f"layers {list(layers)}: give numbers from 0 to {num_layers - 1}, for the methods "
            f"that sample layers; the method is {config.method}"
        )
        raise UsageError(msg)
    return tuple(sorted(set(layers)))


def _layer_sizes(model: Any) -> list[int]:
    """Return the bytes of each layer's parameters."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parts = find_parts({name: tuple(one.shape) for name, one in named.items()})
    return [
        sum(one.nbytes for one in {id(named[name]): named[name] for name in names}.values())
        for names in parts.layers
    ]


@contextmanager
def _as_ours(source: str) -> Iterator[None]:
    """Say of whatever fails in others' code that the model cannot be simulated."""
    # It writes a stack trace before it raises.
    loud = logging.getLogger("torch._subclasses.fake_tensor")
    before, loud.disabled = loud.disabled, True
    try:
        yield
    except LayerstatsError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = (
            f"{source}: an operation of this model cannot be simulated ({reason}); "
            "another dtype may do (mixtures of experts need bfloat16)"
        )
        raise LayerstatsError(msg) from error
    finally:
        loud.disabled = before


def _plan(
    config: TrainConfig,
    found: Rehearsal,
    worst: WorstCase | None,
    shape: Any,
    seconds: float,
) -> MemoryPlan:
    heaviest = max(found.intervals, key=lambda one: one.use.peak_bytes)
    use = found.use
    names = (*_SETTINGS, *_SETTINGS_OF[config.kind.who])
    return MemoryPlan(
        model=config.model,
        method=config.method,
        peak_bytes=use.peak_bytes,
        peak_phase=use.peak_phase,
        parts_at_peak_bytes=dict(use.parts_at_peak_bytes),
        part_peaks_bytes=dict(use.part_peaks_bytes),
        sum_of_parts_bytes=use.sum_of_parts_bytes,
        reserved_bytes_estimate=found.reserved_bytes_estimate,
        host_bytes=use.host_bytes,
        phase_peaks_bytes=dict(use.phase_peaks_bytes),
        active_layers=heaviest.layers,
        intervals=tuple(
            {
                "layers": one.layers,
                "peak_bytes": one.use.peak_bytes,
                "peak_phase": one.use.peak_phase,
                "trainable_parameters": one.trainable,
            }
            for one in found.intervals
        ),
        worst_case=None if worst is None else asdict(worst),
        parameters=found.parameters,
        trainable_parameters=heaviest.trainable,
        settings={name: getattr(config, name) for name in names},
        seconds=seconds,
        assumptions=tuple(assumptions(config, shape)),
    )


def assumptions(config: TrainConfig, shape: Any) -> Iterator[str]:
    """Say what the numbers of a plan rest on, and what is not in them."""
    yield (
        "simulated on fake CPU tensors with the trainer's own step; CUDA's context, kernels' and "
        "libraries' workspaces are not in it (often 0.5 to 1.5 GB), nor are evaluation, generation "
        "and checkpoint writing"
    )
    state = "adapters" if config.kind.who == "adapters" else "gradients and optimizer state"
    yield f"weights and {state} in {config.dtype}; every window is full"
    attention = getattr(shape, "_attn_implementation", None) or "eager"
    yield f"attention {attention}, as torch runs it on a CPU"
    if config.kind.who == "layers":
        yield "as many layers as an interval can have, where they need the most, after a switch"
        if config.state != "drop":
            yield "late in the run: every layer that can be drawn has had its turn"
    if config.kind.who == "adapters":
        yield "peft keeps adapters in float32 where weights are in bfloat16"
    if config.kind.how == "galore":
        yield "each simulated step makes new low-rank bases, as every update_interval-th step does"
    if config.lora_dropout or getattr(shape, "attention_dropout", 0.0):
        yield "dropout as on a CPU, which keeps more for the backward pass than a GPU does"
