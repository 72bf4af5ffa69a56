"""Training SmolLM2-135M by full, lisa and owlore: ours beside transformers' Trainer.

Trainer follows a callback that switches layers as LMFlow's does (requires_grad only; the optimizer
keeps what it has) and, for owlore, an optimizer that projects gradients as GaLore's published code
does. Same model, same windows in the same order, float32, both cores. Every candidate runs in a
process of its own, one after the other. `python -m benchmarks training`
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import Row

STEPS, INTERVAL, ACTIVE, RANK = 9, 3, 2, 64
SEQ_LEN, BATCH, SEED = 128, 2, 0
METHODS = ("full", "lisa", "owlore")


def main() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            ours, theirs = (_alone(side, method, folder) for side in ("ours", "theirs"))
            _check(method, ours, theirs)
            for what, unit, ratio in (
                ("speed", "tokens/s", ours["speed"] / theirs["speed"]),
                ("peak memory", "GB", ours["memory"] / theirs["memory"]),
            ):
                key = "speed" if what == "speed" else "memory"
                rows.append(
                    Row(
                        f"training by {method}, {what} over Trainer with a callback",
                        f"{ratio:.2f}×",
                        "",
                        None,
                        f"{ours[key]:.3g} and {theirs[key]:.3g} {unit}; {STEPS} steps of "
                        f"{BATCH * SEQ_LEN} tokens, wall time on both cores",
                    )
                )
    return rows


def _alone(side: str, method: str, folder: str) -> dict[str, Any]:
    """Run one candidate in its own process and read the line it prints."""
    command = [sys.executable, "-m", "benchmarks.training", side, method, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _check(method: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both train before anything is printed; the full ones are the same computation."""
    assert np.isfinite(ours["losses"]).all()
    assert np.isfinite(theirs["losses"]).all()
    np.testing.assert_allclose(ours["losses"][0], theirs["losses"][0], rtol=1e-4)
    if method == "full":
        np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=2e-3)


def _config(method: str, folder: str) -> Any:
    from layerstats.demo_data import calibration_text, demo_checkpoint
    from layerstats.train import TrainConfig

    scores = Path(folder) / "scores.txt"
    scores.write_text("".join(f"{40 - layer}\n" for layer in range(30)))
    layerwise: dict[str, Any] = {"expected_active": ACTIVE, "interval_steps": INTERVAL}
    return TrainConfig(
        model=str(demo_checkpoint()),
        data=str(calibration_text()),
        out=f"{folder}/{method}",
        method=method,
        steps=STEPS,
        seq_len=SEQ_LEN,
        batch_size=BATCH,
        lr=1e-5,
        lr_schedule="constant",
        warmup_steps=0,
        device="cpu",
        seed=SEED,
        **({} if method == "full" else layerwise),
        **({"stats": str(scores), "rank": RANK} if method == "owlore" else {}),
    )


def ours(method: str, folder: str) -> dict[str, Any]:
    """Train by the bundled trainer; the time is that of its steps."""
    from layerstats import runs
    from layerstats.train import train

    result = train(_config(method, folder))
    steps = runs.of_kind(runs.read_log(result.out), "step")
    # The first step of each candidate warms the allocator up.
    seconds = sum(one["tokens"] / one["tokens_per_second"] for one in steps[1:])
    return {
        "speed": sum(one["tokens"] for one in steps[1:]) / seconds,
        "memory": max(one["memory"]["peak"] for one in steps) / 1e9,
        "losses": [one["loss"] for one in steps],
    }


def theirs(method: str, folder: str) -> dict[str, Any]:
    """Train by transformers' Trainer; the time is that between the callbacks of its steps."""
    from transformers import Trainer, TrainingArguments

    from layerstats.train.data import load_data
    from layerstats.train.high_water import HighWater
    from layerstats.train.model import load_model, load_tokenizer

    config = _config(method, folder)
    model = load_model(config, "cpu")
    data = load_data(config.data, load_tokenizer(Path(config.model)), seq_len=SEQ_LEN)
    batches = [
        {"input_ids": batch.input_ids, "labels": batch.labels}
        for step in range(STEPS)
        for batch in data.micro_batches(step, batch_size=BATCH, accumulation=1, seed=SEED)
    ]

    class InOrder(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return batches

    arguments = TrainingArguments(
        f"{folder}/trainer-{method}",
        max_steps=STEPS,
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=BATCH,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    optimizer = PublishedGaLore(model, config.lr) if method == "owlore" else None
    watch = _clock()
    trainer = InOrder(
        model,
        arguments,
        train_dataset=list(range(len(batches))),
        callbacks=[watch, *([] if method == "full" else [_switch()])],
        optimizers=(optimizer, None),
    )
    mark = HighWater(torch.device("cpu"))
    trainer.train()
    return {
        "speed": (STEPS - 1) * BATCH * SEQ_LEN / sum(watch.seconds[1:]),
        "memory": mark.peak / 1e9,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds of each optimizer step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self._began)

    return Clock()


def _switch() -> Any:
    from transformers import TrainerCallback

    class Switch(TrainerCallback):  # type: ignore[misc]
        """Layers drawn anew every INTERVAL steps; nothing is done to the optimizer."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step % INTERVAL:
                return
            layers = others["model"].model.layers
            draw = np.random.Generator(np.random.PCG64([SEED, state.global_step]))
            active = draw.choice(len(layers), ACTIVE, replace=False)
            for number, layer in enumerate(layers):
                layer.requires_grad_(number in active)

    return Switch()


class PublishedGaLore(torch.optim.Optimizer):
    """GaLore's AdamW as published: a full SVD when a matrix begins, moments in its basis."""

    def __init__(self, model: torch.nn.Module, lr: float) -> None:
        low_rank = [
            one for name, one in model.named_parameters() if "layers" in name and one.ndim == 2
        ]
        chosen = set(map(id, low_rank))
        rest = [one for one in model.parameters() if id(one) not in chosen]
        super().__init__(
            [{"params": low_rank, "rank": RANK}, {"params": rest, "rank": None}], {"lr": lr}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group["rank"], group["lr"])

    def _step(self, weight: torch.Tensor, rank: int | None, lr: float) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        right = rank is not None and gradient.shape[0] >= gradient.shape[1]
        if rank is not None:
            if "basis" not in state:
                u, _, vt = torch.linalg.svd(gradient, full_matrices=False)
                state["basis"] = vt[:rank].T.clone() if right else u[:, :rank].clone()
            basis = state["basis"]
            gradient = gradient @ basis if right else basis.T @ gradient
        if "m" not in state:
            state.update(step=0, m=torch.zeros_like(gradient), v=torch.zeros_like(gradient))
        state["step"] += 1
        state["m"].mul_(0.9).add_(gradient, alpha=0.1)
        state["v"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = lr * (1 - 0.999 ** state["step"]) ** 0.5 / (1 - 0.9 ** state["step"])
        update = state["m"] / (state["v"].sqrt() + 1e-8)
        if rank is not None:
            update = update @ basis.T if right else basis @ update
        weight.add_(update, alpha=-size)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    _side, _method, _folder = sys.argv[1:]
    print(json.dumps({"ours": ours, "theirs": theirs}[_side](_method, _folder)))
