"""Examples -> one long row of tokens, and where it is cut into windows.

The row is flat arrays, five bytes a token; a window is a slice of it, packed or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerstats.train.examples import Example

__all__ = ["Cuts", "TokenRow", "cut_examples", "cut_packed", "encode", "prompt_ids"]

#: The tokenizer's own record of a text is many times the text, so it sees pieces of this size.
PIECE_CHARACTERS = 1 << 22

_GROUP_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenRow:
    """All tokens of a file, example after example.

    Parameters
    ----------
    ids : array of int32, shape (tokens,)
    targets : array of bool, shape (tokens,)
        Whether the token is to be predicted. Never the first one of an example: what stands before
        it belongs to another.
    starts : array of int64, shape (examples + 1,)
        Example e is ``ids[starts[e]:starts[e + 1]]``.
    lines : array of int64, shape (examples,)
        Line of the file where it begins.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lines: NDArray[np.int64]

    @property
    def num_examples(self) -> int:
        """Examples in the row."""
        return len(self.lines)

    def select(self, examples: NDArray[np.int64]) -> TokenRow:
        """Return a row of these examples only, in the order given.

        Examples
        --------
        >>> row = TokenRow(np.arange(5, dtype=np.int32), np.ones(5, bool), np.array([0, 2, 5]),
        ...                np.array([1, 2]))
        >>> row.select(np.array([1])).ids.tolist()
        [2, 3, 4]
        """
        lengths = np.diff(self.starts)[examples]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        begins = np.repeat(self.starts[examples] - starts[:-1], lengths)
        places = begins + np.arange(starts[-1])
        return TokenRow(self.ids[places], self.targets[places], starts, self.lines[examples])


@dataclass(frozen=True, slots=True)
class Cuts:
    """Windows ``ids[begins[w]:ends[w]]`` of a row, each with at least one target after its first.

    `targets` counts those of each window. `dropped` windows had none; `truncated` examples were
    longer than a window and lost `lost_tokens` tokens (packed windows never do this).
    """

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    targets: NDArray[np.int64]
    dropped: int
    truncated: int
    lost_tokens: int


