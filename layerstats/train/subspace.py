"""Low-rank bases of gradients: where GaLore looks for them, how they are found and changed.

Here belongs what is linear algebra of one gradient (or a stack of them, one matrix per expert):
which side is projected, its leading directions by full SVD or by the range finder, projecting, and
carrying Adam's moments from one basis to the next. The optimizer that uses it is galore.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from layerstats.errors import UsageError
from layerstats.numerics.spectrum import MatrixError

__all__ = [
    "basis_shape",
    "is_right",
    "moment_shape",
    "project",
    "rotate_moments",
    "state_elements",
    "top_subspace",
    "top_subspace_svd",
]

# On real gradients (SmolLM2-135M, 128 and 1024 tokens, ranks 8 to 128) one pass captures 92 to 98 %
# of what the SVD does on the worst matrix, two with these spare columns at least 99.3 %. The
# subspaces of two batches overlap by 8 to 88 %, mostly less than half, so that a start from the old
# basis saves no pass.
_PASSES = 2
_SPARE_COLUMNS = 16


def is_right(shape: Sequence[int]) -> bool:
    """Return whether a gradient is projected from the right: it has no fewer rows than columns.

    GaLore's 'std' rule: the shorter side is projected, a square matrix from the right.

    Parameters
    ----------
    shape : sequence of int
        (..., m, n) of the gradient.

    Returns
    -------
    bool
        True: P is (n, r) and R = G P; False: P is (m, r) and R = P^T G.

    Examples
    --------
    >>> is_right((1536, 576)), is_right((576, 576)), is_right((576, 1536))
    (True, True, False)
    """
    return shape[-2] >= shape[-1]


def basis_shape(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the shape (..., min(m, n), rank) of the basis for gradients (..., m, n).

    Examples
    --------
    >>> basis_shape((8, 1536, 576), 32)
    (8, 576, 32)
    """
    return (*shape[:-2], min(shape[-2:]), rank)


