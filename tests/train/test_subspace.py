"""Bases of gradients: laws of the range finder beside the SVD, and of moments that change basis."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from layerstats.errors import UsageError
from layerstats.numerics.spectrum import MatrixError
from layerstats.train.subspace import (
    basis_shape,
    is_right,
    moment_shape,
    project,
    rotate_moments,
    state_elements,
    top_subspace,
    top_subspace_svd,
)
from tests.oracles.galore import captured_energy

SHAPES = [(40, 24), (24, 40), (30, 30), (7, 1), (1, 7), (64, 33)]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying(shape: tuple[int, ...], power: float, seed: int) -> torch.Tensor:
    """Random singular vectors, singular values i^-power."""
    generator = draw(seed)
    *stack, rows, cols = shape
    side = min(rows, cols)
    left = torch.linalg.qr(torch.randn(*stack, rows, side, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(*stack, cols, side, generator=generator)).Q
    values = torch.arange(1, side + 1).float() ** -power
    return (left * values) @ right.mT


def off_orthonormal(basis: torch.Tensor) -> float:
    gram = basis.double().mT @ basis.double()
    return float((gram - torch.eye(gram.shape[-1], dtype=torch.float64)).abs().max())


def orthonormal(side: int, rank: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(side, rank, generator=draw(seed))).Q


@pytest.mark.parametrize(
    ("shape", "right", "basis", "moment"),
    [
        ((6, 4), True, (4, 2), (6, 2)),
        ((4, 6), False, (4, 2), (2, 6)),
        ((5, 5), True, (5, 2), (5, 2)),
        ((3, 6, 4), True, (3, 4, 2), (3, 6, 2)),
        ((3, 4, 6), False, (3, 4, 2), (3, 2, 6)),
    ],
)
def test_shapes_follow_the_side_rule(
    shape: tuple[int, ...], right: bool, basis: tuple[int, ...], moment: tuple[int, ...]
) -> None:
    gradient = torch.randn(shape, generator=draw())
    assert is_right(shape) == right
    assert basis_shape(shape, 2) == top_subspace_svd(gradient, 2).shape == basis
    assert top_subspace(gradient, 2, generator=draw()).shape == basis
    assert moment_shape(shape, 2) == project(gradient, torch.ones(basis)).shape == moment
    assert state_elements(shape, 2) == math.prod(basis) + 2 * math.prod(moment)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    share=st.floats(0, 1),
    power=st.floats(0.7, 3),
    seed=st.integers(0, 2**32),
    warm=st.booleans(),
)
def test_range_finder_beside_the_svd(
    shape: tuple[int, int], share: float, power: float, seed: int, warm: bool
) -> None:
    side = min(shape)
    rank = max(1, round(share * side))
    gradient = decaying(shape, power, seed)
    start = orthonormal(side, rank, seed + 1) if warm else None
    found = top_subspace(gradient, rank, start=start, generator=draw(seed))
    best = top_subspace_svd(gradient, rank)
    assert off_orthonormal(found) < 1e-5
    assert off_orthonormal(best) < 1e-5
    energies = captured_energy(gradient, found), captured_energy(gradient, best)
    assert energies[0] <= energies[1] + 1e-6
    assert energies[0] >= 0.99 * energies[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_loses_nothing(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=draw())
    for basis in (
        top_subspace_svd(gradient, min(shape)),
        top_subspace(gradient, min(shape), generator=draw()),
    ):
        low = project(gradient, basis)
        back = low @ basis.mT if is_right(shape) else basis @ low
        torch.testing.assert_close(back, gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_separated_directions_are_the_singular_vectors(shape: tuple[int, int]) -> None:
    gradient = decaying(shape, 2, 5)
    exact = top_subspace_svd(gradient, 6)
    found = top_subspace(gradient, 6, generator=draw(1))
    cosines = (exact * found).sum(0).abs()
    assert float(cosines.min()) > 0.9999
    # Neither draw nor start nor the gradient's sign or unit decides anything.
    for other in (
        top_subspace(gradient, 6, generator=draw(2)),
        top_subspace(gradient, 6, generator=draw(2), start=-exact),
        top_subspace(-1e-22 * gradient, 6, generator=draw(3)),
        top_subspace(1e22 * gradient, 6, generator=draw(3)),
    ):
        torch.testing.assert_close(other, found, rtol=0, atol=2e-3)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(4, 30, 18), (4, 18, 30)])
def test_a_stack_is_its_matrices(shape: tuple[int, int, int]) -> None:
    stack = decaying(shape, 2, 3)
    starts = torch.stack([orthonormal(18, 5, seed) for seed in range(4)])
    found = top_subspace(stack, 5, generator=draw(1))
    warm = top_subspace(stack, 5, start=starts, generator=draw(1))
    exact = top_subspace_svd(stack, 5)
    for number, matrix in enumerate(stack):
        alone = top_subspace(matrix, 5, generator=draw(1))
        torch.testing.assert_close(found[number], alone, rtol=0, atol=1e-4)
        alone = top_subspace(matrix, 5, start=starts[number], generator=draw(1))
        torch.testing.assert_close(warm[number], alone, rtol=0, atol=1e-4)
        torch.testing.assert_close(exact[number], top_subspace_svd(matrix, 5), rtol=0, atol=1e-5)


def test_a_matrix_without_gradient_keeps_its_basis() -> None:
    stack = decaying((3, 30, 24), 2, 3)
    stack[1] = 0
    starts = torch.stack([orthonormal(24, 5, seed) for seed in range(3)])
    found = top_subspace(stack, 5, start=starts, generator=draw())
    assert float(torch.linalg.svdvals(found[1].mT @ starts[1]).min()) > 0.9999
    assert float(torch.linalg.svdvals(found[0].mT @ starts[0]).min()) < 0.9
    assert off_orthonormal(found) < 1e-5
    cold = top_subspace(torch.zeros(30, 24), 5, generator=draw())
    assert off_orthonormal(cold) < 1e-5


def test_gradients_of_low_rank_and_half_precision() -> None:
    thin = torch.randn(40, 3, generator=draw()) @ torch.randn(3, 24, generator=draw(1))
    found = top_subspace(thin, 8, generator=draw())
    assert off_orthonormal(found) < 1e-5
    assert captured_energy(thin, found) == pytest.approx(1, abs=1e-6)
    half = decaying((40, 24), 1, 0).bfloat16()
    for basis in (top_subspace(half, 4, generator=draw()), top_subspace_svd(half, 4)):
        assert basis.dtype == torch.float32
        assert off_orthonormal(basis) < 1e-5


def test_the_generator_is_the_only_randomness() -> None:
    gradient = torch.randn(40, 24, generator=draw())
    before = torch.random.get_rng_state()
    first = top_subspace(gradient, 2, generator=draw(7))
    assert torch.equal(first, top_subspace(gradient, 2, generator=draw(7)))
    assert not torch.equal(first, top_subspace(gradient, 2, generator=draw(8)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_fake_tensors_have_the_real_shapes() -> None:
    with FakeTensorMode():
        for shape in ((6, 5, 3), (3, 5)):
            gradient = torch.randn(shape)
            old = top_subspace_svd(gradient, 2)
            new = top_subspace(gradient, 2, start=old, generator=draw())
            low = project(gradient, new)
            moments = rotate_moments(low, low.square(), old, new, right=is_right(shape))
            assert old.shape == new.shape == basis_shape(shape, 2)
            assert [tuple(one.shape) for one in moments] == [moment_shape(shape, 2)] * 2


@pytest.mark.parametrize("rank", [0, 5])
def test_rank_that_does_not_fit(rank: int) -> None:
    message = rf"rank is {rank} for a 6x4 matrix; give 1 to 4"
    with pytest.raises(UsageError, match=message):
        top_subspace_svd(torch.ones(6, 4), rank)
    with pytest.raises(UsageError, match=message):
        top_subspace(torch.ones(6, 4), rank, generator=draw())


def test_svd_of_what_is_not_finite() -> None:
    with pytest.raises(MatrixError, match="SVD of a 6x4 gradient does not converge"):
        top_subspace_svd(torch.full((6, 4), math.nan), 2)


# Moments in a new basis ---------------------------------------------------------------------------


def moments(rank: int, seed: int, *, right: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Some m, and a v that is not always above m^2, as Adam's is not."""
    shape = (9, rank) if right else (rank, 9)
    first = torch.randn(shape, generator=draw(seed))
    return first, torch.rand(shape, generator=draw(seed + 1)) + 0.01


