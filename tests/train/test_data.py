"""Batches: a pure function of step and seed, every window once an epoch, nothing lost silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from layerstats.errors import MissingError, UsageError
from layerstats.train.data import Batch, TrainingData, load_data, split
from tests.train.byte_tokenizer import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer(bos=False)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(folder: Path, rows: list[Any], name: str = "a.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """26 examples `aaa`, `bbb`, ... of 4 tokens with EOS; a window each."""
    file = write(tmp_path_factory.mktemp("letters"), [{"text": 3 * one} for one in LETTERS])
    return load_data(file, TOKENIZER, seq_len=8, packing=False)


def flat(data: TrainingData) -> list[int]:
    """All tokens of the windows in order, padding left out."""
    found = []
    for batch in data.batches(1):
        assert batch.input_ids.shape[0] == 1
        found += batch.input_ids[0].tolist()
    return found


def order(batches: list[Batch]) -> list[int]:
    return [window for batch in batches for window in batch.windows]


numbers = some.integers(1, 7)
seeds = some.integers(0, 2**63 - 1)


@given(numbers, numbers, seeds, some.integers(0, 4))
def test_an_epoch_has_every_window_once_and_only_its_last_step_is_smaller(
    letters: TrainingData, batch_size: int, accumulation: int, seed: int, epoch: int
) -> None:
    steps = letters.steps_per_epoch(batch_size, accumulation)
    settings: Any = {"batch_size": batch_size, "accumulation": accumulation, "seed": seed}
    first = epoch * steps
    epochs = [letters.micro_batches(step, **settings) for step in range(first, first + steps)]
    assert sorted(window for step in epochs for window in order(step)) == list(range(26))
    size = batch_size * accumulation
    assert [len(order(step)) for step in epochs[:-1]] == [size] * (steps - 1)
    assert 0 < len(order(epochs[-1])) <= size
    for step in epochs:
        sizes = [len(batch.windows) for batch in step]
        assert len(step) <= accumulation
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


@given(numbers, numbers, seeds)
def test_the_order_depends_on_seed_and_epoch_not_on_the_size_of_batches(
    letters: TrainingData, batch_size: int, accumulation: int, seed: int
) -> None:
    def epoch(number: int, size: int, more: int) -> list[int]:
        steps = letters.steps_per_epoch(size, more)
        found: list[int] = []
        for step in range(number * steps, (number + 1) * steps):
            found += order(
                letters.micro_batches(step, batch_size=size, accumulation=more, seed=seed)
            )
        return found

    first = epoch(0, 1, 1)
    assert epoch(0, batch_size, accumulation) == first
    assert epoch(1, batch_size, accumulation) == epoch(1, 26, 1) != first


def test_another_seed_is_another_order_and_the_same_is_the_same(letters: TrainingData) -> None:
    def draw(step: int, seed: int) -> list[Batch]:
        return letters.micro_batches(step, batch_size=13, accumulation=1, seed=seed)

    late = draw(7, 3)  # with nothing asked before it
    assert order(draw(0, 3)) != order(draw(0, 4))
    for step in range(7):
        draw(step, 3)
    again = draw(7, 3)
    assert [batch.windows for batch in again] == [batch.windows for batch in late]
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(again, late, strict=True))


def test_the_order_is_the_same_on_every_machine(letters: TrainingData) -> None:
    """Fixed numbers: a resumed run elsewhere must go on with the same windows."""
    (batch,) = letters.micro_batches(0, batch_size=8, accumulation=1, seed=5)
    assert batch.windows == (4, 21, 8, 1, 15, 14, 9, 17)


def test_a_batch_is_padded_on_the_right_and_only_there(tmp_path: Path) -> None:
    rows = [{"text": "abcdef"}, {"prompt": "x ", "response": "yz"}]
    data = load_data(write(tmp_path, rows), TOKENIZER, seq_len=9, packing=False)
    (batch,) = data.batches(4)
    assert (batch.input_ids.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
    assert batch.windows == (0, 1)
    text = [*b"abcdef", EOS]
    answer = [*b"x yz", EOS]
    assert batch.input_ids.tolist() == [text, [*answer, EOS, EOS]]
    assert batch.labels.tolist() == [[-100, *text[1:]], [-100, -100, *answer[2:], -100, -100]]
    assert data.num_tokens == 12
    assert data.target_tokens == 9 == int((batch.labels != -100).sum())


@given(some.integers(2, 12), some.booleans(), numbers)
def test_counts_are_those_of_the_batches(
    letters: TrainingData, seq_len: int, packing: bool, batch_size: int
) -> None:
    data = load_data(letters.path, TOKENIZER, seq_len=seq_len, packing=packing)
    batches = list(data.batches(batch_size))
    assert order(batches) == list(range(data.num_windows))
    labels = [label for batch in batches for label in batch.labels.flatten().tolist()]
    assert data.target_tokens == sum(label != -100 for label in labels)
    for batch in batches:
        assert (batch.labels[:, 0] == -100).all()
        assert (batch.labels[:, 1:] != -100).any(dim=1).all()
        there = batch.labels != -100
        assert torch.equal(batch.labels[there], batch.input_ids[there])


def test_packed_windows_are_the_documents_with_eos_between(tmp_path: Path) -> None:
    rows = [{"text": "first"}, {"prompt": "a ", "response": "b"}, {"text": "the last one"}]
    data = load_data(write(tmp_path, rows), TOKENIZER, seq_len=5)
    assert flat(data) == [*b"first", EOS, *b"a b", EOS, *b"the last one", EOS]
    assert [len(batch.input_ids[0]) for batch in data.batches(1)] == [5, 5, 5, 5, 3]


def test_a_tokenizer_without_eos_puts_nothing_between(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(bos=False, eos=False)
    data = load_data(write(tmp_path, [{"text": "ab"}, {"text": "cd"}]), tokenizer, seq_len=9)
    (batch,) = data.batches(1)
    assert batch.input_ids.tolist() == [[*b"abcd"]]
    assert batch.labels.tolist() == [[-100, 98, -100, 100]]
    ragged = load_data(
        write(tmp_path, [{"text": "ab"}, {"text": "cde"}]), tokenizer, seq_len=9, packing=False
    )
    (batch,) = ragged.batches(2)
    assert batch.input_ids.tolist() == [[97, 98, 0], [99, 100, 101]]


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        {"text": "a" * 20},
        {"prompt": "p" * 30, "response": "never reached"},
        {"text": ""},
        ["list"],
        {"text": "short"},
    ]
    data = load_data(write(tmp_path, rows), TOKENIZER, seq_len=16, packing=False)
    record = data.skipped
    assert (record.lines, record.windows, record.truncated, record.lost_tokens) == (2, 1, 1, 5)
    file = tmp_path / "a.jsonl"
    assert record.named[0] == f"{file}:3: text is empty"
    assert record.named[1].startswith(f"{file}:4: ")
    assert data.num_windows == 2
    assert data.num_examples == 3
    assert json.loads(json.dumps(record.to_dict()))["named"] == list(record.named)


def test_a_batch_larger_than_the_data_is_all_of_it(letters: TrainingData) -> None:
    assert letters.steps_per_epoch(100, 4) == 1
    (batch,) = letters.micro_batches(3, batch_size=100, accumulation=4, seed=0)
    assert sorted(batch.windows) == list(range(26))


@pytest.mark.parametrize(
    ("name", "content", "seq_len", "error", "words"),
    [
        ("a.jsonl", "", 8, UsageError, "it is empty"),
        ("a.jsonl", "\n \n", 8, UsageError, "it is empty"),
        ("a.jsonl", "bad\n{}\n", 8, UsageError, "2 bad lines, the first .*a.jsonl:1: not JSON"),
        ("a.jsonl", '{"text": "ab"}', 1, UsageError, "seq_len must be at least 2, not 1"),
        ("a.jsonl", '{"prompt": "abcd", "response": "x"}', 2, UsageError, "nothing to predict"),
        ("a.txt", " \n", 8, UsageError, "text is empty"),
        ("gone.txt", None, 8, MissingError, "no such file"),
    ],
)
def test_data_that_cannot_be_trained_on_says_so(
    tmp_path: Path, name: str, content: str | None, seq_len: int, error: Any, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=words) as caught:
        load_data(tmp_path / name, TOKENIZER, seq_len=seq_len, packing=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [(0, 0, 1, 0), (0, 1, 0, 0), (-1, 1, 1, 0), (0, 1, 1, -1)])
def test_numbers_out_of_range_are_refused(
    letters: TrainingData, numbers: tuple[int, int, int, int]
) -> None:
    step, batch_size, accumulation, seed = numbers
    with pytest.raises(UsageError, match=r"at least 1|0 or more"):
        letters.micro_batches(step, batch_size=batch_size, accumulation=accumulation, seed=seed)


def test_windows_are_described_by_their_lines(tmp_path: Path) -> None:
    rows = [{"text": "abc"}, {}, {"text": "defg"}, {"text": "h"}]
    file = write(tmp_path, rows)
    data = load_data(file, TOKENIZER, seq_len=3)  # abc|$de|fg$|h$
    assert data.describe([0, 1, 2, 3]) == f"{file}:1, 1-3, 3, 4"
    assert data.describe(range(2)).endswith(":1, 1-3")
    assert data.describe([0] * 20).endswith(":1, 1, 1, 1, 1, 1, 1, 1 and 12 more")


def test_windows_of_a_text_are_described_by_counting_its_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab\ncd\n\nef\ngh")
    data = load_data(file, TOKENIZER, seq_len=4)  # ab_c|d__e|f_gh|$
    assert data.describe([0]) == f"{file}:1-2"
    assert data.describe([1, 2]) == f"{file}:2-4, 4-5"


@given(some.floats(0.01, 0.99), seeds, some.booleans(), some.integers(2, 9))
def test_a_split_has_every_example_on_one_side(
    letters: TrainingData, fraction: float, seed: int, packing: bool, seq_len: int
) -> None:
    data = load_data(letters.path, TOKENIZER, seq_len=seq_len, packing=packing)
    sides = split(data, fraction, seed)
    words = [bytes(one for one in flat(side) if one < 256).decode() for side in sides]
    seen = [set(word) for word in words]
    assert not seen[0] & seen[1]
    assert sum(side.num_examples for side in sides) == 26
    assert sides[1].num_examples == min(max(1, round(fraction * 26)), 25)
    for word in words:
        assert list(word) == sorted(word)
    if packing and seq_len % 4:
        # Packed anew: windows are full but for the last.
        lengths = [batch.input_ids.shape[1] for batch in sides[0].batches(1)]
        assert set(lengths[:-1]) <= {seq_len}
    again = split(data, fraction, seed)
    assert [flat(side) for side in again] == [flat(side) for side in sides]


def test_a_split_of_a_text_is_by_windows(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{n:04d}" for n in range(40)))
    data = load_data(file, TOKENIZER, seq_len=4)
    train, held = split(data, 0.25, 1)
    assert (train.num_windows, held.num_windows) == (30, 10)
    windows = [tuple(b.input_ids[0].tolist()) for side in (train, held) for b in side.batches(1)]
    assert sorted(windows) == sorted(tuple(b.input_ids[0].tolist()) for b in data.batches(1))
    assert train.target_tokens + held.target_tokens == data.target_tokens
    assert split(data, 0.25, 2)[1].describe([0]) is not None
    assert flat(split(data, 0.25, 2)[1]) != flat(held)


def test_bad_lines_are_reported_once_after_a_split(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, [{"text": "abc"}, {}, {"text": "def"}]), TOKENIZER, seq_len=4)
    train, held = split(data, 0.5, 0)
    assert (train.skipped.lines, held.skipped.lines) == (1, 0)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, float("nan")])
def test_a_share_out_of_range_is_refused(letters: TrainingData, fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        split(letters, fraction, 0)


def test_data_too_small_to_split_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abc")
    with pytest.raises(UsageError, match="cannot be split"):
        split(load_data(file, TOKENIZER, seq_len=8), 0.5, 0)
