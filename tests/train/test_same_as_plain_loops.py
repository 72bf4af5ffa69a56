"""What training computes is what the shortest possible loops compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from layerstats.train import TrainConfig, train
from layerstats.train.data import TrainingData, load_data
from tests.train.tiny import config, log, weights_of

STEPS = 20


def plain(settings: TrainConfig) -> tuple[list[float], dict[str, torch.Tensor], TrainingData]:
    """AdamW on every parameter, written out; the losses and the weights at the end."""
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    model.train()
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    data = load_data(settings.data, tokenizer, seq_len=settings.seq_len)
    parameters = list(model.parameters())
    first = [torch.zeros_like(one) for one in parameters]
    second = [torch.zeros_like(one) for one in parameters]
    losses = []
    for step in range(STEPS):
        batches = data.micro_batches(
            step, batch_size=settings.batch_size, accumulation=settings.accumulation, seed=0
        )
        total = sum(int((batch.labels[:, 1:] != -100).sum()) for batch in batches)
        loss = torch.zeros(())
        for batch in batches:
            logits = model(batch.input_ids).logits[:, :-1]
            loss = loss + torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
            )
        gradients = torch.autograd.grad(loss / total, parameters)
        losses.append(float(loss.detach()) / total)
        norm = torch.sqrt(sum((one.double() ** 2).sum() for one in gradients))
        rate = settings.lr * (1 - step / STEPS)
        with torch.no_grad():
            for weight, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                cut = gradient * min(1.0, 1.0 / float(norm))
                m.mul_(0.9).add_(0.1 * cut)
                v.mul_(0.999).add_(0.001 * cut**2)
                if weight.ndim > 1:
                    weight.mul_(1 - rate * settings.weight_decay)
                m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                weight.sub_(rate * m_hat / (v_hat.sqrt() + 1e-8))
    return losses, model.state_dict(), data


@pytest.mark.parametrize("accumulation", [1, 2])
def test_full_is_a_plain_adamw_loop(tmp_path: Path, accumulation: int) -> None:
    settings = config(tmp_path, "full", steps=STEPS, accumulation=accumulation, weight_decay=0.1)
    losses, weights, _ = plain(settings)
    train(settings)
    assert [entry["loss"] for entry in log(tmp_path / "run")] == pytest.approx(losses, abs=2e-6)
    found = weights_of(tmp_path / "run" / "model")
    assert "lm_head.weight" not in found  # tied, stored once
    for name, tensor in found.items():
        # Adam divides by the square root of a second moment that may be tiny: where a gradient is
        # zero but for rounding, its sign decides. Those few coordinates are let off.
        near = torch.isclose(tensor, weights[name], rtol=0, atol=1e-6)
        assert near.float().mean() > 0.999, name


def test_full_is_transformers_trainer(tmp_path: Path) -> None:
    settings = config(tmp_path, "full", steps=STEPS, accumulation=2, weight_decay=0.1)
    train(settings)
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    data = load_data(settings.data, tokenizer, seq_len=settings.seq_len)
    batches = [
        batch
        for step in range(STEPS)
        for batch in data.micro_batches(step, batch_size=2, accumulation=2, seed=0)
    ]

    class InOrder(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return [{"input_ids": one.input_ids, "labels": one.labels} for one in batches]

    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        max_steps=STEPS,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = InOrder(model, arguments, train_dataset=list(range(len(batches))))
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [one["loss"] for one in log(tmp_path / "run")] == pytest.approx(theirs, abs=1e-4)
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert [one["gradient_norm"] for one in log(tmp_path / "run")] == pytest.approx(norms, rel=1e-5)
    ours = weights_of(tmp_path / "run" / "model")
    for name, tensor in model.state_dict().items():
        if name in ours:
            near = torch.isclose(ours[name], tensor, rtol=0, atol=1e-6)
            assert near.float().mean() > 0.999, name
