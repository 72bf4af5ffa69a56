"""The metrics: each a small function of a matrix or a block, under the name users type.

A matrix metric takes a `MatrixView` and returns columns of matrices.csv; how a block's value
follows from its matrices is said beside each column (`COMBINE`). A block metric (LOD) takes the
`LayerView`. One eigendecomposition per matrix serves every metric that asks for it. To add a
metric, write one function under `@metric`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from layerstats import weightwatcher_alpha
from layerstats.errors import UsageError, choices
from layerstats.numerics import certified, noise, norms, outliers, powerlaw, spectrum
from layerstats.stats import lod_column

if TYPE_CHECKING:
    import torch

    from layerstats.checkpoint.layout import Matrix
    from layerstats.checkpoint.lora import Adapter
    from layerstats.checkpoint.reader import Layer

__all__ = [
    "COMBINE",
    "METRICS",
    "LayerView",
    "MatrixView",
    "Metric",
    "MetricOptions",
    "available",
    "combine",
    "metric",
    "resolve",
]

Values = dict[str, float | int | str]
_LISA = "LISA, Pan et al. 2024, arXiv 2403.17919, section 3"


@dataclass(frozen=True)
class MetricOptions:
    """Parameters of the metrics.

    Attributes
    ----------
    m
        Thresholds M of LOD.
    lower_bound
        "reference" or "intended": how fix-finger reads the lower end of its window.
    precision
        "float64", "auto" or "certified", see `layerstats.numerics.certified_fits`.
    rules
        The fits that will be asked for, of "peak", "mid", "ks": certified together.
    """

    m: tuple[float, ...] = (7.0,)
    lower_bound: str = "reference"
    precision: str = "float64"
    rules: tuple[str, ...] = ("peak", "mid", "ks")

    def __post_init__(self) -> None:
        if not self.m or not all(0 < m < math.inf for m in self.m):
            msg = f"m is {list(self.m)}; give thresholds above 0, such as 7 or 7,13"
            raise UsageError(msg)
        if self.lower_bound not in powerlaw.LOWER_BOUNDS:
            raise UsageError(choices("lower_bound", self.lower_bound, powerlaw.LOWER_BOUNDS))
        if self.precision not in certified.PRECISIONS:
            raise UsageError(choices("precision", self.precision, certified.PRECISIONS))


@dataclass(frozen=True)
class MatrixView:
    """One weight matrix as the metrics see it; its spectrum is computed once, when asked for."""

    matrix: Matrix
    weight: torch.Tensor
    options: MetricOptions = MetricOptions()
    adapter: Adapter | None = None

    @functools.cached_property
    def esd(self) -> NDArray[np.float64]:
        """Eigenvalues of W^T W, ascending, float64."""
        return spectrum.esd(self.weight)

    def fit(self, rule: str) -> Any:
        """Return the fit of one rule, from float64 or, if asked for, certified float32."""
        if self.options.precision != "float64":
            return getattr(self._certified, rule)
        if rule == "peak":
            return powerlaw.fit_peak(self.esd, lower_bound=self.options.lower_bound)
        return powerlaw.fit_mid(self.esd) if rule == "mid" else powerlaw.fit_ks(self.esd)

    @functools.cached_property
    def _certified(self) -> certified.SpectrumFits:
        options = self.options
        return certified.certified_fits(
            self.weight, options.rules, precision=options.precision, lower_bound=options.lower_bound
        )

    @property
    def fit_precision(self) -> dict[str, str]:
        """The column that says which precision a certified fit took; none for plain float64."""
        plain = self.options.precision == "float64"
        return {} if plain else {"alpha_precision": self._certified.precision}

    @functools.cached_property
    def norms(self) -> norms.WeightNorms:
        """Frobenius norm and mean absolute value, in one pass."""
        return norms.weight_norms(self.weight)


@dataclass(frozen=True)
class LayerView:
    """One block as the metrics see it: its weights and what reached them in calibration."""

    layer: Layer
    options: MetricOptions = MetricOptions()
    activation_norms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes
    ----------
    name
        What users type after `--metrics`.
    function
        Takes a `MatrixView` (grain "matrix") or a `LayerView` (grain "block").
    grain
        To what the number belongs. Alpha belongs to a matrix and is averaged over a block; LOD
        joins all matrices of a block and cannot be averaged.
    outside
        Whether it is also measured on embedding and head.
    needs
        "activations", "adapter" or "" beyond the weights.
    implies
        Metrics without which its block value cannot be formed.
    summary, reference
        One sentence and its source, for the table of metrics.
    """

    name: str
    function: Callable[..., Any]
    grain: str
    outside: bool
    needs: str
    implies: tuple[str, ...]
    summary: str
    reference: str


