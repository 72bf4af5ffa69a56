"""The estimate of reserved bytes, against sequences worked out by the allocator's rules by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from layerstats.train.cuda_allocator import reserved_bytes

MIB = 1 << 20


def test_small_blocks_share_segments_of_two_mebibytes() -> None:
    assert reserved_bytes([(0, 1)]) == 2 * MIB
    assert reserved_bytes([(n, 512) for n in range(4096)]) == 2 * MIB
    assert reserved_bytes([(n, 513) for n in range(2049)]) == 4 * MIB  # 1024 each: 2048 fit


def test_middle_blocks_share_segments_of_twenty() -> None:
    assert reserved_bytes([(0, MIB + 1)]) == 20 * MIB
    assert reserved_bytes([(n, 2 * MIB) for n in range(10)]) == 20 * MIB
    assert reserved_bytes([(n, 2 * MIB) for n in range(11)]) == 40 * MIB


def test_large_blocks_have_their_own() -> None:
    assert reserved_bytes([(0, 10 * MIB)]) == 10 * MIB
    assert reserved_bytes([(0, 10 * MIB + 1)]) == 12 * MIB


def test_a_freed_segment_is_used_again_and_its_rest_too() -> None:
    events = [(0, 64 * MIB), (0, 0), (1, 40 * MIB), (2, 24 * MIB)]
    assert reserved_bytes(events) == 64 * MIB
    # The rest of 64 MiB does not do for 25: fragmentation.
    assert reserved_bytes([*events[:3], (2, 25 * MIB)]) == 90 * MIB  # 25 rounds up to 26


def test_a_rest_of_one_mebibyte_is_not_split_off_a_large_block() -> None:
    events = [(0, 64 * MIB), (0, 0), (1, 63 * MIB), (2, MIB + 512)]
    assert reserved_bytes(events) == 84 * MIB


def test_free_neighbours_become_one_block_again() -> None:
    cut = [(0, 60 * MIB), (0, 0), (1, 20 * MIB), (2, 20 * MIB), (3, 20 * MIB)]
    for order in ((1, 2, 3), (3, 2, 1), (1, 3, 2)):
        assert reserved_bytes([*cut, *((n, 0) for n in order), (9, 60 * MIB)]) == 60 * MIB
    assert reserved_bytes([*cut, (1, 0), (3, 0), (9, 40 * MIB)]) == 100 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    events = [(0, 30 * MIB), (1, 20 * MIB), (0, 0), (1, 0), (2, 20 * MIB), (3, 30 * MIB)]
    assert reserved_bytes(events) == 50 * MIB


def test_a_resized_storage_moves() -> None:
    assert reserved_bytes([(0, 12 * MIB), (0, 20 * MIB)]) == 32 * MIB


@given(
    st.lists(
        st.tuples(
            st.integers(0, 7), st.sampled_from([0, 1, 5000, MIB, 3 * MIB, 11 * MIB, 40 * MIB])
        )
    )
)
def test_never_below_what_is_alive_and_never_wild(events: list[tuple[int, int]]) -> None:
    sizes: dict[int, int] = {}
    alive = allocated = 0
    for number, size in events:
        allocated += size + 20 * MIB if size else 0
        sizes[number] = size
        alive = max(alive, sum(sizes.values()))
    assert alive <= reserved_bytes(events) <= allocated
