"""Tokens -> the norm of each input feature of each weight matrix, one block in memory at a time.

`calibrate(checkpoint, text)` returns `ActivationNorms`. Rooms behind this door: `tokens` cuts the
text, `stack` holds the model without weights, `walk` (replay) and `lockstep` bring the blocks
through memory, `record` watches them, `attribute` leads what was seen back to the checkpoint's
tensors, `hf` alone knows transformers' insides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerstats.calibration.norms import ActivationNorms

if TYPE_CHECKING:
    from layerstats.calibration.visit import Progress
    from layerstats.checkpoint.reader import Checkpoint

__all__ = ["ActivationNorms", "calibrate"]


def calibrate(
    checkpoint: Checkpoint | str | Path,
    tokens: str | Path,
    *,
    samples: int = 128,
    seq_len: int = 2048,
    sample_seed: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    hidden_budget_bytes: int = 2_000_000_000,
    groups: int = 1,
    progress: Progress | None = None,
) -> ActivationNorms:
    """Measure ||X_j||_2 = sqrt(sum_t X_tj^2) for each input feature j of each linear map.

    The model runs on the windows one by one, as transformers would run it, but with a single
    block's weights in memory. Every linear map of a block takes part: Linear, Conv1D, the router,
    and each expert by the tokens routed to it. Embedding and head do not.

    Parameters
    ----------
    checkpoint
        From `open_checkpoint`, or its path, with config.json and tokenizer beside the weights.
    tokens
        A UTF-8 text file. It is tokenised whole, without special tokens, and cut into consecutive
        windows.
    samples, seq_len
        How many windows, and tokens in each; the defaults are OWL's.
    sample_seed
        Draw the windows at random from a generator of their own instead of taking the first.
    dtype
        Of weights and computation: float32 (default), bfloat16, float16 or float64. Sums are
        float64 always.
    device
        "cpu", "cuda" or "cuda:N".
    hidden_budget_bytes
        Hidden states of all windows above this size are kept in a temporary file (replay), or
        windows are taken in groups (lockstep).
    groups
        Keep norms of so many groups of windows too (`ActivationNorms.group_norms`), to tell how
        much they owe to the choice of text; at most one group a window. Groups are stretches of
        neighbouring windows, of equal size up to one: neighbours are alike, and in one group they
        do not pass for independent. Costs `groups` times the memory of the norms, and nothing else.
    progress
        Called after each block with (blocks done, blocks in all).

    Returns
    -------
    ActivationNorms
        One vector, float64, shape (in_features,), >= 0 for each matrix of a block; what nobody saw
        is in `unseen` with the reason. Two calls with the same arguments give the same bits.

    Raises
    ------
    UsageError
        An argument that cannot work: unknown dtype, no such device, a text shorter than a window,
        `seq_len` above what the model's positions allow.
    MissingError
        The text or the tokenizer is not there.
    CheckpointError
        No config.json, quantised weights, an encoder-decoder, an architecture that transformers
        does not know, missing or ill-shaped weights, NaN or infinite activations (the block is
        named).

    References
    ----------
    Sun et al. 2023, Wanda, arXiv 2306.11695; Yin et al. 2023, OWL, arXiv 2310.05175. Their programs
    divide by the number of windows; that constant cancels in LOD, except between experts, where it
    is `tokens` that differ.
    """
    from layerstats.calibration.run import calibrate_with
    from layerstats.checkpoint.reader import open_checkpoint

    if isinstance(checkpoint, str | Path):
        checkpoint = open_checkpoint(checkpoint)
    return calibrate_with(
        checkpoint,
        Path(tokens),
        samples=samples,
        seq_len=seq_len,
        sample_seed=sample_seed,
        dtype=dtype,
        device=device,
        hidden_budget_bytes=hidden_budget_bytes,
        groups=groups,
        progress=progress,
    )