#: Name -> metric, in the order of registration, which is that of the columns.
METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    grain: str = "matrix",
    outside: bool = False,
    needs: str = "",
    implies: tuple[str, ...] = (),
    reference: str,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a metric; the first line of the function's docstring becomes its summary."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        METRICS[name] = Metric(name, function, grain, outside, needs, implies, summary, reference)
        return function

    return register


def available() -> list[str]:
    """List the names of all metrics."""
    return sorted(METRICS)


def resolve(names: Sequence[str]) -> list[Metric]:
    """Look metrics up by name, with those they imply, in the order of the registry.

    Examples
    --------
    >>> [found.name for found in resolve(["lora_norm"])]
    ['frobenius_norm', 'lora_norm']
    """
    if not names:
        msg = f"no metric given; available: {', '.join(available())}"
        raise UsageError(msg)
    wanted: set[str] = set()
    for name in names:
        if name not in METRICS:
            raise UsageError(choices("metric", name, METRICS))
        wanted |= {name, *METRICS[name].implies}
    return [found for name, found in METRICS.items() if name in wanted]


@metric("frobenius_norm", outside=True, reference=_LISA)
def _frobenius_norm(view: MatrixView) -> Values:
    """Root of the sum of squared weights, ||W||_F."""
    return {"frobenius_norm": view.norms.frobenius_norm}


@metric("mean_abs", outside=True, reference="")
def _mean_abs(view: MatrixView) -> Values:
    """Mean absolute weight."""
    return {"mean_abs": view.norms.mean_abs}


@metric("spectral_norm", outside=True, reference="")
def _spectral_norm(view: MatrixView) -> Values:
    """Largest singular value."""
    return {"spectral_norm": spectrum.spectral_norm(view.esd)}


@metric("stable_rank", outside=True, reference="")
def _stable_rank(view: MatrixView) -> Values:
    """Squared Frobenius norm over squared spectral norm."""
    return {"stable_rank": spectrum.stable_rank(view.esd)}


@metric(
    "alpha_hill",
    reference="AlphaPruning, Lu et al. 2024, arXiv 2410.10912; OwLore eq. (3), arXiv 2405.18380",
)
def _alpha_hill(view: MatrixView) -> Values:
    """PL_Alpha_Hill: Hill exponent of the spectrum's tail, its start chosen by fix-finger."""
    fit = view.fit("peak")
    return {
        "alpha_hill": fit.alpha,
        "alpha_hill_lo": fit.alpha_lo,
        "alpha_hill_hi": fit.alpha_hi,
        "alpha_flag": fit.flag,
        "xmin": fit.xmin,
        "tail_k": fit.k,
        "ks_distance": fit.ks_distance,
        **view.fit_precision,
    }


@metric("alpha_mid", reference="AlphaPruning's xmin_mid; FARMS 2025")
def _alpha_mid(view: MatrixView) -> Values:
    """Hill exponent of the upper half of the spectrum."""
    fit = view.fit("mid")
    return {
        "alpha_mid": fit.alpha,
        "alpha_mid_xmin": fit.xmin,
        "alpha_mid_ks_distance": fit.ks_distance,
        **view.fit_precision,
    }


@metric("alpha_ks", reference="Clauset et al. 2009, arXiv 0706.1062; weightwatcher's default fit")
def _alpha_ks(view: MatrixView) -> Values:
    """Hill exponent of the tail with the least Kolmogorov-Smirnov distance."""
    fit = view.fit("ks")
    return {
        "alpha_ks": fit.alpha,
        "alpha_ks_xmin": fit.xmin,
        "alpha_ks_tail_k": fit.k,
        "alpha_ks_distance": fit.ks_distance,
        **view.fit_precision,
    }


@metric("alpha_weightwatcher", reference="weightwatcher, Martin et al. 2021, Nature Comm. 12")
def _alpha_weightwatcher(view: MatrixView) -> Values:
    """Alpha by the package weightwatcher itself, as a second opinion; slow."""
    return {"alpha_weightwatcher": weightwatcher_alpha.alpha(view.weight)}


