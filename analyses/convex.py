"""A convex problem in layers: logistic regression, decay in the loss, an optimum that is known.

What LISA's Theorem 1 asks for: f convex and smooth, a bounded set (a box), bounded noisy gradients,
steps eta / sqrt(t). The weights are cut into an "embedding", layers and a "head".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

import layerstats as ls

LAYERS, WIDTH, ROWS, BATCH, DECAY, BOX, INTERVAL = 16, 6, 600, 8, 0.02, 3.0, 10
STEP = {"Adam": 0.3, "SGD": 3.0}


@dataclass(frozen=True)
class Problem:
    """Features (rows, weights), labels, and the least value of the loss."""

    x: Any
    y: Any
    best: float


def make_problem() -> Problem:
    """Return features of very different sizes, noisy labels, the optimum by Newton's method."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((ROWS, LAYERS + 2, WIDTH)) * np.geomspace(1, 0.1, WIDTH)
    x = x.reshape(ROWS, -1)
    y = (draw.random(ROWS) < expit(x @ draw.standard_normal(x.shape[1]))).astype(float)
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = expit(x @ w)
        curvature = (x.T * (p * (1 - p))) @ x / ROWS + DECAY * np.eye(w.size)
        w -= np.linalg.solve(curvature, x.T @ (p - y) / ROWS + DECAY * w)
    assert np.abs(w).max() < BOX, "the optimum must lie in the box"
    return Problem(x, y, float(_loss(x, y, w[None])[0]))


def _loss(x: Any, y: Any, w: Any) -> Any:
    z = w @ x.T
    return np.mean(np.logaddexp(0, z) - y * z, axis=1) + DECAY / 2 * np.sum(w * w, axis=1)


def averaged_gaps(
    problem: Problem, optimizer: str, layers: int, *, drop: bool, seeds: int, steps: int
) -> Any:
    """Return (1/T) sum_{t<=T} f(w_t) - f* for T = 1..steps, shape (seeds, steps).

    `layers` of the layers train in an interval, as LISA's schedule says, embedding and head always;
    `drop` forgets Adam's state of those that leave. The seeds run side by side.
    """
    x, y, draw = problem.x, problem.y, np.random.default_rng(1)
    plans = [
        ls.schedule("lisa", num_layers=LAYERS, expected_active=layers, seed=seed)
        for seed in range(seeds)
    ]
    gaps, (w, first, second, age) = np.empty((seeds, steps)), np.zeros((4, seeds, x.shape[1]))
    for t in range(steps):
        gaps[:, t] = _loss(x, y, w) - problem.best
        if t % INTERVAL == 0:
            on = _active(plans, t // INTERVAL)
            if drop:
                first, second, age = first * on, second * on, age * on
        rows = draw.integers(ROWS, size=(seeds, BATCH))
        wrong = expit(np.einsum("sbd,sd->sb", x[rows], w)) - y[rows]
        move = np.einsum("sb,sbd->sd", wrong, x[rows]) / BATCH + DECAY * w
        if optimizer == "Adam":
            age = age + on
            first = np.where(on, 0.9 * first + 0.1 * move, first)
            second = np.where(on, 0.999 * second + 0.001 * move**2, second)
            n = np.maximum(age, 1)
            move = first / (1 - 0.9**n) / (np.sqrt(second / (1 - 0.999**n)) + 1e-8)
        w = np.clip(w - STEP[optimizer] / np.sqrt(t + 1) * move * on, -BOX, BOX)
    return np.cumsum(gaps, axis=1) / np.arange(1, steps + 1)


def _active(plans: list[ls.Schedule], interval: int) -> Any:
    on = np.zeros((len(plans), LAYERS + 2, WIDTH), dtype=bool)
    on[:, [0, -1]] = True
    for seed, plan in enumerate(plans):
        on[seed, [1 + layer for layer in plan.active_layers(interval)]] = True
    return on.reshape(len(plans), -1)
