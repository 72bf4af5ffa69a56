"""What a model has learnt: its loss on held-out text, and how many questions it answers exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from layerstats.errors import UsageError
from layerstats.train.data import IGNORED, TrainingData
from layerstats.train.examples import SkippedLines, question_prompt, read_questions
from layerstats.train.packing import prompt_ids

__all__ = [
    "Answered",
    "ExactMatch",
    "HeldOut",
    "exact_match",
    "final_number",
    "held_out_loss",
    "load_questions",
]

# What may stand around the number but makes it another one: 3/4, 1e5, 12:30, 1.2.3.
_NUMBER = re.compile(
    r"####\s*(?P<sign>-?)\s*\$?\s*(?P<minus>-?)(?P<digits>[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?![0-9]|,[0-9]|\.[0-9]|\s*[/:][0-9]|[eE][-+]?[0-9])"
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean loss per predicted token in nats, its exponential, and the number of those tokens."""

    loss: float
    perplexity: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A question, what the model wrote, the numbers looked for and found, and the verdict."""

    question: str
    generated: str
    wanted: str
    found: str | None
    correct: bool


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Questions answered with exactly the number of the reference.

    `rate` is correct / total, in [0, 1]; `samples` are the first questions as they were answered;
    `skipped` names lines of the file that are no question with an answer ``#### N``.
    """

    correct: int
    total: int
    rate: float
    samples: tuple[Answered, ...]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result, ready for JSON."""
        return asdict(self) | {
            "samples": [asdict(one) for one in self.samples],
            "skipped": list(self.skipped),
        }


def held_out_loss(model: Any, data: TrainingData, *, batch_size: int) -> HeldOut:
    """Return the mean cross entropy of a model over all target tokens of the data.

    ``loss = - sum over targets log p(token | tokens of its window before it) / targets``: a token
    weighs the same in whatever window it is, so `batch_size` changes nothing but rounding.

    Parameters
    ----------
    model
        A causal language model of transformers; its modules come back in the mode they were in.
    data : TrainingData
    batch_size : int
        Windows in a forward pass.

    Returns
    -------
    HeldOut
        `loss` in nats >= 0 (NaN if the model gives NaN), summed in float64; `perplexity` is
        exp(loss), infinite where that is too large for a float.
    """
    total, tokens = 0.0, 0
    with _evaluating(model) as device:
        for batch in data.batches(batch_size):
            logits = model(input_ids=batch.input_ids.to(device), use_cache=False).logits
            labels = batch.labels.to(device)
            # Window by window: the float32 copy of a batch's logits may be larger than the model.
            for row, wanted in zip(logits, labels, strict=True):
                losses = functional.cross_entropy(
                    row[:-1].float(), wanted[1:], ignore_index=IGNORED, reduction="none"
                )
                total += float(losses.sum(dtype=torch.float64))
            tokens += int((batch.labels[:, 1:] != IGNORED).sum())
    loss = total / tokens
    try:
        perplexity = math.exp(loss)
    except OverflowError:
        perplexity = math.inf
    return HeldOut(loss, perplexity, tokens)


def exact_match(
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    max_new_tokens: int = 256,
    limit: int | None = None,
    batch_size: int = 16,
    samples: int = 3,
) -> ExactMatch:
    """Let a model answer questions greedily and count the answers with the right number.

    The prompt is the one of training (`question_prompt`). The answer ends at EOS or after
    `max_new_tokens`; its number is the first one after ``####``, compared as a number: 1,000 and
    $1000.00 are the same. An answer without ``####`` is wrong.

    Parameters
    ----------
    model
        A causal language model of transformers; its modules come back in the mode they were in.
    tokenizer
        Its tokenizer.
    path : str or Path
        jsonl with ``question`` and ``answer``; the answer holds ``#### N``.
    max_new_tokens, batch_size : int
        Longest answer in tokens; questions generated for at a time.
    limit : int, optional
        Use only the first so many questions.
    samples : int
        How many answered questions to return for reading.

    Returns
    -------
    ExactMatch

    Raises
    ------
    MissingError
        No such file.
    UsageError
        The file is not jsonl, no line of it is such a question, or a number is below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            msg = f"{name} must be at least 1, not {value}"
            raise UsageError(msg)
    questions, skipped = load_questions(Path(path), limit)
    answered: list[Answered] = []
    with _evaluating(model) as device:
        for at in range(0, len(questions), batch_size):
            part = questions[at : at + batch_size]
            prompts = [prompt_ids(question_prompt(question), tokenizer) for question, _ in part]
            texts = _generate(model, tokenizer, prompts, max_new_tokens, device)
            answered += [_judge(*pair, text) for pair, text in zip(part, texts, strict=True)]
    correct = sum(one.correct for one in answered)
    return ExactMatch(
        correct,
        len(answered),
        correct / len(answered),
        tuple(answered[:samples]),
        tuple(skipped.named),
    )