@metric("noise_edge", reference="Marchenko, Pastur 1967; Gavish, Donoho 2014, arXiv 1305.5870")
def _noise_edge(view: MatrixView) -> Values:
    """Marchenko-Pastur edge of the noise in a matrix, singular values above it, and their SNR."""
    found = noise.noise_edge(view.esd, view.matrix.shape)
    return {"mp_edge": found.mp_edge, "num_spikes": found.num_spikes, "snr": found.snr}


@metric("lora_norm", outside=True, needs="adapter", implies=("frobenius_norm",), reference=_LISA)
def _lora_norm(view: MatrixView) -> Values:
    """Norm of a LoRA update ||s B A||_F, also over ||W||_F, and the norm of W + s B A."""
    assert view.adapter is not None
    pair = view.adapter.pair_for(view.matrix.name)
    size = view.norms.frobenius_norm
    if pair is None or view.matrix.fused:
        unchanged: Values = {"lora_norm": 0.0, "lora_relative_norm": 0.0, "lora_updated_norm": size}
        return unchanged if view.matrix.layer is not None else {}
    a, b = view.adapter.read(pair, shape=view.matrix.shape)
    update = abs(pair.scale) * norms.low_rank_norm(a, b)
    return {
        "lora_norm": update,
        "lora_relative_norm": update / size if size else float("nan"),
        "lora_updated_norm": norms.updated_norm(view.weight, a, b, scale=pair.scale),
    }


@metric(
    "lod",
    grain="block",
    needs="activations",
    reference="OWL, Yin et al. 2023, arXiv 2310.05175; OwLore eq. (2)",
)
def _lod(view: LayerView) -> tuple[Values, dict[str, Values]]:
    """Layerwise Outlier Distribution: percent of |W_ij| ||X_j|| above M times the block's mean."""
    matrices = {
        path: found
        for path, found in view.layer.matrices.items()
        if found.key in view.activation_norms
    }
    result = outliers.block_outliers(
        [view.layer.weights[path] for path in matrices],
        [view.activation_norms[found.key] for found in matrices.values()],
        view.options.m,
    )
    columns = [lod_column(m) for m in view.options.m]
    block: Values = dict(zip(columns, result.lod_pct, strict=True))
    by_matrix: dict[str, Values] = {}
    for path, own, share in zip(matrices, result.matrix_lod_pct, result.share_frac, strict=True):
        shares = {f"{column}_share": value for column, value in zip(columns, share, strict=True)}
        by_matrix[path] = {**dict(zip(columns, own, strict=True)), **shares}
    return block, by_matrix


def _root_sum_squares(values: NDArray[np.float64], _weights: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.sum(values**2)))


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float(np.average(values, weights=weights))


def _mean(values: NDArray[np.float64], _weights: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _max(values: NDArray[np.float64], _weights: NDArray[np.float64]) -> float:
    return float(np.max(values))


#: How a block's value follows from its matrices' values; columns not listed are averaged (matrices
#: that have none left out). Norms of a block with an unmeasurable matrix stay NaN: a part is not
#: the whole.
COMBINE: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {
    "frobenius_norm": _root_sum_squares,
    "lora_norm": _root_sum_squares,
    "lora_updated_norm": _root_sum_squares,
    "mean_abs": _weighted_mean,
    "spectral_norm": _max,
}


def combine(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Values:
    """Form a block's values from those of its matrices.

    Parameters
    ----------
    rows
        One mapping per matrix with `parameters` and the metric columns, NaN (or "" for a flag)
        where there is none.
    columns
        Which columns to form.

    Returns
    -------
    dict
        One value a column; `alpha_flag` becomes the number of flagged matrices,
        `lora_relative_norm` the ratio of the block's norms.

    Examples
    --------
    >>> rows = [{"parameters": 4, "frobenius_norm": norm} for norm in (3.0, 4.0)]
    >>> combine(rows, ["frobenius_norm"])
    {'frobenius_norm': 5.0}
    """
    weights = np.array([row["parameters"] for row in rows], dtype=float)
    values: Values = {}
    for column in columns:
        if column == "alpha_flag":
            values[column] = sum(bool(row.get(column)) for row in rows)
            continue
        numbers = np.array([row.get(column, float("nan")) for row in rows], dtype=float)
        values[column] = COMBINE.get(column, _mean)(numbers, weights) if rows else float("nan")
    if "lora_relative_norm" in values:
        whole = float(values["frobenius_norm"])
        values["lora_relative_norm"] = float(values["lora_norm"]) / whole if whole else float("nan")
    return values
