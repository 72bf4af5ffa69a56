"""Where a measurement's activation norms come from: a file, the journal of a killed run, a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstats.checkpoint.reader import Checkpoint
from layerstats.measurement.doubts import check_groups

if TYPE_CHECKING:
    from layerstats.calibration import ActivationNorms

__all__ = ["activation_norms"]

_OPTIONS = ("samples", "seq_len", "sample_seed", "dtype", "device")


def activation_norms(
    asked: Mapping[str, Any] | None,
    checkpoint: Checkpoint,
    tokens: Any,
    activations: Any,
    *,
    kept: Path | None,
    groups: int | None,
    progress: Callable[[str, float, float], None] | None,
) -> ActivationNorms | None:
    """Load activation norms or calibrate.

    Parameters
    ----------
    asked
        Options of the calibration; None if no metric needs one.
    tokens, activations
        The text, or the file to load instead.
    kept
        Where a finished calibration is kept until the run ends: what a killed run had finished is
        not done again.
    groups
        Groups of windows whose norms are wanted too; None if they are not.
    """
    if asked is None:
        return None
    # Imported here: calibration brings transformers with it, which metrics of the weights alone do
    # not need.
    from layerstats.calibration import ActivationNorms, calibrate

    given = activations if activations is not None else kept
    if given is not None and (activations is not None or given.exists()):
        seen = ActivationNorms.load(given, checkpoint=checkpoint)
        if groups is not None:
            check_groups(seen, given)
        return seen
    seen = calibrate(
        checkpoint,
        tokens,
        **{key: asked[key] for key in _OPTIONS},
        groups=groups or 1,
        progress=(lambda done, total: progress("calibrate", done, total)) if progress else None,
    )
    if groups is not None:
        check_groups(seen, tokens)
    if kept is not None:
        seen.save(kept)
    return seen
