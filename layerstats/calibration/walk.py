"""Replay: run the model with recorders in its blocks' places, then block by block over all windows.

The recorders return the hidden states unchanged and note everything else each block is given. That
is right only if the model does nothing with hidden states between its blocks; three guards make
sure, and where one of them refuses (`Refused`) the walk is done in lockstep instead: a block must
be handed the very object that the one before returned; what else it is handed must not change when
the hidden states do; and what it is handed must not be written to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from layerstats.calibration.hidden import HiddenStates
from layerstats.calibration.stack import Stack
from layerstats.calibration.visit import Visits

__all__ = ["Refused", "replay"]


class Refused(BaseException):
    """Replay would not be exact on this model (not an `Exception`: models must not catch it)."""


class _Stop(BaseException):
    """Raised in the last block: final norm and head are not needed."""


class _Extra:
    """Stands for what a block returns beside hidden states; a block that is handed one refuses."""


@dataclass(frozen=True, slots=True)
class _Given:
    """What a block is called with; `hidden` is the position or keyword of the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden: int | str

    def filled(self, state: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(self.hidden, str):
            return self.args, {**self.kwargs, self.hidden: state}
        return (*self.args[: self.hidden], state, *self.args[self.hidden + 1 :]), self.kwargs


class _Pool:
    """Keep each tensor that blocks are handed once: masks and such are equal in all windows."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[torch.Tensor, int]] = {}
        self._recent: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def new_window(self) -> None:
        self._recent.clear()

    def keep(self, value: Any) -> Any:
        """Return `value` with every tensor in it replaced by the one kept for its content."""
        if isinstance(value, _Extra):
            msg = "a block is handed what another returned beside its hidden states"
            raise Refused(msg)
        if isinstance(value, torch.Tensor):
            return self._keep(value)
        if type(value) in (tuple, list):
            return type(value)(self.keep(item) for item in value)
        if (
            type(value) is dict
            and all(isinstance(item, torch.Tensor) for item in value.values())
            and value
        ):
            return {key: self.keep(item) for key, item in value.items()}
        return value

    def check_untouched(self) -> None:
        if any(kept._version != version for kept, version in self._kept.values()):
            msg = "a block writes to a tensor that other blocks are handed too"
            raise Refused(msg)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        recent = self._recent.get(id(tensor))
        if recent is not None:
            return recent[1]
        plain = tensor.detach().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        digest = hashlib.blake2b(content).digest()
        key = (tuple(tensor.shape), tensor.stride(), tensor.dtype, digest)
        kept = self._kept.setdefault(key, (tensor, tensor._version))[0]
        # Holding the tensor keeps its id from being given to another one.
        self._recent[id(tensor)] = (tensor, kept)
        return kept


def replay(
    stack: Stack, windows: torch.Tensor, visits: Visits, *, budget_bytes: int
) -> dict[str, Any]:
    """Walk the blocks over all windows, one window at a time.

    Parameters
    ----------
    windows
        Token ids, shape (windows, seq_len), int64.
    budget_bytes
        Size of all hidden states above which they live on disk.

    Returns
    -------
    dict
        How it went: `hidden_states` "memory" or "disk".

    Raises
    ------
    Refused
        Replay would not be exact.
    """
    pool = _Pool()
    with HiddenStates(len(windows), budget_bytes=budget_bytes) as states:
        given = _record_all(stack, windows, pool, states)
        plain = given.plain
        for number in range(len(stack.blocks)):
            with visits.block(number) as call:
                for window in range(len(windows)):
                    args, kwargs = given.calls[window][number].filled(
                        states.get(window, stack.device)
                    )
                    result = call(args, kwargs, window)
                    states.put(window, _hidden_of(result, plain))
                    del args, kwargs, result
                pool.check_untouched()
        return {"hidden_states": "disk" if states.on_disk else "memory"}


@dataclass(frozen=True, slots=True)
class _Recording:
    calls: list[list[_Given]]
    plain: bool


def _record_all(
    stack: Stack, windows: torch.Tensor, pool: _Pool, states: HiddenStates
) -> _Recording:
    """Run the model around its blocks for every window; `states` gets what the first is given."""
    plain = _find_style(stack, windows[:1], pool)
    calls: list[list[_Given]] = []
    for window in range(len(windows)):
        pool.new_window()
        tape = _Tape(len(stack.blocks), pool, plain=plain, stop=True)
        tape.run(stack, windows[window : window + 1])
        assert tape.first is not None
        states.put(window, tape.first)
        calls.append(tape.calls)
    return _Recording(calls, plain)


def _find_style(stack: Stack, ids: torch.Tensor, pool: _Pool) -> bool:
    """Find out on one window whether the blocks return a tensor or a tuple, and try the guards."""
    reasons = []
    for plain in (True, False):
        try:
            tapes = []
            for disturb in (False, True):
                pool.new_window()
                tape = _Tape(len(stack.blocks), pool, plain=plain, stop=False, disturb=disturb)
                tape.run(stack, ids)
                tapes.append(tape)
            first, second = tapes
            if any(
                not _same(one, other) for one, other in zip(first.calls, second.calls, strict=True)
            ):
                msg = "what blocks are handed depends on hidden states"
                raise Refused(msg)
        except Refused as refused:
            reasons.append(str(refused))
        else:
            return plain
    raise Refused("; ".join(dict.fromkeys(reasons)))


class _Tape:
    """The recorders of one window."""

    def __init__(
        self, count: int, pool: _Pool, *, plain: bool, stop: bool, disturb: bool = False
    ) -> None:
        self.count, self.pool = count, pool
        self.plain, self.stop, self.disturb = plain, stop, disturb
        self.calls: list[_Given] = []
        self.first: torch.Tensor | None = None
        self._returned: torch.Tensor | None = None

    def run(self, stack: Stack, ids: torch.Tensor) -> None:
        with stack.in_place_of_blocks(self._recorder):
            try:
                stack.run(ids)
            except _Stop:
                pass
            except Exception as error:
                # Behind the last block anything may fail: nothing of it is needed.
                if len(self.calls) < self.count:
                    msg = f"the model does not run with recorders: {error}"
                    raise Refused(msg) from error
        if len(self.calls) < self.count:
            msg = f"the model calls {len(self.calls)} of its {self.count} blocks"
            raise Refused(msg)

    def _recorder(self, number: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if number != len(self.calls):
                msg = f"block {number} is called as number {len(self.calls)}"
                raise Refused(msg)
            place: int | str = 0 if args else "hidden_states"
            state = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(state, torch.Tensor):
                msg = f"block {number} is handed no hidden states"
                raise Refused(msg)
            if self._returned is not None and state is not self._returned:
                msg = f"the model changes hidden states before block {number}"
                raise Refused(msg)
            if self.first is None:
                self.first = state
            rest = tuple(self.pool.keep(item) for item in args[1:])
            named = {key: self.pool.keep(item) for key, item in kwargs.items() if key != place}
            self.calls.append(_Given((None, *rest) if args else (), named, place))
            self._returned = state * 0.5 + 1 if self.disturb else state
            if self.stop and number == self.count - 1:
                raise _Stop
            return self._returned if self.plain else (self._returned, _Extra(), _Extra(), _Extra())

        return forward


def _same(one: _Given, other: _Given) -> bool:
    return (
        one.hidden == other.hidden
        and _equal(one.args, other.args)
        and _equal(one.kwargs, other.kwargs)
    )


def _equal(one: Any, other: Any) -> bool:
    """Compare two recordings; tensors come from the same pool, so equal ones are one object."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one is other
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, bool | int | float | str | None):
        return bool(one == other)
    return True


def _hidden_of(result: Any, plain: bool) -> torch.Tensor:
    """Return the hidden states from what a block returned."""
    state = result[0] if isinstance(result, tuple | list) else result
    # The model took the first of a tuple: a tensor in its place would have lost its batch axis.
    if not isinstance(state, torch.Tensor) or (not plain and result is state):
        msg = "a block does not return what the model around it expects"
        raise Refused(msg)
    return state
