"""A training file -> examples: texts in parts, each part either trained on or only read.

A `.jsonl` file holds one example a line, in one of the forms of `FORMS`; any other file is one
text. Here belong the forms, how each becomes text (the prompt of a question is `question_prompt`,
in training and in evaluation alike), and the record of lines that could not be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstats.errors import MissingError, UsageError
from layerstats.train.chat import BadExample, ChatTemplate, conversation, find_template

__all__ = [
    "FORMS",
    "Example",
    "SkippedLines",
    "instruction_prompt",
    "is_jsonl",
    "question_prompt",
    "read_examples",
    "read_questions",
]

#: What a line of jsonl may be; the loss is on the text, response, assistant turns or answer.
FORMS = (
    "text | prompt+response (or prompt+completion) | messages | question+answer | "
    "instruction+output (Alpaca, input optional)"
)

_JSONL = (".jsonl", ".ndjson")
_KEYS: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("messages",),
    ("question", "answer"),
    ("instruction", "output"),
)
# Alpaca's files say the same example twice: in parts and, under this key, written out.
_WRITTEN_OUT = {("text",), ("instruction", "output")}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Example:
    """One document or question: `parts` are (text, trained on), `line` is where it begins.

    `begin` and `end` say whether the tokenizer's BOS and EOS go around it; a chat template writes
    its own.
    """

    line: int
    parts: tuple[tuple[str, bool], ...]
    begin: bool = True
    end: bool = True


@dataclass
class SkippedLines:
    """Lines of a file that could not be used: how many, and the first of them with the reason."""

    file: str
    count: int = 0
    named: list[str] = field(default_factory=list)
    keep: int = 100

    def add(self, line: int, why: str) -> None:
        """Count a line; the first `keep` are named as ``file:line: why``."""
        self.count += 1
        if len(self.named) < self.keep:
            self.named.append(f"{self.file}:{line}: {why}")


def is_jsonl(path: Path) -> bool:
    """Tell by its name whether a file is read as one JSON object a line.

    Examples
    --------
    >>> is_jsonl(Path("a/train.JSONL")), is_jsonl(Path("notes.md"))
    (True, False)
    """
    return path.suffix.lower() in _JSONL


def question_prompt(question: str) -> str:
    r"""Return the text before the answer to a question: in training data and in evaluation.

    Examples
    --------
    >>> question_prompt("2 + 2?")
    'Question: 2 + 2?\nAnswer:'
    """
    return f"Question: {question.strip()}\nAnswer:"


def instruction_prompt(instruction: str, context: str = "") -> str:
    r"""Return the text before the answer to an instruction, as Stanford Alpaca writes it.

    References
    ----------
    Taori et al. (2023), Stanford Alpaca, github.com/tatsu-lab/stanford_alpaca.

    Examples
    --------
    >>> print(instruction_prompt("Add them.", "2 2").partition("\n\n")[2])
    ### Instruction:
    Add them.
    <BLANKLINE>
    ### Input:
    2 2
    <BLANKLINE>
    ### Response:
    <BLANKLINE>
    """
    with_input = ", paired with an input that provides further context" if context.strip() else ""
    parts = [
        f"Below is an instruction that describes a task{with_input}. "
        "Write a response that appropriately completes the request.",
        f"### Instruction:\n{instruction.strip()}",
        *([f"### Input:\n{context.strip()}"] if with_input else []),
        "### Response:\n",
    ]
    return "\n\n".join(parts)


def read_examples(path: Path, tokenizer: Any, skipped: SkippedLines) -> Iterator[Example]:
    r"""Yield the examples of a file in order; lines that cannot be used go to `skipped`.

    A file that is not jsonl is one example, with CR LF read as LF. In jsonl each line is an object
    with the keys of one of these forms; other keys are ignored, blank lines too:

    - ``text``: trained on whole.
    - ``prompt`` and ``response`` (or ``completion``): the two as they are, with a line break
      between them if neither side has white space there; trained on the response.
    - ``question`` and ``answer``: ``Question: ...\nAnswer: ...``; trained on the answer.
    - ``instruction``, ``output`` and perhaps ``input``: Alpaca's prompt (`instruction_prompt`);
      trained on the output. ``text`` beside them, the same written out, is not read.
    - ``messages``, a list of ``{"role", "content"}``: through the tokenizer's chat template;
      without one, turns as ``User: ...`` separated by blank lines. Trained on the assistant's turns
      with the sign that ends them.

    Parameters
    ----------
    path : Path
        UTF-8, with or without byte-order mark.
    tokenizer
        Asked for its chat template only.
    skipped : SkippedLines
        Filled as lines are read.

    Raises
    ------
    MissingError
        No such file, or it cannot be read.
    UsageError
        A text that is empty or not UTF-8; a `.json` file.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.jsonl"
    >>> _ = file.write_text('{"question": "2 + 2?", "answer": "#### 4"}\n{"text": ""}\n')
    >>> skipped = SkippedLines(file.name)
    >>> [example.parts for example in read_examples(file, None, skipped)]
    [(('Question: 2 + 2?\nAnswer:', False), (' #### 4', True))]
    >>> skipped.named
    ['a.jsonl:2: text is empty']
    """
    if not is_jsonl(path):
        yield Example(1, ((_read_text(path), True),))
        return
    template = find_template(tokenizer)
    for line, record in _json_lines(path, skipped):
        try:
            yield _example(line, record, template)
        except BadExample as bad:
            skipped.add(line, str(bad))


def read_questions(path: Path, skipped: SkippedLines) -> Iterator[tuple[int, str, str]]:
    """Yield (line, question, answer) of a jsonl file of questions; other lines go to `skipped`.

    Raises
    ------
    MissingError
        No such file, or it cannot be read.
    UsageError
        The file is not jsonl.
    """
    _check_file(path)
    if not is_jsonl(path):
        msg = (
            f"{path}: not jsonl; questions are a .jsonl file with question and answer on each line"
        )
        raise UsageError(msg)
    for line, record in _json_lines(path, skipped):
        try:
            yield line, _text(record, "question"), _text(record, "answer")
        except BadExample as bad:
            skipped.add(line, str(bad))


def _example(line: int, record: Any, template: ChatTemplate | None) -> Example:
    if not isinstance(record, dict):
        msg = f"a JSON {type(record).__name__}, not an object with {FORMS}"
        raise BadExample(msg)
    forms = [keys for keys in _KEYS if all(key in record for key in keys)]
    if set(forms) == _WRITTEN_OUT:
        forms = [("instruction", "output")]
    if len(forms) != 1:
        found = ", ".join(map(repr, sorted(record)))[:200] or "none"
        msg = f"keys are {found}; give one of {FORMS}"
        if forms:
            msg = f"{' and '.join('+'.join(keys) for keys in forms)} on one line; keep one of them"
        raise BadExample(msg)
    if forms[0] == ("messages",):
        talk = conversation(record["messages"], template)
        return Example(line, talk.parts, talk.begin, talk.end)
    if forms[0] == ("text",):
        return Example(line, ((_text(record, "text"), True),))
    if forms[0] == ("question", "answer"):
        prompt, answer = question_prompt(_text(record, "question")), _text(record, "answer")
        return Example(line, ((prompt, False), (f" {answer.strip()}", True)))
    if forms[0] == ("instruction", "output"):
        context = _text(record | {"input": record.get("input") or ""}, "input", may_be_empty=True)
        prompt = instruction_prompt(_text(record, "instruction"), context)
        return Example(line, ((prompt, False), (_text(record, "output"), True)))
    prompt, answer = _text(record, "prompt", may_be_empty=True), _text(record, forms[0][1])
    if prompt and not prompt[-1].isspace() and not answer[0].isspace():
        prompt += "\n"
    return Example(line, ((prompt, False), (answer, True)))


def _text(record: Any, key: str, *, may_be_empty: bool = False) -> str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        msg = f"{key} is {'missing' if value is None else type(value).__name__}, not text"
        raise BadExample(msg)
    if not value.strip() and not may_be_empty:
        msg = f"{key} is empty"
        raise BadExample(msg)
    return value


def _json_lines(path: Path, skipped: SkippedLines) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) one line at a time.

    Lines end at LF alone: JSON strings may hold U+2028 and other signs that text mode or
    `splitlines` would break a line at.
    """
    _check_file(path)
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.removeprefix(_BOM) if number == 1 else raw
                if not line.strip():
                    continue
                try:
                    value = _parse(line)
                except BadExample as bad:
                    skipped.add(number, str(bad))
                else:
                    yield number, value
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise MissingError(msg) from error


def _parse(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"not UTF-8 (byte {error.start} of the line)"
        raise BadExample(msg) from error
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        # "\ud800" alone is JSON, but no text that a tokenizer takes.
        msg = "half of a surrogate pair, which is no character"
        raise BadExample(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"not JSON ({str(error).splitlines()[0][:120]})"
        raise BadExample(msg) from error
    return value


def _read_text(path: Path) -> str:
    _check_file(path)
    if path.suffix.lower() == ".json":
        msg = f"{path}: JSON is read as .jsonl, one object a line; rewrite it so: {FORMS}"
        raise UsageError(msg)
    try:
        raw = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise MissingError(msg) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        msg = f"{path}:{line}: not UTF-8 (byte {error.start}); convert it: iconv -f latin1 -t utf-8"
        raise UsageError(msg) from error
    if not text.strip():
        msg = f"{path}: the text is empty; training needs at least two tokens"
        raise UsageError(msg)
    return text.replace("\r\n", "\n")


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "no such file"
        msg = f"{path}: {what}; give a text file, or .jsonl with {FORMS} on each line"
        raise MissingError(msg)
