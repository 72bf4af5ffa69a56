"""A text file and a checkpoint's tokenizer -> windows of token ids.

The rule, so that two tools can be compared: the file is tokenised whole, without special tokens,
and cut into consecutive windows that do not overlap; the first `samples` windows are used, or as
many drawn at random.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerstats.calibration.heap import give_back
from layerstats.errors import CheckpointError, MissingError, UsageError

__all__ = [
    "Windows",
    "choose_windows",
    "cut",
    "load_tokenizer",
    "read_text",
    "token_windows",
    "tokenize",
]

#: Any of these makes a directory one that carries a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


#: Ends of names of files whose braces and keys are no text -> what prints the texts of one.
_RECORDS = {
    **dict.fromkeys(
        (".jsonl", ".ndjson"), "import json, sys; [print(json.loads(x)['text']) for x in sys.stdin]"
    ),
    ".json": "import json, sys; [print(x['text']) for x in json.load(sys.stdin)]",
}


@dataclass(frozen=True)
class Windows:
    """Token ids, shape (windows, seq_len) int64, and where they come from."""

    ids: torch.Tensor
    info: dict[str, Any]


def token_windows(
    directory: Path, text: str | Path, *, samples: int, seq_len: int, sample_seed: int | None = None
) -> Windows:
    """Cut a text file into the windows a calibration runs on.

    Parameters
    ----------
    directory
        The checkpoint's directory, which holds its tokenizer.
    text
        A UTF-8 text file.
    samples, seq_len
        Number of windows and tokens in each. Where the text gives fewer windows, all of them are
        used and `info["samples"]` says how many.
    sample_seed
        Draw the windows at random without replacement from a generator of their own, instead of the
        first.

    Raises
    ------
    MissingError
        No such file, or no tokenizer beside the weights.
    UsageError
        The text is empty, is not UTF-8, is shorter than one window, or is JSON by its name.
    CheckpointError
        The tokenizer cannot be loaded.
    """
    for name, value in (("samples", samples), ("seq_len", seq_len)):
        if value < 1:
            msg = f"{name} must be at least 1, not {value}"
            raise UsageError(msg)
    if sample_seed is not None and sample_seed < 0:
        msg = f"sample_seed must be 0 or more, not {sample_seed}"
        raise UsageError(msg)
    content, digest = read_text(Path(text))
    tokenizer = load_tokenizer(directory)
    ids = tokenize(tokenizer, content)
    count = len(ids)
    if count < seq_len:
        msg = (
            f"{text}: {count} tokens, less than one window of seq_len={seq_len}; "
            f"give a longer text, or seq_len (--seq-len) <= {count}"
        )
        raise UsageError(msg)
    windows = cut(ids, seq_len)
    # The tokenizer's own record of a long text is many times larger than its ids.
    del ids
    give_back()
    chosen = choose_windows(len(windows), samples, sample_seed)
    info = {
        "text": str(text),
        "text_sha256": digest,
        "text_tokens": count,
        "tokenizer": type(tokenizer).__name__,
        "samples": len(chosen),
        "samples_asked": samples,
        "windows_in_text": len(windows),
        "seq_len": seq_len,
        "sample_seed": sample_seed,
    }
    return Windows(windows[torch.from_numpy(chosen)], info)


def read_text(path: Path) -> tuple[str, str]:
    """Return the content of a UTF-8 file, byte for byte (line ends untouched), and its sha256.

    Raises
    ------
    MissingError
        No such file, or it cannot be read.
    UsageError
        The text is empty or not UTF-8, or the file is JSON by its name.
    """
    if not path.is_file():
        msg = f"{path}: no such text file; give the path of a UTF-8 text to calibrate on"
        raise MissingError(msg)
    if program := _RECORDS.get(path.suffix.lower()):
        source, plain = (shlex.quote(str(file)) for file in (path, path.with_suffix(".txt")))
        msg = (
            f"{path}: {path.suffix} holds records, and calibration takes plain UTF-8 text; write "
            f'their texts first, such as of the key text: python -c "{program}" '
            f"< {source} > {plain}"
        )
        raise UsageError(msg)
    try:
        raw = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise MissingError(msg) from error
    try:
        content = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"{path}: not UTF-8 (byte {error.start}); convert it: iconv -f latin1 -t utf-8"
        raise UsageError(msg) from error
    if not content.strip():
        msg_0 = f"{path}: the text is empty; calibration needs at least one window of tokens"
        raise UsageError(msg_0)
    return content, hashlib.sha256(raw).hexdigest()


def tokenize(tokenizer: Any, content: str) -> list[int]:
    """Return the ids of a whole text without special tokens."""
    # verbose=False: a text longer than the model's context is what we want here, not a mistake to
    # warn of.
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def cut(ids: list[int], seq_len: int) -> torch.Tensor:
    """Cut ids into consecutive windows without overlap; a rest shorter than one is dropped.

    Examples
    --------
    >>> cut([1, 2, 3, 4, 5], 2).tolist()
    [[1, 2], [3, 4]]
    """
    whole = len(ids) // seq_len
    return torch.tensor(ids[: whole * seq_len], dtype=torch.int64).reshape(whole, seq_len)


def choose_windows(
    available: int, samples: int, seed: int | None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the numbers of the windows to use, ascending: the first `samples`, or a random draw.

    Examples
    --------
    >>> choose_windows(5, 3, None).tolist()
    [0, 1, 2]
    """
    count = min(samples, available)
    if seed is None:
        return np.arange(count, dtype=np.int64)
    draw = np.random.Generator(np.random.PCG64(seed)).choice(available, size=count, replace=False)
    return np.sort(draw).astype(np.int64)


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer that lies beside a checkpoint's weights.

    Raises
    ------
    MissingError
        There is none.
    CheckpointError
        It cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        msg = (
            f"{directory}: no tokenizer beside the weights "
            f"(looked for {', '.join(TOKENIZER_FILES)}); "
            "copy the model's tokenizer files there"
        )
        raise MissingError(msg)
    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizer's own loaders raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg_0 = f"{directory}: the tokenizer cannot be loaded: {reason}"
        raise CheckpointError(msg_0) from error
