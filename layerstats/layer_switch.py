"""Freezing and unfreezing blocks of a model while an optimizer holds all of them.

Here belongs the one mechanism that layer-sampled training stands on, for the bundled trainer and
for the integrations: which layers are to train is decided elsewhere (schedules), this module does
it. It knows torch parameters and `optimizer.state`, no model class and no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerstats.checkpoint.parts import Parts
from layerstats.errors import UsageError, choices

__all__ = ["STATE_POLICIES", "LayerSwitch"]

STATE_POLICIES = ("drop", "offload", "keep")
"""What happens to the optimizer state of a layer that stops training."""

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Member:
    """One parameter, the layers whose turn is its turn, and whether it trains in any case."""

    parameter: torch.Tensor
    layers: frozenset[int]
    always: bool


class LayerSwitch:
    """Decides for each parameter of a model whether it trains now, and holds the optimizer to it.

    A parameter that is frozen has `requires_grad` False, no gradient (None, not zero: an optimizer
    passes over None, while it moves a weight with a zero gradient by momentum and decay) and, with
    ``state="drop"``, no optimizer state. What the user froze before stays frozen. Nothing is
    frozen before the first `activate`.

    Parameters
    ----------
    parameters : mapping of str to torch.Tensor
        Every name of every parameter, so that tied ones are seen
        (``named_parameters(remove_duplicate=False)``). A tied parameter trains when one of its
        names is to train.
    parts : Parts
        From `layerstats.checkpoint.parts.find_parts`.
    optimizer
        What holds `param_groups` and a `state` by parameter, as torch's optimizers do; wrappers
        that pass both on (accelerate's) will do.
    always_active : collection of str
        Of "embed", "head", "norm": what trains whichever layers do; the others of these are frozen.
    required : collection of int
        Layers that will be asked for; the optimizer must hold them.
    state : str
        "drop" (default): the optimizer state of a layer is freed when the layer stops training, so
        that memory stays flat and it starts anew when its turn comes again, as in LISA and OwLore.
        "offload": it waits in the host's memory and comes back with the layer. "keep": it stays;
        memory grows until every layer has had its turn.
    freeze_others : bool
        Freeze what is outside the blocks and in none of the three groups (vision towers,
        projectors, task heads) too. By default it is left as the user set it.

    Raises
    ------
    UsageError
        The optimizer does not hold what is to train: it was built after something was frozen, or
        from other parameters.

    Examples
    --------
    >>> from layerstats.checkpoint.parts import find_parts
    >>> model = torch.nn.ModuleDict({"h": torch.nn.ModuleList(
    ...     torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)) for _ in range(3))})
    >>> named = dict(model.named_parameters(remove_duplicate=False))
    >>> parts = find_parts({name: tuple(tensor.shape) for name, tensor in named.items()})
    >>> switch = LayerSwitch(named, parts, torch.optim.AdamW(model.parameters()))
    >>> switch.activate([1])
    >>> [name for name, tensor in named.items() if tensor.requires_grad][0]
    'h.1.0.weight'
    >>> switch.restore()
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        parts: Parts,
        optimizer: Any,
        *,
        always_active: Collection[str] = ("embed", "head", "norm"),
        required: Collection[int] = (),
        state: str = "drop",
        freeze_others: bool = False,
    ) -> None:
        if state not in STATE_POLICIES:
            raise UsageError(choices("state policy", state, STATE_POLICIES))
        self._optimizer = optimizer
        self._policy = state
        self._parked: dict[torch.Tensor, tuple[State, dict[str, torch.device]]] = {}
        always = set(always_active) | (set() if freeze_others else {"other"})
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        _check_held(parameters, parts, held, always - {"other"}, required)
        layers: dict[int, set[int]] = {}
        kept: set[int] = set()
        for layer, names in enumerate(parts.layers):
            for name in names:
                layers.setdefault(id(parameters[name]), set()).add(layer)
        for group, names in parts.outside.items():
            if group in always:
                kept |= {id(parameters[name]) for name in names}
        unique = {id(one): one for one in parameters.values() if one.requires_grad}
        self._members = [
            _Member(one, frozenset(layers.get(key, ())), key in kept) for key, one in unique.items()
        ]

    def activate(self, layers: Iterable[int]) -> None:
        """Let exactly these layers train, beside what always does, and freeze the others."""
        wanted = frozenset(layers)
        for member in self._members:
            trains = member.always or not wanted.isdisjoint(member.layers)
            member.parameter.requires_grad_(trains)
            if trains:
                self._fetch(member.parameter)
            else:
                member.parameter.grad = None
                if self._policy != "keep":
                    self._leave(member.parameter)

    def _leave(self, parameter: torch.Tensor) -> None:
        """Take the state of a layer that stops from the optimizer."""
        state = self._optimizer.state.pop(parameter, None)
        if state and self._policy == "offload":
            self._park(parameter, state)

    def _park(self, parameter: torch.Tensor, state: State) -> None:
        """Bring a state to the host, and remember where each of its tensors was."""
        homes = {key: one.device for key, one in state.items() if torch.is_tensor(one)}
        host = {key: one.to("cpu") if key in homes else one for key, one in state.items()}
        self._parked[parameter] = (host, homes)

    def _fetch(self, parameter: torch.Tensor) -> None:
        if (parked := self._parked.pop(parameter, None)) is not None:
            state, homes = parked
            self._optimizer.state[parameter] = {
                key: one.to(homes[key]) if key in homes else one for key, one in state.items()
            }

    @property
    def parked(self) -> dict[torch.Tensor, State]:
        """The optimizer state that waits on the host, by parameter."""
        return {parameter: state for parameter, (state, _) in self._parked.items()}

    def put_state(self, parameter: torch.Tensor, state: State) -> None:
        """Give a parameter the state it had when a checkpoint was written.

        It goes to the optimizer, or to the host if the parameter is frozen and states offloaded.
        """
        if self._policy == "offload" and not parameter.requires_grad:
            self._park(parameter, state)
        else:
            self._optimizer.state[parameter] = state

    def clear_gradients(self) -> None:
        """Take the gradients from frozen parameters; call it right before each optimizer step.

        Autograd gives them none, but something else may have: a wrapper that fills them with zeros.
        """
        for member in self._members:
            if not member.parameter.requires_grad:
                member.parameter.grad = None

    def restore(self) -> None:
        """Unfreeze all that was trainable in the beginning."""
        for member in self._members:
            member.parameter.requires_grad_(True)

    @property
    def is_reached(self) -> bool:
        """Whether a gradient has come to at least one of the layers that train, or none is to."""
        turn = [
            one.parameter for one in self._members if one.layers and one.parameter.requires_grad
        ]
        return not turn or any(parameter.grad is not None for parameter in turn)

    @property
    def has_constant_part(self) -> bool:
        """Whether something trains even if no layer does."""
        return any(member.always for member in self._members)

    def check_never_empty(
        self, layers_of: Callable[[int], Sequence[int]], intervals: Iterable[int]
    ) -> None:
        """Refuse a plan with an interval in which nothing would train (bernoulli can draw that).

        Parameters
        ----------
        layers_of
            Interval -> the layers that train in it, as `Schedule.active_layers`.
        intervals
            Those that the run has.

        Raises
        ------
        UsageError
            An interval has no layer, and nothing is always active.
        """
        if self.has_constant_part:
            return
        for interval in intervals:
            if not layers_of(interval):
                msg = (
                    f"interval {interval} of the schedule trains no layer and nothing is always "
                    "active; use systematic sampling, or keep 'norm' always active"
                )
                raise UsageError(msg)

    @property
    def trainable(self) -> int:
        """Number of parameters that train now."""
        return sum(
            member.parameter.numel() for member in self._members if member.parameter.requires_grad
        )

    @property
    def total(self) -> int:
        """Number of parameters that this switch governs."""
        return sum(member.parameter.numel() for member in self._members)


def _check_held(
    parameters: Mapping[str, torch.Tensor],
    parts: Parts,
    held: set[int],
    always: set[str],
    required: Collection[int],
) -> None:
    """Refuse an optimizer that would let what is to train stand still."""
    empty = [
        layer
        for layer in sorted(required)
        if not any(
            id(parameters[name]) in held and parameters[name].requires_grad
            for name in parts.layers[layer]
        )
    ]
    if empty:
        msg = (
            f"the optimizer holds no trainable parameter of layers {empty}, which the schedule "
            "trains; create it while all layers are trainable and let the schedule freeze them"
        )
        raise UsageError(msg)
    names = [name for layer in required for name in parts.layers[layer]]
    names += [name for group in sorted(always) for name in parts.outside.get(group, ())]
    lost = [
        name
        for name in names
        if parameters[name].requires_grad and id(parameters[name]) not in held
    ]
    if lost:
        msg = (
            f"the optimizer does not hold {lost[0]}"
            + (f" and {len(lost) - 1} more parameters" if len(lost) > 1 else "")
            + " that the schedule trains: they would get gradients and never move; create the "
            "optimizer from all parameters"
        )
        raise UsageError(msg)
