"""Exactly the scheduled layers train, nothing else moves by a bit, and state does not pile up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.schedules import schedule as build
from layerstats.train import Trainee, train
from layerstats.train import loop as loop_module
from tests.train.tiny import LAYERS, Watch, config, log, moved_layers, weights_of

LAYERWISE = ("lisa", "lisa-d", "owlore-full", "owlore")


@pytest.mark.parametrize("always", [None, (), ("norm",)])
@pytest.mark.parametrize("method", LAYERWISE)
def test_only_the_scheduled_layers_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, always: tuple[str, ...] | None
) -> None:
    watch = Watch(monkeypatch)
    settings = config(
        tmp_path, method, steps=18, always_active=always, weight_decay=0.1, lr_schedule="constant"
    )
    train(settings)
    plan = json.loads((tmp_path / "run" / "schedule.json").read_text())
    assert plan["interval_steps"] == 3
    entries = log(tmp_path / "run")
    constant = {
        None: {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"},
        (): set(),
        ("norm",): {"model.norm.weight"},
    }[always]
    for number, entry in enumerate(entries):
        moved = moved_layers(watch.weights[number], watch.weights[number + 1])
        assert moved == {str(layer) for layer in entry["active_layers"]} | constant
        assert len(entry["active_layers"]) == 2
    assert len({tuple(entry["active_layers"]) for entry in entries}) > 2
    # Layers are of one size: their state never grows, whichever they are.
    assert len(set(watch.state)) == 1


def test_offloaded_state_is_kept_state_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    parked = {}
    for policy in ("keep", "offload"):
        train(config(tmp_path, "lisa", out=policy, steps=30, state=policy))
        assert watch.trainee is not None
        assert watch.trainee.switch is not None
        parked[policy] = len(watch.trainee.switch.parked)
    kept, offloaded = (weights_of(tmp_path / policy / "model") for policy in ("keep", "offload"))
    assert all(torch.equal(kept[name], offloaded[name]) for name in kept)
    # What is kept piles up; what waits on the host does not.
    assert watch.state[29] > watch.state[0]
    assert len(set(watch.state[30:])) == 1
    assert parked["keep"] == 0 < parked["offload"]


def test_dropped_state_differs_from_kept(tmp_path: Path) -> None:
    for policy in ("keep", "drop"):
        train(config(tmp_path, "lisa", out=policy, steps=30, state=policy))
    kept, dropped = (weights_of(tmp_path / policy / "model") for policy in ("keep", "drop"))
    assert any(not torch.equal(kept[name], dropped[name]) for name in kept)


@pytest.mark.parametrize("pair", [("lisa", "full"), ("owlore", "galore")])
def test_all_layers_active_is_full_training_bitwise(tmp_path: Path, pair: tuple[str, str]) -> None:
    sampled, whole = pair
    plan = build("lisa", num_layers=LAYERS, expected_active=LAYERS, interval_steps=3)
    plan.save(tmp_path / "all.json")
    options: dict[str, Any] = {"steps": 10, "weight_decay": 0.1}
    train(config(tmp_path, sampled, out="a", schedule=str(tmp_path / "all.json"), **options))
    train(config(tmp_path, whole, out="b", **options))
    a, b = (weights_of(tmp_path / out / "model") for out in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    losses = [[entry["loss"] for entry in log(tmp_path / out)] for out in "ab"]
    assert losses[0] == losses[1]


def test_frozen_embeddings_end_the_backward_pass_early(tmp_path: Path) -> None:
    train(config(tmp_path, "lisa", steps=9, always_active=()))
    for entry in log(tmp_path / "run", "interval"):
        assert entry["skipped_blocks"] == min(entry["active_layers"])
    train(config(tmp_path, "lisa", out="with", steps=3))
    assert [entry["skipped_blocks"] for entry in log(tmp_path / "with", "interval")] == [0]


def test_checkpointing_recomputes_no_skipped_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    step = loop_module.optimizer_step

    def counted(trainee: Trainee, *args: Any, **options: Any) -> Any:
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        hooks = [one.mlp.register_forward_pre_hook(count) for one in trainee.model.model.layers]
        found = step(trainee, *args, **options)
        for hook in hooks:
            hook.remove()
        return found

    monkeypatch.setattr(loop_module, "optimizer_step", counted)
    train(config(tmp_path, "lisa", steps=9, always_active=(), checkpointing=True))
    lowest = [min(entry["active_layers"]) for entry in log(tmp_path / "run")]
    assert max(lowest) > 0
    assert calls == [LAYERS + LAYERS - one for one in lowest]


def test_a_layer_warms_up_each_time_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step after a switch moves a layer by less, and only then."""
    watch = Watch(monkeypatch)
    settings = {"steps": 6, "lr_schedule": "constant", "always_active": ()}
    train(config(tmp_path, "lisa", out="cold", **settings))
    cold = watch.weights
    watch.weights = []
    train(config(tmp_path, "lisa", out="warm", activation_warmup_steps=4, **settings))
    name = "model.layers.{}.mlp.up_proj.weight"

    def stride(weights: list[dict[str, torch.Tensor]], at: int, layer: int) -> float:
        key = name.format(layer)
        return float((weights[at + 1][key] - weights[at][key]).norm())

    first = log(tmp_path / "warm")[0]["active_layers"][0]
    assert stride(watch.weights, 0, first) == pytest.approx(stride(cold, 0, first) / 4, rel=1e-3)
