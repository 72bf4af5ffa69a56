"""Sweeps and budgets against all plans one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from layerstats.errors import UsageError
from layerstats.train import METHODS
from layerstats.train import sweep as sweep_module
from layerstats.train.budget import fit_budget
from layerstats.train.memory import MemoryPlan, plan_memory
from layerstats.train.sweep import concerns, sweep
from tests.train.tiny_fake import shape

LAYERS = 3


@pytest.fixture(scope="module")
def tiny() -> Any:
    """Layers large beside the rest, so that their number decides."""
    return shape(num_hidden_layers=LAYERS, hidden_size=512, intermediate_size=2048, vocab_size=64)


_KEPT: dict[str, MemoryPlan] = {}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each plan of these tests simulated once."""

    def plan(source: Any, **settings: Any) -> MemoryPlan:
        key = repr(sorted(settings.items()))
        if key not in _KEPT:
            _KEPT[key] = plan_memory(source, **settings)
        return _KEPT[key]

    monkeypatch.setattr(sweep_module, "plan_memory", plan)


def reserved(tiny: Any, method: str, **settings: Any) -> int:
    plan = sweep_module.plan_memory(tiny, method=method, seq_len=8, **settings)
    return plan.reserved_bytes_estimate


def test_a_sweep_is_the_plans_one_by_one(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not concern a method is varied for it neither in the rows nor in the work."""
    made = []
    real = sweep_module.plan_memory

    def counted(*args: Any, **settings: Any) -> Any:
        made.append(settings)
        return real(*args, **settings)

    monkeypatch.setattr(sweep_module, "plan_memory", counted)
    told: list[tuple[float, float]] = []
    rows = sweep(
        tiny,
        {"method": ["full", "lisa", "lisa-d", "owlore"], "expected_active": [1, 2], "rank": [2, 4]},
        seq_len=8,
        batch_size=1,
        progress=lambda phase, done, total: told.append((done, total)),
    )
    points = [tuple(row.point.values()) for row in rows]
    assert points == [
        ("full", None, None),
        ("lisa", 1, None), ("lisa", 2, None),
        ("lisa-d", 1, None), ("lisa-d", 2, None),
        ("owlore", 1, 2), ("owlore", 1, 4), ("owlore", 2, 2), ("owlore", 2, 4),
    ]  # fmt: skip
    assert [row.plan.method for row in rows] == [row.point["method"] for row in rows]
    assert told == [(number, 9) for number in range(9)]
    assert len(made) == 7  # lisa-d takes what lisa takes
    for row in rows[1:2] + rows[-1:]:
        given = {name: one for name, one in row.point.items() if one is not None}
        same = plan_memory(tiny, **given, seq_len=8, batch_size=1)
        assert replace(same, seconds=row.plan.seconds) == row.plan


@pytest.mark.parametrize("grid", [{}, {"rank": []}])
def test_an_empty_grid_is_refused(tiny: Any, grid: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError, match="nothing to sweep"):
        sweep(tiny, grid, method="lisa")
    with pytest.raises(UsageError, match="unknown method"):
        sweep(tiny, {"rank": [2]})


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("groups", [("embed", "head", "norm"), ()])
def test_the_most_layers_that_fit_are_found(tiny: Any, groups: tuple[str, ...]) -> None:
    """Whatever the budget: what is found fits, one layer more does not."""
    takes = [
        reserved(tiny, "lisa", batch_size=1, expected_active=n, always_active=groups)
        for n in range(1, LAYERS + 1)
    ]
    assert len(set(takes)) == LAYERS
    for budget in (takes[0] - 1, takes[1] - 1, takes[1], takes[-1]):
        found = fit_budget(
            tiny, budget, methods=["lisa"], seq_lens=[8], batch_sizes=[1], always_active=groups
        )
        layers = found[0].layers if found else 0
        assert layers == 0 or takes[layers - 1] <= budget
        assert layers == LAYERS or takes[layers] > budget


@pytest.mark.usefixtures("kept")
def test_all_that_is_found_fits_and_is_in_the_order_promised(tiny: Any) -> None:
    budget = reserved(tiny, "lisa", batch_size=1, expected_active=2)
    methods = ["full", "lisa", "owlore-full", "owlore"]
    found = fit_budget(tiny, budget, methods=methods, seq_lens=[8], batch_sizes=[1, 64], ranks=[64])
    assert {one.method for one in found} == set(methods[1:])
    assert [one.layers for one in found if one.method == "lisa"][-1] >= 2
    assert all(one.plan.reserved_bytes_estimate <= budget for one in found)
    assert all(one.plan.method == one.method for one in found)
    keys = [(one.layers, one.tokens) for one in found]
    assert keys == sorted(keys, reverse=True)
    assert len({one.layers for one in found}) > 1
    first = found[-1]
    again = plan_memory(
        tiny, method=first.method, expected_active=first.layers, rank=first.rank,
        seq_len=first.seq_len, batch_size=first.batch_size,
    )  # fmt: skip
    assert again.reserved_bytes_estimate == first.plan.reserved_bytes_estimate
    # Of one method no answer is worse than another in all it is asked for.
    for one in found:
        assert not any(
            two is not one and two.method == one.method and two.layers >= one.layers
            and two.seq_len >= one.seq_len and two.batch_size >= one.batch_size
            and (two.rank or 0) >= (one.rank or 0)
            for two in found
        )  # fmt: skip


@pytest.mark.usefixtures("kept")
def test_nothing_fits_into_nothing(tiny: Any) -> None:
    assert fit_budget(tiny, 1e6, methods=["full", "lisa", "lora"], seq_lens=[8]) == []
    for budget in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="budget"):
            fit_budget(tiny, budget)
    with pytest.raises(UsageError, match="unknown method"):
        fit_budget(tiny, 1e9, methods=["ful"])


def test_a_given_schedule_has_its_own_number_of_layers(tiny: Any) -> None:
    from layerstats.schedules import schedule

    made = schedule("lisa", num_layers=LAYERS, expected_active=3)
    [one] = fit_budget(tiny, 1e9, methods=["lisa"], seq_lens=[8], batch_sizes=[1], schedule=made)
    assert one.layers == 3


def test_what_concerns_whom() -> None:
    for method in METHODS:
        assert concerns(method, "seq_len")
        assert concerns(method, "expected_active") == method.startswith(("lisa", "owlore"))
        assert concerns(method, "rank") == (method in ("galore", "owlore", "lora"))


def test_a_rank_that_no_matrix_has_does_not_stand_in_the_way_of_others(tiny: Any) -> None:
    found = fit_budget(
        tiny, 1e9, methods=["lisa", "owlore"], ranks=[4096], seq_lens=[8], batch_sizes=[1]
    )
    assert {run.method for run in found} == {"lisa"}
    with pytest.raises(UsageError, match="rank 4096"):
        fit_budget(tiny, 1e9, methods=["owlore"], ranks=[4096], seq_lens=[8], batch_sizes=[1])
