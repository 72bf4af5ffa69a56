"""Counting the bytes of all tensors that are alive, of real tensors and of fake ones alike.

`LiveBytes` watches every operation of torch, notes when a storage is made, resized and freed, and
says afterwards how much was alive at most, in which phase, and what it was. It knows storages and
phases; models, methods and devices' allocators are elsewhere.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layerstats.errors import UsageError, choices

__all__ = ["PARTS", "LiveBytes", "MemoryUse"]

PARTS = ("weights", "gradients", "optimizer", "activations")
"""What device memory is for; activations are all that is nothing else: what the forward pass keeps
for the backward pass, logits, temporary results."""

_REST = PARTS.index("activations")
_HOST = len(PARTS)


@dataclass(frozen=True)
class MemoryUse:
    """How much was alive at most, and what it was. Everything is in bytes.

    Parameters
    ----------
    peak_bytes : int
        Largest number of bytes alive at one moment.
    peak_phase : str
        Phase of that moment, the first one if there were several.
    parts_at_peak_bytes : mapping of str to int
        What was alive at that moment, by `PARTS`; their sum is `peak_bytes`.
    part_peaks_bytes : mapping of str to int
        The most that each part had, at a moment of its own.
    phase_peaks_bytes : mapping of str to int
        The most that was alive in each phase.
    host_bytes : int
        The most that waited on the host, outside the peak.
    """

    peak_bytes: int
    peak_phase: str
    parts_at_peak_bytes: Mapping[str, int]
    part_peaks_bytes: Mapping[str, int]
    phase_peaks_bytes: Mapping[str, int]
    host_bytes: int

    @property
    def sum_of_parts_bytes(self) -> int:
        """The parts' own peaks added up, as papers print it; never below the true peak."""
        return sum(self.part_peaks_bytes.values())


