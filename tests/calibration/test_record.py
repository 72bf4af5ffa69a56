"""The recorder sees every product with a parameter, and says so when it cannot follow one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.calibration import record
from layerstats.calibration.record import Recorder, Slot, row_square_sums
from tests.oracles.calibration import in_float64

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(2, 5, 6, generator=DRAW)
W = torch.randn(4, 6, generator=DRAW)
STACK = torch.randn(3, 4, 6, generator=DRAW)

USES = {
    "linear": lambda w: F.linear(X, w),
    "linear, keywords": lambda w: F.linear(input=X, weight=w),
    "operator": lambda w: X @ w.T,
    "matmul": lambda w: torch.matmul(X, w.transpose(0, 1)),
    "mm": lambda w: X.view(-1, 6).mm(w.t()),
    "addmm": lambda w: torch.addmm(torch.zeros(4), X.view(-1, 6), w.T),
    "weight first": lambda w: w @ X.transpose(1, 2),
    "cast": lambda w: F.linear(X.double(), w.to(torch.float64)),
    "data": lambda w: F.linear(X, w.data),
}


@pytest.mark.parametrize("use", USES)
def test_every_form_of_product(use: str) -> None:
    weight = torch.nn.Parameter(W.clone())
    recorder = Recorder({"w": weight})
    with torch.no_grad(), recorder:
        USES[use](weight)
    seen, odd = recorder.harvest()
    assert odd == {}
    np.testing.assert_allclose(seen[Slot("w", None)].sums, in_float64(X), rtol=1e-14)
    assert seen[Slot("w", None)].tokens == 10
    assert not seen[Slot("w", None)].transposed


@pytest.mark.parametrize("square", [True, False])
def test_orientation_is_told_from_strides(square: bool) -> None:
    weight = torch.nn.Parameter(torch.randn(6, 6 if square else 4))
    recorder = Recorder({"w": weight})
    with torch.no_grad(), recorder:
        torch.matmul(X, weight)
    assert recorder.harvest()[0][Slot("w", None)].transposed


def test_experts_by_number() -> None:
    weight = torch.nn.Parameter(STACK.clone())
    recorder = Recorder({"w": weight})
    with torch.no_grad(), recorder:
        F.linear(X[0], weight[torch.tensor(2)])
        F.linear(X[0], weight[2])
        X[1] @ weight[0].T
    seen, _ = recorder.harvest()
    assert {slot.expert: value.tokens for slot, value in seen.items()} == {2: 10, 0: 5}
    np.testing.assert_allclose(seen[Slot("w", 2)].sums, 2 * in_float64(X[0]), rtol=1e-14)


def test_experts_all_at_once_count_rows_that_are_not_zero() -> None:
    weight = torch.nn.Parameter(STACK.transpose(1, 2).contiguous())
    rows = torch.randn(3, 5, 6)
    rows[1, 2:] = 0
    recorder = Recorder({"w": weight})
    with torch.no_grad(), recorder:
        torch.bmm(rows, weight)
    seen, _ = recorder.harvest()
    assert [seen[Slot("w", e)].tokens for e in range(3)] == [5, 2, 5]
    assert all(value.transposed for value in seen.values())
    for expert in range(3):
        np.testing.assert_allclose(
            seen[Slot("w", expert)].sums, in_float64(rows[expert]), rtol=1e-14
        )


def test_slices_of_a_fused_weight_count_once_when_their_input_is_the_same() -> None:
    weight = torch.nn.Parameter(W.clone())
    recorder = Recorder({"w": weight})
    with torch.no_grad(), recorder:
        for _ in range(2):
            F.linear(X, weight[:2])
            F.linear(X, weight[2:])
    seen, _ = recorder.harvest()
    assert seen[Slot("w", None)].tokens == 20
    np.testing.assert_allclose(seen[Slot("w", None)].sums, 2 * in_float64(X), rtol=1e-14)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda w: (F.linear(X, w[:2]), F.linear(2 * X, w[2:])), "different inputs"),
        (lambda w: F.linear(X[..., :3], w[:, :3]), "part of its input features"),
        (lambda w: torch.einsum("bti,oi->bto", X, w), "einsum"),
        (lambda w: torch.matmul(X, w[0]), "vector"),
        (lambda w: torch.bmm(X, w.view(2, 2, 6).transpose(1, 2)), "reshaped"),
    ],
)
def test_what_is_no_plain_linear_map_is_named(use: object, reason: str) -> None:
    weight = torch.nn.Parameter(W.clone())
    recorder = Recorder({"w": weight})
    with torch.no_grad(), recorder:
        use(weight)  # type: ignore[operator]
    seen, odd = recorder.harvest()
    assert seen == {}
    assert reason in odd["w"]


def test_shared_inputs_are_squared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: torch.nn.Parameter(torch.randn(4, 6)) for name in "qkv"}
    calls = []

    def counted(rows: torch.Tensor) -> torch.Tensor:
        calls.append(rows)
        return row_square_sums(rows)

    monkeypatch.setattr(record, "row_square_sums", counted)
    recorder = Recorder(weights)
    rows = X.clone()
    with torch.no_grad(), recorder:
        for weight in weights.values():
            F.linear(rows, weight)
        assert len(calls) == 1
        # Written to in place: the same object is not the same input any more.
        rows.mul_(2)
        F.linear(rows, weights["q"])
    assert len(calls) == 2
    seen, _ = recorder.harvest()
    np.testing.assert_allclose(seen[Slot("q", None)].sums, 5 * in_float64(X), rtol=1e-12)


def test_parameters_that_share_memory_are_told_apart() -> None:
    """A conversion that chunks a fused tensor leaves q, k and v in one storage."""
    whole = torch.randn(8, 6)
    q, k = (torch.nn.Parameter(part) for part in whole.chunk(2))
    recorder = Recorder({"q": q, "k": k})
    with torch.no_grad(), recorder:
        F.linear(X, k)
    assert set(recorder.harvest()[0]) == {Slot("k", None)}


@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 8),
    chunk=st.integers(1, 64),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_sums_do_not_depend_on_the_chunk_size(
    rows: int, width: int, chunk: int, dtype: torch.dtype
) -> None:
    data = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_CHUNK_ELEMENTS", chunk)
        sums = row_square_sums(data)
    assert sums.dtype == torch.float64
    np.testing.assert_allclose(sums.numpy(), in_float64(data), rtol=1e-14)
