"""PEFT adapter directories -> pairs of LoRA matrices beside the base matrix they belong to.

An adapter changes W (out, in) by s·B·A with A (rank, in) and B (out, rank). This file finds the
pairs, their scale s and the module each sits on, from `adapter_config.json` and the headers of
`adapter_model.safetensors`; the norms are computed in `numerics/norms.py`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstats.checkpoint.index import CheckpointIndex, TensorEntry, read_index, read_json
from layerstats.checkpoint.layout import Skipped
from layerstats.errors import CheckpointError, MissingError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Adapter", "LoraPair", "open_adapter"]

_CONFIG, _WEIGHTS, _PICKLED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_PREFIX = "base_model.model."
_PAIR_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
_WRAPPERS = re.compile(
    r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)"
)
#: What a tensor that is no LoRA matrix is, by a piece of its name.
_OTHERS = {
    ".lora_magnitude_vector": "magnitude vector of DoRA; s·B·A is measured without it",
    ".lora_embedding_": "LoRA of an embedding; only linear layers are measured",
    ".lora_B.": "bias of lora_B; only the matrices are measured",
    ".trainable_tokens": "trained rows of an embedding; only LoRA matrices are measured",
    "token_adapter": "trained rows of an embedding; only LoRA matrices are measured",
}
#: PEFT subtracts these from the base weights before training: W + s·B·A needs the changed base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two LoRA matrices of one linear layer, not read yet.

    `module` is the layer's name in the base model (`model.layers.0.self_attn.q_proj`), `scale` is s
    in s·B·A, `shape` is (out, in) of B·A.
    """

    module: str
    a_name: str
    b_name: str
    rank: int
    alpha: float
    scale: float
    shape: tuple[int, int]


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter whose configuration and headers are read.

    `pairs` is keyed by module; `skipped` names every other tensor with the reason (`lost` where it
    is a LoRA matrix that cannot be measured); `notes` are remarks on the adapter as a whole.
    """

    path: Path
    file: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def pair_for(self, matrix_name: str) -> LoraPair | None:
        """Return the pair that changes a tensor of the base checkpoint, or None.

        Parameters
        ----------
        matrix_name
            Name as stored, `model.layers.0.self_attn.q_proj.weight`. A checkpoint saved from inside
            its wrapper (`h.0.attn.c_attn.weight` for the module `transformer.h.0.attn.c_attn`) or
            with one more around it matches too, as long as only one pair fits.
        """
        module = _plain(matrix_name).removesuffix(".weight")
        exact = self.pairs.get(module)
        if exact is not None:
            return exact
        longer = self._by_ending.get(module, [])
        parts = module.split(".")
        shorter = [
            self.pairs[tail]
            for start in range(1, len(parts))
            if (tail := ".".join(parts[start:])) in self.pairs
        ]
        found = longer + shorter
        return found[0] if len(found) == 1 else None

    @cached_property
    def _by_ending(self) -> dict[str, list[LoraPair]]:
        """Map each ending of a module's name that holds a number to the pairs that have it."""
        endings: dict[str, list[LoraPair]] = {}
        for module, pair in self.pairs.items():
            parts = module.split(".")
            for start in range(1, len(parts)):
                if any(part.isdigit() for part in parts[start:]):
                    endings.setdefault(".".join(parts[start:]), []).append(pair)
        return endings

    def unmatched(self, matrix_names: Iterable[str]) -> tuple[Skipped, ...]:
        """Name the pairs that change none of the given matrices."""
        used = {pair.module for name in matrix_names if (pair := self.pair_for(name)) is not None}
        return tuple(
            Skipped(
                pair.a_name, f"the base checkpoint has no matrix {pair.module}.weight", lost=True
            )
            for pair in self.pairs.values()
            if pair.module not in used
        )

    def read(
        self, pair: LoraPair, *, shape: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the matrices of one pair.

        Parameters
        ----------
        pair
            From `pairs` or `pair_for`.
        shape
            (out, in) of the base matrix; given, it must be the shape of B·A. PEFT keeps A and B in
            this orientation whatever `fan_in_fan_out` says, so a Conv1D matrix is compared after
            turning.

        Returns
        -------
        a : torch.Tensor, shape (rank, in), dtype as stored
        b : torch.Tensor, shape (out, rank), dtype as stored

        Raises
        ------
        CheckpointError
            The base matrix has another shape, or a value is NaN or infinite.
        """
        import torch
        from safetensors import safe_open

        if shape is not None and tuple(shape) != pair.shape:
            msg = (
                f"{self.file}: {pair.b_name!r} x {pair.a_name!r} is {list(pair.shape)}, the base "
                "matrix "
                f"is {list(shape)}; is this the model the adapter was trained on?"
            )
            raise CheckpointError(msg)
        tensors = []
        with safe_open(self.file, framework="pt") as stored:
            for name in (pair.a_name, pair.b_name):
                # A copy: what get_tensor returns would keep the whole file mapped.
                tensor = stored.get_tensor(name).clone()
                if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
                    msg = f"{self.file}: tensor {name!r} holds NaN or infinite values"
                    raise CheckpointError(msg)
                tensors.append(tensor)
        return tensors[0], tensors[1]


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Open a LoRA adapter as PEFT saves it: read its configuration and headers, no weight.

    The scale of a pair is s = alpha / r, or alpha / sqrt(r) with `use_rslora`; r and alpha come
    from the first key of `rank_pattern` / `alpha_pattern` that matches the module as PEFT matches
    it (a regular expression for the whole name or for its end after a dot), else from `r` and
    `lora_alpha`.

    Parameters
    ----------
    path
        A directory with `adapter_config.json` and `adapter_model.safetensors`.

    Returns
    -------
    Adapter

    Raises
    ------
    MissingError
        The directory or one of the two files is not there.
    UsageError
        Not LoRA, or only pickled weights.
    CheckpointError
        Damaged configuration, half a pair, or shapes that do not fit the rank.

    References
    ----------
    Hu et al. (2021), LoRA, arXiv:2106.09685. Kalajdzievski (2023), rsLoRA, arXiv:2312.03732.
    """
    directory = Path(path)
    if not directory.is_dir():
        msg = f"{directory}: no such directory; give a PEFT adapter with {_CONFIG} and {_WEIGHTS}"
        raise MissingError(msg)
    file = _weights_file(directory)
    config = _read_config(directory / _CONFIG)
    index = read_index(file)
    pairs, skipped = _sort(file, config, index)
    if not pairs:
        msg = f"{file}: holds no pair of lora_A and lora_B matrices that can be measured"
        if skipped:
            msg += f"; {skipped[0].name}: {skipped[0].reason}"
        raise CheckpointError(msg)
    return Adapter(directory, file, config, pairs, tuple(skipped), _notes(config))


def _weights_file(directory: Path) -> Path:
    if not (directory / _CONFIG).is_file():
        msg = (
            f"{directory / _CONFIG}: no such file; give the directory that PEFT's save_pretrained "
            "made"
        )
        raise MissingError(msg)
    file = directory / _WEIGHTS
    if file.is_file():
        return file
    if (directory / _PICKLED).exists():
        msg = (
            f"{directory / _PICKLED}: pickled weights are never opened; "
            "save the adapter again with safe_serialization=True"
        )
        raise UsageError(msg)
    msg = f"{file}: no such file; the adapter's weights are missing"
    raise MissingError(msg)


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config, dict):
        msg = f"{file}: not a JSON object; save the adapter again"
        raise CheckpointError(msg)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        msg = f"{file}: an adapter of type {kind!r}; only LORA is measured"
        raise UsageError(msg)
    if "r" not in config:
        msg = f"{file}: has no rank 'r'; save the adapter again with PEFT"
        raise CheckpointError(msg)
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            msg = f"{file}: {key} is not an object of name pattern and number"
            raise CheckpointError(msg)
    return config