def moment_shape(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the shape of the projected gradient: (..., m, rank) from the right, else (rank, n).

    Examples
    --------
    >>> moment_shape((1536, 576), 32), moment_shape((576, 1536), 32)
    ((1536, 32), (32, 1536))
    """
    *stack, rows, cols = shape
    return (*stack, rows, rank) if is_right(shape) else (*stack, rank, cols)


def state_elements(shape: Sequence[int], rank: int) -> int:
    r"""Return how many numbers GaLore-Adam remembers of one parameter: basis and two moments.

    .. math:: r \min(m, n) + 2 r \max(m, n)

    times the number of matrices in a stack; the step counter is not among them.

    Parameters
    ----------
    shape : sequence of int
        (..., m, n) of the parameter.
    rank : int
        r.

    Returns
    -------
    int
        Elements of the weight's data type.

    Examples
    --------
    >>> state_elements((4096, 11008), 128), 2 * 4096 * 11008
    (3342336, 90177536)
    """
    return math.prod(basis_shape(shape, rank)) + 2 * math.prod(moment_shape(shape, rank))


def project(gradient: Tensor, basis: Tensor) -> Tensor:
    """Return the gradient's coefficients in a basis: G P from the right, else P^T G.

    Parameters
    ----------
    gradient : torch.Tensor, shape (..., m, n)
        In units of loss per weight.
    basis : torch.Tensor, shape (..., min(m, n), r)
        Orthonormal columns, of the gradient's data type.

    Returns
    -------
    torch.Tensor
        Of `moment_shape`, in the gradient's unit and data type.

    Examples
    --------
    >>> gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0]])
    >>> project(gradient, torch.tensor([[0.0], [1.0]])).tolist()
    [[4.0], [0.0], [5.0]]
    """
    return gradient @ basis if is_right(gradient.shape) else basis.mT @ gradient


def top_subspace_svd(gradient: Tensor, rank: int) -> Tensor:
    r"""Return the leading singular vectors of the gradient's shorter side by a full SVD.

    .. math:: G = U S V^T, \qquad P = V_{:, :r} \text{ if } m \ge n \text{ else } U_{:, :r}

    Parameters
    ----------
    gradient : torch.Tensor, shape (..., m, n)
        Any floating type; half precision is computed in float32.
    rank : int
        r, at least 1 and at most min(m, n).

    Returns
    -------
    torch.Tensor, shape (..., min(m, n), r)
        Orthonormal columns, float32 (float64 of float64), by falling singular value. Signs are
        those that LAPACK leaves, as in the published code, where moments are kept as they are. It
        is a view: a copy lets go of the other vectors.

    Raises
    ------
    UsageError
        The rank does not fit the shape.
    MatrixError
        The SVD does not converge, as with non-finite gradients.

    References
    ----------
    Zhao et al. (2024), GaLore, arXiv 2403.03507; its code, galore-torch 1.0.

    Examples
    --------
    >>> basis = top_subspace_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    >>> basis.abs().argmax(0).tolist()
    [1, 2]
    """
    _check_rank(gradient.shape, rank)
    matrix = _precise(gradient)
    try:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # not in its __all__
        msg = (
            f"the SVD of a {_size(gradient.shape)} gradient does not converge; look for non-finite "
            "values in it, or use projection='randomised'"
        )
        raise MatrixError(msg) from error
    basis: Tensor = right[..., :rank, :].mT if is_right(gradient.shape) else left[..., :rank]
    return basis


def top_subspace(
    gradient: Tensor, rank: int, *, start: Tensor | None = None, generator: torch.Generator
) -> Tensor:
    r"""Return nearly the leading singular vectors of the gradient's shorter side, without its SVD.

    Subspace iteration with spare columns, then Rayleigh-Ritz: with G turned so that m >= n,

    .. math:: Q \leftarrow \mathrm{orth}(G^T (G Q)) \quad \text{(twice)}, \qquad
        (G Q)^T (G Q) = E \Lambda E^T, \qquad P = Q E_{:, :r}

    from Q = random columns, or the `start` and random columns beside it. On real gradients the
    captured energy ||G P||_F^2 is at least 99 % of what the SVD captures; of a flat spectrum, where
    no direction leads, it is less.

    Parameters
    ----------
    gradient : torch.Tensor, shape (..., m, n)
        Any floating type; half precision is computed in float32. Non-finite values give a
        non-finite basis.
    rank : int
        r, at least 1 and at most min(m, n).
    start : torch.Tensor, shape (..., min(m, n), any), optional
        An earlier basis. It makes the result a little better, not faster; a matrix whose gradient
        is all zero keeps it.
    generator : torch.Generator
        Draws the random columns, the same for every matrix of a stack; on the CPU, so that all
        devices see the same ones.

    Returns
    -------
    torch.Tensor, shape (..., min(m, n), r)
        Orthonormal columns, float32 (float64 of float64), by falling energy; the largest entry of
        each is positive, so that neither the draw nor the start decides the sign.

    Raises
    ------
    UsageError
        The rank does not fit the shape.

    References
    ----------
    Halko, Martinsson, Tropp (2011), SIAM Review 53(2), algorithms 4.4 and 5.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> basis = top_subspace(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2, generator=draw)
    >>> basis.round(decimals=3).abs().tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    _check_rank(gradient.shape, rank)
    matrix = _precise(gradient)
    if not is_right(gradient.shape):
        matrix = matrix.mT
    columns = _start(matrix, rank, start, generator)
    for _ in range(_PASSES):
        turned = _scaled(matrix.mT @ _scaled(matrix @ columns))
        # Where all is zero (an expert that no token reached) nothing is learnt: stay.
        columns = torch.linalg.qr(torch.where(_is_zero(turned), columns, turned)).Q
    image = _scaled(matrix @ columns)
    order = torch.linalg.eigh(image.mT @ image).eigenvectors.flip(-1)[..., :rank]
    found = torch.where(_is_zero(image), columns[..., :rank], columns @ order)
    return _with_fixed_signs(found)


