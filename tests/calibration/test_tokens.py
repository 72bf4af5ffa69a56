"""A text is cut into windows as the contract says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstats.calibration.tokens import choose_windows, cut, read_text, token_windows
from layerstats.errors import CheckpointError, MissingError, UsageError
from tests.calibration.conftest import Family


@given(count=st.integers(0, 200), seq_len=st.integers(1, 50))
def test_windows_are_consecutive_and_lose_only_the_rest(count: int, seq_len: int) -> None:
    windows = cut(list(range(count)), seq_len)
    assert windows.shape == (count // seq_len, seq_len)
    assert windows.flatten().tolist() == list(range(count - count % seq_len))


@given(available=st.integers(1, 60), samples=st.integers(1, 80), seed=st.integers(0, 2**40))
def test_a_draw_is_distinct_ascending_and_repeatable(
    available: int, samples: int, seed: int
) -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (must stay untouched)
    draw = choose_windows(available, samples, seed).tolist()
    assert draw == sorted(set(draw))
    assert len(draw) == min(available, samples)
    assert set(draw) <= set(range(available))
    assert draw == choose_windows(available, samples, seed).tolist()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_draws_differ_between_seeds() -> None:
    draws = {tuple(choose_windows(50, 5, seed).tolist()) for seed in range(20)}
    assert len(draws) > 15


def test_whole_text_without_special_tokens(family: Family, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes(b"abc\r\ndef\xc3\xa9gh")
    found = token_windows(family("llama"), text, samples=9, seq_len=4)
    assert found.ids.shape == (3, 4)
    # Bytes 0-255 stand for themselves in another order; BOS (256) is never put in, line ends stay.
    assert found.ids.max() < 256
    assert len(set(found.ids.flatten().tolist())) == 12
    assert found.info["text_tokens"] == 12
    assert (found.info["samples"], found.info["samples_asked"]) == (3, 9)


def test_first_windows_or_drawn_ones(family: Family, text: Path) -> None:
    every = token_windows(family("llama"), text, samples=10**6, seq_len=16)
    first = token_windows(family("llama"), text, samples=3, seq_len=16)
    drawn = token_windows(family("llama"), text, samples=3, seq_len=16, sample_seed=1)
    assert (first.ids == every.ids[:3]).all()
    rows = {tuple(row) for row in every.ids.tolist()}
    assert {tuple(row) for row in drawn.ids.tolist()} <= rows
    assert drawn.ids.tolist() != first.ids.tolist()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, MissingError, "no such text file"),
        (b"", UsageError, "the text is empty"),
        (b" \n\n", UsageError, "the text is empty"),
        (b"caf\xe9 au lait", UsageError, r"not UTF-8 \(byte 3\)"),
        (b"short", UsageError, "5 tokens, less than one window of seq_len=16; .* <= 5"),
    ],
)
def test_bad_texts(
    content: bytes | None, error: type[Exception], message: str, family: Family, tmp_path: Path
) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        token_windows(family("llama"), path, samples=1, seq_len=16)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"samples": 0}, {"seq_len": 0}, {"sample_seed": -1}])
def test_bad_numbers(options: dict[str, int], family: Family, text: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        token_windows(family("llama"), text, **({"samples": 1, "seq_len": 4} | options))  # type: ignore[arg-type]


def test_no_tokenizer(own: Family, text: Path) -> None:
    directory = own("llama")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    with pytest.raises(MissingError, match=r"no tokenizer beside the weights .*tokenizer.json"):
        token_windows(directory, text, samples=1, seq_len=4)


def test_broken_tokenizer(own: Family, text: Path) -> None:
    directory = own("llama")
    (directory / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded") as caught:
        token_windows(directory, text, samples=1, seq_len=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a b.ndjson", "a.JSON"])
def test_records_are_no_text_and_the_message_says_how_to_get_at_it(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    records = [{"text": "one\ntwo", "id": 1}, {"text": "caf\u00e9"}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(json.dumps(records) if path.suffix == ".JSON" else lines)
    with pytest.raises(UsageError, match="takes plain UTF-8 text") as caught:
        read_text(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {path.suffix} holds records")
    assert "\n" not in message
    assert "python -c" in message
    command = message[message.index("python -c") :].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    assert read_text(path.with_suffix(".txt"))[0] == "one\ntwo\ncaf\u00e9\n"
