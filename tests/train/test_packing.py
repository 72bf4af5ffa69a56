"""Tokens in a row and their windows are those of a slow restatement."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from layerstats.train import packing
from layerstats.train.examples import Example, question_prompt
from layerstats.train.packing import Cuts, TokenRow, cut_examples, cut_packed, encode, prompt_ids
from tests.oracles import windows as oracle
from tests.train.byte_tokenizer import BOS, EOS, byte_tokenizer

KINDS = {
    (bos, eos): byte_tokenizer(bos=bos, eos=eos) for bos in (True, False) for eos in (True, False)
}

parts = some.lists(some.tuples(some.text("ab é\n", max_size=6), some.booleans()), min_size=1)
documents = some.lists(parts, min_size=1, max_size=8)
kinds = some.sampled_from(sorted(KINDS))


def as_examples(texts: list[list[tuple[str, bool]]]) -> list[Example]:
    return [Example(line, tuple(each)) for line, each in enumerate(texts, 1)]


def pairs(row: TokenRow, begin: int, end: int) -> list[oracle.Pair]:
    return list(zip(row.ids[begin:end].tolist(), row.targets[begin:end].tolist(), strict=True))


@given(documents, kinds)
def test_the_row_is_the_documents_end_to_end(
    texts: list[list[tuple[str, bool]]], kind: tuple[bool, bool]
) -> None:
    row = encode(as_examples(texts), KINDS[kind])
    bos, eos = BOS if kind[0] else None, EOS if kind[1] else None
    wanted = [oracle.example_pairs(each, bos, eos) for each in texts]
    assert [pairs(row, a, b) for a, b in pairwise(row.starts.tolist())] == wanted
    assert row.lines.tolist() == list(range(1, len(texts) + 1))
    assert (row.ids.dtype, row.targets.dtype) == (np.int32, np.bool_)


@given(documents, kinds, some.integers(2, 9), some.booleans())
def test_windows_are_those_of_the_slow_restatement(
    texts: list[list[tuple[str, bool]]], kind: tuple[bool, bool], seq_len: int, packed: bool
) -> None:
    row = encode(as_examples(texts), KINDS[kind])
    cuts = (cut_packed if packed else cut_examples)(row, seq_len)
    bos, eos = BOS if kind[0] else None, EOS if kind[1] else None
    examples = [oracle.example_pairs(each, bos, eos) for each in texts]
    wanted = oracle.windows(examples, seq_len, packing=packed)
    spans = list(zip(cuts.begins.tolist(), cuts.ends.tolist(), strict=True))
    assert [pairs(row, *span) for span in spans] == wanted
    assert cuts.targets.tolist() == [sum(t for _, t in window[1:]) for window in wanted]
    count = -(-len(row.ids) // seq_len) if packed else len(texts)
    assert cuts.dropped == count - len(wanted)
    kept = [e for e in examples if any(t for _, t in e[1:seq_len])]
    lost = [0 if packed else max(0, len(each) - seq_len) for each in kept]
    assert (cuts.truncated, cuts.lost_tokens) == (sum(n > 0 for n in lost), sum(lost))


@given(documents, kinds, some.integers(2, 9))
def test_packing_loses_no_target_but_those_at_the_head_of_a_window(
    texts: list[list[tuple[str, bool]]], kind: tuple[bool, bool], seq_len: int
) -> None:
    row = encode(as_examples(texts), KINDS[kind])
    heads = int(row.targets[::seq_len].sum())
    assert cut_packed(row, seq_len).targets.sum() + heads == row.targets.sum()
    assert cut_examples(row, max(2, len(row.ids))).targets.sum() == row.targets.sum()


@given(documents, some.data())
def test_selected_examples_are_as_if_the_others_had_never_been(
    texts: list[list[tuple[str, bool]]], data: some.DataObject
) -> None:
    chosen = sorted(data.draw(some.sets(some.integers(0, len(texts) - 1))))
    examples = as_examples(texts)
    tokenizer = KINDS[True, True]
    found = encode(examples, tokenizer).select(np.array(chosen, dtype=np.int64))
    wanted = encode([examples[at] for at in chosen], tokenizer)
    for name in ("ids", "targets", "starts", "lines"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()


def test_an_example_that_brings_its_own_ends_gets_no_others() -> None:
    row = encode([Example(1, (("a", True),), begin=False, end=False)], KINDS[True, True])
    assert pairs(row, 0, 9) == [(97, False)]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_prompt_has_the_same_tokens_with_and_without_its_answer(kind: tuple[bool, bool]) -> None:
    prompt = question_prompt("How many?")
    row = encode([Example(1, ((prompt, False), (" #### 4", True)))], KINDS[kind])
    alone = prompt_ids(prompt, KINDS[kind])
    assert row.ids.tolist()[: len(alone)] == alone
    assert row.targets.tolist().index(True) == len(alone)
    assert len(alone) == kind[0] + len(prompt)


def test_no_examples_make_an_empty_row() -> None:
    row = encode([], KINDS[True, True])
    assert (len(row.ids), row.starts.tolist(), row.num_examples) == (0, [0], 0)
    empty = Cuts(row.starts[:0], row.starts[:0], row.starts[:0], 0, 0, 0)
    for cut in (cut_packed, cut_examples):
        assert repr(cut(row, 4)) == repr(empty)


def test_a_long_text_goes_through_the_tokenizer_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Watched:
        bos_token_id = None
        eos_token_id = EOS

        def __call__(self, texts: list[str], **settings: Any) -> Any:
            seen.extend(texts)
            return KINDS[False, True](texts, **settings)

    text = "one\ntwo\n\nthree four five\nsix" + "x" * 30
    whole = encode([Example(1, ((text, True),)), Example(2, (("b", True),))], Watched())
    monkeypatch.setattr(packing, "PIECE_CHARACTERS", 10)
    seen.clear()
    cut = encode([Example(1, ((text, True),)), Example(2, (("b", True),))], Watched())
    assert cut.ids.tolist() == whole.ids.tolist()
    assert cut.targets.tolist() == whole.targets.tolist()
    assert seen[0] == "b"
    assert "".join(seen[1:]) == text
    assert max(map(len, seen)) <= 10
    assert seen[1:3] == ["one\ntwo\n", "\nthree fou"]


def test_many_examples_take_several_calls_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = as_examples([[(f"text {n}", True)] for n in range(50)])
    whole = encode(examples, KINDS[True, True])
    monkeypatch.setattr(packing, "_GROUP_CHARACTERS", 20)
    assert encode(iter(examples), KINDS[True, True]).ids.tolist() == whole.ids.tolist()
