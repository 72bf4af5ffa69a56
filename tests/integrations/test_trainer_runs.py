"""Real runs of transformers' Trainer with the callback: what moves, is held and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.integrations.transformers import ACTIVE_LAYERS, LayerScheduleCallback
from layerstats.schedules import Schedule
from tests.integrations.tiny import Snapshots, lisa, make_model, make_trainer, moved, weights


def train(
    folder: Path,
    plan: Schedule,
    *,
    steps: int,
    model: Any = None,
    state: str = "drop",
    **settings: Any,
) -> tuple[LayerScheduleCallback, Snapshots, Any]:
    callback, seen = LayerScheduleCallback(plan, state=state), Snapshots()
    trainer = make_trainer(model or make_model(), folder, [callback, seen], steps=steps, **settings)
    trainer.train()
    return callback, seen, trainer


def words(layers: tuple[int, ...]) -> set[str]:
    return {str(layer) for layer in layers}


@pytest.mark.parametrize(
    ("family", "tied", "accumulate"),
    [
        ("llama", False, 1),
        ("llama", False, 3),
        ("llama", True, 1),
        ("gpt2", True, 1),
        ("gpt2", False, 2),
    ],
)
def test_each_step_moves_the_scheduled_layers_and_no_other(
    tmp_path: Path, family: str, tied: bool, accumulate: int
) -> None:
    plan = lisa()
    callback, seen, _ = train(
        tmp_path,
        plan,
        steps=20,
        model=make_model(family, tied=tied),
        gradient_accumulation_steps=accumulate,
    )
    outside = {"embed", "norm"} | (set() if tied else {"head"})
    for step, (before, after) in enumerate(zip(seen.weights, seen.weights[1:], strict=False)):
        assert moved(before, after) == words(plan.active_layers(step // 5)) | outside, step
    assert callback.history == dict(enumerate(plan.plan(4)))
    assert len(set(callback.history.values())) > 1


@pytest.mark.parametrize(
    ("always", "tied", "outside"),
    [
        ((), False, set()),
        (("head",), False, {"head"}),
        (("norm", "embed"), False, {"norm", "embed"}),
        # One tensor under two names: the head cannot train without the embedding.
        (("head",), True, {"embed"}),
        (("norm",), True, {"norm"}),
    ],
)
def test_always_active_says_what_trains_outside_the_blocks(
    tmp_path: Path, always: tuple[str, ...], tied: bool, outside: set[str]
) -> None:
    plan = lisa(always_active=always)
    _, seen, _ = train(tmp_path, plan, steps=10, model=make_model(tied=tied))
    for step, (before, after) in enumerate(zip(seen.weights, seen.weights[1:], strict=False)):
        assert moved(before, after) == words(plan.active_layers(step // 5)) | outside, step


@pytest.mark.parametrize(
    ("always", "said"), [(("head",), True), (("embed", "head"), False), (("norm",), False)]
)
def test_tied_embeddings_that_train_under_the_other_name_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, always: tuple[str, ...], said: bool
) -> None:
    train(tmp_path, lisa(always_active=always), steps=1, model=make_model(tied=True))
    assert ("trains because 'head' is always active" in caplog.text) is said


def test_optimizer_state_stays_flat_when_dropped_and_grows_when_kept(tmp_path: Path) -> None:
    plan = lisa(every=2)
    used = {
        state: train(tmp_path, plan, steps=40, state=state)[1].state_bytes
        for state in ("drop", "keep")
    }
    assert len(set(used["drop"])) == 1
    assert used["keep"][0] == used["drop"][0]
    assert used["keep"] == sorted(used["keep"])
    model = make_model()
    # Two moments of every weight in the end, beside one step count a tensor.
    assert used["keep"][-1] == sum(2 * one.nbytes + 4 for one in model.parameters())


def test_all_layers_active_is_plain_training(tmp_path: Path) -> None:
    _, seen, _ = train(tmp_path, lisa(active=6), steps=12)
    plain = Snapshots()
    make_trainer(make_model(), tmp_path, [plain], steps=12).train()
    for ours, theirs in zip(seen.weights, plain.weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("state", ["drop", "keep"])
@pytest.mark.parametrize("stop", [130, 140])
def test_resuming_is_exact_inside_and_between_intervals(
    tmp_path: Path, stop: int, state: str
) -> None:
    plan = lisa(every=20)
    file = plan.save(tmp_path / "schedule.json")
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": stop, "steps": 165}
    whole, _, trainer = train(tmp_path / "run", plan, state=state, **settings)
    checkpoint = tmp_path / "run" / f"checkpoint-{stop}"

    held = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    last = (stop - 1) // 20
    layers = set().union(*plan.plan(1, start=last) if state == "drop" else plan.plan(last + 1))
    assert len(held) == 9 * len(layers) + 3  # tensors of a block; embedding, head and norm

    again, seen = LayerScheduleCallback(file, state=state), Snapshots()
    second = make_trainer(make_model(), tmp_path / "run", [again, seen], **settings)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert len(seen.weights) == 165 - stop + 1
    step = stop
    for before, after in zip(seen.weights, seen.weights[1:], strict=False):
        expected = words(plan.active_layers(step // 20)) | {"embed", "head", "norm"}
        assert moved(before, after) == expected, step
        step += 1
    assert again.history == {i: whole.history[i] for i in range(stop // 20, 9)}
    ours, theirs = weights(second.model), weights(trainer.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_log_has_one_entry_per_interval_also_across_a_resume(tmp_path: Path) -> None:
    plan = lisa()
    settings: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 12,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    train(tmp_path, plan, steps=20, **settings)
    again = LayerScheduleCallback(plan)
    second = make_trainer(make_model(), tmp_path, [again], steps=20, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    entries = [entry for entry in second.state.log_history if ACTIVE_LAYERS in entry]
    assert [entry["layerstats/interval"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["step"] for entry in entries] == [0, 5, 10, 15]
    assert [tuple(entry[ACTIVE_LAYERS]) for entry in entries] == plan.plan(4)
    stored = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert [entry[ACTIVE_LAYERS] for entry in stored["log_history"] if ACTIVE_LAYERS in entry] == [
        list(layers) for layers in plan.plan(3)
    ]


def test_another_schedule_at_a_resume_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, lisa(), steps=8, save_strategy="steps", save_steps=8)
    other = lisa(active=3)
    callback = LayerScheduleCallback(other)
    trainer = make_trainer(make_model(), tmp_path, [callback], steps=12)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert "another schedule" in caplog.text
    assert callback.history == {1: other.active_layers(1), 2: other.active_layers(2)}


def test_afterwards_all_is_trainable_again_and_can_be_trained_again(tmp_path: Path) -> None:
    model = make_model()
    plan = lisa()
    _, first, trainer = train(tmp_path, plan, steps=7, model=model)
    assert all(one.requires_grad for one in model.parameters())
    trainer.train()
    _, again, _ = train(tmp_path, plan, steps=7, model=model)
    assert moved(again.weights[0], again.weights[1]) == moved(first.weights[0], first.weights[1])


def test_a_run_that_broke_off_can_be_started_again(tmp_path: Path) -> None:
    class Break(Snapshots):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if len(self.weights) == 3:
                self.weights.append({})
                raise KeyboardInterrupt
            super().on_step_end(args, state, control, **others)

    model, plan, seen = make_model(), lisa(), Break()
    callback = LayerScheduleCallback(plan)
    trainer = make_trainer(model, tmp_path, [callback, seen], steps=10)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not all(one.requires_grad for one in model.parameters())
    seen.__class__ = Snapshots
    trainer.train()
    assert moved(seen.weights[5], seen.weights[10]) >= words(plan.active_layers(1))
    assert all(one.requires_grad for one in model.parameters())


def test_layers_that_leave_start_anew(tmp_path: Path) -> None:
    """After its state was dropped a layer takes Adam's first step again: lr times the sign."""
    plan = lisa(4, 1, every=3, sampling="reshuffle")
    _, seen, _ = train(
        tmp_path,
        plan,
        steps=30,
        model=make_model(blocks=4),
        weight_decay=0.0,
        lr_scheduler_type="constant",
        adam_epsilon=1e-20,
        max_grad_norm=0.0,
    )
    for interval in range(10):
        (layer,) = plan.active_layers(interval)
        if interval and layer in plan.active_layers(interval - 1):
            continue
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        change = seen.weights[3 * interval + 1][name] - seen.weights[3 * interval][name]
        torch.testing.assert_close(change.abs(), torch.full_like(change, 1e-2), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_lora_adapters_are_switched_and_the_weights_below_stay_frozen(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make_model(), config)
    plan = lisa()
    _, seen, _ = train(tmp_path, plan, steps=10, model=model)
    for step, (before, after) in enumerate(zip(seen.weights, seen.weights[1:], strict=False)):
        assert moved(before, after) == words(plan.active_layers(step // 5))
    first, last = seen.weights[0], seen.weights[-1]
    assert all("lora_" in name for name in first if not torch.equal(first[name], last[name]))