def rotate_moments(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    old: Tensor,
    new: Tensor,
    *,
    right: bool,
    mean_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Return Adam's moments in a new basis.

    Written for projection from the right, C = P_0^T P_1, one row of the moments at a time:

    .. math:: m_1 = m_0 C, \qquad
        v_1 = (v_0 - a^2) \, C^{\circ 2} + (a C)^{\circ 2} + w \, \bar v_0 \, (1 - c), \qquad
        c_k = \sum_j C_{jk}^2

    The first moment is linear. Of the second only the diagonal of E[g g^T] is known. Its part from
    the mean, a = m_0 held within plus and minus sqrt(v_0), is turned as a vector; the rest, taken
    as uncorrelated, with squared entries, as in LDAdam. Of a new direction the share 1 - c_k lay
    outside the old basis. It is given what the weakest old direction has, as it was the leading
    ones that were taken: the row's mean of v_0 times w, the least over the mean of the directions'
    v_0. With zero there, Adam's steps along a wholly new direction would be 6.5 times too long
    within 15 steps (betas 0.9, 0.999).

    Parameters
    ----------
    exp_avg, exp_avg_sq : torch.Tensor, shape (..., m, r0) if `right` else (..., r0, n)
        Adam's m and v as they are stored.
    old, new : torch.Tensor, shapes (..., k, r0) and (..., k, r1)
        Bases with orthonormal columns.
    right : bool
        Which side is projected, `is_right` of the gradient.
    mean_scale : float
        sqrt(1 - beta_2^t) / (1 - beta_1^t): brings m to the scale of the mean in v.

    Returns
    -------
    (torch.Tensor, torch.Tensor)
        m and v of the new basis in the data type of the old ones; v >= 0. If the bases are equal
        up to order and signs, so are the moments; if they span the same space, the sum of v over a
        row stays what it was.

    References
    ----------
    Robert et al. (2025), LDAdam, arXiv 2410.16103, for turning v by mean and squared entries; that
    v is unchanged by an equal basis, and what is put outside the old one, are ours.

    Examples
    --------
    >>> swap = torch.eye(2).flip(0)
    >>> first, second = torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 9.0]])
    >>> [one.tolist() for one in rotate_moments(first, second, torch.eye(2), swap, right=True)]
    [[[-2.0, 1.0]], [[9.0, 4.0]]]
    """
    turn = _precise(old).mT @ _precise(new)
    first, second = _precise(exp_avg), _precise(exp_avg_sq)
    if not right:
        first, second = first.mT, second.mT
    limit = second.sqrt()
    mean = (first * mean_scale).clamp(-limit, limit)
    squares = turn.square()
    rotated = (second - mean.square()).clamp_(min=0) @ squares
    rotated += (mean @ turn).square_()
    rotated += _weakest(second) * (1 - squares.sum(-2, keepdim=True)).clamp_(min=0)
    moments = first @ turn, rotated
    if not right:
        moments = moments[0].mT, moments[1].mT
    return moments[0].to(exp_avg.dtype).contiguous(), moments[1].to(exp_avg_sq.dtype).contiguous()


def _weakest(second: Tensor) -> Tensor:
    """Return for each row the v of the weakest direction, as far as rows and columns tell."""
    of_directions = second.mean(-2, keepdim=True)
    least = of_directions.amin(-1, keepdim=True) / of_directions.mean(-1, keepdim=True)
    # Without any gradient so far there is nothing to share out: 0 / 0.
    return second.mean(-1, keepdim=True) * least.nan_to_num(0.0)


def _check_rank(shape: Sequence[int], rank: int) -> None:
    if not 1 <= rank <= min(shape[-2:]):
        msg = (
            f"rank is {rank} for a {_size(shape)} matrix; give 1 to {min(shape[-2:])}, "
            "or train it without projection"
        )
        raise UsageError(msg)


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def _precise(tensor: Tensor) -> Tensor:
    """Bring half precision to float32; a view of the same tensor if it is float32 already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _scaled(matrix: Tensor) -> Tensor:
    # Gradients of 1e-20 are real; their squares would not be float32 numbers.
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    return matrix / largest.clamp_(min=torch.finfo(matrix.dtype).tiny)


def _is_zero(matrix: Tensor) -> Tensor:
    return (matrix == 0).all(-1, keepdim=True).all(-2, keepdim=True)


def _start(matrix: Tensor, rank: int, start: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the columns to begin with: the start's if there is one, and random ones."""
    side = matrix.shape[-1]
    width = min(side, rank + _SPARE_COLUMNS)
    known = 0 if start is None else min(start.shape[-1], width)
    drawn = torch.randn(side, width - known, generator=generator, device=generator.device)
    # Of the length of the start's columns, so that rounding treats all alike.
    drawn = (drawn / math.sqrt(side)).to(matrix).expand(*matrix.shape[:-2], -1, -1)
    if start is None:
        return drawn
    return torch.cat([start[..., :known].to(matrix), drawn], dim=-1)


def _with_fixed_signs(columns: Tensor) -> Tensor:
    largest = columns.gather(-2, columns.abs().argmax(-2, keepdim=True))
    return columns * torch.where(largest < 0, -1.0, 1.0)