def encode(examples: Iterable[Example], tokenizer: Any) -> TokenRow:
    """Tokenise examples part by part and lay them end to end.

    An example is [BOS] parts [EOS]: BOS where the tokenizer puts one before a text by itself, EOS
    wherever it has one, trained on. Parts are tokenised one by one, so the tokens of a prompt are
    the same with and without its answer. A part longer than `PIECE_CHARACTERS` is tokenised in
    pieces cut before line ends; there a token may differ from that of the whole text.

    Parameters
    ----------
    examples : iterable of Example
    tokenizer
        A transformers tokenizer.
    """
    bos, eos = _bos(tokenizer), tokenizer.eos_token_id
    ids: list[NDArray[np.int32]] = []
    targets: list[NDArray[np.bool_]] = []
    lengths: list[int] = []
    lines: list[int] = []
    for group in _groups(examples):
        texts = [text for example in group for text, _ in example.parts]
        tokens = iter(_tokenize(tokenizer, texts))
        for example in group:
            rows = [(next(tokens), trained) for _, trained in example.parts]
            if example.begin and bos is not None:
                rows.insert(0, (np.array([bos], dtype=np.int32), False))
            if example.end and eos is not None:
                rows.append((np.array([eos], dtype=np.int32), True))
            mask = [np.full(len(row), trained) for row, trained in rows]
            lengths.append(sum(map(len, mask)))
            lines.append(example.line)
            ids += [row for row, _ in rows]
            targets += mask
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    flags = np.concatenate([*targets, np.zeros(0, dtype=np.bool_)])
    firsts = starts[:-1]
    flags[firsts[firsts < len(flags)]] = False
    return TokenRow(
        np.concatenate([*ids, np.zeros(0, dtype=np.int32)]),
        flags,
        starts,
        np.array(lines, dtype=np.int64),
    )


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a prompt as they stand at the beginning of a training example."""
    row = encode([Example(1, ((prompt, False),), end=False)], tokenizer)
    return [int(token) for token in row.ids]


def cut_packed(row: TokenRow, seq_len: int) -> Cuts:
    """Cut a row into windows of `seq_len` tokens, one after the other; the last may be shorter.

    Attention is not reset between the examples of a window, and an example may go on in the next
    window, whose first token is then nobody's target.

    Examples
    --------
    >>> row = TokenRow(np.arange(7, dtype=np.int32), np.ones(7, bool), np.array([0, 7]),
    ...                np.array([1]))
    >>> cuts = cut_packed(row, 3)  # the seventh token alone has nothing to predict
    >>> cuts.begins.tolist(), cuts.ends.tolist(), cuts.dropped
    ([0, 3], [3, 6], 1)
    """
    begins = np.arange(0, len(row.ids), seq_len, dtype=np.int64)
    return _cuts(row, begins, np.minimum(begins + seq_len, len(row.ids)))


def cut_examples(row: TokenRow, seq_len: int) -> Cuts:
    """Give each example a window of its own; what goes beyond `seq_len` tokens is cut off."""
    begins, lengths = row.starts[:-1], np.diff(row.starts)
    kept = np.minimum(lengths, seq_len)
    return _cuts(row, begins, begins + kept, beyond=lengths - kept)


def _cuts(
    row: TokenRow,
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    *,
    beyond: NDArray[np.int64] | None = None,
) -> Cuts:
    """Keep the windows with something to predict; `beyond` is what each loses, in tokens."""
    counted: type = np.int32 if len(row.targets) < 2**31 else np.int64  # the smaller that will do
    before: NDArray[Any] = np.zeros(len(row.targets) + 1, dtype=counted)
    np.cumsum(row.targets, out=before[1:])
    # A model predicts token t from those before it, so a window's first token is no target.
    targets = (before[ends] - before[np.minimum(begins + 1, ends)]).astype(np.int64)
    keep = targets > 0
    lost = np.zeros(len(begins), dtype=np.int64) if beyond is None else beyond
    return Cuts(
        begins[keep],
        ends[keep],
        targets[keep],
        dropped=int((~keep).sum()),
        truncated=int((lost[keep] > 0).sum()),
        lost_tokens=int(lost[keep].sum()),
    )


def _bos(tokenizer: Any) -> int | None:
    """Return the id that the tokenizer puts before a text by itself, if it does."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    with_it = tokenizer(["a"], verbose=False)["input_ids"][0]
    without = tokenizer(["a"], add_special_tokens=False, verbose=False)["input_ids"][0]
    return bos if with_it[:1] == [bos] != without[:1] else None


def _groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Collect examples until they have enough text for one call of the tokenizer."""
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += sum(len(text) + 1 for text, _ in example.parts)
        if size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _tokenize(tokenizer: Any, texts: list[str]) -> Iterator[NDArray[np.int32]]:
    """Yield the ids of each text without special tokens."""
    short = [text for text in texts if 0 < len(text) <= PIECE_CHARACTERS]
    rows = iter(_call(tokenizer, short))
    for text in texts:
        if not text:
            yield np.zeros(0, dtype=np.int32)
        elif len(text) <= PIECE_CHARACTERS:
            yield np.asarray(next(rows), dtype=np.int32)
        else:
            parts = [_call(tokenizer, [piece])[0] for piece in _pieces(text, PIECE_CHARACTERS)]
            yield np.fromiter(chain.from_iterable(parts), dtype=np.int32)


def _call(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: a text longer than the model's context is cut into windows later.
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _pieces(text: str, size: int) -> Iterator[str]:
    """Cut a long text before line ends; a line longer than `size` is cut where it must be."""
    start = 0
    while len(text) - start > size:
        end = text.rfind("\n", start + 1, start + size)
        end = end if end > 0 else start + size
        yield text[start:end]
        start = end
    yield text[start:]
