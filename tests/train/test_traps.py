"""What other implementations fell into; each test fails if we do."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerstats.errors import LayerstatsError, UsageError
from layerstats.train import Trainee, methods, train
from layerstats.train import loop as loop_module
from layerstats.train import model as model_module
from tests.train.tiny import LAYERS, config, log, moved_layers, weights_of


def test_zeroed_gradients_do_not_move_frozen_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Momentum and decay move a weight whose gradient is zero; None keeps it where it is."""
    copies: list[tuple[tuple[int, ...] | None, dict[str, torch.Tensor]]] = []
    step = loop_module.optimizer_step

    def with_zeros(trainee: Trainee, *args: Any, **options: Any) -> Any:
        for one in trainee.named.values():
            one.grad = torch.zeros_like(one)
        found = step(trainee, *args, **options)
        weights = {name: one.detach().clone() for name, one in trainee.named.items()}
        copies.append((trainee.active, weights))
        return found

    monkeypatch.setattr(loop_module, "optimizer_step", with_zeros)
    train(config(tmp_path, "lisa", steps=12, state="keep", weight_decay=0.1, always_active=()))
    for (_, before), (active, after) in itertools.pairwise(copies):
        assert moved_layers(before, after) == {str(layer) for layer in active or ()}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_over_frozen_embeddings_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = model_module.prepare

    def reentrant(model: Any, settings: Any) -> Any:
        prepare(model, settings)
        model.activation_checkpointing_enable({"use_reentrant": True})
        # transformers lets the embedding's output require a gradient, which hides the trap.
        model.disable_input_require_grads()
        return model

    monkeypatch.setattr(model_module, "prepare", reentrant)
    with pytest.raises(LayerstatsError, match="no gradient came to the active layers"):
        train(config(tmp_path, "lisa", checkpointing=True, always_active=("norm",)))


@pytest.mark.parametrize("method", ["full", "lora", "lisa", "owlore"])
def test_checkpointing_changes_no_weight(tmp_path: Path, method: str) -> None:
    for checkpointing in (False, True):
        train(
            config(
                tmp_path,
                method,
                out=str(checkpointing),
                checkpointing=checkpointing,
                **({"lora_dropout": 0.1} if method == "lora" else {}),
                **({"always_active": ()} if method == "lisa" else {}),
            )
        )
    a, b = (weights_of(tmp_path / out / "model") for out in ("False", "True"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)


def test_an_optimizer_built_after_freezing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later layers would get gradients and never move."""
    build = methods._optimizer

    def of_the_first_layers(groups: list[dict[str, Any]], settings: Any) -> Any:
        return build([one for one in groups if (one["layer"] or 0) < 2], settings)

    monkeypatch.setattr(methods, "_optimizer", of_the_first_layers)
    with pytest.raises(UsageError, match="optimizer"):
        train(config(tmp_path, "lisa"))


def test_every_layer_that_was_drawn_has_moved(tmp_path: Path) -> None:
    settings = config(tmp_path, "lisa", steps=60)
    result = train(settings)
    drawn = {layer for entry in log(tmp_path / "run") for layer in entry["active_layers"]}
    assert len(drawn) >= LAYERS - 1
    before = weights_of(Path(settings.model))
    moved = moved_layers(
        {name: one.float() for name, one in before.items()}, weights_of(result.out / "model")
    )
    assert {int(one) for one in moved if one.isdecimal()} == drawn


@pytest.mark.parametrize("state", ["drop", "keep", "offload"])
def test_no_stale_basis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """A layer that comes back gets a new basis at once, not when its own step count says so."""
    bases: list[dict[int, torch.Tensor]] = []
    step = loop_module.optimizer_step

    def watched(trainee: Trainee, *args: Any, **options: Any) -> Any:
        found = step(trainee, *args, **options)
        bases.append(
            {
                layer: trainee.optimizer.state[one]["basis"].clone()
                for layer in trainee.active or ()
                for one in [trainee.named[f"model.layers.{layer}.mlp.up_proj.weight"]]
            }
        )
        return found

    monkeypatch.setattr(loop_module, "optimizer_step", watched)
    train(config(tmp_path, "owlore", steps=60, update_interval=1000, state=state))
    last: dict[int, tuple[int, torch.Tensor]] = {}
    came_back = 0
    for number, found in enumerate(bases):
        for layer, basis in found.items():
            if layer in last:
                when, old = last[layer]
                rested = number - when > 1
                assert torch.equal(basis, old) != rested
                came_back += rested
            last[layer] = (number, basis)
    assert came_back > 5


def test_no_global_random_state_is_touched(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    for method in ("lora", "owlore"):
        options = {"lora_dropout": 0.2} if method == "lora" else {}
        train(config(tmp_path, method, out=method, steps=4, **options))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_dropout_depends_on_the_step_alone(tmp_path: Path) -> None:
    losses = []
    for out in ("a", "b"):
        torch.manual_seed(len(losses))
        train(config(tmp_path, "lora", out=out, steps=5, lora_dropout=0.5))
        losses.append([entry["loss"] for entry in log(tmp_path / out)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 5


def test_bernoulli_with_nothing_always_active_is_refused(tmp_path: Path) -> None:
    settings = config(
        tmp_path, "lisa", steps=300, sampling="bernoulli", expected_active=1, always_active=()
    )
    with pytest.raises(UsageError, match="trains no layer"):
        train(settings)
