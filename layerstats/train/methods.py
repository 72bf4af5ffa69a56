"""Who trains when: a model made ready for a method, with the optimizer that moves it.

`make_trainee` takes a model that already exists (real, or of fake tensors for the memory planner)
and a config; a `Trainee` then says for each step which layers train and holds the optimizer to it.
Loading models is in model.py, the step itself in step.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from layerstats.checkpoint.parts import Parts, find_parts
from layerstats.errors import UsageError
from layerstats.layer_switch import LayerSwitch
from layerstats.schedules import Schedule
from layerstats.train.adapters import MergedWeights, add_adapters
from layerstats.train.config import TrainConfig
from layerstats.train.galore import GaLoreAdamW
from layerstats.train.learning_rate import activation_factor

__all__ = ["Trainee", "count_layers", "make_trainee"]

_RANK = 128
_UPDATE_INTERVAL = 200
_SCALE = 1.0


@dataclass
class Trainee:
    """A model, its optimizer, and which of its layers train at a step.

    Parameters
    ----------
    model : torch.nn.Module
        In the form that computes: with adapters if the method has them.
    named : mapping of str to torch.Tensor
        The parameters of the model as it was loaded, under every name of theirs.
    parts : Parts
        Which of these names belong to which layer.
    optimizer : torch.optim.Optimizer
        With groups that know their `layer` (None outside the blocks and for adapters).
    config : TrainConfig
    schedule : Schedule, optional
        None where everything trains at every step.
    """

    model: Any
    named: Mapping[str, torch.Tensor]
    parts: Parts
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    schedule: Schedule | None = None
    switch: LayerSwitch | None = None
    active: tuple[int, ...] | None = field(default=None, init=False)

    def enter(self, step: int) -> bool:
        """Switch to the layers of the step that comes next; True if an interval begins here.

        Layers that were frozen until now get a fresh low-rank basis, since their gradients have
        changed meanwhile.
        """
        if self.schedule is None or self.switch is None:
            return False
        layers = self.schedule.active_layers(self.schedule.interval_of(step))
        begins = step % self.schedule.interval_steps == 0 or self.active is None
        if layers != self.active:
            fresh = set(layers) - set(self.active or ())
            self.active = layers
            self.switch.activate(layers)
            if isinstance(self.optimizer, GaLoreAdamW):
                self.optimizer.refresh(self.named[n] for at in fresh for n in self.parts.layers[at])
        return begins

    def set_learning_rate(self, step: int, factor: float) -> float:
        """Set each group's learning rate for a step and return the one outside the blocks."""
        config = self.config
        beta1 = config.betas[0] if config.correct_lr_after_reset else None
        # Since when a layer trains takes draws to find out: only for those who ask.
        follows = config.activation_warmup_steps > 0 or beta1 is not None
        for group in self.optimizer.param_groups:
            layer = group["layer"]
            group["lr"] = config.lr * factor
            if follows and self.schedule is not None and layer is not None:
                group["lr"] *= activation_factor(
                    step - self._active_since(layer, step),
                    warmup=config.activation_warmup_steps,
                    beta1=beta1,
                )
        return config.lr * factor

    def _active_since(self, layer: int, step: int) -> int:
        """Return the step at which the layer was switched on, as far back as it did not rest."""
        assert self.schedule is not None
        interval = self.schedule.interval_of(step)
        while interval and layer in self.schedule.active_layers(interval - 1):
            interval -= 1
        return interval * self.schedule.interval_steps

    @property
    def trainable(self) -> int:
        """Number of parameters that train now."""
        unique = {id(one): one for one in self.model.parameters() if one.requires_grad}
        return sum(one.numel() for one in unique.values())

    @property
    def skipped_blocks(self) -> int:
        """Blocks below the lowest active one that the backward pass does not enter.

        0 while the embedding trains: its gradient comes through all of them.
        """
        if any(self.named[name].requires_grad for name in self.parts.outside["embed"]):
            return 0
        for layer, names in enumerate(self.parts.layers):
            if any(one.requires_grad for one in self._of_layer(names)):
                return layer
        return len(self.parts.layers)

    def _of_layer(self, names: Iterable[str]) -> Iterator[torch.Tensor]:
        return (self.named[name] for name in names)

    def clear_gradients(self) -> None:
        """Take the gradients from all parameters, None and not zero."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Return the weights by the names of the model as loaded, adapters added in."""
        return MergedWeights(self.model, self.named)

    def trained(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint must hold: every tensor that training can change, by name.

        For adapters these are the adapters alone.
        """
        if self.config.kind.who == "adapters":
            return {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        return dict(self.model.named_parameters())

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the optimizer's state by parameter name, also what waits on the host."""
        parked = self.switch.parked if self.switch is not None else {}
        states = {**parked, **self.optimizer.state}
        return {name: states[one] for name, one in self.trained().items() if states.get(one)}

    @torch.no_grad()
    def restore(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        states: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> None:
        """Put back what `trained` and `optimizer_state` gave after `step` steps.

        The layers of the last step done are switched on first: what comes next is then decided as
        in a run that was never interrupted.
        """
        own = self.trained()
        if self.schedule is not None and step:
            self.enter(step - 1)
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
        for name, state in states.items():
            parameter = own[name]
            # Beside a low-rank basis the step is counted on the host.
            at_host = {"step", "stale"} if "basis" in state else set()
            placed = {
                key: one.to("cpu" if key in at_host else parameter.device)
                for key, one in state.items()
            }
            if self.switch is not None:
                self.switch.put_state(parameter, placed)
            else:
                self.optimizer.state[parameter] = placed


def make_trainee(model: Any, config: TrainConfig, schedule: Schedule | None = None) -> Trainee:
    """Make a model ready for a method: adapters, optimizer groups, layers that can be switched.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        All of its parameters trainable. It is changed: adapters are put in, parameters frozen.
    config : TrainConfig
    schedule : Schedule, optional
        For the methods that sample layers; see `make_schedule`.

    Returns
    -------
    Trainee

    Raises
    ------
    UsageError
        No blocks found; the schedule is for another depth; a rank is too large for a matrix.
    MissingError
        peft is not installed and the method needs it.
    """
    kind = config.kind
    named = dict(model.named_parameters(remove_duplicate=False))
    parts = find_parts({name: tuple(one.shape) for name, one in named.items()})
    if not parts.layers:
        msg = f"{config.model}: no list of blocks found in the names of the model's parameters"
        raise UsageError(msg)
    if kind.who == "adapters":
        model = add_adapters(model, named, parts, config)
        groups = _groups(
            {name: one for name, one in model.named_parameters() if one.requires_grad}, {}, config
        )
    else:
        groups = _groups(dict(model.named_parameters()), _places(parts), config)
    if kind.how == "galore":
        groups = list(_split_low_rank(groups, named, parts, config, schedule))
    trainee = Trainee(model, named, parts, _optimizer(groups, config), config)
    if kind.who == "layers":
        if schedule is None:
            msg = f"{config.method} needs a schedule; make one with `make_schedule`"
            raise UsageError(msg)
        schedule.require_layers(len(parts.layers))
        trainee.schedule = schedule
        trainee.switch = LayerSwitch(
            named,
            parts,
            trainee.optimizer,
            always_active=(
                schedule.always_active if config.always_active is None else config.always_active
            ),
            required=[at for at, p in enumerate(schedule.inclusion_probabilities) if p > 0],
            state=config.state,
            freeze_others=True,
        )
    return trainee


def count_layers(model: Any) -> int:
    """Return the number of blocks of a model in memory, by its parameters' names."""
    named = model.named_parameters(remove_duplicate=False)
    return len(find_parts({name: tuple(one.shape) for name, one in named}).layers)


def _places(parts: Parts) -> dict[str, int]:
    return {name: layer for layer, names in enumerate(parts.layers) for name in names}


def _groups(
    parameters: Mapping[str, torch.Tensor], places: Mapping[str, int], config: TrainConfig
) -> list[dict[str, Any]]:
    """Sort parameters into groups by layer, and by whether weight decay is for them."""
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decays, layer = parameter.ndim > 1, places.get(name)
        group = found.setdefault(
            (-1 if layer is None else layer, decays),
            {
                "params": [],
                "names": [],
                "layer": layer,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(found.values())


def _split_low_rank(
    groups: Iterable[dict[str, Any]],
    named: Mapping[str, torch.Tensor],
    parts: Parts,
    config: TrainConfig,
    schedule: Schedule | None,
) -> Iterator[dict[str, Any]]:
    """Take the matrices of attention and MLP out of each group into a projected one."""
    planned = schedule.low_rank if schedule is not None else None
    ranks = config.rank_per_layer
    if ranks is not None and len(ranks) != len(parts.layers):
        msg = f"rank_per_layer has {len(ranks)} entries, the model has {len(parts.layers)} layers"
        raise UsageError(msg)
    settings = {
        "update_interval": _first(
            config.update_interval, planned, "update_interval", _UPDATE_INTERVAL
        ),
        "scale": _first(config.scale, planned, "scale", _SCALE),
        "projection": config.projection,
        "moments": config.moments,
        "seed": config.seed,
    }
    for group in groups:
        taken = [name for name in group["names"] if name in parts.matrices]
        rest = [name for name in group["names"] if name not in parts.matrices]
        if rest:
            yield {**group, "params": [named[name] for name in rest], "names": rest}
        if taken:
            rank = (
                ranks[group["layer"]]
                if ranks is not None
                else _first(config.rank, planned, "rank", _RANK)
            )
            _check_rank(rank, {name: named[name] for name in taken})
            low_rank = {"params": [named[name] for name in taken], "names": taken, "rank": rank}
            yield {**group, **low_rank, **settings}


def _first(given: Any, planned: Any, name: str, default: Any) -> Any:
    """Return the config's value, else the schedule's, else the default."""
    if given is not None:
        return given
    return default if planned is None else getattr(planned, name)


def _check_rank(rank: int, matrices: Mapping[str, torch.Tensor]) -> None:
    for name, one in matrices.items():
        if rank > min(one.shape[-2:]):
            msg = (
                f"rank {rank} is above the smaller side of {name}, shape {list(one.shape)}; "
                f"the largest rank for it is {min(one.shape[-2:])}"
            )
            raise UsageError(msg)


def _optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer; it holds every parameter before any of them is frozen."""
    shared = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    for group in groups:
        del group["names"]
    if config.kind.how == "galore":
        return GaLoreAdamW(groups, **shared)  # type: ignore[arg-type]
    # The fused kernel moves the weights without a copy of anything, on CPU and GPU.
    return torch.optim.AdamW(groups, fused=True, **shared)  # type: ignore[arg-type]
