"""Held-out loss is that of one prefix at a time; answers are judged by their number alone."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from layerstats.errors import MissingError, UsageError
from layerstats.train.data import load_data
from layerstats.train.evaluate import exact_match, final_number, held_out_loss
from layerstats.train.examples import question_prompt
from tests.oracles import windows as oracle
from tests.train.byte_tokenizer import BOS, EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def tiny_llama(*, positions: int = 256, dropout: float = 0.0) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=positions,
        attention_dropout=dropout,
        pad_token_id=None,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config)


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("packing", [True, False])
def test_held_out_loss_is_the_plain_loop(tmp_path: Path, packing: bool) -> None:
    rows = [{"text": "a whale"}, {"prompt": "2+2 ", "response": "4"}, {"text": "b"}]
    data = load_data(write(tmp_path / "a.jsonl", rows), TOKENIZER, seq_len=6, packing=packing)
    examples = [
        oracle.example_pairs(parts, BOS, EOS)
        for parts in ([("a whale", True)], [("2+2 ", False), ("4", True)], [("b", True)])
    ]
    model = tiny_llama()
    wanted, tokens = oracle.mean_loss(model, oracle.windows(examples, 6, packing=packing))
    for batch_size in (1, 2, 9):
        found = held_out_loss(model, data, batch_size=batch_size)
        assert found.loss == pytest.approx(wanted, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-5)
        assert found.tokens == tokens == data.target_tokens


def test_the_loss_of_one_batch_is_transformers_own(tmp_path: Path) -> None:
    """Labels are aligned with the ids, so that a model of transformers shifts them itself."""
    data = load_data(write(tmp_path / "a.jsonl", [{"text": "whales"}]), TOKENIZER, seq_len=8)
    (batch,) = data.batches(1)
    model = tiny_llama().eval()
    with torch.no_grad():
        theirs = model(input_ids=batch.input_ids, labels=batch.labels).loss
    assert held_out_loss(model, data, batch_size=1).loss == pytest.approx(theirs.item(), rel=1e-6)


def test_the_model_comes_back_as_it_was(tmp_path: Path) -> None:
    data = load_data(write(tmp_path / "a.jsonl", [{"text": "whales"}]), TOKENIZER, seq_len=8)
    model = tiny_llama(dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    first = held_out_loss(model, data, batch_size=1)
    assert held_out_loss(model, data, batch_size=1) == first  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(one.grad is None for one in model.parameters())
    broken = load_data(write(tmp_path / "b.jsonl", [{"text": "w"}]), TOKENIZER, seq_len=8)
    with pytest.raises(UsageError):
        held_out_loss(model, broken, batch_size=0)
    assert [module.training for module in model.modules()] == modes


class Constant(nn.Module):
    """The same logits everywhere."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor, **_others: Any) -> Any:
        return SimpleNamespace(logits=self.row.expand(*input_ids.shape, -1))


def test_what_cannot_be_a_number_is_said_not_hidden(tmp_path: Path) -> None:
    data = load_data(write(tmp_path / "a.jsonl", [{"text": "whales"}]), TOKENIZER, seq_len=8)
    found = held_out_loss(Constant(torch.full((258,), math.nan)), data, batch_size=1)
    assert math.isnan(found.loss)
    logits = torch.zeros(258)
    logits[0] = 2000.0
    found = held_out_loss(Constant(logits), data, batch_size=1)
    assert (found.loss, found.perplexity) == (2000.0, math.inf)


class Scripted(nn.Module):
    """A model whose answers are written down, `|` for EOS; it keeps what it was asked."""

    def __init__(self, answers: list[str], *, positions: int = 512) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(max_position_embeddings=positions)
        self.answers = iter(answers)
        self.calls: list[dict[str, Any]] = []

    def generate(self, **given: Any) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append(given)
        count = len(given["input_ids"])
        rows = [
            [EOS if one == ord("|") else one for one in next(self.answers).encode()]
            for _ in range(count)
        ]
        width = max(map(len, rows))
        padded = torch.tensor([row + [EOS] * (width - len(row)) for row in rows])
        return torch.cat([given["input_ids"], padded], dim=1)


def questions(folder: Path, answers: list[str]) -> Path:
    rows = [{"question": "Q" * n, "answer": one} for n, one in enumerate(answers, 1)]
    return write(folder / "q.jsonl", rows)


def test_answers_are_counted_by_their_number(tmp_path: Path) -> None:
    file = questions(tmp_path, ["so #### 3", "#### 1,000", "#### 7", "#### -2", "#### 5"])
    said = [" three is #### 3.0", "#### $1000.", "7", "#### 2", "#### 5\n#### 6"]
    model = Scripted(said)
    found = exact_match(model, TOKENIZER, file, batch_size=2, samples=2)
    assert (found.correct, found.total, found.rate) == (3, 5, 0.6)
    assert [one.generated for one in found.samples] == said[:2]
    assert found.samples[0].question == "Q"
    assert (found.samples[0].wanted, found.samples[0].found) == ("3", "3.0")
    assert json.loads(json.dumps(found.to_dict()))["samples"][0]["correct"] is True
    assert [len(call["input_ids"]) for call in model.calls] == [2, 2, 1]
    assert model.training


