"""From a checkpoint directory to a model that trains, and back to a directory.

All of transformers' doors that training uses are here: loading weights and tokenizer, the settings
of a model that trains, saving.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from layerstats.calibration.quiet import quiet
from layerstats.calibration.tokens import load_tokenizer
from layerstats.checkpoint.index import read_index
from layerstats.checkpoint.writer import staged_directory
from layerstats.correlation import read_scores
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from layerstats.schedules import ModelRef, Schedule
from layerstats.schedules import schedule as build_schedule
from layerstats.stats import LayerStats
from layerstats.train.config import TrainConfig

__all__ = [
    "check_length",
    "check_tokens",
    "load_model",
    "load_tokenizer",
    "make_schedule",
    "prepare",
    "save_model",
]

_LOG = logging.getLogger(__name__)


def load_model(config: TrainConfig, device: str | torch.device) -> Any:
    """Load a causal language model of transformers from a local directory, ready for training.

    Parameters
    ----------
    config : TrainConfig
        `model` is the directory; `dtype`, `checkpointing`, `lora_targets` are applied.
    device : str or torch.device

    Returns
    -------
    transformers.PreTrainedModel
        In training mode, no key-value cache, all parameters trainable.

    Raises
    ------
    MissingError
        No such directory, no config.json in it, or a shard is missing.
    CheckpointError
        A weight file is damaged, or transformers cannot load a causal language model from
        safetensors.
    """
    from transformers import AutoModelForCausalLM

    directory = Path(config.model)
    if not (directory / "config.json").is_file():
        msg = (
            f"{directory}: no config.json here; training takes the directory of a transformers "
            "model (config.json, safetensors, tokenizer files)"
        )
        raise MissingError(msg)
    try:
        with quiet(torch.device(device)):
            model = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=getattr(torch, config.dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except Exception as error:  # configs and weights of others fail in any way there is
        _blame_a_file(directory)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{directory}: transformers cannot load a causal language model from it: {reason}"
        raise CheckpointError(msg) from error
    return prepare(model.to(device), config)


def _blame_a_file(directory: Path) -> None:
    """Name the weight file that is damaged or missing, where that is why nothing was loaded.

    Asked after transformers has refused, which it does before it reads a weight: what it loads
    and `read_index` would not (a single file beside an old index) loads all the same.
    """
    if any(directory.glob("*.safetensors*")):
        try:
            read_index(directory)
        except UsageError:
            return  # not damaged: transformers' own reason says more


def prepare(model: Any, config: TrainConfig) -> Any:
    """Bring a model into the state it trains in; the memory planner does the same to a fake one."""
    model.train()
    model.requires_grad_(True)
    model.config.use_cache = False
    if config.checkpointing:
        _checkpoint(model)
    if config.kind.who == "adapters" and config.lora_targets == "all":
        _untie(model)
    return model


def _checkpoint(model: Any) -> None:
    """Recompute activations in the backward pass, block by block.

    Not the reentrant way, which gives blocks over a frozen embedding no gradient. transformers gets
    around that by having the embedding's output require one; that is taken away again, since it
    would send the backward pass through every block however few of them train.
    """
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        msg = f"{type(model).__name__} cannot recompute activations; leave checkpointing out"
        raise UsageError(msg) from error
    model.disable_input_require_grads()


def _untie(model: Any) -> None:
    """Give the head a table of its own: two adapters cannot be merged into one tensor."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or table is None or head.weight is not table.weight:
        return
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    _LOG.warning("embedding and head were one tensor; they are two now, each with its adapter")


def check_length(model: Any, seq_len: int) -> None:
    """Refuse windows longer than the model's positions.

    Raises
    ------
    UsageError
        seq_len is above the config's max_position_embeddings.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        msg = (
            f"seq_len {seq_len} is more than the {longest} positions that the model takes; "
            f"give seq_len (--seq-len) <= {longest}"
        )
        raise UsageError(msg)


def check_tokens(model: Any, largest: int, source: str) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises
    ------
    UsageError
        The largest token id of the data is not below the number of embeddings.
    """
    known = model.get_input_embeddings().weight.shape[0]
    if largest >= known:
        msg = (
            f"{source}: holds token {largest}, the model has embeddings for 0..{known - 1}; its "
            "tokenizer belongs to another model"
        )
        raise UsageError(msg)


def make_schedule(config: TrainConfig, num_layers: int) -> Schedule | None:
    """Return the schedule of a run: the file's, or one of the method's own rule.

    Parameters
    ----------
    config : TrainConfig
    num_layers : int
        Blocks of the model.

    Returns
    -------
    Schedule or None
        None for methods that train the same parameters at every step.

    Raises
    ------
    UsageError
        The schedule or the statistics are for a model of another depth.
    MissingError, CheckpointError
        A file is not there or is not what it should be.
    """
    if config.kind.who != "layers":
        return None
    if config.schedule is not None:
        made = Schedule.from_json(Path(config.schedule))
    else:
        stats: Any = None
        metric = config.metric
        if config.kind.needs_scores and config.stats is not None:
            if Path(config.stats).is_dir():
                stats = LayerStats.load(config.stats)
            else:
                name, stats = read_scores(config.stats)
                metric = metric or name
        made = build_schedule(
            config.kind.rule or "",
            stats,
            expected_active=config.expected_active,
            interval_steps=config.interval_steps,
            sampling=config.sampling,
            seed=config.seed,
            metric=metric,
            model=None if stats is not None else ModelRef(None, num_layers),
            source=config.stats,
        )
    if made.num_layers != num_layers:
        source = config.schedule or config.stats or "schedule"
        msg = (
            f"{source}: the schedule is for {made.num_layers} layers, {config.model} has "
            f"{num_layers}; make one from this model's statistics"
        )
        raise UsageError(msg)
    if config.always_active is not None:
        made = replace(made, always_active=config.always_active)
    return made


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model as a directory that `from_pretrained` loads: written beside, then renamed.

    Raises
    ------
    LayerstatsError
        The disk is full or cannot be written; nothing half-written is left.
    """
    model.config.use_cache = True
    try:
        if directory.exists():
            shutil.rmtree(directory)  # of an earlier end of this run, which was then extended
        with staged_directory(directory) as staged, quiet(torch.device("cpu")):
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
    except OSError as error:
        msg = f"{directory}: the model cannot be written ({error.strerror or error})"
        raise LayerstatsError(msg) from error
