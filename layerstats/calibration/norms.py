"""The result of a calibration: activation norms by matrix, and their file.

The file is safetensors: one float64 vector per matrix, keyed by `Matrix.key`, everything else as
JSON in its metadata. Norms by group of windows, where there are any, are matrices whose keys begin
with `groups:`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from layerstats.errors import CheckpointError, MissingError
from layerstats.stats import replace_file

if TYPE_CHECKING:
    from layerstats.checkpoint.reader import Checkpoint

__all__ = ["ActivationNorms"]

_FORMAT = "layerstats-activation-norms"
_VERSION = 1
_PREFIX = "groups:"


@dataclass(frozen=True, eq=False)
class ActivationNorms:
    """What a calibration saw of each weight matrix of the blocks.

    Parameters
    ----------
    norms
        `Matrix.key` -> ||X_j||_2 = sqrt(sum_t X_tj^2) over all tokens t the matrix saw; float64,
        shape (in_features,), >= 0.
    tokens
        `Matrix.key` -> number of tokens the matrix saw (an expert sees only those routed to it).
    unseen
        `Matrix.key` -> why a matrix of a block has no norms.
    info
        How it was done: samples, seq_len, text, dtype, device, attention kernel, walk mode,
        versions.
    group_norms
        `Matrix.key` -> norms over the tokens of each group of windows, float64, shape
        (groups, in_features); empty unless asked for. Their squares add up to those of `norms`.
    """

    norms: dict[str, NDArray[np.float64]]
    tokens: dict[str, int]
    unseen: dict[str, str]
    info: dict[str, Any]
    group_norms: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Number of groups of windows whose norms are kept; 1 if none are."""
        return len(next(iter(self.group_norms.values()))) if self.group_norms else 1

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: beside its place, then renamed, so no half file is left.

        Raises
        ------
        UsageError
            The directory is missing or cannot be written.
        """
        from safetensors.numpy import save

        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "tokens": self.tokens,
            "unseen": self.unseen,
            "info": self.info,
            **({"groups": self.groups} if self.group_norms else {}),
        }
        # One metadata key only: the order of several would change from run to run.
        metadata = {"layerstats": json.dumps(document, sort_keys=True, allow_nan=False)}
        named = self.norms | {_PREFIX + key: value for key, value in self.group_norms.items()}
        arrays = {key: np.ascontiguousarray(named[key], dtype=np.float64) for key in sorted(named)}
        path = Path(path)
        replace_file(path, save(arrays, metadata=metadata))
        return path

    @classmethod
    def load(cls, path: str | Path, *, checkpoint: Checkpoint | None = None) -> ActivationNorms:
        """Read a file that `save` wrote; with a checkpoint, refuse the norms of another one.

        Parameters
        ----------
        path
            The safetensors file.
        checkpoint
            The checkpoint they are to be used with: its header hash, a sample of its weights'
            bytes, its matrices and their widths must be those the norms were made with.

        Raises
        ------
        MissingError
            No such file.
        CheckpointError
            Not such a file, a newer version, damaged, or made with another checkpoint.
        """
        path = Path(path)
        document, norms = _read(path)
        if document.get("version") != _VERSION:
            version = document.get("version")
            msg = f"{path}: version {version} of {_FORMAT}, this layerstats reads {_VERSION}"
            raise CheckpointError(msg)
        grouped = {}
        if "groups" in document:
            keys = [key for key in norms if key.startswith(_PREFIX)]
            grouped = {key.removeprefix(_PREFIX): norms.pop(key) for key in keys}
        _check_shapes(path, norms, grouped)
        found = cls(norms, document["tokens"], document["unseen"], document["info"], grouped)
        if checkpoint is not None:
            found._check_belongs(path, checkpoint)
        return found

    def _check_belongs(self, path: Path, checkpoint: Checkpoint) -> None:
        other = (
            f"{path}: the norms were made with another checkpoint ({self.info.get('checkpoint')}) "
            f"than {checkpoint.path}"
        )
        again = "calibrate again with --tokens"
        if self.info.get("header_hash") != checkpoint.index.header_hash:
            msg = f"{other}: the file headers differ; {again}"
            raise CheckpointError(msg)
        # Two fine-tunes of one model have the same headers: their weights tell them apart.
        if self.info.get("weights_sample_hash") != checkpoint.weights_sample_hash:
            msg = f"{other}: the names and shapes agree but the weights differ; {again}"
            raise CheckpointError(msg)
        widths = {m.key: m.shape[1] for m in checkpoint.layout.matrices if m.layer is not None}
        for key in widths:
            if key not in self.norms and key not in self.unseen:
                msg = f"{path}: holds nothing for the matrix {key!r}; {again}"
                raise CheckpointError(msg)
        for key, norm in self.norms.items():
            if widths.get(key) != norm.shape[0]:
                here = norm.shape[0]
                msg = f"{path}: {key!r} has {here} features, not {widths.get(key)}; {again}"
                raise CheckpointError(msg)


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, NDArray[np.float64]]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        msg = f"{path}: no such file of activation norms; make one with --save-activations"
        raise MissingError(msg)
    try:
        with safe_open(path, framework="numpy") as stream:
            document = json.loads((stream.metadata() or {}).get("layerstats", "{}"))
            names = list(stream.keys())
            norms = {key: stream.get_tensor(key) for key in names}
    except (SafetensorError, OSError, ValueError) as error:
        msg = f"{path}: not a readable safetensors file ({error})"
        raise CheckpointError(msg) from error
    kinds = {"tokens": dict, "unseen": dict, "info": dict}
    if (
        not isinstance(document, dict)
        or document.get("format") != _FORMAT
        or not all(isinstance(document.get(key), kind) for key, kind in kinds.items())
    ):
        msg = f"{path}: no activation norms; expected a file from --save-activations"
        raise CheckpointError(msg)
    return document, norms


def _check_shapes(
    path: Path,
    norms: Mapping[str, NDArray[np.float64]],
    grouped: Mapping[str, NDArray[np.float64]],
) -> None:
    if any(norm.dtype != np.float64 or norm.ndim != 1 for norm in norms.values()):
        msg = f"{path}: damaged: norms must be float64 vectors"
        raise CheckpointError(msg)
    if not grouped:
        return
    shapes = {key: value.shape[1:] for key, value in grouped.items()}
    counts = {value.shape[:1] for value in grouped.values()}
    if (
        shapes != {key: norm.shape for key, norm in norms.items()}
        or len(counts) != 1
        or any(value.dtype != np.float64 for value in grouped.values())
    ):
        msg = f"{path}: damaged: norms by group do not fit the norms"
        raise CheckpointError(msg)