@settings(max_examples=60)
@given(
    side=st.integers(1, 20),
    ranks=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    right=st.booleans(),
    seed=st.integers(0, 2**32),
    mean_scale=st.floats(0.05, 1.0),
)
def test_laws_of_the_turn(
    side: int, ranks: tuple[int, int], right: bool, seed: int, mean_scale: float
) -> None:
    ranks = min(ranks[0], side), min(ranks[1], side)
    old, new = orthonormal(side, ranks[0], seed), orthonormal(side, ranks[1], seed + 1)
    first, second = moments(ranks[0], seed, right=right)
    turned = rotate_moments(first, second, old, new, right=right, mean_scale=mean_scale)
    lifted = (first @ old.mT).mT if right else old @ first
    found = (turned[0] @ new.mT).mT if right else new @ turned[0]
    torch.testing.assert_close(found, new @ (new.mT @ lifted), rtol=0, atol=1e-5)
    assert float(found.norm()) <= float(lifted.norm()) * (1 + 1e-5)
    assert bool((turned[1] >= 0).all())
    # What a row has at most: all it had, and the mean in every new direction.
    rows = (second, turned[1]) if right else (second.mT, turned[1].mT)
    most = rows[0].sum(-1) + ranks[1] * rows[0].mean(-1)
    assert bool((rows[1].sum(-1) <= most * (1 + 1e-5)).all())


