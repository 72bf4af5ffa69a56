"""Training data with a real tokenizer and its chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerstats.demo_data import WordProblems
from layerstats.train.data import TrainingData, load_data
from layerstats.train.examples import question_prompt
from layerstats.train.packing import prompt_ids

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def spoken(data: TrainingData, tokenizer: Any) -> list[str]:
    """The targets of each window as text."""
    return [
        tokenizer.decode(batch.labels[0][batch.labels[0] != -100].tolist())
        for batch in data.batches(1)
    ]


def test_the_loss_of_a_chat_is_on_the_assistant_alone(tmp_path: Path, tokenizer: Any) -> None:
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Now we part."},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": talk}) + "\n")
    data = load_data(file, tokenizer, seq_len=128)
    assert data.skipped.lines == 0
    assert spoken(data, tokenizer) == ["Good day.<|im_end|>\nNow we part.<|im_end|>\n"]
    (batch,) = data.batches(1)
    whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    assert batch.input_ids[0].tolist() == whole


def test_word_problems_are_trained_on_from_the_first_token_that_is_generated(
    word_problems: WordProblems, tokenizer: Any
) -> None:
    data = load_data(word_problems.new_templates, tokenizer, seq_len=1024, packing=False)
    lines = word_problems.new_templates.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert (data.num_windows, data.skipped.truncated) == (len(rows), 0)
    answers = spoken(data, tokenizer)
    for row, answer, batch in zip(rows, answers, data.batches(1), strict=True):
        assert answer == f" {row['answer']}<|im_end|>"
        prompt = prompt_ids(question_prompt(row["question"]), tokenizer)
        assert batch.input_ids[0, : len(prompt)].tolist() == prompt
        assert (batch.labels[0] != -100).int().argmax() == len(prompt)
        text = question_prompt(row["question"]) + f" {row['answer']}<|im_end|>"
        assert batch.input_ids[0].tolist() == tokenizer(text)["input_ids"]


def test_a_book_is_the_same_tokens_as_in_calibration(moby_dick: Path, tokenizer: Any) -> None:
    data = load_data(moby_dick, tokenizer, seq_len=512)
    text = moby_dick.read_text(encoding="utf-8")
    wanted = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    found = [token for batch in data.batches(1) for token in batch.input_ids[0].tolist()]
    assert found == [*wanted, tokenizer.eos_token_id]
    first = text.split("\n")[int(data.describe([100]).split(":")[1].split("-")[0]) - 1]
    window = tokenizer.decode(next(b for b in data.batches(1) if b.windows == (100,)).input_ids[0])
    assert window.split("\n")[0] in first
