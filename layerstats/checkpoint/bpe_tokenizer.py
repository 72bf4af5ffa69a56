"""The vocabulary and merges of a byte-level BPE -> tokenizer files that transformers opens.

GGUF names the way text is cut before the merges ("pre-tokenizer") and leaves the rule to the
program; the rules known here are those of SmolLM, GPT-2 and Llama 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstats.checkpoint.writer import write_json
from layerstats.errors import CheckpointError, UsageError, choices

__all__ = ["PRE_TOKENIZERS", "ByteLevelBpe", "byte_alphabet", "write_tokenizer"]

_CONTROL, _USER_DEFINED = 3, 4

# What a token of Llama 3 may be before merging: a contraction, a word with one leading sign, up to
# three digits, signs, line ends, blanks.
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


#: GGUF's name of a pre-tokenizer -> steps of tokenizer.json.
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    "llama-bpe": [
        {
            "type": "Split",
            "pattern": {"Regex": _LLAMA3_PATTERN},
            "behavior": "Isolated",
            "invert": False,
        },
        _byte_level(use_regex=False),
    ],
}


@dataclass(frozen=True)
class ByteLevelBpe:
    """A byte-level BPE tokenizer as a model file describes it.

    `types` are GGUF's (3 control, 4 user defined, anything else ordinary); `special` maps
    `bos_token`, `eos_token`, `unk_token`, `pad_token` to ids; `add_bos` puts the first of them
    before each text.
    """

    tokens: Sequence[str]
    merges: Sequence[str]
    pre_tokenizer: str
    types: Sequence[int] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    max_length: int | None = None
    chat_template: str | None = None


def byte_alphabet() -> list[str]:
    """Return the character that stands for each of the 256 bytes in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100 on
    (Radford et al., 2019, GPT-2).

    Examples
    --------
    >>> alphabet = byte_alphabet()
    >>> len(set(alphabet)), alphabet[ord("a")], alphabet[ord(" ")]
    (256, 'a', 'Ġ')
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(0x100 + others.index(byte)) for byte in range(256)]


def write_tokenizer(directory: Path, bpe: ByteLevelBpe) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    Raises
    ------
    UsageError
        The rule of the pre-tokenizer is not known.
    CheckpointError
        A token is there twice, or the id of a special token is out of range.
    """
    if bpe.pre_tokenizer not in PRE_TOKENIZERS:
        raise UsageError(choices("pre-tokenizer", bpe.pre_tokenizer, PRE_TOKENIZERS))
    vocabulary = {token: number for number, token in enumerate(bpe.tokens)}
    if len(vocabulary) != len(bpe.tokens):
        twice = next(
            token for number, token in enumerate(bpe.tokens) if vocabulary[token] != number
        )
        msg = f"{directory.name}: token {twice!r} is in the vocabulary twice; the file is damaged"
        raise CheckpointError(msg)
    for role, number in bpe.special.items():
        if not 0 <= number < len(bpe.tokens):
            msg = (
                f"{directory.name}: {role} has id {number}, the vocabulary has {len(bpe.tokens)} "
                "tokens"
            )
            raise CheckpointError(msg)
    write_json(directory / "tokenizer.json", _tokenizer(bpe, vocabulary))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **{role: bpe.tokens[number] for role, number in bpe.special.items()},
    }
    if bpe.max_length is not None:
        config["model_max_length"] = bpe.max_length
    if bpe.chat_template is not None:
        config["chat_template"] = bpe.chat_template
    write_json(directory / "tokenizer_config.json", config)


def _tokenizer(bpe: ByteLevelBpe, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": bpe.tokens[number], "special": kind == _CONTROL}
            | _PLAIN_ADDED
            for number, kind in enumerate(bpe.types)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[bpe.pre_tokenizer]},
        "post_processor": _first_token(bpe),
        "decoder": _byte_level(use_regex=True) | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3 takes a word that is a token as it is, even if no chain of merges leads to it.
            "ignore_merges": bpe.pre_tokenizer == "llama-bpe",
            "vocab": dict(vocabulary),
            "merges": [merge.split(" ", 1) for merge in bpe.merges],
        },
    }


_PLAIN_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _first_token(bpe: ByteLevelBpe) -> dict[str, Any] | None:
    if not bpe.add_bos or "bos_token" not in bpe.special:
        return None
    number = bpe.special["bos_token"]
    token = bpe.tokens[number]
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
