from __future__ import annotations

import pytest

from layerstats.numerics.powerlaw import fit_ks, fit_mid, fit_peak
from layerstats.numerics.spectrum import esd
from layerstats.numerics.spread import alpha_spread
from tests.numerics.matrices import trained_like
from tests.oracles import powerlaw as oracle


@pytest.mark.parametrize("lower_bound", ["reference", "intended"])
@pytest.mark.parametrize("seed", range(8))
def test_the_ranges_hold_alpha_and_nest(seed: int, lower_bound: str) -> None:
    values = esd(trained_like(100, 150, seed=seed))
    spread = alpha_spread(values, lower_bound=lower_bound)
    assert spread.alpha == fit_peak(values, lower_bound=lower_bound).alpha
    assert spread.by_rule[2:] == (fit_mid(values).alpha, fit_ks(values).alpha)
    assert spread.rules[0] <= spread.alpha <= spread.rules[1]
    assert spread.neighbours[0] <= spread.ties[0] <= spread.alpha
    assert spread.alpha <= spread.ties[1] <= spread.neighbours[1]


def test_each_rule_is_the_literal_one() -> None:
    values = esd(trained_like(100, 150))
    expected = (
        oracle.fit_peak(values)[0],
        oracle.fit_peak(values, lower_bound="intended")[0],
        oracle.fit_mid(values)[0],
        oracle.fit_ks(values)[0],
    )
    assert alpha_spread(values).by_rule == expected
