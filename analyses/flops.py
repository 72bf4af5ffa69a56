"""Floating-point operations of one training iteration by method, from the shapes of a LLaMA model.

Matrix products only: 2 operations for each weight and token, as much again in the backward pass
for the gradient of the inputs, and as much again for that of the weights, where they train. What
an optimizer does is left out: it moves bytes rather than it multiplies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from layerstats.train import METHODS

__all__ = ["LLAMA_2_7B", "Shapes", "iteration", "shapes_of"]


@dataclass(frozen=True)
class Shapes:
    """The sizes of a LLaMA-like model; `attention` and `key_value` are heads times their size."""

    layers: int
    hidden: int
    attention: int
    key_value: int
    mlp: int
    vocabulary: int

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """The weight matrices of a block, (out, in)."""
        h, a, kv, m = self.hidden, self.attention, self.key_value, self.mlp
        return (a, h), (kv, h), (kv, h), (h, a), (m, h), (m, h), (h, m)

    @property
    def block(self) -> int:
        """Weights in the matrices of a block."""
        return sum(out * into for out, into in self.matrices)

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the head."""
        return self.vocabulary * self.hidden


LLAMA_2_7B = Shapes(32, 4096, 4096, 4096, 11008, 32000)


def shapes_of(model: Path) -> Shapes:
    """Read the sizes of a checkpoint from its config.json."""
    page = json.loads((model / "config.json").read_text(encoding="utf-8"))
    heads = page["num_attention_heads"]
    size = page.get("head_dim") or page["hidden_size"] // heads
    return Shapes(
        layers=page["num_hidden_layers"],
        hidden=page["hidden_size"],
        attention=heads * size,
        key_value=page["num_key_value_heads"] * size,
        mlp=page["intermediate_size"],
        vocabulary=page["vocab_size"],
    )


def iteration(
    shapes: Shapes, method: str, *, tokens: int, active: float = 2.0, rank: int = 8
) -> float:
    """Return the operations of forward and backward pass over one sequence.

    Parameters
    ----------
    shapes : Shapes
    method : str
        A name in `layerstats.train.METHODS`; lora with adapters on the blocks' matrices.
    tokens : int
        Length of the sequence; attention scores are counted for the whole square.
    active : float
        Blocks that train, of the methods that sample them. Their embedding and head always do, so
        the backward pass enters every block, and the embedding's own gradient is a sum of rows.
    rank : int
        Of adapters or of the projected gradient. Projection there and back is counted, once an
        iteration and not by tokens; finding a basis is not.
    """
    kind = METHODS[method]
    blocks, head = (2.0 * tokens * n for n in (shapes.layers * shapes.block, shapes.table))
    scores = 4.0 * tokens**2 * shapes.attention * shapes.layers
    # Attention multiplies two inputs, so its backward pass is twice its forward pass for everyone.
    total = 2 * blocks + 3 * scores + 2 * head
    if kind.who == "adapters":
        pairs = rank * sum(out + into for out, into in shapes.matrices)
        return total + 3 * 2.0 * tokens * shapes.layers * pairs
    training = active / shapes.layers if kind.who == "layers" else 1.0
    total += training * blocks + head
    if kind.how == "galore":
        total += training * shapes.layers * 4.0 * rank * shapes.block
    return total
