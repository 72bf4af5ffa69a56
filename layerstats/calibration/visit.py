"""The stay of one block in memory: load, let it run under a recorder, add up what it saw, free.

Both walks visit blocks through `Visits`, which so holds the sums of the whole calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from layerstats.calibration.heap import give_back
from layerstats.calibration.record import Recorder, Seen, Slot
from layerstats.calibration.stack import Stack
from layerstats.errors import CheckpointError

__all__ = ["Call", "Progress", "Visits"]

#: Runs the block that is in memory: (args, kwargs, number of the window) -> what it returns.
Call = Callable[[tuple[Any, ...], Mapping[str, Any], int], Any]
#: Told after each block: (blocks done, blocks in all).
Progress = Callable[[int, int], None]


class Visits:
    """Bring blocks into memory one after the other and add up what their weights see.

    Parameters
    ----------
    group_of
        The group of each window; sums are kept of each group beside those of all windows.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        progress: Progress | None = None,
        group_of: Sequence[int] | None = None,
    ) -> None:
        self.stack = stack
        self.progress = progress
        self.group_of = group_of
        self.groups = 1 if group_of is None else max(group_of) + 1
        self.totals: dict[Slot, Seen] = {}
        self.odd: dict[str, str] = {}
        self.expected = len(stack.blocks)
        self._done = 0

    @contextmanager
    def block(self, number: int) -> Iterator[Call]:
        """Hold a block in memory for as long as the context lasts."""
        try:
            recorder = Recorder(self.stack.load_block(number), groups=self.groups)
            block = self.stack.blocks[number]

            def call(args: tuple[Any, ...], kwargs: Mapping[str, Any], window: int) -> Any:
                recorder.group = 0 if self.group_of is None else self.group_of[window]
                with recorder:
                    return block(*args, **kwargs)

            try:
                yield call
                self._add(number, recorder)
            finally:
                # The recorder knows the block's weights, and `call` may outlive this context.
                recorder.close()
        finally:
            self.stack.free_block(number)
            give_back()
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, max(self._done, self.expected))

    def forget(self) -> None:
        """Start again: a walk was given up."""
        self.totals.clear()
        self.odd.clear()
        self._done = 0

    def _add(self, number: int, recorder: Recorder) -> None:
        seen, odd = recorder.harvest()
        for slot, value in seen.items():
            if not np.isfinite(value.sums).all():
                msg = (
                    f"block {number}: NaN or infinite activations (input of {slot.parameter}); "
                    f"{self._advice()}"
                )
                raise CheckpointError(msg)
            before = self.totals.get(slot)
            if before is not None:
                groups = value.groups
                if before.groups is not None and groups is not None:
                    groups = before.groups + groups
                value = Seen(
                    before.sums + value.sums,
                    before.tokens + value.tokens,
                    value.transposed,
                    groups,
                )
            self.totals[slot] = value
        self.odd.update(odd)

    def _advice(self) -> str:
        if "16" in str(self.stack.dtype):
            return f"they may exceed {self.stack.dtype}: calibrate in float32"
        return "look for NaN or huge weights in this block or before it"
