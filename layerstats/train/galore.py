"""AdamW with gradients projected to a low rank (GaLore), for layers that come and go.

Here belongs the optimizer: parameter groups with a rank keep Adam's moments in a low-rank basis,
the others are torch's AdamW. When a basis is made, from what and how moments follow it is decided
here; the linear algebra is subspace.py's. It knows parameters and state, no layers and no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from layerstats.errors import UsageError, choices
from layerstats.train.subspace import (
    is_right,
    moment_shape,
    project,
    rotate_moments,
    top_subspace,
    top_subspace_svd,
)

__all__ = ["MOMENTS", "PROJECTIONS", "GaLoreAdamW"]

PROJECTIONS = ("randomised", "svd")
"""How a basis is found: by the range finder, or by a full SVD as published."""

MOMENTS = ("rotate", "keep")
"""What a new basis does to Adam's moments: they turn with it, or stay as published."""

_OF_PROJECTED_GROUPS = {
    "update_interval": 200,
    "scale": 1.0,
    "projection": "randomised",
    "moments": "rotate",
    "seed": 0,
}
_STALE = "stale"  # in a parameter's state: its basis is to be made anew at its next step


class GaLoreAdamW(torch.optim.Optimizer):
    r"""AdamW whose moments live in a low-rank basis of the gradient, where a group has a `rank`.

    For a weight W of a group with rank r and its gradient G, projected from the right (m >= n;
    otherwise R = P^T G and the step is P N):

    .. math:: R = G P, \quad M \leftarrow \beta_1 M + (1 - \beta_1) R, \quad
        V \leftarrow \beta_2 V + (1 - \beta_2) R^{\circ 2}

    .. math:: N = \frac{M}{\sqrt V + \epsilon}, \quad
        W \leftarrow \left(W - \eta s \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} N P^T\right)
        (1 - \eta \lambda)

    The basis P is made when the parameter has no state (its first step, or a layer that was
    switched on after its state was dropped), when t is a multiple of `update_interval`, and when
    `refresh` asked for it; t counts the steps in which this parameter had a gradient. Groups
    without `rank` do what `torch.optim.AdamW(fused=True)` does, to the bit.

    State of a projected parameter: `step` (float32, one number on the CPU), `basis`, `exp_avg` and
    `exp_avg_sq` in the weight's data type (`subspace.state_elements` numbers), and `stale`, which
    is there only while a refresh is pending. Nothing else is remembered: the random columns come
    from the group's seed, the parameter's position in the optimizer and t.

    Parameters
    ----------
    params : iterable
        Parameters or groups, as for every torch optimizer. A group with `rank` (int) holds
        matrices (out, in), or stacks of them (experts; each matrix has its own basis), and may have

        - `update_interval` (int, default 200): steps of the parameter from one basis to the next;
        - `scale` (float, default 1): s, the factor of the step, not of the weight decay;
        - `projection` (str): "randomised" (default) or "svd";
        - `moments` (str): "rotate" (default) turns M and V into the new basis (`rotate_moments`);
          "keep" leaves their numbers as they are, as published;
        - `seed` (int, default 0).
    lr : float
        Learning rate eta, >= 0.
    betas : (float, float)
        Decay of the moments, in [0, 1).
    eps : float
        epsilon, in units of the gradient. As published it is added to sqrt(V) before V's bias
        is corrected.
    weight_decay : float
        lambda, >= 0; decoupled.

    Raises
    ------
    UsageError
        A number out of its range, a rank above the shorter side of one of the group's matrices, a
        projected parameter that is no matrix, a sparse gradient.
    MatrixError
        At `step`: the SVD of a gradient does not converge.

    Notes
    -----
    The basis is computed in float32 and stored in the weight's type, as published; in bfloat16
    its columns are orthonormal to about 2e-3. The published order of operations rounds a
    half-precision weight twice more: it adds the step and then the decay; here both are one
    matrix product in place, which also needs no memory of the weight's size.

    References
    ----------
    Zhao et al. (2024), GaLore, arXiv 2403.03507; its code, galore-torch 1.0.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(6, 4))
    >>> optimizer = GaLoreAdamW([{"params": [weight], "rank": 1}], lr=0.1)
    >>> weight.grad = torch.arange(24.0).view(6, 4)
    >>> optimizer.step()
    >>> torch.linalg.matrix_rank(weight.detach()).item()
    1
    >>> {name: tuple(tensor.shape) for name, tensor in optimizer.state[weight].items()}
    {'step': (), 'basis': (4, 1), 'exp_avg': (6, 1), 'exp_avg_sq': (6, 1)}
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every torch optimizer does, and check its numbers and shapes."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_adam(group)
            if _is_projected(group):
                for name, value in _OF_PROJECTED_GROUPS.items():
                    group.setdefault(name, value)
                _check_projected(group)
            else:
                group["fused"] = True  # as torch's loading reads it: the step goes to the device
        except UsageError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of every parameter that has a gradient, one projected one at a time.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and gradients anew.

        Returns
        -------
        object
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        position = 0
        for group in self.param_groups:
            if _is_projected(group):
                for number, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        self._step_projected(group, parameter, position + number)
            else:
                self._step_plain(group)
            position += len(group["params"])
        return loss

    def refresh(self, parameters: Iterable[Tensor]) -> None:
        """Have new bases made for these parameters at their next step.

        For a layer that is switched on again and whose state was kept: its basis is of gradients
        long past. The mark is part of the state and is saved with it; the steps at which bases are
        due anyway stay the same.

        Parameters
        ----------
        parameters : iterable of torch.Tensor
            Those that have no basis (not projected, or without state) need none and are passed by.
        """
        for parameter in parameters:
            state = self.state.get(parameter, {})
            if "basis" in state:
                # That it is there is the mark: its value would have to be fetched from the device.
                state[_STALE] = torch.ones((), dtype=torch.bool)

    def _step_plain(self, group: dict[str, Any]) -> None:
        """Take the step of torch's fused AdamW."""
        moving = [one for one in group["params"] if one.grad is not None]
        for one in moving:
            _check_dense(one.grad)
            state = self.state[one]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=one.device)
                state["exp_avg"] = torch.zeros_like(one, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(one, memory_format=torch.preserve_format)
        states = [self.state[one] for one in moving]
        adamw(
            moving,
            [one.grad for one in moving],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,  # the kernel that needs no memory of an embedding's size beside it
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_projected(self, group: dict[str, Any], weight: Tensor, position: int) -> None:
        gradient = weight.grad
        assert gradient is not None
        _check_dense(gradient)
        self._prepare(group, weight, gradient, position)
        state = self.state[weight]
        state["step"] += 1
        steps = int(state["step"].item())
        beta1, beta2 = group["betas"]
        first, second, basis = state["exp_avg"], state["exp_avg_sq"], state["basis"]

        low = project(gradient, basis)
        first.mul_(beta1).add_(low, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(low, low, value=1 - beta2)
        del low
        direction = second.sqrt().add_(group["eps"])
        torch.div(first, direction, out=direction)  # the denominator's memory takes the quotient
        size = group["lr"] * group["scale"] * math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
        left = 1 - group["lr"] * group["weight_decay"]
        factors = (direction, basis.mT) if is_right(weight.shape) else (basis, direction)
        add = torch.Tensor.addmm_ if weight.dim() == 2 else torch.Tensor.baddbmm_
        add(weight, *factors, beta=left, alpha=-size * left)

    def _prepare(
        self, group: dict[str, Any], weight: Tensor, gradient: Tensor, position: int
    ) -> None:
        """See to it that the state holds the basis of this step and moments that fit it."""
        state = self.state.get(weight, {})
        steps = int(state["step"].item()) if state else 0
        if state and steps % group["update_interval"] and _STALE not in state:
            return
        old = state.get("basis")
        # Contiguous, as files know no strides and another stride is other bits on resuming.
        basis = _find(group, gradient, old, position, steps).to(weight.dtype).contiguous()
        if old is None:
            zeros = [weight.new_zeros(moment_shape(weight.shape, group["rank"])) for _ in range(2)]
            state = {"step": torch.tensor(0.0, dtype=torch.float32), "basis": basis}
            state["exp_avg"], state["exp_avg_sq"] = zeros
            self.state[weight] = state
            return
        if group["moments"] == "rotate":
            beta1, beta2 = group["betas"]
            state["exp_avg"], state["exp_avg_sq"] = rotate_moments(
                state["exp_avg"],
                state["exp_avg_sq"],
                old,
                basis,
                right=is_right(weight.shape),
                mean_scale=math.sqrt(1 - beta2**steps) / (1 - beta1**steps),
            )
        state["basis"] = basis
        state.pop(_STALE, None)


def _is_projected(group: dict[str, Any]) -> bool:
    return group.get("rank") is not None


def _find(
    group: dict[str, Any], gradient: Tensor, old: Tensor | None, position: int, steps: int
) -> Tensor:
    if group["projection"] == "svd":
        return top_subspace_svd(gradient, group["rank"])
    source = np.random.SeedSequence([group["seed"], position, steps])
    generator = torch.Generator().manual_seed(int(source.generate_state(1, np.uint64)[0] >> 1))
    return top_subspace(gradient, group["rank"], start=old, generator=generator)


def _check_dense(gradient: Tensor) -> None:
    if gradient.is_sparse:
        msg = "a gradient is sparse; GaLoreAdamW takes dense ones (Embedding(sparse=False))"
        raise UsageError(msg)


def _check_adam(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    allowed = {
        "lr": (group["lr"], ">= 0", group["lr"] >= 0),
        "betas": (group["betas"], "in [0, 1)", 0 <= beta1 < 1 and 0 <= beta2 < 1),
        "eps": (group["eps"], ">= 0", group["eps"] >= 0),
        "weight_decay": (group["weight_decay"], ">= 0", group["weight_decay"] >= 0),
    }
    for name, (given, what, holds) in allowed.items():
        if not holds:
            msg = f"{name} is {given}; give {what}"
            raise UsageError(msg)


def _check_projected(group: dict[str, Any]) -> None:
    for name, least in (("rank", 1), ("update_interval", 1), ("seed", 0)):
        if not isinstance(group[name], int) or group[name] < least:
            msg = f"{name} is {group[name]!r}; give a whole number, at least {least}"
            raise UsageError(msg)
    if not (math.isfinite(group["scale"]) and group["scale"] > 0):
        msg = f"scale is {group['scale']}; give a finite number above 0"
        raise UsageError(msg)
    if group["projection"] not in PROJECTIONS:
        raise UsageError(choices("projection", group["projection"], PROJECTIONS))
    if group["moments"] not in MOMENTS:
        raise UsageError(choices("rule for the moments", group["moments"], MOMENTS))
    shapes = [tuple(parameter.shape) for parameter in group["params"]]
    for shape in shapes:
        if len(shape) not in (2, 3) or 0 in shape:
            msg = (
                f"a parameter of shape {shape} cannot be projected; give matrices (out, in) or "
                "stacks (experts, out, in), and the others in a group without rank"
            )
            raise UsageError(msg)
    largest = min((min(shape[-2:]) for shape in shapes), default=group["rank"])
    if group["rank"] > largest:
        worst = next(shape for shape in shapes if min(shape[-2:]) == largest)
        msg = (
            f"rank is {group['rank']}, but a parameter of this group is {worst[-2]}x{worst[-1]}; "
            f"give at most {largest}"
        )
        raise UsageError(msg)
