"""The switch alone, on plain torch modules: requires_grad, gradients, optimizer state, ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.checkpoint.parts import find_parts
from layerstats.errors import UsageError
from layerstats.layer_switch import LayerSwitch

BLOCKS = 5


class Tiny(torch.nn.Module):
    """Embedding, blocks and head; a linear chain, so that every weight gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.embed_tokens = torch.nn.Embedding(12, 3)
            self.layers = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3))
                for _ in range(BLOCKS)
            )
            self.norm = torch.nn.LayerNorm(3)
            self.lm_head = torch.nn.Linear(3, 12)

    def forward(self) -> torch.Tensor:
        hidden = self.embed_tokens(torch.arange(6))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return torch.as_tensor(self.lm_head(self.norm(hidden)).square().sum())


def switch_of(model: torch.nn.Module, optimizer: Any, **settings: Any) -> LayerSwitch:
    named = dict(model.named_parameters(remove_duplicate=False))
    parts = find_parts({name: tuple(one.shape) for name, one in named.items()})
    return LayerSwitch(named, parts, optimizer, **settings)


def step(model: Tiny, optimizer: torch.optim.Optimizer, switch: LayerSwitch | None = None) -> None:
    model().backward()
    if switch is not None:
        switch.clear_gradients()
    optimizer.step()
    optimizer.zero_grad()


def of_layers(model: Tiny, layers: set[int]) -> list[torch.nn.Parameter]:
    return [one for layer in layers for one in model.layers[layer].parameters()]


ADAM = {"lr": 1e-2, "weight_decay": 0.1}


@settings(max_examples=25, deadline=None)
@given(plan=st.lists(st.sets(st.integers(0, BLOCKS - 1)), min_size=1, max_size=5))
def test_state_is_held_for_what_trains_and_frozen_weights_do_not_move(plan: list[set[int]]) -> None:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    switch = switch_of(model, optimizer)
    outside = [
        *model.embed_tokens.parameters(),
        *model.norm.parameters(),
        *model.lm_head.parameters(),
    ]
    for layers in plan:
        switch.activate(layers)
        trains = {id(one) for one in (*of_layers(model, layers), *outside)}
        before = {id(one): one.detach().clone() for one in model.parameters()}
        step(model, optimizer)
        changed = {id(one) for one in model.parameters() if not torch.equal(one, before[id(one)])}
        assert changed == trains
        assert {id(one) for one in optimizer.state} == trains
        assert switch.trainable == sum(
            one.numel() for one in model.parameters() if id(one) in trains
        )
    assert switch.total == sum(one.numel() for one in model.parameters())


def test_without_the_switch_zero_gradients_move_frozen_weights() -> None:
    """The pitfall itself, so that the test beside it is known to be able to fail."""

    def run(*, cared_for: bool) -> bool:
        model = Tiny()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
        step(model, optimizer)
        switch = switch_of(model, optimizer, state="keep")
        switch.activate([0])
        model().backward()
        for one in model.parameters():
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        before = model.layers[3][0].weight.detach().clone()
        if cared_for:
            switch.clear_gradients()
        optimizer.step()
        return torch.equal(before, model.layers[3][0].weight)

    assert run(cared_for=True)
    assert not run(cared_for=False)


def test_switching_takes_away_gradients_that_are_there_already() -> None:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    switch = switch_of(model, optimizer)
    model().backward()
    switch.activate([1])
    assert all(one.grad is None for one in of_layers(model, {0, 2, 3, 4}))
    assert all(one.grad is not None for one in of_layers(model, {1}))


@pytest.mark.parametrize("state", ["drop", "keep"])
def test_a_layer_that_goes_on_keeps_its_state_and_one_that_comes_back_starts_anew(
    state: str,
) -> None:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    switch = switch_of(model, optimizer, state=state)
    for layers in ([0, 1], [0], [0, 1]):
        switch.activate(layers)
        step(model, optimizer)
    steps = [int(optimizer.state[model.layers[layer][0].weight]["step"]) for layer in (0, 1)]
    assert steps == [3, 1 if state == "drop" else 2]


def test_a_weight_shared_by_two_blocks_trains_when_either_does() -> None:
    model = Tiny()
    model.layers[4][0].weight = model.layers[1][0].weight
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    switch = switch_of(model, optimizer)
    for layers, trains in (([4], True), ([1], True), ([0, 2], False)):
        switch.activate(layers)
        assert model.layers[1][0].weight.requires_grad is trains
        assert model.layers[1][0].bias.requires_grad is (1 in layers)


def test_what_the_user_froze_stays_frozen() -> None:
    model = Tiny()
    model.layers[2][1].requires_grad_(False)
    model.norm.requires_grad_(False)
    # An optimizer may well hold frozen weights too.
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    switch = switch_of(model, optimizer, required=range(BLOCKS))
    switch.activate([2])
    assert model.layers[2][0].weight.requires_grad
    assert not model.layers[2][1].weight.requires_grad
    switch.restore()
    frozen = {name for name, one in model.named_parameters() if not one.requires_grad}
    assert frozen == {"layers.2.1.weight", "layers.2.1.bias", "norm.weight", "norm.bias"}


def test_is_reached_tells_a_backward_pass_that_passed_the_layers_by() -> None:
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    switch = switch_of(model, optimizer)
    switch.activate([0, 3])
    assert not switch.is_reached
    model.lm_head(torch.ones(3)).sum().backward()
    assert not switch.is_reached
    model().backward()
    assert switch.is_reached
    switch.activate([])
    assert switch.is_reached


@pytest.mark.parametrize(("always", "constant"), [((), False), (("norm",), True)])
def test_has_constant_part(always: tuple[str, ...], constant: bool) -> None:
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters())
    assert switch_of(model, optimizer, always_active=always).has_constant_part is constant


def test_an_optimizer_made_from_what_trains_first_is_refused() -> None:
    model = Tiny()
    model.layers.requires_grad_(False)
    model.layers[0].requires_grad_(True)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], **ADAM)
    with pytest.raises(UsageError, match=r"no trainable parameter of layers \[2, 4\]"):
        switch_of(model, optimizer, required=[0, 2, 4])
    switch_of(model, optimizer, required=[0])


def test_dropped_state_loads_back() -> None:
    """A state dict with entries missing loads into a new optimizer and training goes on bitwise."""
    runs = []
    for is_saved in (False, True):
        model = Tiny()
        optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
        switch = switch_of(model, optimizer)
        for at, layers in enumerate([[0, 1], [2], [2, 3], [0]]):
            switch.activate(layers)
            step(model, optimizer)
            if is_saved and at == 2:
                stored = optimizer.state_dict()
                optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
                switch.restore()
                switch = switch_of(model, optimizer)
                optimizer.load_state_dict(stored)
                switch.activate(layers)
            step(model, optimizer)
        runs.append([one.detach().clone() for one in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
