"""Activation norms with the first token of each window in or out, and with BOS put before it.

The hidden states of a window's first token depend on that token alone. A calibration on windows of
one token gives its share of the norms, which is then taken off. In float64, for in some features
the first token is nearly all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import layerstats as ls
from layerstats.calibration.tokens import load_tokenizer, tokenize

__all__ = ["NAMES", "variants"]

NAMES = ("all tokens", "first token out", "BOS before", "BOS before, BOS out")


def variants(
    model: Path, text: Path, folder: Path, *, samples: int, seq_len: int
) -> dict[str, dict[str, Any]]:
    """Return the summed squares of each matrix's inputs: name -> `Matrix.key` -> (in,) array."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, checkpoint = load_tokenizer(model), ls.open_checkpoint(model)
    ids = tokenize(tokenizer, text.read_text(encoding="utf-8")[: 12 * samples * seq_len])
    bos = tokenizer.bos_token
    alone = [at for at in range(samples) if _survives(tokenizer, [ids[at * seq_len]])]
    firsts = [tokenizer.decode([ids[at * seq_len]]) for at in alone]
    starts = "".join(bos + first for first in firsts)
    pieces = "".join(bos + piece for piece in _pieces(tokenizer, ids, seq_len - 1, samples))

    def squares(content: str | Path, windows: int, length: int) -> dict[str, Any]:
        file = content if isinstance(content, Path) else folder / f"{length}-tokens.txt"
        if isinstance(content, str):
            file.write_text(content, encoding="utf-8", newline="")
        seen = ls.calibrate(checkpoint, file, samples=windows, seq_len=length, groups=windows,
                            dtype="float64")  # fmt: skip
        return {key: norms**2 for key, norms in seen.group_norms.items()}

    plain, lone = squares(text, samples, seq_len), squares(starts, 2 * len(alone), 1)
    with_bos = squares(pieces, samples, seq_len)
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for key, value in plain.items():
        whole, after_bos = value[alone].sum(axis=0), with_bos[key].sum(axis=0)
        parts = (lone[key][1::2].sum(axis=0), samples * lone[key][0])
        rests = [
            (total - part).clip(min=0)
            for total, part in zip((whole, after_bos), parts, strict=True)
        ]
        for name, one in zip(NAMES, (whole, rests[0], after_bos, rests[1]), strict=True):
            found[name][key] = one
    return found


def _survives(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether ids come back when they are written as text and read again."""
    return tokenize(tokenizer, tokenizer.decode(ids)) == list(ids)


def _pieces(tokenizer: Any, ids: Sequence[int], length: int, count: int) -> list[str]:
    """Return `count` consecutive stretches of so many tokens that survive being written as text."""
    found: list[str] = []
    at = 0
    while len(found) < count:
        piece = ids[at : at + length]
        survives = _survives(tokenizer, piece)
        found += [tokenizer.decode(piece)] if survives else []
        at += length if survives else 1
    return found
