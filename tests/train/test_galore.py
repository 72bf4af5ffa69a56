"""GaLore-AdamW beside the published algorithm in plain loops, torch's AdamW, and itself resumed."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layerstats.errors import UsageError
from layerstats.numerics.spectrum import MatrixError
from layerstats.train.galore import GaLoreAdamW
from layerstats.train.subspace import rotate_moments, state_elements, top_subspace
from tests.oracles.galore import galore_adamw

ADAM: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
TALL, WIDE, SQUARE, STACK = (9, 6), (6, 9), (7, 7), (3, 6, 8)


def gradient(shape: tuple[int, ...], step: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + step))


def weights(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[torch.nn.Parameter]:
    return [
        torch.nn.Parameter(gradient(shape, 0, 7 + number).to(dtype))
        for number, shape in enumerate(shapes)
    ]


def run(
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    steps: range,
) -> None:
    """Each parameter sees the same gradients whatever the optimizer."""
    for step in steps:
        for number, one in enumerate(parameters):
            one.grad = gradient(tuple(one.shape), step, number).to(one.dtype)
        optimizer.step()
        optimizer.zero_grad()


def projected(params: list[torch.nn.Parameter], **options: Any) -> GaLoreAdamW:
    return GaLoreAdamW([{"params": params, "rank": 3, **options}], **ADAM)


@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE, (5, 3), (3, 12)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_the_published_algorithm(shape: tuple[int, int], scale: float) -> None:
    (weight,) = weights(shape)
    gradients = [gradient(shape, step) for step in range(23)]
    options = {"update_interval": 8, "scale": scale}
    expected = galore_adamw(weight.detach(), gradients, rank=3, **options, **ADAM)
    optimizer = projected([weight], projection="svd", moments="keep", **options)
    for given_, wanted in zip(gradients, expected, strict=True):
        weight.grad = given_
        optimizer.step()
        torch.testing.assert_close(weight.detach().double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("projection", ["svd", "randomised"])
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE])
def test_a_step_has_exactly_the_rank(shape: tuple[int, int], projection: str) -> None:
    (weight,) = weights(shape)
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 3, "projection": projection}], lr=1.0)
    before = weight.detach().clone()
    run(optimizer, [weight], range(1))
    values = torch.linalg.svdvals((weight.detach() - before).double())
    assert float(values[3]) < 1e-6 * float(values[0]) < 1e-2 * float(values[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_without_rank_are_torch_adamw_to_the_bit(dtype: torch.dtype) -> None:
    shapes = [TALL, (5,), STACK, WIDE]
    ours, theirs = weights(*shapes, dtype=dtype), weights(*shapes, dtype=dtype)
    beside = weights(SQUARE, dtype=dtype)
    optimizer = GaLoreAdamW(
        [
            {"params": ours[:2]},
            {"params": beside, "rank": 2},
            {"params": ours[2:], "weight_decay": 0.0, "rank": None},
        ],
        **ADAM,
    )
    reference = torch.optim.AdamW(
        [{"params": theirs[:2]}, {"params": theirs[2:], "weight_decay": 0.0}], fused=True, **ADAM
    )
    for step in range(25):
        for mine, other, number in zip(ours, theirs, range(4), strict=True):
            # Some have no gradient in some steps, the last never.
            without = number == 3 or (step + number) % 5 == 0
            mine.grad = None if without else gradient(tuple(mine.shape), step, number).to(dtype)
            other.grad = None if without else gradient(tuple(mine.shape), step, number).to(dtype)
        beside[0].grad = gradient(SQUARE, step, 9).to(dtype)
        for one in (optimizer, reference):
            for group in one.param_groups:
                group["lr"] = 1e-2 / (step + 1)
            one.step()
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    assert ours[3] not in optimizer.state
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert list(optimizer.state[mine]) == list(reference.state[other])
        for key, value in reference.state[other].items():
            assert value.dtype == optimizer.state[mine][key].dtype
            assert torch.equal(value, optimizer.state[mine][key])


# Saving and loading -------------------------------------------------------------------------------


def through_state_dict(old: GaLoreAdamW, new: GaLoreAdamW, folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save(old.state_dict(), buffer)
    buffer.seek(0)
    new.load_state_dict(torch.load(buffer, weights_only=True))


def through_named_tensors(old: GaLoreAdamW, new: GaLoreAdamW, folder: Path) -> None:
    flat = {
        f"{place}::{key}": value
        for place, one in enumerate(old.param_groups[0]["params"])
        for key, value in old.state[one].items()
    }
    save_file(flat, folder / "optimizer.safetensors")
    for name, value in load_file(folder / "optimizer.safetensors").items():
        place, key = name.split("::")
        new.state[new.param_groups[0]["params"][int(place)]][key] = value


@pytest.mark.parametrize("carry", [through_state_dict, through_named_tensors])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"projection": "svd", "moments": "keep"}])
@pytest.mark.parametrize(("stop", "mark"), [(3, False), (5, False), (7, True), (10, True)])
def test_a_resumed_run_is_the_same_to_the_bit(
    tmp_path: Path, carry: Any, dtype: torch.dtype, options: dict[str, Any], stop: int, mark: bool
) -> None:
    shapes = [TALL, WIDE, STACK]
    options = {"update_interval": 5, "seed": 3, **options}
    whole = weights(*shapes, dtype=dtype)
    optimizer = projected(whole, **options)
    run(optimizer, whole, range(stop))
    if mark:
        optimizer.refresh(whole[:2])
    resumed = [torch.nn.Parameter(one.detach().clone()) for one in whole]
    fresh = projected(resumed, **options)
    carry(optimizer, fresh, tmp_path)
    run(optimizer, whole, range(stop, 17))
    run(fresh, resumed, range(stop, 17))
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other)
        assert set(optimizer.state[one]) == set(fresh.state[other])
        for key, value in optimizer.state[one].items():
            assert torch.equal(value, fresh.state[other][key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_is_its_formula_in_bytes_and_nothing_but_tensors(dtype: torch.dtype) -> None:
    parameters = weights(TALL, WIDE, STACK, dtype=dtype)
    optimizer = projected(parameters, update_interval=2)
    for steps in (range(1), range(1, 6)):
        run(optimizer, parameters, steps)
        for one in parameters:
            state = optimizer.state[one]
            assert all(isinstance(value, torch.Tensor) for value in state.values())
            assert set(state) == {"step", "basis", "exp_avg", "exp_avg_sq"}
            held = sum(value.untyped_storage().nbytes() for value in state.values())
            assert held == 4 + state_elements(one.shape, 3) * dtype.itemsize
            assert state["step"].dtype == torch.float32
            assert all(value.is_contiguous() for value in state.values())


# When a basis is made -----------------------------------------------------------------------------


def bases(optimizer: GaLoreAdamW, weight: torch.nn.Parameter, steps: range) -> list[torch.Tensor]:
    found = []
    for step in steps:
        run(optimizer, [weight], range(step, step + 1))
        found.append(optimizer.state[weight]["basis"].clone())
    return found


def changes(found: list[torch.Tensor]) -> list[int]:
    return [n for n in range(1, len(found)) if not torch.equal(found[n], found[n - 1])]


@pytest.mark.parametrize("projection", ["svd", "randomised"])
def test_a_basis_is_made_at_the_interval_and_when_asked(projection: str) -> None:
    (weight,) = weights(TALL)
    optimizer = projected([weight], update_interval=4, projection=projection)
    assert changes(bases(optimizer, weight, range(10))) == [4, 8]
    optimizer.refresh([weight])
    optimizer.refresh([weight])
    # Asked for before step 10; the next after it at 12, as ever.
    last = optimizer.state[weight]["basis"].clone()
    assert changes([last, *bases(optimizer, weight, range(10, 14))]) == [1, 3]
    assert optimizer.state[weight]["step"].item() == 14


def test_a_refresh_passes_by_what_has_no_basis() -> None:
    weight, plain, stranger = weights(TALL, SQUARE, WIDE)
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 2}, {"params": [plain]}], lr=1e-3)
    optimizer.refresh([weight, plain, stranger])
    assert not optimizer.state
    run(optimizer, [weight, plain], range(2))
    optimizer.refresh([weight, plain, stranger])
    assert "stale" in optimizer.state[weight]
    assert "stale" not in optimizer.state[plain]
    assert stranger not in optimizer.state


def test_a_dropped_state_starts_anew_and_frozen_weights_stand_still() -> None:
    weight, other = weights(TALL, WIDE)
    optimizer = projected([weight, other], update_interval=4)
    run(optimizer, [weight, other], range(6))
    old = optimizer.state.pop(weight)
    still = weight.detach().clone()
    weight.grad = None
    other.grad = gradient(WIDE, 6, 1)
    optimizer.step()
    assert weight not in optimizer.state
    assert torch.equal(weight, still)
    assert optimizer.state[other]["step"].item() == 7
    run(optimizer, [weight], range(7, 8))
    assert optimizer.state[weight]["step"].item() == 1
    assert not torch.equal(optimizer.state[weight]["basis"], old["basis"])


def test_draws_depend_on_seed_and_position_and_touch_no_other_generator() -> None:
    before = torch.random.get_rng_state()

    def basis(seed: int, position: int) -> torch.Tensor:
        parameters = weights(*[(60, 50)] * 3)
        optimizer = GaLoreAdamW(
            [{"params": parameters[:1], "rank": 3}, {"params": parameters[1:], "rank": 3}], lr=1
        )
        for group in optimizer.param_groups:
            group["seed"] = seed
        run(optimizer, [parameters[position]], range(1))
        return torch.as_tensor(optimizer.state[parameters[position]]["basis"])

    assert torch.equal(basis(1, 2), basis(1, 2))
    assert not torch.equal(basis(1, 2), basis(2, 2))
    assert len({basis(1, place).double().sum().item() for place in range(3)}) == 3
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_basis_starts_from_the_last_one_with_a_draw_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds, starts = [], []

    def spy(gradient: torch.Tensor, rank: int, *, start: Any, generator: Any) -> torch.Tensor:
        seeds.append(generator.initial_seed())
        starts.append(start)
        return top_subspace(gradient, rank, start=start, generator=generator)

    monkeypatch.setattr("layerstats.train.galore.top_subspace", spy)
    parameters = weights(TALL, WIDE)
    optimizer = projected(parameters, update_interval=1)
    for step in range(3):
        before = [optimizer.state[one]["basis"] for one in parameters] if step else [None, None]
        run(optimizer, parameters, range(step, step + 1))
        assert all(one is other for one, other in zip(starts[-2:], before, strict=True))
    assert len(set(seeds)) == len(seeds) == 6


# Moments, stacks, half precision ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_rotated_moments_keep_their_direction_where_kept_ones_lose_it(
    shape: tuple[int, int],
) -> None:
    cosines = {}
    for rule in ("rotate", "keep"):
        (weight,) = weights(shape)
        # Full rank: the span stays, only its directions are chosen anew.
        optimizer = GaLoreAdamW(
            [{"params": [weight], "rank": 16, "update_interval": 6, "moments": rule}], lr=1e-3
        )
        run(optimizer, [weight], range(6))
        before = lifted(optimizer, weight)
        weight.grad = torch.zeros(shape)
        weight.grad += 1e-12 * gradient(shape, 6)  # a new basis, no new moments
        optimizer.step()
        after = lifted(optimizer, weight)
        cosine = torch.nn.functional.cosine_similarity
        cosines[rule] = float(cosine(before.flatten(), after.flatten(), dim=0))
    assert cosines["rotate"] > 0.999
    assert abs(cosines["keep"]) < 0.5


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_second_moments_turn_with_the_biases_of_their_step(shape: tuple[int, int]) -> None:
    (weight,) = weights(shape)
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 16, "update_interval": 4}], lr=1e-3)
    run(optimizer, [weight], range(4))
    old = {key: value.clone() for key, value in optimizer.state[weight].items()}
    weight.grad = 1e-12 * gradient(shape, 9)  # a new basis and nothing else
    optimizer.step()
    state = optimizer.state[weight]
    right = shape[0] > shape[1]
    bias1, bias2 = 1 - 0.9**4, 1 - 0.999**4
    plain = rotate_moments(
        old["exp_avg"] / bias1,
        old["exp_avg_sq"] / bias2,
        old["basis"],
        state["basis"],
        right=right,
    )
    torch.testing.assert_close(state["exp_avg"], 0.9 * bias1 * plain[0], rtol=1e-3, atol=1e-6)
    expected = 0.999 * bias2 * plain[1]
    torch.testing.assert_close(state["exp_avg_sq"], expected, rtol=1e-3, atol=1e-7)


def lifted(optimizer: GaLoreAdamW, weight: torch.nn.Parameter) -> torch.Tensor:
    state = optimizer.state[weight]
    if weight.shape[0] >= weight.shape[1]:
        return torch.as_tensor(state["exp_avg"] @ state["basis"].mT)
    return torch.as_tensor(state["basis"] @ state["exp_avg"])


@pytest.mark.parametrize("moments", ["rotate", "keep"])
def test_steps_stay_of_adam_s_length_when_the_subspace_changes_altogether(moments: str) -> None:
    (weight,) = weights((40, 30))
    optimizer = GaLoreAdamW(
        [{"params": [weight], "rank": 4, "update_interval": 100, "moments": moments}], lr=1.0
    )
    for step in range(130):
        # Gradients in four columns, after step 100 in four others.
        weight.grad = torch.zeros(40, 30)
        first = 0 if step < 100 else 4
        weight.grad[:, first : first + 4] = gradient((40, 4), step) + 1
        before = weight.detach().clone()
        optimizer.step()
        length = float((weight.detach() - before).norm()) / math.sqrt(40 * 4)
        assert length < 1.3, step


@pytest.mark.parametrize("projection", ["svd", "randomised"])
@pytest.mark.parametrize("shape", [(3, 10, 6), (3, 6, 10)])
def test_a_stack_is_separate_matrices(shape: tuple[int, int, int], projection: str) -> None:
    options = {"update_interval": 3, "projection": projection}
    (stack,) = weights(shape)
    matrices = [torch.nn.Parameter(one.detach().clone()) for one in stack]
    optimizer = projected([stack], **options)
    others = [projected([one], **options) for one in matrices]
    for step in range(10):
        stack.grad = gradient(shape, step)
        optimizer.step()
        for one, other, part in zip(matrices, others, stack.grad, strict=True):
            one.grad = part.clone()
            other.step()
    for one, part in zip(matrices, stack, strict=True):
        torch.testing.assert_close(one, part, rtol=0, atol=1e-4)


def test_bfloat16_is_near_float32_and_its_basis_nearly_orthonormal() -> None:
    start = gradient((60, 40), 0, 7).bfloat16() / 128  # steps of 0.01 are not lost in rounding
    steps = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(start.to(dtype, copy=True))
        optimizer = projected([weight])
        run(optimizer, [weight], range(6))
        steps.append((weight.detach().double() - start.double()).flatten())
    state = optimizer.state[weight]
    kinds = {key: value.dtype for key, value in state.items() if key != "step"}
    assert set(kinds.values()) == {torch.bfloat16}
    gram = state["basis"].double().T @ state["basis"].double()
    assert 1e-5 < float((gram - torch.eye(3)).abs().max()) < 4e-3
    assert float(torch.nn.functional.cosine_similarity(*steps, dim=0)) > 0.99


def test_half_precision_decay_is_rounded_together_with_the_step() -> None:
    """The published two additions would each be rounded; one product in place is nearer."""
    (weight,) = weights((60, 40), dtype=torch.bfloat16)
    start = weight.detach().double()
    settings_ = {"lr": 0.05, "weight_decay": 0.1}
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 40, "projection": "svd"}], **settings_)
    run(optimizer, [weight], range(1))
    state = optimizer.state[weight]
    direction = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
    size = 0.05 * math.sqrt(1 - 0.999) / (1 - 0.9)
    exact = (start - size * direction.double() @ state["basis"].double().T) * (1 - 0.05 * 0.1)
    assert float((weight.detach().double() - exact).abs().max()) <= 2**-8 * float(exact.abs().max())
    back = direction @ state["basis"].T
    published = start.bfloat16().add_(back, alpha=-size)
    published.add_(published, alpha=-0.05 * 0.1)
    errors = [(one.double() - exact).square().mean() for one in (weight.detach(), published)]
    assert float(errors[0]) < float(errors[1])


@settings(max_examples=20)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    rank=st.integers(1, 12),
    interval=st.integers(1, 4),
    moments=st.sampled_from(["rotate", "keep"]),
    projection=st.sampled_from(["randomised", "svd"]),
)
def test_any_shapes_stay_finite_with_second_moments_that_are_none_below_zero(
    shapes: list[tuple[int, int]], rank: int, interval: int, moments: str, projection: str
) -> None:
    parameters = weights(*shapes)
    rank = min(rank, *(min(shape) for shape in shapes))
    optimizer = GaLoreAdamW(
        [
            {
                "params": parameters,
                "rank": rank,
                "update_interval": interval,
                "moments": moments,
                "projection": projection,
            }
        ],
        lr=1e-2,
    )
    run(optimizer, parameters, range(6))
    for one in parameters:
        state = optimizer.state[one]
        assert bool(torch.isfinite(one).all())
        assert bool((state["exp_avg_sq"] >= 0).all())
        gram = state["basis"].mT @ state["basis"]
        torch.testing.assert_close(gram, torch.eye(rank), rtol=0, atol=1e-5)


# Memory -------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Bytes of tensors made inside this context that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    @property
    def now(self) -> int:
        self._made = {key: one for key, one in self._made.items() if not one[0].expired()}
        return sum(size for _, size in self._made.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            one.untyped_storage()._cdata
            for one in tree_leaves((args, kwargs))
            if isinstance(one, torch.Tensor)
        } - set(self._made)
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in known:
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_stays_behind_and_a_step_needs_one_moment_beside(dtype: torch.dtype) -> None:
    shapes = [(96, 64), (64, 96), (4, 48, 64)]
    parameters = weights(*shapes, dtype=dtype)
    optimizer = GaLoreAdamW(
        [{"params": parameters, "rank": 8, "update_interval": 2, "projection": "svd"}], lr=1e-3
    )
    for one in parameters:
        one.grad = gradient(tuple(one.shape), 0).to(dtype)
    with Alive() as alive:
        optimizer.step()
    state = sum(state_elements(shape, 8) * dtype.itemsize for shape in shapes)  # counters aside
    assert alive.now == state
    with Alive() as alive:
        optimizer.step()
    assert alive.now == 0
    largest = 4 * 8 * 64 * dtype.itemsize
    assert largest <= alive.peak <= 1.05 * largest
    with Alive() as alive:
        optimizer.step()  # new bases and moments take the place of the old ones
    assert alive.now == state


def test_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in (TALL, WIDE, STACK, (5,))]
        optimizer = GaLoreAdamW(
            [
                {"params": parameters[:2], "rank": 3, "update_interval": 2},
                {"params": parameters[2:3], "rank": 3, "projection": "svd"},
                {"params": parameters[3:]},
            ],
            lr=1e-3,
        )
        for step in range(5):
            for one in parameters:
                one.grad = torch.empty_like(one)
            if step == 3:
                optimizer.refresh(parameters)
            optimizer.step()
        for one in parameters[:3]:
            state = optimizer.state[one]
            held = sum(value.numel() for value in state.values())
            assert held == 1 + state_elements(one.shape, 3)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 7}, r"rank is 7, but a parameter of this group is 9x6; give at most 6"),
        ({"rank": 0}, "rank is 0; give a whole number, at least 1"),
        ({"rank": 2.0}, "rank is 2.0; give a whole number"),
        ({"update_interval": 0}, "update_interval is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"scale": 0.0}, "scale is 0.0; give a finite number above 0"),
        ({"scale": math.inf}, "scale is inf"),
        ({"projection": "svdd"}, "unknown projection 'svdd'; did you mean 'svd'"),
        ({"moments": "turn"}, "unknown rule for the moments 'turn'"),
        ({"lr": -1.0}, "lr is -1.0; give >= 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\); give in \[0, 1\)"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_what_cannot_work_is_refused_and_no_group_is_left(
    options: dict[str, Any], message: str
) -> None:
    parameters = weights(TALL, STACK)
    with pytest.raises(UsageError, match=message):
        GaLoreAdamW([{"params": parameters, "rank": 3, **options}], lr=1e-3)
    optimizer = GaLoreAdamW(weights(SQUARE), lr=1e-3)
    with pytest.raises(UsageError, match=message):
        optimizer.add_param_group({"params": parameters, "rank": 3, **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(5,), (2, 2, 3, 3), (0, 4)])
def test_only_matrices_and_stacks_are_projected(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="group without rank"):
        GaLoreAdamW([{"params": weights(shape), "rank": 1}], lr=1e-3)


def test_sparse_and_non_finite_gradients() -> None:
    for rank in (None, 2):
        (weight,) = weights(SQUARE)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": rank, "projection": "svd"}], lr=1e-3)
        weight.grad = torch.eye(7).to_sparse()
        with pytest.raises(UsageError, match="sparse"):
            optimizer.step()
        assert weight not in optimizer.state
    weight.grad = torch.full(SQUARE, math.nan)
    before = weight.detach().clone()
    with pytest.raises(MatrixError, match="7x7"):
        optimizer.step()
    assert torch.equal(weight, before)
    assert weight not in optimizer.state


def test_closure_is_called_with_gradients_on() -> None:
    (weight,) = weights(TALL)
    optimizer = projected([weight])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.detach()

    first = optimizer.step(closure)
    assert float(optimizer.step(closure)) < float(first)
