"""Files become examples; what cannot be used is named; the loss is on the answers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerstats.errors import MissingError, UsageError
from layerstats.train.examples import (
    Example,
    SkippedLines,
    question_prompt,
    read_examples,
    read_questions,
)
from tests.train.byte_tokenizer import CHATML, REWRITING, byte_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "No."},
]


def read(
    folder: Path,
    data: bytes | str | list[Any],
    *,
    name: str = "a.jsonl",
    template: str | None = None,
) -> tuple[list[Example], list[str]]:
    """Examples, and skipped lines without the file's name."""
    file = folder / name
    if isinstance(data, list):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    skipped = SkippedLines(name)
    found = list(read_examples(file, byte_tokenizer(template=template), skipped))
    assert len(skipped.named) == skipped.count
    return found, [line.removeprefix(f"{name}:") for line in skipped.named]


def test_each_form_is_trained_on_its_answer_only(tmp_path: Path) -> None:
    rows = [
        {"text": " all of it "},
        {"prompt": "a ", "response": "b"},
        {"prompt": "a", "completion": " b"},
        {"prompt": "a", "response": "b"},
        {"prompt": "", "response": "b", "id": 7},
        {"question": "2 + 2? ", "answer": "#### 4\n"},
        {"messages": TALK},
    ]
    found, skipped = read(tmp_path, rows)
    assert skipped == []
    assert [example.line for example in found] == [1, 2, 3, 4, 5, 6, 7]
    assert all(example.begin and example.end for example in found)
    assert [example.parts for example in found] == [
        ((" all of it ", True),),
        (("a ", False), ("b", True)),
        (("a", False), (" b", True)),
        (("a\n", False), ("b", True)),
        (("", False), ("b", True)),
        (("Question: 2 + 2?\nAnswer:", False), (" #### 4", True)),
        (
            ("System: Be brief.\n\nUser: Hi\n\nAssistant:", False),
            (" Yes.\n\n", True),
            ("User: Bye\n\nAssistant:", False),
            (" No.", True),
        ),
    ]


def test_alpaca_lines_are_what_stanfords_program_makes_of_them(tmp_path: Path) -> None:
    """Its two prompts, written out here as they stand in its train.py."""
    bare = {"instruction": "Name a whale.", "input": "", "output": "Blue whale.", "text": "both"}
    found, skipped = read(
        tmp_path,
        [
            bare,
            {"instruction": "Add.", "input": "2 2", "output": "4"},
            {"instruction": "Name one.", "output": "One."},
            {"instruction": "Add.", "input": 3, "output": "4"},
            {"instruction": "Add.", "output": ""},
            {"instruction": "Add.", "output": "4", "messages": TALK},
        ],
    )
    assert [example.parts[0] for example in found] == [
        (
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nName a whale.\n\n### Response:\n",
            False,
        ),
        (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n",
            False,
        ),
        (
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nName one.\n\n### Response:\n",
            False,
        ),
    ]
    assert [example.parts[1:] for example in found] == [
        (("Blue whale.", True),),
        (("4", True),),
        (("One.", True),),
    ]
    assert skipped == [
        "4: input is int, not text",
        "5: output is empty",
        "6: messages and instruction+output on one line; keep one of them",
    ]


def test_a_chat_template_writes_the_turns_and_its_own_ends(tmp_path: Path) -> None:
    ((example,), skipped) = read(tmp_path, [{"messages": TALK}], template=CHATML)
    assert skipped == []
    assert not example.begin
    assert not example.end  # the template's turns end with EOS
    assert example.parts == (
        ("<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n", False),
        ("Yes.</s>\n", True),
        ("<|user|>\nBye</s>\n<|assistant|>\n", False),
        ("No.</s>\n", True),
    )


@pytest.mark.parametrize("template", [CHATML, REWRITING])
def test_the_parts_of_a_conversation_are_the_text_of_the_template(
    tmp_path: Path, template: str
) -> None:
    ends_with_user = [*TALK, {"role": "user", "content": "Bye"}]
    for talk in (TALK, TALK[1:3], ends_with_user):
        ((example,), _) = read(tmp_path, [{"messages": talk}], template=template)
        whole = byte_tokenizer(template=template).apply_chat_template(talk, tokenize=False)
        assert "".join(text for text, _ in example.parts) == whole
        said = [text for text, trained in example.parts if trained]
        wanted = [turn["content"] for turn in talk if turn["role"] == "assistant"]
        assert len(said) == len(wanted)
        assert all(content in text for text, content in zip(said, wanted, strict=True))
        assert not any("<|" in text for text in said)


def test_a_turn_that_is_written_differently_at_the_end_is_still_found(tmp_path: Path) -> None:
    ((example,), _) = read(tmp_path, [{"messages": TALK}], template=REWRITING)
    assert [text for text, trained in example.parts if trained] == [
        "Yes.<end>\n",
        "<think></think>No.<end>\n",
    ]
    assert example.end  # "<end>" is not EOS