class _Largest:
    """Keeps the largest sums of what is held, by part, as they come along."""

    def __init__(self) -> None:
        self.phase = ""
        self.held = [0] * (_HOST + 1)
        self._own = [0] * (_HOST + 1)
        self._at_peak = [0] * (_HOST + 1)
        self._peak, self._peak_phase = -1, ""
        self._phases: dict[str, int] = {}

    def look(self, phase: str) -> None:
        """Take what is held now into account."""
        self.phase = phase
        total = sum(self.held) - self.held[_HOST]
        self._own = [max(pair) for pair in zip(self._own, self.held, strict=True)]
        self._phases[phase] = max(self._phases.get(phase, 0), total)
        if total > self._peak:
            self._peak, self._peak_phase, self._at_peak = total, phase, list(self.held)

    def result(self) -> MemoryUse:
        """Return the largest sums."""
        return MemoryUse(
            peak_bytes=self._peak,
            peak_phase=self._peak_phase,
            parts_at_peak_bytes=dict(zip(PARTS, self._at_peak, strict=False)),
            part_peaks_bytes=dict(zip(PARTS, self._own, strict=False)),
            phase_peaks_bytes=self._phases,
            host_bytes=self._own[_HOST],
        )


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are alive while it is entered, to the byte.

    ``current = sum over storages of their size in bytes as asked for``: views, aliases and
    in-place results add nothing, a storage counts until its last tensor is gone, and nothing is
    rounded. Fake tensors are counted by the storage they stand for. Enter it inside a
    FakeTensorMode, not around one.

    What a storage is for is asked when a phase ends (`watch`), and holds from its birth on: a
    gradient is one from the moment the backward pass computes it, not from when it is stored. So
    the parts at the peak are exact for all that is still held when its phase ends.

    Parameters
    ----------
    device : str, optional
        "cuda": what is on other devices waits on the host. None counts all devices alike.

    Notes
    -----
    Memory that a kernel takes and gives back inside one operation is not seen; nor is what was made
    before entering, until `adopt` is told of it or an operation returns it.

    Examples
    --------
    >>> with LiveBytes() as live:
    ...     a = torch.zeros(1000)
    ...     b = a[10:] + 1.0
    ...     del a
    >>> live.current, live.peak
    (3960, 7960)
    """

    def __init__(self, *, device: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._device = device
        self._watched: list[tuple[int, Callable[[], Iterable[object]]]] = []
        self._parked: Callable[[], Iterable[object]] = tuple
        self._moved: set[int] = set()
        # By the storage's address, which is its own for as long as it is alive.
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        # By the storage's number: what it is for, its size now, whether it waits on the host now.
        self._parts = array("b")
        self._sizes = array("q")
        self._away = array("b")
        # One entry an event: the storage, and its size and place from then on.
        self._events = (array("q"), array("q"), array("b"))
        self._phases: list[tuple[int, str]] = [(0, "start")]
        self._resize_storage = torch.UntypedStorage.resize_

    def __enter__(self) -> LiveBytes:
        live = self

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            live._resize_storage(storage, size)
            live._update(storage, away=False)
            return storage

        # The one way to change a storage that is no operation.
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize_storage  # type: ignore[method-assign]
        self._classify()
        # From here on nothing is asked or noted any more.
        self._watched.clear()
        self._parked = tuple
        self._moved.clear()
        self._alive.clear()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do the operation and count the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._see(leaf)
        return result

    def adopt(self, tensors: Iterable[object], part: str) -> None:
        """Count storages that were made before, as a part; what is no tensor is passed over.

        Raises
        ------
        UsageError
            Unknown part.
        """
        self._claim(tensors, _index(part))

    def watch(self, part: str, tensors: Callable[[], Iterable[object]]) -> None:
        """Have what `tensors` returns at the end of each phase counted as a part.

        The first part that claims a storage keeps it.

        Raises
        ------
        UsageError
            Unknown part.
        """
        self._watched.append((_index(part), tensors))

    def watch_host(self, tensors: Callable[[], Iterable[object]]) -> None:
        """Count what `tensors` returns at the end of a phase as waiting on the host until the next.

        For state that a run on a GPU would send to the host, where all tensors are on one device.
        """
        self._parked = tensors

    def phase(self, name: str) -> None:
        """End the phase before and begin this one."""
        self._classify()
        self._phases.append((self.position, name))

    @property
    def position(self) -> int:
        """Number of events so far, to give to `use`."""
        return len(self._events[0])

    def use(self, *, since: int = 0, until: int | None = None) -> MemoryUse:
        """Return what was alive at most, from one `position` to another.

        Parameters
        ----------
        since, until : int, optional
            The peak is looked for from there, what was alive then included, up to and without
            `until`; everything by default.

        Returns
        -------
        MemoryUse
        """
        self._classify()
        until = self.position if until is None else until
        found = _Largest()
        for position, phase, part, change in self._replay(until):
            # What is alive when a phase begins is alive in it.
            if position >= since and phase != found.phase:
                found.look(phase)
            found.held[part] += change
            if position >= since:
                found.look(phase)
        if not found.phase:
            found.look(self._phases[-1][1])
        return found.result()

    def device_sizes(self, *, since: int = 0) -> Iterator[tuple[int, int]]:
        """Yield events on the device: a storage's number, and its size there from then on.

        Parameters
        ----------
        since : int, optional
            A `position`; what was alive there comes first, in the order in which it was made.
        """
        events = zip(*self._events, strict=True)
        alive = {number: 0 if away else size for number, size, away in islice(events, since)}
        yield from sorted((number, size) for number, size in alive.items() if size)
        for number, size, away in events:
            yield number, 0 if away else size

    def _replay(self, until: int) -> Iterator[tuple[int, str, int, int]]:
        """Yield position, phase, part and its change in bytes, event by event.

        A last one without a change stands at `until`.
        """
        sizes = array("q", bytes(8 * len(self._sizes)))
        places = array("b", self._parts)
        ends = [*(at for at, _ in self._phases[1:]), until + 1]
        current = 0
        for position in range(until):
            while position >= ends[current]:
                current += 1
            number, size, away = (column[position] for column in self._events)
            phase, part = self._phases[current][1], _HOST if away else self._parts[number]
            if part != places[number]:
                yield position, phase, places[number], -sizes[number]
                places[number], sizes[number] = part, 0
            yield position, phase, part, size - sizes[number]
            sizes[number] = size

    def _see(self, leaf: object) -> int | None:
        """Count a tensor's storage and return its number; None for what has no storage."""
        if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided:
            return None
        elsewhere = self._device is not None and leaf.device.type != self._device
        return self._update(leaf.untyped_storage(), away=elsewhere)

    def _update(self, storage: torch.UntypedStorage, *, away: bool) -> int:
        """Note a storage that is new or has another size than before; return its number."""
        key, size = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is not None:
            number = known[1]
        else:
            number = len(self._sizes)
            self._parts.append(_REST)
            self._sizes.append(0)
            self._away.append(away)
            self._alive[key] = (weakref.ref(storage, partial(self._gone, key, number)), number)
        if size != self._sizes[number]:
            self._note(number, size, self._away[number])
        return number

    def _gone(self, key: int, number: int, _: object) -> None:
        if self._alive.pop(key, None) is not None and self._sizes[number]:
            self._note(number, 0, self._away[number])

    def _note(self, number: int, size: int, away: int) -> None:
        for column, value in zip(self._events, (number, size, away), strict=True):
            column.append(value)
        before = 0 if self._away[number] else self._sizes[number]
        self.current += (0 if away else size) - before
        self.peak = max(self.peak, self.current)
        self._sizes[number], self._away[number] = size, away

    def _classify(self) -> None:
        """Ask what the storages are for, and which of them wait on the host."""
        for part, tensors in self._watched:
            self._claim(tensors(), part)
        parked = {number for one in self._parked() if (number := self._see(one)) is not None}
        # What leaves goes before what comes back.
        for number in [*sorted(parked - self._moved), *sorted(self._moved - parked)]:
            if self._sizes[number]:
                self._note(number, self._sizes[number], number in parked)
        self._moved = parked

    def _claim(self, tensors: Iterable[object], part: int) -> None:
        for one in tensors:
            number = self._see(one)
            if number is not None and self._parts[number] == _REST:
                self._parts[number] = part


def _index(part: str) -> int:
    if part not in PARTS:
        raise UsageError(choices("part", part, PARTS))
    return PARTS.index(part)
