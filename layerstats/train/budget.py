"""What fits into a given memory: methods, layers, ranks and batches, best first; simulated.

How many layers fit is found by going where the layers simulated so far point to, not by trying all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layerstats.errors import UsageError, choices
from layerstats.train.config import METHODS
from layerstats.train.memory import MemoryPlan
from layerstats.train.presets import model_config
from layerstats.train.sweep import Planner, Progress, concerns

__all__ = ["BATCH_SIZES", "Fit", "fit_budget"]

#: Windows in a micro-batch that are tried where nothing is said.
BATCH_SIZES = (1, 4, 16)


@dataclass(frozen=True)
class Fit:
    """A run that fits: all it needs to be told, and its plan.

    Parameters
    ----------
    method : str
    layers : int
        Layers that train in a step: `expected_active` for the methods that sample layers.
    rank : int or None
        Where the method has one; None stands for its default.
    seq_len, batch_size : int
    plan : MemoryPlan
    """

    method: str
    layers: int
    rank: int | None
    seq_len: int
    batch_size: int
    plan: MemoryPlan

    @property
    def tokens(self) -> int:
        """Tokens in a micro-batch."""
        return self.seq_len * self.batch_size


def fit_budget(
    source: str | Path | Any,
    budget_bytes: float,
    *,
    methods: Sequence[str] = tuple(METHODS),
    ranks: Sequence[int | None] = (None,),
    seq_lens: Sequence[int] = (512,),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Fit]:
    """Find the runs whose estimated reserved bytes are within a budget, best first.

    What cannot be run, such as a rank above the model's width, does not fit.

    For each method, rank, sequence length and batch size the number of layers that fits while one
    more does not.
    The order: more layers that train in a step, then more tokens in a micro-batch, then more
    parameters that train, then less memory. What is no better in layers, tokens and rank than
    another run of the same method is left out.

    Parameters
    ----------
    source : str, Path or transformers config
        See `plan_memory`.
    budget_bytes : float
        What the allocator may reserve. The CUDA context is beside it.
    methods, ranks, seq_lens, batch_sizes : sequence
        What to choose from. Ranks are for the methods that have one.
    progress : callable, optional
        Called with a word, candidates done and their number.
    **settings
        What else `plan_memory` takes, for all. With a `schedule` the number of layers is its own.

    Returns
    -------
    list of Fit
        Empty if nothing fits.

    Raises
    ------
    UsageError
        The budget is not above 0, or a setting is not allowed in any of the runs.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> small = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=4,
    ...                     num_attention_heads=4, vocab_size=512)
    >>> runs = fit_budget(small, 32e6, methods=["lisa", "full"], seq_lens=[8], batch_sizes=[1])
    >>> [(run.method, run.layers) for run in runs]
    [('lisa', 4), ('full', 4)]
    """
    if not (math.isfinite(budget_bytes) and budget_bytes > 0):
        msg = f"the budget is {budget_bytes:g} bytes; give one above 0, such as 24e9"
        raise UsageError(msg)
    for method in methods:
        if method not in METHODS:
            raise UsageError(choices("method", method, METHODS))
    depth = int(model_config(source).get_text_config().num_hidden_layers)
    search = _Search(Planner(source, **settings), budget_bytes, depth, settings)
    kinds = [
        (method, rank)
        for method in methods
        for rank in (ranks if concerns(method, "rank") else (None,))
    ]
    sizes = sorted(itertools.product(seq_lens, batch_sizes))
    found: list[Fit] = []
    refused: list[UsageError] = []
    for number, (kind, size) in enumerate(itertools.product(kinds, sizes)):
        if progress is not None:
            progress("simulate", number, len(kinds) * len(sizes))
        try:
            fit = search.largest(*kind, *size)
        except UsageError as error:  # such as a rank above what the model's matrices have
            refused.append(error)
            continue
        if fit is not None:
            found.append(fit)
    if refused and not found:
        raise refused[0]
    return sorted((one for one in found if not _is_beaten(one, found)), key=_order)


class _Search:
    """Finds the most layers that fit; what was found for smaller batches bounds larger ones."""

    def __init__(
        self, planner: Planner, budget: float, depth: int, settings: Mapping[str, Any]
    ) -> None:
        self._planner, self._budget, self._depth = planner, budget, depth
        self._given = settings.get("schedule") is not None
        always = settings.get("always_active")
        self._embedding_rests = always is not None and "embed" not in always
        self._known: dict[tuple[str, str, int | None], list[tuple[int, int, int]]] = {}

    def largest(self, method: str, rank: int | None, seq_len: int, batch_size: int) -> Fit | None:
        """Return the run with the most layers that fits, None if there is none."""
        kind = METHODS[method]
        known = self._known.setdefault((kind.who, kind.how, rank), [])
        # A longer or larger batch takes no less.
        most = min(
            (n for length, size, n in known if length <= seq_len and size <= batch_size),
            default=self._depth,
        )
        fixed = {"method": method, "rank": rank, "seq_len": seq_len, "batch_size": batch_size}
        layers, plan = self._search(fixed, most) if most else (0, None)
        known.append((seq_len, batch_size, layers))
        if plan is None:
            return None
        return Fit(method, layers, rank, seq_len, batch_size, replace(plan, method=method))

    def _search(self, fixed: Mapping[str, Any], most: int) -> tuple[int, MemoryPlan | None]:
        """Return the largest number of layers up to `most` that fits, and its plan."""
        if METHODS[fixed["method"]].who != "layers" or self._given:
            plan = self._planner.plan(**fixed)
            return (_layers_of(plan, self._depth), plan) if self._fits(plan) else (0, None)
        low, high = 0, most + 1
        taken: dict[int, int] = {}
        guess = 1
        while high - low > 1:
            taken[guess] = self._quick(fixed, guess).reserved_bytes_estimate
            low, high = (guess, high) if taken[guess] <= self._budget else (low, guess)
            guess = _next(taken, low, high, self._budget)
        # The quick plans looked at one place for the layers; the answer looks at all of them, where
        # the allocator can do a little better or worse.
        plan = self._planner.plan(**fixed, expected_active=max(low, 1))
        while low and not self._fits(plan):
            low -= 1
            plan = self._planner.plan(**fixed, expected_active=max(low, 1))
        while low < most:
            more = self._planner.plan(**fixed, expected_active=low + 1)
            if not self._fits(more):
                break
            low, plan = low + 1, more
        return (low, plan) if low else (0, None)

    def _quick(self, fixed: Mapping[str, Any], layers: int) -> MemoryPlan:
        highest = list(range(self._depth - layers, self._depth))
        if self._embedding_rests:
            highest[0] = 0
        return self._planner.plan(**fixed, expected_active=layers, layers=tuple(highest))

    def _fits(self, plan: MemoryPlan) -> bool:
        return plan.reserved_bytes_estimate <= self._budget


def _next(taken: Mapping[int, int], low: int, high: int, budget: float) -> int:
    """Return the number of layers to look at next, strictly between two bounds.

    Where the line through the two largest that fit meets the budget, then the one above it;
    half-way where there is no line yet or the line has missed.
    """
    fitting = sorted(n for n in taken if n <= low)
    if len(taken) == 1 and low:
        return low + 1
    if len(fitting) >= 2 and len(taken) <= len(fitting) + 1:
        first, last = fitting[-2:]
        a_layer = (taken[last] - taken[first]) / (last - first)
        if a_layer > 0:
            meets = low + int((budget - taken[last]) / a_layer)
            return min(max(meets, low + 1), high - 1)
    return (low + high) // 2


def _layers_of(plan: MemoryPlan, depth: int) -> int:
    return depth if plan.active_layers is None else len(plan.active_layers)


def _is_beaten(one: Fit, others: Sequence[Fit]) -> bool:
    """Return whether another run of the method has no less of anything and more of something."""
    mine = (one.layers, one.seq_len, one.batch_size, one.rank or 0)
    return any(
        (its := (other.layers, other.seq_len, other.batch_size, other.rank or 0)) != mine
        and all(b >= a for a, b in zip(mine, its, strict=True))
        for other in others
        if other.method == one.method
    )


def _order(fit: Fit) -> tuple[float, ...]:
    plan = fit.plan
    return (-fit.layers, -fit.tokens, -plan.trainable_parameters, plan.reserved_bytes_estimate)