@settings(max_examples=40)
@given(rank=st.integers(1, 12), right=st.booleans(), seed=st.integers(0, 2**32))
def test_the_same_span_loses_nothing(rank: int, right: bool, seed: int) -> None:
    old = orthonormal(16, rank, seed)
    mixed = old @ orthonormal(rank, rank, seed + 1)
    first, second = moments(rank, seed, right=right)
    turned = rotate_moments(first, second, old, mixed, right=right, mean_scale=0.7)
    torch.testing.assert_close(turned[0].norm(), first.norm(), rtol=1e-5, atol=0)
    along = -1 if right else -2
    torch.testing.assert_close(turned[1].sum(along), second.sum(along), rtol=1e-4, atol=1e-5)
    back = rotate_moments(*turned, mixed, old, right=right)[0]
    torch.testing.assert_close(back, first, rtol=0, atol=1e-5)


@settings(max_examples=40)
@given(
    rank=st.integers(1, 8),
    right=st.booleans(),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_order_and_signs_change_nothing(
    rank: int, right: bool, seed: int, data: st.DataObject
) -> None:
    order = torch.tensor(data.draw(st.permutations(range(rank))))
    signs = torch.tensor(
        data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=rank, max_size=rank))
    )
    old = orthonormal(16, rank, seed)
    first, second = moments(rank, seed, right=right)
    turned = rotate_moments(first, second, old, old[:, order] * signs, right=right)
    expected = (first[:, order] * signs, second[:, order])
    if not right:
        expected = (first[order] * signs[:, None], second[order])
    for found, wanted in zip(turned, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_constant_gradient_has_the_turned_square() -> None:
    # v is then the square of the mean, and of a turned vector that is exactly known.
    gradient = torch.randn(9, 16, generator=draw())
    old, new = torch.eye(16), orthonormal(16, 16, 1)
    turned = rotate_moments(gradient, gradient.square(), old, new, right=True)
    torch.testing.assert_close(turned[1], (gradient @ new).square(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("right", [True, False])
def test_the_biases_of_early_moments_pass_through(right: bool) -> None:
    old, new = orthonormal(12, 5, 0), orthonormal(12, 4, 1)
    first, second = moments(5, 3, right=right)
    plain = rotate_moments(first, second, old, new, right=right)
    bias = 1 - 0.9**3, 1 - 0.999**3
    turned = rotate_moments(
        bias[0] * first,
        bias[1] * second,
        old,
        new,
        right=right,
        mean_scale=math.sqrt(bias[1]) / bias[0],
    )
    torch.testing.assert_close(turned[0], bias[0] * plain[0])
    torch.testing.assert_close(turned[1], bias[1] * plain[1], rtol=1e-3, atol=1e-7)


def test_moments_of_many_gradients_in_a_new_basis() -> None:
    """The turned v is near the v that Adam would have gathered in the new basis from the start."""
    generator = draw(4)
    # Uncorrelated directions of unequal size, and the new basis at 45 degrees to the old one.
    sizes = torch.tensor([4.0, 2.0, 1.0, 0.5])
    gradients = torch.randn(4000, 5, 4, generator=generator) * sizes + torch.tensor([3.0, 3, 1, 0])
    old, new = torch.eye(4), torch.block_diag(*[torch.tensor([[1.0, -1], [1, 1]]) / 2**0.5] * 2)
    first, second = gradients.mean(0), gradients.square().mean(0)
    turned = rotate_moments(first, second, old, new, right=True)[1]
    truth = (gradients @ new).square().mean(0)
    torch.testing.assert_close(turned, truth, rtol=0.05, atol=0)
    # Squared entries alone would be off by the mean's share.
    assert float((second @ new.square() / truth - 1).abs().max()) > 0.2


@pytest.mark.parametrize("right", [True, False])
def test_directions_never_seen_get_what_the_weakest_has(right: bool) -> None:
    # Two directions, of which the second has a quarter of the first's v in every row.
    of_rows = torch.rand(9, 1, generator=draw()) + 0.1
    second = of_rows * torch.tensor([4.0, 1.0])
    first = torch.zeros(9, 2)
    old, new = torch.eye(6)[:, :2], torch.eye(6)[:, 1:5]
    if not right:
        first, second = first.mT, second.mT
    turned = rotate_moments(first, second, old, new, right=right)[1]
    rows = turned if right else turned.mT
    torch.testing.assert_close(rows, of_rows.expand(9, 4))
    nothing = rotate_moments(first, torch.zeros_like(second), old, new, right=right)
    assert not any(bool(one.any()) for one in nothing)


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_old_moments_point_where_they_pointed(shape: tuple[int, int], noise: float) -> None:
    generator = draw(6)
    signal = decaying(shape, 0.5, 1)
    signal = signal * 8  # eight strong, nearly equal directions and a tail
    first = signal + noise * torch.randn(shape, generator=generator) / 8
    second = signal + noise * torch.randn(shape, generator=generator) / 8
    old, new = (top_subspace_svd(one, 8) for one in (first, second))
    new = new * torch.tensor([1.0, -1] * 4)  # LAPACK may leave any sign
    low = project(first, old)
    right = is_right(shape)

    def lifted(coefficients: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        return coefficients @ basis.mT if right else basis @ coefficients

    before = lifted(low, old).flatten()
    turned = rotate_moments(low, low.square(), old, new, right=right)[0]
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(before, lifted(turned, new).flatten(), dim=0)) >= 0.99
    assert float(cosine(before, lifted(low, new).flatten(), dim=0)) < 0.6
