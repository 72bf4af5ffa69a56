"""Replay refuses whenever it would not be exact, and lockstep then is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from layerstats.calibration.lockstep import lockstep
from layerstats.calibration.record import Slot
from layerstats.calibration.stack import Stack
from layerstats.calibration.visit import Visits
from layerstats.calibration.walk import Refused, replay
from layerstats.errors import LayerstatsError
from tests.oracles.calibration import in_float64

WIDTH, COUNT = 6, 3
Forward = Callable[[Any, torch.Tensor], Any]


class Block(nn.Module):
    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.w = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tuples = tuples

    def forward(self, hidden_states: torch.Tensor, extra: Any = None, *, mask: Any = None) -> Any:
        out = hidden_states + torch.tanh(self.w(hidden_states))
        if mask is not None:
            out = out * mask
        if isinstance(extra, torch.Tensor):
            out = out + extra
        if mask is not None and getattr(self, "writes", False):
            mask.mul_(0.9)
        return (out, out.mean()) if self.tuples else out


class ToyStack(Stack):
    """Blocks that are always in memory, around which any decoder can be tried."""

    def __init__(self, forward: Forward, *, tuples: bool = False) -> None:
        self.decoder = self.model = nn.Module()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = torch.randn(10, WIDTH)
            self.blocks = [Block(tuples) for _ in range(COUNT)]
        self.device, self.dtype, self.config = torch.device("cpu"), torch.float32, None
        self._forward = forward

    def run(self, ids: torch.Tensor) -> None:
        with torch.no_grad():
            self._forward(self, self.table[ids])

    def load_block(self, number: int) -> dict[str, torch.Tensor]:
        return {f"{number}.w": self.blocks[number].w.weight}

    def free_block(self, number: int) -> None:
        pass


def plain(stack: ToyStack, h: torch.Tensor) -> Any:
    for block in stack.blocks:
        h = block(h)


def first_of_tuple(stack: ToyStack, h: torch.Tensor) -> Any:
    for block in stack.blocks:
        h = block(h)[0]


def with_mask(stack: ToyStack, h: torch.Tensor) -> Any:
    mask = torch.linspace(0.5, 1, h.shape[1])[None, :, None]
    for block in stack.blocks:
        h = block(hidden_states=h, mask=mask)


def with_embedding(stack: ToyStack, h: torch.Tensor) -> Any:
    first = h
    for block in stack.blocks:
        h = block(h, first)


def scaled_between(stack: ToyStack, h: torch.Tensor) -> Any:
    for block in stack.blocks:
        h = block(h * 1.5)


def passes_extra_on(stack: ToyStack, h: torch.Tensor) -> Any:
    extra = None
    for block in stack.blocks:
        h, extra = block(h, extra)


def mask_from_hidden(stack: ToyStack, h: torch.Tensor) -> Any:
    for block in stack.blocks:
        h = block(h, mask=torch.sigmoid(h))


def hidden_twice(stack: ToyStack, h: torch.Tensor) -> Any:
    for block in stack.blocks:
        h = block(h, h)


def twice_around(stack: ToyStack, h: torch.Tensor) -> Any:
    for _ in range(2):
        for block in stack.blocks:
            h = block(h)


def backwards(stack: ToyStack, h: torch.Tensor) -> Any:
    for block in reversed(stack.blocks):
        h = block(h)


def writes_to_mask(stack: ToyStack, h: torch.Tensor) -> Any:
    mask = torch.full((1, h.shape[1], 1), 0.9)
    for block in stack.blocks:
        block.writes = True
        h = block(h, mask=mask)


def fails_behind(stack: ToyStack, h: torch.Tensor) -> Any:
    plain(stack, h)
    raise ValueError("the final norm has no weights")


REPLAYED = [
    (plain, False),
    (first_of_tuple, True),
    (with_mask, False),
    (with_embedding, False),
    (fails_behind, False),
]
REFUSED = [
    (scaled_between, False, "changes hidden states before block"),
    (passes_extra_on, True, "does not run with recorders"),
    (mask_from_hidden, False, "depends on hidden states"),
    (hidden_twice, False, "depends on hidden states"),
    (twice_around, False, "block 0 is called as number 3"),
    (backwards, False, "block 2 is called as number 0"),
    (writes_to_mask, False, "writes to a tensor"),
]
IDS = torch.arange(28).reshape(4, 7) % 10


def expected(forward: Forward, tuples: bool) -> dict[str, np.ndarray]:
    """The sums of a plain run with hooks."""
    stack = ToyStack(forward, tuples=tuples)
    sums: dict[str, np.ndarray] = {}
    for number, block in enumerate(stack.blocks):

        def hook(module: Any, args: Any, name: str = f"{number}.w") -> None:
            sums[name] = sums.get(name, 0) + in_float64(args[0])

        block.w.register_forward_pre_hook(hook)
    for window in IDS:
        try:
            stack.run(window[None])
        except ValueError:
            assert forward is fails_behind
    return sums


def assert_sums(visits: Visits, forward: Forward, tuples: bool) -> None:
    sums = expected(forward, tuples)
    assert {slot.parameter for slot in visits.totals} == set(sums)
    for name, value in sums.items():
        np.testing.assert_allclose(visits.totals[Slot(name, None)].sums, value, rtol=1e-13)


@pytest.mark.parametrize(("forward", "tuples"), REPLAYED)
def test_replay_is_exact_where_it_does_not_refuse(forward: Forward, tuples: bool) -> None:
    stack = ToyStack(forward, tuples=tuples)
    visits = Visits(stack)
    with torch.no_grad():
        replay(stack, IDS, visits, budget_bytes=10**9)
    assert_sums(visits, forward, tuples)


@pytest.mark.parametrize(("forward", "tuples", "reason"), REFUSED)
def test_replay_refuses_what_it_cannot_do(forward: Forward, tuples: bool, reason: str) -> None:
    stack = ToyStack(forward, tuples=tuples)
    with torch.no_grad(), pytest.raises(Refused, match=reason):
        replay(stack, IDS, Visits(stack), budget_bytes=10**9)
    assert all("forward" not in vars(block) for block in stack.blocks)


@pytest.mark.parametrize(("forward", "tuples"), [*REPLAYED, *[case[:2] for case in REFUSED]])
def test_lockstep_is_exact_always(forward: Forward, tuples: bool) -> None:
    stack = ToyStack(forward, tuples=tuples)
    visits = Visits(stack)
    with torch.no_grad():
        lockstep(stack, IDS, visits, budget_bytes=10**9)
    assert_sums(visits, forward, tuples)


def test_lockstep_names_an_order_that_depends_on_the_text() -> None:
    def skips(stack: ToyStack, h: torch.Tensor) -> Any:
        for block in stack.blocks[0 if float(h.sum()) > 0 else 1 :]:
            h = block(h)

    stack = ToyStack(skips)
    with torch.no_grad(), pytest.raises(LayerstatsError, match="order that depends on the text"):
        lockstep(stack, IDS, Visits(stack), budget_bytes=10**9)


def test_a_failing_block_ends_all_lanes() -> None:
    import threading

    stack = ToyStack(plain)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    stack.blocks[1].w.forward = fails
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        lockstep(stack, IDS, Visits(stack), budget_bytes=10**9)
    assert not [thread for thread in threading.enumerate() if thread.name == "layerstats-lane"]
