"""GaLore-AdamW as galore-torch 1.0 publishes it ('std'), entry by entry in plain loops.

Full SVD in float32, moments left as they are when the basis changes, the scale on the step and not
on the decay, everything after the SVD in Python's float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Matrix = list[list[float]]

__all__ = ["captured_energy", "galore_adamw"]


def galore_adamw(
    weight: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    *,
    rank: int,
    update_interval: int,
    scale: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> list[torch.Tensor]:
    """The weight after each of the gradients."""
    rows, cols = weight.shape
    right = rows >= cols
    w: Matrix = weight.double().tolist()
    shape = (rows, rank) if right else (rank, cols)
    m, v = _zeros(*shape), _zeros(*shape)
    basis: Matrix = []
    after = []
    for step, gradient in enumerate(gradients):
        if step % update_interval == 0:
            left, _, right_t = torch.linalg.svd(gradient.float(), full_matrices=False)
            # A list of r directions of the shorter side.
            basis = (right_t[:rank] if right else left[:, :rank].T).double().tolist()
        g: Matrix = gradient.double().tolist()
        # R = G P or P^T G
        low = _product(g, _transposed(basis)) if right else _product(basis, g)
        t = step + 1
        step_size = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        n = _zeros(*shape)
        for i in range(shape[0]):
            for j in range(shape[1]):
                m[i][j] = betas[0] * m[i][j] + (1 - betas[0]) * low[i][j]
                v[i][j] = betas[1] * v[i][j] + (1 - betas[1]) * low[i][j] ** 2
                n[i][j] = m[i][j] / (math.sqrt(v[i][j]) + eps)
        back = _product(n, basis) if right else _product(_transposed(basis), n)
        for i in range(rows):
            for j in range(cols):
                w[i][j] -= step_size * scale * back[i][j]
                w[i][j] -= lr * weight_decay * w[i][j]
        after.append(torch.tensor(w, dtype=torch.float64))
    return after


def captured_energy(gradient: torch.Tensor, basis: torch.Tensor) -> float:
    """Share of the gradient's sum of squares that lies in the span of the basis, in float64."""
    g, p = gradient.double(), basis.double()
    if g.shape[0] < g.shape[1]:
        g = g.T
    total = 0.0
    for direction in torch.linalg.qr(p).Q.T:
        total += float((g @ direction).square().sum())
    return total / float(g.square().sum())


def _product(a: Matrix, b: Matrix) -> Matrix:
    out = _zeros(len(a), len(b[0]))
    for i in range(len(a)):
        for j in range(len(b[0])):
            for k in range(len(b)):
                out[i][j] += a[i][k] * b[k][j]
    return out


def _transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]


def _zeros(rows: int, cols: int) -> Matrix:
    return [[0.0] * cols for _ in range(rows)]
