"""What `trust=True` adds to a measurement: its settings, its redraws, its page of verdicts.

Redraws of LOD are counted with the layers (`redraws.py`) and kept in the journal; verdicts are
formed at the end from what the tables and the journal hold, so a resumed run comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from layerstats import trust
from layerstats.errors import UsageError
from layerstats.measurement.redraws import LodRedraws
from layerstats.measurement.tables import LayerResult
from layerstats.metrics import MatrixView, Metric, Values
from layerstats.numerics import powerlaw
from layerstats.stats import lod_column

if TYPE_CHECKING:
    from layerstats.calibration import ActivationNorms

__all__ = [
    "alpha_range",
    "check_groups",
    "check_trust",
    "lod_redraws",
    "settings",
    "trust_page",
    "with_rivals",
]

#: Groups of calibration windows at most, and at least.
GROUPS, _LEAST = 16, 4
SPLITS = 50
#: The rules for xmin, which rank layers differently: one alone would hide it.
_ALPHAS = ("alpha_hill", "alpha_mid", "alpha_ks")
_EXACT = (
    *("frobenius_norm", "mean_abs", "spectral_norm", "stable_rank"),
    *("alpha_mid", "alpha_ks", "alpha_weightwatcher"),
    *("lora_norm", "lora_relative_norm", "lora_updated_norm"),
)


def with_rivals(metrics: Sequence[str]) -> list[str]:
    """Add the other rules for xmin to `alpha_hill`.

    Examples
    --------
    >>> with_rivals(["lod", "alpha_hill"])
    ['lod', 'alpha_hill', 'alpha_mid', 'alpha_ks']
    """
    rivals = _ALPHAS if "alpha_hill" in metrics else ()
    return list(dict.fromkeys([*metrics, *rivals]))


def settings(*, bootstrap: int, seed: int | None) -> dict[str, int]:
    """Return what the redraws depend on, for the question a journal answers."""
    return {"groups": GROUPS, "bootstrap": bootstrap, "splits": SPLITS, "seed": seed or 0}


def check_trust(metrics: Sequence[Metric], samples: int, bootstrap: int, tokens: Any) -> None:
    """Refuse what cannot be redrawn, before anything is measured."""
    if bootstrap < 20:
        msg = f"bootstrap is {bootstrap}; give at least 20 resamples, 100 is usual"
        raise UsageError(msg)
    calibrates = tokens is not None and any(found.needs == "activations" for found in metrics)
    if calibrates and samples < _LEAST:
        msg = f"samples is {samples}; trust redraws windows and needs at least {_LEAST}"
        raise UsageError(msg)


def check_groups(seen: ActivationNorms, where: object) -> None:
    """Refuse activation norms without enough groups to redraw."""
    if not seen.group_norms:
        msg = f"{where}: norms of all windows in one; make them with --trust --save-activations"
        raise UsageError(msg)
    if seen.groups < _LEAST:
        msg = f"{where}: {seen.groups} windows; trust needs at least {_LEAST}: give a longer text"
        raise UsageError(msg)


def lod_redraws(
    seen: ActivationNorms | None, m: tuple[float, ...], asked: Mapping[str, int]
) -> LodRedraws | None:
    """Return what redraws LOD, None where nothing was calibrated or asked."""
    if seen is None or not asked:
        return None
    draws = trust.group_draws(
        seen.groups, bootstrap=asked["bootstrap"], splits=asked["splits"], seed=asked["seed"]
    )
    return LodRedraws(seen.group_norms, draws, m)


def alpha_range(view: MatrixView, values: Mapping[str, Any]) -> Values:
    """Return the range of `alpha_hill` over the bins that could be the fullest and one beside."""
    if "alpha_hill" not in values:
        return {}
    near = powerlaw.fit_peak(view.esd, lower_bound=view.options.lower_bound, neighbours=1)
    return {"alpha_trust_lo": near.alpha_lo, "alpha_trust_hi": near.alpha_hi}


def trust_page(
    asked: Mapping[str, int],
    redraws: LodRedraws | None,
    results: Mapping[int | None, LayerResult],
    matrices: pd.DataFrame,
    layers: pd.DataFrame,
) -> dict[str, Any]:
    """Return the verdicts on all columns measured, for `meta.json`.

    Returns
    -------
    dict
        The settings; `rules`, how verdicts are reached; `metrics`, column -> `Verdict.to_dict`;
        `alpha_rules`, Spearman's rho between the rules for xmin.
    """
    blocks = layers[layers["kind"] == "block"]
    verdicts: list[trust.Verdict] = []
    if redraws is not None:
        numbers = [int(layer) for layer in blocks["layer"]]
        for column in map(lod_column, redraws.m):
            nothing = [float("nan")] * len(redraws.draws.rows)
            rows = [results[number].redraws.get(column, nothing) for number in numbers]
            resampled, halves = redraws.draws.parted(np.array(rows, dtype=np.float64).T)
            values = blocks[column].to_numpy(np.float64)
            verdicts.append(trust.from_windows(column, values, resampled, halves))
    if "alpha_trust_lo" in matrices:
        inside = matrices[matrices["layer"].notna()]
        low, high, middle = (
            inside[name].to_numpy(np.float64)
            for name in ("alpha_trust_lo", "alpha_trust_hi", "alpha_hill")
        )
        places = inside["layer"].to_numpy(np.int64)
        verdicts.append(
            trust.from_ranges("alpha_hill", low, high, places, values=middle, seed=asked["seed"])
        )
    for column in _EXACT:
        if column in blocks:
            values = blocks[column].to_numpy(np.float64)
            verdicts.append(trust.exact(column, values, fitted=column.startswith("alpha")))
    alphas = {name: blocks[name].to_numpy(np.float64) for name in _ALPHAS if name in blocks}
    groups = len(redraws.draws.bootstrap[0]) if redraws is not None else None
    return {
        **asked,
        "groups": groups,
        "rules": {one.source: trust.RULES[one.source] for one in verdicts},
        "metrics": {one.column: one.to_dict() for one in verdicts},
        "alpha_rules": {
            pair: None if math.isnan(rho) else rho for pair, rho in trust.agreement(alphas).items()
        },
    }