def test_templates_that_refuse_or_rewrite_cost_a_line_each(tmp_path: Path) -> None:
    refuses = "{{ raise_exception('roles must alternate') }}"
    forgets = "{% for m in messages[-1:] %}{{ m.content }};{% endfor %}"
    _, skipped = read(tmp_path, [{"messages": TALK}], template=refuses)
    assert skipped == ["1: the chat template refuses it: roles must alternate"]
    _, skipped = read(tmp_path, [{"messages": TALK}], template=forgets)
    assert skipped == ["1: the chat template rewrites message 3; give it as prompt+response"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        ('{"text": "a"} {"text": "b"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"n": ' + "9" * 5000 + "}", "not JSON"),
        ("[1, 2]", "a JSON list, not an object"),
        ("null", "a JSON NoneType"),
        ("{}", "keys are none; give one of text"),
        ('{"instruction": "a", "answer": "b"}', "keys are 'answer', 'instruction'"),
        ('{"prompt": "a"}', "keys are 'prompt'"),
        ('{"text": "a", "prompt": "b", "response": "c"}', "text and prompt+response on one line"),
        ('{"prompt": "b", "response": "c", "completion": "d"}', "keep one of them"),
        ('{"text": ""}', "text is empty"),
        ('{"text": " \\n"}', "text is empty"),
        ('{"text": 3}', "text is int, not text"),
        ('{"text": null}', "text is missing, not text"),
        ('{"prompt": "a", "response": ""}', "response is empty"),
        ('{"prompt": ["a"], "response": "b"}', "prompt is list, not text"),
        ('{"question": "", "answer": "b"}', "question is empty"),
        ('{"question": "a", "answer": " "}', "answer is empty"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"messages": "hi"}', "messages is not a list"),
        ('{"messages": []}', "messages is not a list"),
        ('{"messages": ["hi"]}', "message 1 has no role"),
        ('{"messages": [{"from": "a", "value": "b"}]}', "message 1 has no role"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message of the assistant"),
        ('{"messages": [{"role": "assistant", "content": ""}]}', "content is empty"),
        ('{"messages": [{"role": "assistant", "content": [1]}]}', "message 1 has no role"),
        (b'{"text": "\xe9"}', "not UTF-8 (byte 10"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(
    tmp_path: Path, line: str | bytes, why: str
) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    found, skipped = read(tmp_path, b'{"text": "a"}\n' + raw + b'\n{"text": "c"}\n')
    assert [example.parts[0][0] for example in found] == ["a", "c"]
    (named,) = skipped
    assert named.startswith("2: ")
    assert why in named
    assert "\n" not in named
    assert len(named) < 400


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be"
    rows = [json.dumps({"text": text}, ensure_ascii=False), '{"text": "f"}']
    for gap in ("\n", "\r\n"):
        found, skipped = read(tmp_path, gap.join(rows))
        # A vertical tab may not stand bare in JSON; dumps escapes it.
        assert ([example.parts[0][0] for example in found], skipped) == ([text, "f"], [])


def test_byte_order_mark_blank_lines_and_a_missing_last_line_end(tmp_path: Path) -> None:
    found, skipped = read(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n\n  \r\n{"text": "b"}')
    assert [(example.line, example.parts[0][0]) for example in found] == [(1, "a"), (4, "b")]
    assert skipped == []


def test_a_file_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\nbad\n{"text": "b"}\n')
    skipped = SkippedLines("a")
    stream = read_examples(file, None, skipped)
    next(stream)
    assert skipped.count == 0
    next(stream)
    assert skipped.count == 1


def test_many_bad_lines_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    skipped = SkippedLines("a", keep=2)
    for line in range(5):
        skipped.add(line, "bad")
    assert skipped.count == 5
    assert skipped.named == ["a:0: bad", "a:1: bad"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "noending"])
def test_any_other_file_is_one_text(tmp_path: Path, name: str) -> None:
    found, skipped = read(tmp_path, b"\xef\xbb\xbfA\r\n{}\nB", name=name)
    assert found == [Example(1, (("A\n{}\nB", True),))]
    assert skipped == []


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("a.txt", b"", UsageError, "text is empty"),
        ("a.txt", b" \n", UsageError, "text is empty"),
        ("a.txt", b"ok\nna\xefve", UsageError, "a.txt:2: not UTF-8"),
        ("a.json", b"[]", UsageError, "one object a line"),
    ],
)
def test_a_file_that_cannot_be_used_says_so(
    tmp_path: Path, name: str, data: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        read(tmp_path, data, name=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingError, match="no such file"):
        list(read_examples(tmp_path / name, None, SkippedLines("")))
    with pytest.raises(MissingError, match="directory"):
        list(read_examples(tmp_path, None, SkippedLines("")))


def test_questions_are_read_with_the_same_eyes(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n[]\n')
    skipped = SkippedLines("q")
    assert list(read_questions(file, skipped)) == [(1, "a", "b")]
    assert [line.split(":")[1] for line in skipped.named] == ["2", "3"]
    (example, *_) = read_examples(file, None, SkippedLines("q"))
    assert example.parts[0] == (question_prompt("a"), False)
    (tmp_path / "q.txt").write_text("a")
    with pytest.raises(UsageError, match="not jsonl"):
        list(read_questions(tmp_path / "q.txt", skipped))
    with pytest.raises(MissingError):
        list(read_questions(tmp_path / "gone.jsonl", skipped))