def final_number(answer: str) -> Decimal | None:
    """Return the first number after ``####`` in an answer, or None.

    Examples
    --------
    >>> [str(final_number(f"so #### {text}")) for text in ("$1,000.", "-3.50 km", "3/4", "x")]
    ['1000', '-3.50', 'None', 'None']
    >>> final_number("#### 3") == final_number("#### 3.0")
    True
    """
    found = _NUMBER.search(answer.replace("\N{MINUS SIGN}", "-"))
    if found is None:
        return None
    sign = found["sign"] + found["minus"]
    value = Decimal(found["digits"].replace(",", ""))
    return -value if sign == "-" else value


def load_questions(path: Path, limit: int | None) -> tuple[list[tuple[str, str]], SkippedLines]:
    """Return questions with their answers ``#### N``, and a record of the lines that are none.

    Raises
    ------
    MissingError
        No such file.
    UsageError
        The file is not jsonl, or no line of it is such a question.
    """
    if limit is not None and limit < 1:
        msg = f"limit must be at least 1, not {limit}"
        raise UsageError(msg)
    skipped = SkippedLines(str(path))
    questions: list[tuple[str, str]] = []
    for line, question, answer in read_questions(path, skipped):
        if final_number(answer) is None:
            skipped.add(line, "the answer has no `#### N`")
            continue
        questions.append((question, answer))
        if len(questions) == limit:
            break
    if not questions:
        bad = (
            f"{skipped.count} bad, the first {skipped.named[0]}" if skipped.count else "it is empty"
        )
        msg = f"{path}: no line with a question and an answer that ends `#### N` ({bad})"
        raise UsageError(msg)
    return questions, skipped


def _judge(question: str, answer: str, generated: str) -> Answered:
    wanted, found = final_number(answer), final_number(generated)
    return Answered(
        question, generated, str(wanted), None if found is None else str(found), found == wanted
    )


def _generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, device: torch.device
) -> list[str]:
    """Return what the model writes greedily after each prompt, up to EOS."""
    width = max(map(len, prompts))
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and room - width < max_new_tokens:
        if len(prompts) > 1:  # each with the room that it has by itself, whoever its neighbours are
            alone = ([prompt] for prompt in prompts)
            return [_generate(model, tokenizer, one, max_new_tokens, device)[0] for one in alone]
        max_new_tokens = room - width
        if max_new_tokens < 1:
            return [""]  # no place for an answer, which is then wrong
    eos = tokenizer.eos_token_id
    pad = next((one for one in (tokenizer.pad_token_id, eos) if one is not None), 0)
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # On the left, so that every answer begins right after its prompt.
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    made = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=_greedy(max_new_tokens, eos, pad),
    )
    return [_until_end(tokenizer, row.tolist()[width:], eos) for row in made]


def _greedy(max_new_tokens: int, eos: int | None, pad: int) -> Any:
    """Return settings that leave nothing to the model's own: those it takes where one is None."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def _until_end(tokenizer: Any, tokens: list[int], eos: int | None) -> str:
    if eos in tokens:
        tokens = tokens[: tokens.index(eos)]
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


@contextmanager
def _evaluating(model: Any) -> Iterator[torch.device]:
    """Put a model in evaluation mode without gradients; afterwards each module is as it was.

    `no_grad` rather than `inference_mode`: buffers that a model changes in its forward pass (rotary
    frequencies of some) must still be usable for training.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, training in modes:
            module.training = training
