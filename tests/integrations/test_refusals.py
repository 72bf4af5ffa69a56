"""The pitfalls of freezing inside a Trainer, each with a run that falls in without our care."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from layerstats.integrations import surroundings
from layerstats.integrations import transformers as integration
from layerstats.integrations.transformers import LayerScheduleCallback
from layerstats.schedules import LowRank, Schedule, schedule
from tests.integrations.tiny import Snapshots, lisa, make_model, make_trainer, moved


def refused(
    folder: Path, plan: Schedule, model: Any = None, *, steps: int = 10, **settings: Any
) -> str:
    """The one line with which a run is refused before its first step."""
    seen, model = Snapshots(), model or make_model()
    before = [one.requires_grad for one in model.parameters()]
    trainer = make_trainer(
        model, folder, [LayerScheduleCallback(plan), seen], steps=steps, **settings
    )
    with pytest.raises(LayerstatsError) as caught:
        trainer.train()
    assert not seen.state_bytes
    assert [one.requires_grad for one in model.parameters()] == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_optimizer_built_after_freezing_is_refused(tmp_path: Path) -> None:
    model = make_model()
    for name, one in model.named_parameters():
        one.requires_grad_("layers.2" in name or "layers" not in name)
    message = refused(tmp_path, lisa(), model)
    assert "the optimizer holds no trainable parameter of layers [0, 1, 3, 4, 5]" in message


def test_an_optimizer_without_some_of_the_parameters_is_refused(tmp_path: Path) -> None:
    model = make_model()
    some = [one for name, one in model.named_parameters() if "layers.4.mlp" not in name]
    message = refused(tmp_path, lisa(), model, optimizers=(torch.optim.AdamW(some), None))
    assert "does not hold model.layers.4.mlp.gate_proj.weight and 2 more" in message
    model = make_model()
    optimizer = torch.optim.AdamW(model.model.layers.parameters())
    assert "embed_tokens.weight and 2 more" in refused(
        tmp_path, lisa(), model, optimizers=(optimizer, None)
    )


def test_layers_that_are_never_drawn_need_no_place_in_the_optimizer(tmp_path: Path) -> None:
    model = make_model()
    model.model.layers[1].requires_grad_(False)
    plan = schedule("owlore", [1, 0, 1, 1, 1, 1], expected_active=2, interval_steps=2)
    seen = Snapshots()
    make_trainer(model, tmp_path, [LayerScheduleCallback(plan), seen], steps=10).train()
    assert "1" not in moved(seen.weights[0], seen.weights[-1])
    assert not any(one.requires_grad for one in model.model.layers[1].parameters())


def test_a_schedule_for_another_model_is_refused(tmp_path: Path) -> None:
    assert "for 8 layers but the model has 6" in refused(tmp_path, lisa(8))
    other = lisa(path="transformer.h")
    message = refused(tmp_path, other)
    assert "for the blocks transformer.h but the model's are model.layers" in message
    # The same blocks under a wrapper's name are no other model.
    same = LayerScheduleCallback(lisa(path="language_model.model.layers"))
    make_trainer(make_model(), tmp_path, [same], steps=1).train()


def test_a_model_without_blocks_is_refused() -> None:
    model = torch.nn.Linear(3, 2)
    callback = LayerScheduleCallback(lisa())
    state = SimpleNamespace(global_step=0, max_steps=3, log_history=[], epoch=0.0)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UsageError, match="no list of blocks found"):
        callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    with pytest.raises(UsageError, match="no model or no optimizer"):
        callback.on_train_begin(None, state, None, model=model, optimizer=None)


def test_files_and_options_that_cannot_work_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.json"):
        LayerScheduleCallback(tmp_path / "nowhere.json")
    (tmp_path / "broken.json").write_text('{"format": "layerstats-schedule"}')
    with pytest.raises(CheckpointError):
        LayerScheduleCallback(str(tmp_path / "broken.json"))
    with pytest.raises(UsageError, match="unknown state policy 'drops'; did you mean 'drop'"):
        LayerScheduleCallback(lisa(), state="drops")


def test_an_interval_that_would_train_nothing_is_refused(tmp_path: Path) -> None:
    plan = lisa(active=0.5, sampling="bernoulli", always_active=())
    first = plan.plan(20).index(())
    assert first > 0
    message = refused(tmp_path, plan, steps=5 * first + 1)
    assert f"interval {first} of the schedule trains no layer" in message
    # Not so if training ends before, or something else trains.
    make_trainer(make_model(), tmp_path, [LayerScheduleCallback(plan)], steps=5 * first).train()
    plan = lisa(active=0.5, sampling="bernoulli", always_active=("norm",))
    callback, seen = LayerScheduleCallback(plan), Snapshots()
    make_trainer(make_model(), tmp_path, [callback, seen], steps=5 * first + 2).train()
    assert moved(seen.weights[5 * first], seen.weights[-1]) == {"norm"}


class ZeroGradients(TrainerCallback):
    """Fills missing gradients with zeros, as some wrappers do."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        for one in others["model"].parameters():
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad


@pytest.mark.parametrize("state", ["drop", "keep"])
def test_zero_gradients_do_not_move_frozen_weights(tmp_path: Path, state: str) -> None:
    plan = lisa()
    callbacks = [ZeroGradients(), LayerScheduleCallback(plan, state=state), seen := Snapshots()]
    make_trainer(make_model(), tmp_path, callbacks, steps=20).train()
    for step, (before, after) in enumerate(zip(seen.weights, seen.weights[1:], strict=False)):
        layers = set(map(str, plan.active_layers(step // 5)))
        assert moved(before, after) == layers | {"embed", "head", "norm"}


def without_input_gradients(always: tuple[str, ...]) -> tuple[Any, Schedule]:
    """A model as in versions of transformers that do not care for the first block's input."""
    model = make_model()
    model.enable_input_require_grads = lambda: None
    return model, lisa(always_active=always)


def checkpointing(reentrant: bool) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    # Renamed within transformers 5.
    name = "activation" if "activation_checkpointing" in fields else "gradient"
    return {
        f"{name}_checkpointing": True,
        f"{name}_checkpointing_kwargs": {"use_reentrant": reentrant},
    }


def test_reentrant_checkpointing_over_frozen_embeddings_is_refused(tmp_path: Path) -> None:
    model, plan = without_input_gradients(("head", "norm"))
    message = refused(tmp_path, plan, model, **checkpointing(True))
    assert "set use_reentrant: False" in message


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_layers_that_get_no_gradient_are_noticed_at_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The net below: the same fault where the check beforehand does not see it."""
    monkeypatch.setattr(integration, "check_checkpointing", lambda model, embedding: None)
    model, plan = without_input_gradients(("head", "norm"))
    seen = Snapshots()
    trainer = make_trainer(
        model, tmp_path, [LayerScheduleCallback(plan), seen], steps=10, **checkpointing(True)
    )
    with pytest.raises(LayerstatsError, match="no gradient came to the active layers"):
        trainer.train()
    assert not seen.state_bytes
    assert not moved(
        seen.weights[0], {name: one.detach() for name, one in model.named_parameters()}
    )


@pytest.mark.parametrize(
    ("always", "reentrant", "hooked"),
    [(("head",), False, False), (("head",), True, True), (("embed",), True, False)],
)
def test_other_checkpointing_trains_as_none_does(
    tmp_path: Path, always: tuple[str, ...], reentrant: bool, hooked: bool
) -> None:
    model, plan = without_input_gradients(always)
    if hooked:
        del model.enable_input_require_grads
    runs = []
    for one, settings in ((model, checkpointing(reentrant)), (make_model(), {})):
        seen = Snapshots()
        callbacks = [LayerScheduleCallback(plan), seen]
        make_trainer(one, tmp_path, callbacks, steps=8, **settings).train()
        runs.append(seen.weights)
    for ours, theirs in zip(*runs, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_trains_outside_the_blocks_is_said_or_frozen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = lisa(always_active=("norm",))
    for freeze, outside in ((False, {"norm", "other"}), (True, {"norm"})):
        caplog.clear()
        model = make_model()
        model.score = torch.nn.Linear(16, 24, bias=False)
        model.lm_head.register_forward_hook(lambda head, x, y, model=model: y + model.score(x[0]))
        callback, seen = LayerScheduleCallback(plan, freeze_others=freeze), Snapshots()
        make_trainer(model, tmp_path, [callback, seen], steps=3).train()
        layers = set(map(str, plan.active_layers(0)))
        assert moved(seen.weights[0], seen.weights[-1]) == layers | outside
        assert (
            "384 parameters outside the blocks train in every interval" in caplog.text
        ) != freeze


def test_low_rank_and_compiling_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = lisa(low_rank=LowRank(rank=4))
    make_trainer(make_model(), tmp_path, [LayerScheduleCallback(plan)], steps=1).train()
    assert "low-rank gradients of rank 4" in caplog.text
    surroundings.warn_about_compiling(SimpleNamespace(torch_compile=True))
    assert "recompile_limit" in caplog.text


def spread(monkeypatch: pytest.MonkeyPatch, kind: str, ranks: int = 2, **settings: Any) -> None:
    """Let accelerate's state say that the model is spread in this way."""
    state = SimpleNamespace(
        distributed_type=SimpleNamespace(value=kind), num_processes=ranks, **settings
    )
    monkeypatch.setattr("accelerate.state.AcceleratorState", lambda: state)


@pytest.mark.parametrize(
    ("kind", "plugin", "said"),
    [
        ("DEEPSPEED", None, "DeepSpeed"),
        ("FSDP", 1, "FSDP 1"),
        ("FSDP", 2, None),
        ("NO", None, None),
    ],
)
def test_deepspeed_and_fsdp_1_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, plugin: int | None, said: str | None
) -> None:
    spread(monkeypatch, kind, fsdp_plugin=SimpleNamespace(fsdp_version=plugin))
    if said is None:
        surroundings.check_distributed(SimpleNamespace(), make_model(blocks=2))
        return
    with pytest.raises(UsageError, match=said):
        surroundings.check_distributed(SimpleNamespace(), make_model(blocks=2))


@pytest.mark.parametrize(
    ("asked", "checkpointed", "static", "fine"),
    [
        (None, False, None, True),
        (None, True, None, False),
        (True, True, None, True),
        (False, False, None, False),
        (True, False, True, False),
    ],
)
def test_ddp_must_look_for_unused_parameters(
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | None,
    checkpointed: bool,
    static: bool | None,
    fine: bool,
) -> None:
    spread(monkeypatch, "MULTI_GPU")
    model = make_model(blocks=2)
    if checkpointed:
        model.activation_checkpointing_enable()
    args = SimpleNamespace(ddp_find_unused_parameters=asked, ddp_static_graph=static)
    if fine:
        surroundings.check_distributed(args, model)
    else:
        with pytest.raises(UsageError, match="ddp_find_unused_parameters=True"):
            surroundings.check_distributed(args, model)
