"""Windows of a training file the slow way: lists of (token, is a target), example by example."""

from __future__ import annotations

from typing import Any

Pair = tuple[int, bool]


def example_pairs(parts: list[tuple[str, bool]], bos: int | None, eos: int | None) -> list[Pair]:
    """Bytes as tokens, BOS and EOS around them; the first token has nothing before it."""
    pairs: list[Pair] = [] if bos is None else [(bos, False)]
    for text, trained in parts:
        pairs += [(byte, trained) for byte in text.encode()]
    if eos is not None:
        pairs.append((eos, True))
    return [(token, trained and place > 0) for place, (token, trained) in enumerate(pairs)]


def windows(examples: list[list[Pair]], seq_len: int, *, packing: bool) -> list[list[Pair]]:
    """Windows that have a target after their first token."""
    if packing:
        row = [pair for example in examples for pair in example]
        cut = [row[at : at + seq_len] for at in range(0, len(row), seq_len)]
    else:
        cut = [example[:seq_len] for example in examples]
    return [window for window in cut if any(trained for _, trained in window[1:])]


def mean_loss(model: Any, rows: list[list[Pair]]) -> tuple[float, int]:
    """-log p of each target, one prefix at a time, in float64."""
    import torch

    losses = []
    for row in rows:
        for place in range(1, len(row)):
            token, trained = row[place]
            if trained:
                prefix = torch.tensor([[before for before, _ in row[:place]]])
                with torch.no_grad():
                    logits = model(input_ids=prefix).logits[0, -1].double()
                losses.append(float(torch.logsumexp(logits, 0) - logits[token]))
    return sum(losses) / len(losses), len(losses)