def test_prompts_stand_left_padded_as_in_training(tmp_path: Path) -> None:
    file = questions(tmp_path, ["#### 1", "#### 2", "#### 3"])
    model = Scripted(["#### 1", "#### 2", "#### 3"])
    exact_match(model, TOKENIZER, file, batch_size=3, max_new_tokens=17)
    (call,) = model.calls
    data = load_data(file, TOKENIZER, seq_len=512, packing=False)
    batches = list(data.batches(1))
    for ids, mask, batch in zip(call["input_ids"], call["attention_mask"], batches, strict=True):
        prompt = ids[mask.bool()].tolist()
        assert mask.tolist() == sorted(mask.tolist())
        trained = batch.input_ids[0].tolist()
        assert trained[: len(prompt)] == prompt
        # The first token with a loss is the first that is to be generated.
        assert (batch.labels[0] != -100).int().argmax() == len(prompt)
    settings = call["generation_config"]
    assert (settings.do_sample, settings.num_beams, settings.max_new_tokens) == (False, 1, 17)
    assert settings.eos_token_id == EOS


def test_what_comes_after_the_end_does_not_count(tmp_path: Path) -> None:
    file = questions(tmp_path, ["#### 1", "#### 1"])
    found = exact_match(Scripted(["no|#### 1", "#### 1|#### 2"]), TOKENIZER, file, batch_size=2)
    assert [one.generated for one in found.samples] == ["no", "#### 1"]
    assert (found.correct, found.total) == (1, 2)
    without_eos = byte_tokenizer(eos=False)
    found = exact_match(Scripted(["#### 2", "so #### 1"]), without_eos, file, batch_size=1)
    assert (found.correct, found.total) == (1, 2)


def test_limit_takes_the_first_questions(tmp_path: Path) -> None:
    file = questions(tmp_path, ["#### 1", "no number", "#### 2", "#### 3"])
    found = exact_match(Scripted(["#### 1"] * 3), TOKENIZER, file, limit=2)
    assert (found.correct, found.total) == (1, 2)
    assert found.skipped == (f"{file}:2: the answer has no `#### N`",)


def test_a_prompt_that_leaves_no_room_is_answered_wrong(tmp_path: Path) -> None:
    file = questions(tmp_path, ["#### 1", "#### 2"])  # prompts of 20 and 21 tokens
    widths = [1 + len(question_prompt("Q" * n)) for n in (1, 2)]
    model = Scripted(["#### 1"], positions=widths[1])
    found = exact_match(model, TOKENIZER, file, batch_size=2)
    assert [one.generated for one in found.samples] == ["#### 1", ""]
    (call,) = model.calls
    assert call["generation_config"].max_new_tokens == 1
    assert (found.correct, found.total) == (1, 2)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("#### 3", "3"),
        ("####3.0", "3"),
        ("#### 1,234,567", "1234567"),
        ("#### $1,000.50.", "1000.5"),
        ("#### -$4", "-4"),
        ("#### $-4", "-4"),
        ("#### \u22124", "-4"),
        ("#### .5", "0.5"),
        ("#### 20%", "20"),
        ("#### 12 apples", "12"),
        ("#### 007", "7"),
        ("so 5\n#### 6\nQuestion: #### 7", "6"),
        ("#### 3/4", None),
        ("#### 13/4", None),
        ("#### 1e5", None),
        ("#### 12:30", None),
        ("#### 1.2.3", None),
        ("#### x", None),
        ("####", None),
        ("### 3", None),
        ("3", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, wanted: str | None) -> None:
    found = final_number(text)
    assert found == (None if wanted is None else Decimal(wanted))


@given(some.decimals(-(10**9), 10**9, places=2))
def test_every_way_to_write_a_number_is_the_same_number(value: Decimal) -> None:
    ways = [f"{value}", f"{value:,}", f"{value}0", f"{value:,}.", f" {value} ", f"{value:,}0 km"]
    assert {final_number(f"text 1\n#### {way}") for way in ways} == {value}


@pytest.mark.parametrize(
    ("content", "settings", "error", "words"),
    [
        (None, {}, MissingError, "no such file"),
        ("", {}, UsageError, "it is empty"),
        ('{"text": "a"}', {}, UsageError, "1 bad, the first .*q.jsonl:1: question is missing"),
        ('{"question": "a", "answer": "b"}', {}, UsageError, "no `#### N`"),
        ('{"question": "a", "answer": "#### 1"}', {"limit": 0}, UsageError, "limit"),
        ('{"question": "a", "answer": "#### 1"}', {"batch_size": 0}, UsageError, "batch_size"),
        ('{"question": "a", "answer": "#### 1"}', {"max_new_tokens": 0}, UsageError, "max_new"),
    ],
)
def test_questions_that_cannot_be_asked(
    tmp_path: Path, content: str | None, settings: Any, error: Any, words: str
) -> None:
    file = tmp_path / "q.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(error, match=words) as caught:
        exact_match(Scripted([]), TOKENIZER, file, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_learnt_the_answers_gives_them_in_batches(tmp_path: Path) -> None:
    """The whole way with a real model: training windows, greedy generation, judging."""
    file = questions(tmp_path, ["#### 4", "#### 9", "#### 25"])
    data = load_data(file, TOKENIZER, seq_len=64, packing=False)
    (batch,) = data.batches(3)
    model = tiny_llama()
    before = exact_match(model, TOKENIZER, file, batch_size=3, max_new_tokens=12)
    assert before.correct == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        model(input_ids=batch.input_ids, labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert held_out_loss(model, data, batch_size=3).loss < 0.1
    # Settings that the model brings must not make it say something else.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 50.0
    for batch_size in (1, 3):
        found = exact_match(model, TOKENIZER, file, batch_size=batch_size, max_new_tokens=12)
        assert [one.generated for one in found.samples] == [" #### 4", " #### 9", " #### 25"]
        assert found.rate == 1.0
    assert model.generation_config.temperature == 5.0
