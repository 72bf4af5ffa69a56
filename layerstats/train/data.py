"""A training file -> batches of token windows, in an order that depends on (seed, step) alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerstats.errors import UsageError
from layerstats.train.examples import FORMS, SkippedLines, is_jsonl, read_examples
from layerstats.train.packing import Cuts, TokenRow, cut_examples, cut_packed, encode

__all__ = ["IGNORED", "Batch", "Skipped", "TrainingData", "load_data", "split"]

#: The label where there is no loss; torch's cross entropy ignores it by default.
IGNORED = -100

# Keeps the order of the data apart from everything else that is drawn from the same seed.
_ORDER_STREAM = 0x6F72646572
_NAMED_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of tokens, right padded: a causal model needs no attention mask for that.

    Parameters
    ----------
    input_ids : Tensor of int64, shape (windows, longest window)
    labels : Tensor of int64, same shape
        Aligned with `input_ids` (causal models of transformers shift them inside); -100 where there
        is no loss: prompts, padding, the first token of a window or example.
    windows : tuple of int
        Which windows of the data these are.
    target_tokens : int
        Labels that are not -100.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    windows: tuple[int, ...]
    target_tokens: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """What of a file is not trained on.

    `lines` could not be used (the first 100 `named` with file, line and reason); `windows` had
    nothing to predict; `truncated` examples lost `lost_tokens` tokens, without packing.
    """

    lines: int
    named: tuple[str, ...]
    windows: int
    truncated: int
    lost_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        return asdict(self) | {"named": list(self.named)}


class TrainingData:
    """Windows of a file and the order they are trained in.

    Made by `load_data`; the parts are given by name.

    Parameters
    ----------
    row, cuts
        The file's tokens and its windows.
    path : Path
        The file.
    tokenizer
        For padding, and to find lines again in `describe`.
    seq_len, packing
        As given to `load_data`.
    lines : SkippedLines
        Lines that were not used.
    """

    def __init__(
        self,
        row: TokenRow,
        cuts: Cuts,
        *,
        path: Path,
        tokenizer: Any,
        seq_len: int,
        packing: bool,
        lines: SkippedLines,
    ) -> None:
        self._row, self._cuts, self._tokenizer, self._lines = row, cuts, tokenizer, lines
        self.path, self.seq_len, self.packing = path, seq_len, packing
        pad = getattr(tokenizer, "pad_token_id", None)
        eos = getattr(tokenizer, "eos_token_id", None)
        self._pad = next((one for one in (pad, eos) if one is not None), 0)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self._cuts.begins)

    @property
    def num_examples(self) -> int:
        """Examples read from the file: 1 for a text."""
        return self._row.num_examples

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows, without padding."""
        return int((self._cuts.ends - self._cuts.begins).sum())

    @property
    def largest_token(self) -> int:
        """The largest token id of the file."""
        return int(self._row.ids.max())

    @property
    def target_tokens(self) -> int:
        """Tokens in all windows that the loss is over."""
        return int(self._cuts.targets.sum())

    @property
    def skipped(self) -> Skipped:
        """What of the file is not trained on."""
        return Skipped(
            self._lines.count,
            tuple(self._lines.named),
            self._cuts.dropped,
            self._cuts.truncated,
            self._cuts.lost_tokens,
        )

    def steps_per_epoch(self, batch_size: int, accumulation: int) -> int:
        """Return the optimizer steps of an epoch; the last one may have fewer windows."""
        return -(-self.num_windows // _windows_per_step(batch_size, accumulation))

    def micro_batches(
        self, step: int, *, batch_size: int, accumulation: int, seed: int
    ) -> list[Batch]:
        """Return the batches of one optimizer step: a pure function of its arguments.

        Epoch e goes through a permutation of the windows drawn from (seed, e), each window once;
        its last step is smaller, in windows and perhaps in batches, rather than mix two epochs.

        Parameters
        ----------
        step : int
            Optimizer steps done before this one, 0 for the first.
        batch_size, accumulation : int
            Windows in a batch; batches in a step, at most.
        seed : int
            0 .. 2**63 - 1.

        Raises
        ------
        UsageError
            A number is out of range.
        """
        size = _windows_per_step(batch_size, accumulation)
        if step < 0 or seed < 0:
            msg = f"step and seed must be 0 or more, not {step} and {seed}"
            raise UsageError(msg)
        epoch, within = divmod(step, self.steps_per_epoch(batch_size, accumulation))
        chosen = _epoch_order(self.num_windows, seed, epoch)[within * size : (within + 1) * size]
        return [
            self._batch(chosen[at : at + batch_size].tolist())
            for at in range(0, len(chosen), batch_size)
        ]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all windows once, in the order of the file."""
        _windows_per_step(batch_size, 1)
        for at in range(0, self.num_windows, batch_size):
            yield self._batch(range(at, min(at + batch_size, self.num_windows)))

    def describe(self, windows: Sequence[int]) -> str:
        """Return file and lines of windows, like ``train.jsonl:12-14, 80``.

        The lines of a text are counted by the line ends in its tokens.
        """
        named = list(windows)[:_NAMED_WINDOWS]
        spans = [f"{a}-{b}" if b > a else f"{a}" for a, b in map(self._lines_of, named)]
        more = len(windows) - len(named)
        return f"{self.path}:{', '.join(spans)}" + (f" and {more} more" if more else "")

    def _lines_of(self, window: int) -> tuple[int, int]:
        begin, end = int(self._cuts.begins[window]), int(self._cuts.ends[window])
        if is_jsonl(self.path):
            examples = np.searchsorted(self._row.starts, [begin, end - 1], side="right") - 1
            first, last = self._row.lines[examples]
            return int(first), int(last)
        line = 1 + self._line_ends(0, begin)
        return line, line + self._line_ends(begin, end - 1)

    def _line_ends(self, begin: int, end: int) -> int:
        tokens, counts = np.unique(self._row.ids[begin:end], return_counts=True)
        return sum(
            int(count) * str(self._tokenizer.decode([int(token)])).count("\n")
            for token, count in zip(tokens, counts, strict=True)
        )

    def _batch(self, windows: Sequence[int]) -> Batch:
        begins, ends = self._cuts.begins[windows], self._cuts.ends[windows]
        shape = (len(begins), int((ends - begins).max()))
        ids = np.full(shape, self._pad, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            tokens = self._row.ids[begin:end]
            ids[number, : len(tokens)] = tokens
            labels[number, 1 : len(tokens)] = np.where(
                self._row.targets[begin + 1 : end], tokens[1:], IGNORED
            )
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            tuple(map(int, windows)),
            int((labels != IGNORED).sum()),
        )

    def _part(self, row: TokenRow, cuts: Cuts, lines: SkippedLines) -> TrainingData:
        return TrainingData(
            row,
            cuts,
            path=self.path,
            tokenizer=self._tokenizer,
            seq_len=self.seq_len,
            packing=self.packing,
            lines=lines,
        )


def load_data(
    path: str | Path, tokenizer: Any, *, seq_len: int, packing: bool = True
) -> TrainingData:
    r"""Read a training file, tokenise it and cut it into windows.

    Packed, the examples stand end to end with EOS after each and are cut every `seq_len` tokens;
    attention is not reset between examples, the rest is a shorter window, and no example's first
    token is a target. Unpacked, each example is a window of its own, cut off at `seq_len`. A window
    without anything to predict is dropped and counted.

    Parameters
    ----------
    path : str or Path
        Text, or jsonl in the forms that `read_examples` lists.
    tokenizer
        A transformers tokenizer. One without EOS puts nothing between examples.
    seq_len : int
        Tokens in a window, at least 2.
    packing : bool

    Returns
    -------
    TrainingData

    Raises
    ------
    MissingError
        No such file.
    UsageError
        `seq_len` below 2, a text that is not UTF-8, or nothing in the file to train on.

    Examples
    --------
    >>> import tempfile
    >>> class Bytes:
    ...     bos_token_id, eos_token_id = None, 0
    ...     def __call__(self, texts, **_):
    ...         return {"input_ids": [list(text.encode()) for text in texts]}
    >>> file = Path(tempfile.mkdtemp()) / "a.jsonl"
    >>> _ = file.write_text('{"prompt": "12 ", "response": "34"}\n{"text": "5"}\n')
    >>> data = load_data(file, Bytes(), seq_len=4)
    >>> [batch.input_ids.tolist() for batch in data.batches(1)]
    [[[49, 50, 32, 51]], [[52, 0, 53, 0]]]
    >>> [batch.labels.tolist() for batch in data.batches(1)]
    [[[-100, -100, -100, 51]], [[-100, 0, -100, 0]]]
    """
    if seq_len < 2:
        msg = f"seq_len must be at least 2, not {seq_len}: the first token predicts the second"
        raise UsageError(msg)
    file = Path(path)
    lines = SkippedLines(str(file))
    row = encode(read_examples(file, tokenizer, lines), tokenizer)
    if not row.num_examples:
        bad = "it is empty"
        if lines.named:
            some = "1 bad line," if lines.count == 1 else f"{lines.count} bad lines, the first"
            bad = f"{some} {lines.named[0]}"
        # What is wrong with a line's keys says the forms already.
        msg = f"{file}: no line can be trained on ({bad})"
        if FORMS not in bad:
            msg += f"; each must be {FORMS}"
        raise UsageError(msg)
    cuts = _cut(row, seq_len, packing=packing)
    if not len(cuts.begins):
        msg = (
            f"{file}: nothing to predict in any of its {cuts.dropped} windows of "
            f"seq_len={seq_len}; give a longer file, or a larger seq_len (--seq-len)"
        )
        raise UsageError(msg)
    return TrainingData(
        row,
        cuts,
        path=file,
        tokenizer=tokenizer,
        seq_len=seq_len,
        packing=packing,
        lines=lines,
    )


def split(data: TrainingData, fraction: float, seed: int) -> tuple[TrainingData, TrainingData]:
    """Hold out a share of the data, drawn from the seed: (to train on, held out).

    Whole examples are drawn and both sides packed anew, so that no example is on both; a file with
    one example only (a text) is split by windows. Each side gets at least one, and keeps the order
    of the file. Lines that could not be read stay in the record of the first.

    Parameters
    ----------
    data : TrainingData
    fraction : float
        Share to hold out, between 0 and 1.
    seed : int

    Raises
    ------
    UsageError
        `fraction` is out of range, or a side has nothing to predict.
    """
    if not 0 < fraction < 1:
        msg = f"the fraction to hold out must be between 0 and 1, not {fraction:g}"
        raise UsageError(msg)
    by_example = data.num_examples > 1
    count = data.num_examples if by_example else data.num_windows
    held_count = min(max(1, round(fraction * count)), count - 1)
    held = np.zeros(count, dtype=np.bool_)
    # Epoch -1 of the order: no epoch of the training is drawn from the same words.
    held[_epoch_order(count, seed, -1)[:held_count]] = True
    none = SkippedLines(str(data.path))
    sides = []
    for chosen, lines in ((~held, data._lines), (held, none)):
        row, cuts = data._row, data._cuts
        if by_example:
            row = row.select(np.flatnonzero(chosen))
            cuts = _cut(row, data.seq_len, packing=data.packing)
        else:
            dropped = cuts.dropped if lines is not none else 0
            cuts = Cuts(cuts.begins[chosen], cuts.ends[chosen], cuts.targets[chosen], dropped, 0, 0)
        if not len(cuts.begins):
            what = "examples" if by_example else "windows"
            msg = (
                f"{data.path}: {count} {what} cannot be split into training and held-out data; "
                "give --validation FILE or more data"
            )
            raise UsageError(msg)
        sides.append(data._part(row, cuts, lines))
    return sides[0], sides[1]


def _cut(row: TokenRow, seq_len: int, *, packing: bool) -> Cuts:
    return cut_packed(row, seq_len) if packing else cut_examples(row, seq_len)


def _windows_per_step(batch_size: int, accumulation: int) -> int:
    if batch_size < 1 or accumulation < 1:
        msg = f"batch_size and accumulation must be at least 1, not {batch_size}, {accumulation}"
        raise UsageError(msg)
    return batch_size * accumulation


@functools.lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the permutation of 0..count-1 that belongs to (seed, epoch).

    The raw words of a counter-based generator, sorted: NumPy promises that these stay the same over
    its versions, unlike `Generator.permutation`.
    """
    words = np.random.Philox(key=seed | _ORDER_STREAM << 64, counter=(epoch + 1) << 192)
    order = np.argsort(words.random_raw(count), kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order
