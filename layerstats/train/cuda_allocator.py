"""An estimate of what torch's CUDA caching allocator would reserve for a run that was counted.

It replays allocations and frees by the allocator's published rules and knows no device. The real
one also frees cached segments when memory runs out, keeps one pool a stream and is beside the CUDA
context and the libraries' workspaces; so this is an estimate, and called one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["reserved_bytes"]

_MIN_BLOCK = 512
_SMALL = 1 << 20
_SMALL_SEGMENT = 2 << 20
_LARGE_SEGMENT = 20 << 20
_LARGE_FROM = 10 << 20
_LARGE_STEP = 2 << 20


def reserved_bytes(events: Iterable[tuple[int, int]]) -> int:
    """Return the bytes that the CUDA caching allocator would hold at most, an estimate.

    Sizes are rounded up to 512 bytes. Up to 1 MiB come from segments of 2 MiB, below 10 MiB from
    segments of 20 MiB, others have segments of their own size rounded up to 2 MiB; the smallest
    free block that fits is taken and split, free neighbours are joined, no segment is given back.

    Parameters
    ----------
    events : iterable of (int, int)
        Number of a storage and its size in bytes from then on, 0 when freed; see
        `LiveBytes.device_sizes`.

    Returns
    -------
    int
        Bytes, at least the largest sum of the sizes.

    References
    ----------
    c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.x, default settings.

    Examples
    --------
    >>> reserved_bytes([(0, 1000), (1, 3_000_000), (0, 0), (2, 64_000_000)]) / 2**20
    84.0
    """
    small, large = _Pool(small=True), _Pool(small=False)
    held: dict[int, tuple[_Pool, int]] = {}
    for number, size in events:
        if number in held:
            pool, address = held.pop(number)
            pool.free(address)
        if size:
            rounded = -(-size // _MIN_BLOCK) * _MIN_BLOCK
            pool = small if rounded <= _SMALL else large
            held[number] = (pool, pool.take(rounded))
    return small.reserved + large.reserved


@dataclass(slots=True)
class _Block:
    """A piece of a segment, and the addresses of its neighbours within the segment."""

    size: int
    before: int | None
    after: int | None
    is_free: bool = False


class _Pool:
    """The small or the large pool: segments cut into blocks."""

    def __init__(self, *, small: bool) -> None:
        self.reserved = 0
        self._small = small
        self._blocks: dict[int, _Block] = {}
        self._free: list[tuple[int, int]] = []

    def take(self, size: int) -> int:
        """Give out a block and return its address."""
        place = bisect_left(self._free, (size, 0))
        if place < len(self._free):
            _, address = self._free.pop(place)
        else:
            address = self.reserved
            segment = self._segment(size)
            self.reserved += segment
            self._blocks[address] = _Block(segment, None, None)
        block = self._blocks[address]
        block.is_free = False
        rest = block.size - size
        if rest >= _MIN_BLOCK if self._small else rest > _SMALL:
            self._split(address, block, size)
        return address

    def free(self, address: int) -> None:
        """Take a block back and join it with free neighbours."""
        block = self._blocks[address]
        if block.after is not None and self._blocks[block.after].is_free:
            self._unlist(block.after)
            self._absorb(address, block.after)
        if block.before is not None and self._blocks[block.before].is_free:
            self._unlist(block.before)
            address, behind = block.before, address
            self._absorb(address, behind)
        self._list(address)

    def _segment(self, size: int) -> int:
        if self._small:
            return _SMALL_SEGMENT
        return _LARGE_SEGMENT if size < _LARGE_FROM else -(-size // _LARGE_STEP) * _LARGE_STEP

    def _split(self, address: int, block: _Block, size: int) -> None:
        second = address + size
        self._blocks[second] = _Block(block.size - size, address, block.after)
        if block.after is not None:
            self._blocks[block.after].before = second
        block.size, block.after = size, second
        self._list(second)

    def _absorb(self, address: int, behind: int) -> None:
        """Make a block and the one behind it one."""
        first, second = self._blocks[address], self._blocks.pop(behind)
        first.size, first.after = first.size + second.size, second.after
        if second.after is not None:
            self._blocks[second.after].before = address

    def _list(self, address: int) -> None:
        block = self._blocks[address]
        block.is_free = True
        insort(self._free, (block.size, address))

    def _unlist(self, address: int) -> None:
        block = self._blocks[address]
        del self._free[bisect_left(self._free, (block.size, address))]
