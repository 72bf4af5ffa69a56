"""Lockstep: every window runs the model in a coroutine of its own, and all meet at each block.

Nothing is assumed about what happens between blocks, so it is exact for every model; but all
windows' frames stay alive, so hidden states cannot go to disk: windows are taken in groups that fit
the budget instead, and each group loads every block again. The coroutines are threads of which
exactly one runs at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from layerstats.calibration.stack import Stack
from layerstats.calibration.visit import Visits
from layerstats.errors import LayerstatsError

__all__ = ["lockstep"]

#: More threads than this at a time help nobody.
_MOST_LANES = 128
#: Frames of one window hold its hidden states about this many times (states, residual, copies).
_COPIES = 4


class _Cancelled(BaseException):
    """Raised in a lane that is to end."""


class _Lane(threading.Thread):
    """One window's run of the model, stopped at each block until it is told to go on."""

    def __init__(self, stack: Stack, ids: torch.Tensor) -> None:
        super().__init__(daemon=True, name="layerstats-lane")
        self._stack, self._ids = stack, ids
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._cancelled = False
        self._answer: Any = None
        self.request: tuple[int, tuple[Any, ...], Mapping[str, Any]] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        self._go.acquire()
        # Work between blocks is small; a pool of OpenMP threads for each lane would not be.
        torch.set_num_threads(1)
        try:
            if not self._cancelled:
                self._stack.run(self._ids)
        except _Cancelled:
            pass
        except BaseException as error:
            self.error = error
        self.request = None
        self._stopped.release()

    def advance(self, answer: Any = None) -> None:
        """Let the lane run up to its next block, or to its end (`request` is then None)."""
        self._answer = answer
        self._go.release()
        self._stopped.acquire()

    def wait_at(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Hand a block's call over and wait for its result (in the lane's own thread)."""
        self.request = (number, args, kwargs)
        self._stopped.release()
        self._go.acquire()
        if self._cancelled:
            raise _Cancelled
        answer, self._answer = self._answer, None
        return answer

    def cancel(self) -> None:
        self._cancelled = True
        if self.is_alive():
            self._go.release()
            self.join()


def lockstep(
    stack: Stack, windows: torch.Tensor, visits: Visits, *, budget_bytes: int
) -> dict[str, Any]:
    """Walk the blocks over all windows, exact for any order and use of the blocks.

    Parameters
    ----------
    windows
        Token ids, shape (windows, seq_len), int64.
    budget_bytes
        Hidden states of a group of windows stay below it (one window at least).

    Returns
    -------
    dict
        How it went: `window_groups`, the number of passes over the blocks.
    """
    width = int(getattr(stack.config, "hidden_size", 1))
    one = windows.shape[1] * width * stack.dtype.itemsize * _COPIES
    size = int(min(max(1, budget_bytes // one), _MOST_LANES))
    groups = torch.split(windows, size)
    visits.expected = len(stack.blocks) * len(groups)
    for number, group in enumerate(groups):
        _walk_group(stack, group, visits, first=number * size)
    return {"hidden_states": "memory", "window_groups": len(groups)}


def _walk_group(stack: Stack, windows: torch.Tensor, visits: Visits, *, first: int) -> None:
    """Walk the blocks over some of the windows, of which `first` is the number of the first."""
    lanes = [_Lane(stack, windows[i : i + 1]) for i in range(len(windows))]
    by_thread: dict[int | None, _Lane] = {}
    # The block that is in memory runs with its own forward, whatever stands in its place.
    own = [block.forward for block in stack.blocks]

    def hand_over(number: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            lane = by_thread.get(threading.get_ident())
            return (
                own[number](*args, **kwargs) if lane is None else lane.wait_at(number, args, kwargs)
            )

        return forward

    called: set[int] = set()
    try:
        with stack.in_place_of_blocks(hand_over):
            for lane in lanes:
                lane.start()
                by_thread[lane.ident] = lane
                lane.advance()
            while (number := _agreed(stack, lanes, called)) is not None:
                called.add(number)
                with visits.block(number) as call:
                    for window, lane in enumerate(lanes, first):
                        assert lane.request is not None
                        _, args, kwargs = lane.request
                        lane.request = None
                        result = call(args, kwargs, window)
                        del args, kwargs
                        lane.advance(result)
                        del result
    finally:
        for lane in lanes:
            lane.cancel()


def _agreed(stack: Stack, lanes: list[_Lane], called: set[int]) -> int | None:
    """Return the block all lanes wait at, None when all have ended."""
    for lane in lanes:
        if isinstance(lane.error, LayerstatsError):
            raise lane.error
        # Behind the last block anything may fail: nothing of it is needed.
        if lane.error is not None and len(called) < len(stack.blocks):
            raise _as_error(stack, lane.error, called) from lane.error
    wanted = {lane.request[0] if lane.request is not None else None for lane in lanes}
    if len(wanted) > 1:
        msg = (
            f"{type(stack.decoder).__name__} takes its blocks in an order that depends on the text"
        )
        raise LayerstatsError(msg)
    number = wanted.pop()
    if number is None and len(called) < len(stack.blocks):
        msg = (
            f"{type(stack.decoder).__name__} calls {len(called)} of its {len(stack.blocks)} blocks"
        )
        raise LayerstatsError(msg)
    return number


def _as_error(stack: Stack, error: BaseException, called: set[int]) -> LayerstatsError:
    where = f"behind block {max(called)}" if called else "before its first block"
    return LayerstatsError(f"{type(stack.decoder).__name__} fails {where}: {error}")