def _plain(name: str) -> str:
    """Return a name without PEFT's prefix and without the wrappers of training."""
    name = name.removeprefix(_PREFIX)
    return _WRAPPERS.sub(r"\1", name).replace("..", ".").removeprefix(".").removeprefix(_PREFIX)


def _sort(
    file: Path, config: Mapping[str, Any], index: CheckpointIndex
) -> tuple[dict[str, LoraPair], list[Skipped]]:
    halves: dict[str, dict[str, TensorEntry]] = {}
    skipped: list[Skipped] = []
    for name, entry in index.entries.items():
        match = _PAIR_NAME.fullmatch(name)
        if match is None:
            skipped.append(Skipped(name, _what_it_is(name), lost=".lora_embedding_" in name))
            continue
        sides = halves.setdefault(_plain(match[1]), {})
        if match[2] in sides:
            msg = (
                f"{file}: {sides[match[2]].name!r} and {name!r} belong to one layer; save one "
                "adapter"
            )
            raise CheckpointError(msg)
        sides[match[2]] = entry
    pairs: dict[str, LoraPair] = {}
    for module, sides in halves.items():
        if len(sides) != 2:
            (side, entry), missing = next(iter(sides.items())), {"A": "B", "B": "A"}
            msg = (
                f"{file}: {entry.name!r} has no lora_{missing[side]} beside it; the adapter is "
                "incomplete"
            )
            raise CheckpointError(msg)
        reason = _why_not(module, config, sides)
        if reason:
            skipped.extend(Skipped(sides[side].name, reason, lost=True) for side in "AB")
        else:
            pairs[module] = _pair(file, module, config, sides["A"], sides["B"])
    return pairs, skipped


def _what_it_is(name: str) -> str:
    for piece, reason in _OTHERS.items():
        if piece in name:
            return reason
    if ".base_layer." in name:
        return "the base model's own tensor, saved beside its update, which is what is measured"
    if name.endswith(".bias"):
        return "trained bias; only LoRA matrices are measured"
    return (
        "whole tensor saved beside the adapter (modules_to_save); only LoRA matrices are measured"
    )


def _why_not(module: str, config: Mapping[str, Any], sides: Mapping[str, TensorEntry]) -> str:
    """Return why a pair is no change of one matrix, or an empty string."""
    if any(len(entry.shape) == 4 or len(entry.shape) == 3 for entry in sides.values()):
        return "LoRA of a convolution; only linear layers are measured"
    owner = module.removesuffix(".base_layer")
    for target in config.get("target_parameters") or ():
        parent, _, parameter = str(target).rpartition(".")
        if parameter == "weight":
            continue
        if owner == parent or owner.endswith(f".{parent}") or not parent:
            # PEFT writes r rows per expert, and nothing says which of the nested pairs is which
            # parameter.
            return f"LoRA of the parameter {target}, fused experts; only linear layers are measured"
    return ""


def _pair(
    file: Path, module: str, config: Mapping[str, Any], a: TensorEntry, b: TensorEntry
) -> LoraPair:
    rank = _setting(file, config, "r", "rank_pattern", module)
    alpha = _setting(file, config, "lora_alpha", "alpha_pattern", module)
    if rank != int(rank) or rank < 1:
        msg = (
            f"{file.with_name(_CONFIG)}: the rank of {module} is {rank}; it must be a whole "
            "number above 0"
        )
        raise CheckpointError(msg)
    rank = int(rank)
    if len(a.shape) != 2 or a.shape[0] != rank:
        msg = (
            f"{file}: tensor {a.name!r} has shape {list(a.shape)}, expected [{rank}, in] for rank "
            f"{rank}"
        )
        raise CheckpointError(msg)
    if len(b.shape) != 2 or b.shape[1] != rank:
        msg = (
            f"{file}: tensor {b.name!r} has shape {list(b.shape)}, expected [out, {rank}] for "
            f"rank {rank}"
        )
        raise CheckpointError(msg)
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraPair(module, a.name, b.name, rank, alpha, scale, (b.shape[0], a.shape[1]))


def _setting(
    file: Path, config: Mapping[str, Any], key: str, pattern_key: str, module: str
) -> float:
    """Look a number up as PEFT does: the first pattern that is the module's name or its end."""
    value = config.get(key, 8)  # 8 is PEFT's default of both
    for pattern, special in (config.get(pattern_key) or {}).items():
        try:
            hit = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            msg = (
                f"{file.with_name(_CONFIG)}: {pattern_key} has no valid pattern {pattern!r} "
                f"({error})"
            )
            raise CheckpointError(msg) from error
        if hit:
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        msg = f"{file.with_name(_CONFIG)}: {key} of {module} is {value!r}, not a number"
        raise CheckpointError(msg)
    return float(value)


def _notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        notes.append(
            f"init_lora_weights={start}: PEFT changed the base weights before training, so s·B·A "
            "is the "
            "distance from those, not from the base checkpoint"
        )
    if config.get("use_dora"):
        notes.append(
            "DoRA: s·B·A is the change of direction only, the magnitude vectors are left out"
        )
    return tuple(notes)
