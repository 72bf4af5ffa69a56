"""From files to pictures: loads what each kind of plot draws and saves the figure.

Kinds of the measured statistics take their directories, kinds of training runs take run
directories, each as `label -> data` where several may be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerstats.errors import MissingError, UsageError, choices
from layerstats.runs import SCHEDULE, read_log
from layerstats.stats import LayerStats

__all__ = ["draw"]

#: Kinds that take several sources.
_SEVERAL = ("layer-norms", "loss", "memory", "weight-norms")
#: How many matrices an esd picture shows when none is named.
_ESD_MATRICES = 4


def draw(
    sources: Sequence[Path],
    *,
    kind: str,
    out: Path,
    metrics: Sequence[str],
    matrices: Sequence[str],
) -> None:
    """Draw one picture of statistics directories, of training runs or of a schedule.

    Raises
    ------
    UsageError
        The kind is unknown, or takes other sources or options.
    """
    from layerstats import plots

    if kind not in plots.available():
        raise UsageError(choices("plot kind", kind, plots.available()))
    if len(sources) > 1 and kind not in _SEVERAL:
        msg = (
            f"{kind} draws one source, {len(sources)} were given; several can be drawn by "
            f"{', '.join(_SEVERAL)}"
        )
        raise UsageError(msg)
    if matrices and kind != "esd":
        msg = f"--matrix goes with --kind esd, not with {kind}"
        raise UsageError(msg)
    prepare = _PREPARE.get(kind, _one)
    data, options = prepare(sources, metrics, matrices)
    plots.save(plots.plot(kind, data, **options), out)


Prepared = tuple[Any, dict[str, Any]]

_NO_METRICS = "--metrics goes with --kind correlation, layer-norms, weight-norms or alpha"


def _one(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    if metrics:
        raise UsageError(_NO_METRICS)
    return LayerStats.load(sources[0]), {}


def _alpha(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    return LayerStats.load(sources[0]), {"column": metrics[0]} if metrics else {}


def _norms(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    options = {"columns": list(metrics)} if metrics else {}
    if len(sources) == 1:
        return LayerStats.load(sources[0]), options
    return {str(source): LayerStats.load(source) for source in sources}, options


def _correlation(
    sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]
) -> Prepared:
    from layerstats.correlation import correlate

    x, y = metrics or ("lod_m7", "heavy_tail") if len(metrics) in (0, 2) else ("", "")
    if not x:
        msg = (
            f"a correlation plot takes two metrics, {len(metrics)} were given: --metrics "
            "lod_m7,heavy_tail"
        )
        raise UsageError(msg)
    stats = LayerStats.load(sources[0])
    [result] = correlate(stats, [x, y])
    return stats, {"x": x, "y": y, "result": result}


def _schedule(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    from layerstats.schedules import Schedule

    return Schedule.from_json(sources[0]), {}


def _runs(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    if metrics:
        raise UsageError(_NO_METRICS)
    if len(sources) == 1:
        return read_log(sources[0]), {}
    return {label: read_log(source) for label, source in _labelled(sources)}, {}


def _weight_norms(
    sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]
) -> Prepared:
    if len(metrics) > 1:
        msg = f"weight-norms draws one metric, {len(metrics)} were given: --metrics frobenius_norm"
        raise UsageError(msg)
    data, _ = _runs(sources, (), matrices)
    return data, {"column": metrics[0]} if metrics else {}


def _activity(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    """Read a run and, where it keeps one, the schedule that says what was to be expected."""
    from layerstats.schedules import Schedule

    data, _ = _runs(sources, metrics, matrices)
    file = sources[0] / SCHEDULE
    return data, {"schedule": Schedule.from_json(file)} if file.is_file() else {}


def _labelled(sources: Sequence[Path]) -> list[tuple[str, Path]]:
    """Name runs by their directories, by the whole paths where two are called alike."""
    if len(set(sources)) < len(sources):
        msg = f"{next(one for one in sources if sources.count(one) > 1)}: was given twice"
        raise UsageError(msg)
    short = [source.resolve().name for source in sources]
    names = short if len(set(short)) == len(short) else [str(source) for source in sources]
    return list(zip(names, sources, strict=True))


def _esd(sources: Sequence[Path], metrics: Sequence[str], matrices: Sequence[str]) -> Prepared:
    """Compute some spectra anew: a statistics directory keeps fits, not eigenvalues."""
    from layerstats.checkpoint.reader import open_checkpoint
    from layerstats.numerics import esd, fit_peak

    stats = LayerStats.load(sources[0])
    path = Path(stats.meta["checkpoint"]["path"])
    if not path.exists():
        msg = (
            f"{path}: the checkpoint of these statistics is gone; spectra are computed "
            "from its weights"
        )
        raise MissingError(msg)
    checkpoint = open_checkpoint(path)
    if checkpoint.weights_sample_hash != stats.meta["checkpoint"]["weights_sample_hash"]:
        msg = f"{path}: is not the checkpoint that was measured (other weights); measure again"
        raise UsageError(msg)
    by_key = {
        matrix.key: matrix for matrix in checkpoint.layout.matrices if matrix.layer is not None
    }
    unknown = [name for name in matrices if name not in by_key]
    if unknown:
        raise UsageError(choices("matrix", unknown[0], by_key)[:400])
    names = list(matrices) or _spread(list(by_key))
    spectra = {}
    for name in names:
        values = esd(checkpoint.read_matrix(by_key[name]))
        label = f"layer {by_key[name].layer} {by_key[name].path}"
        spectra[label] = (
            values,
            fit_peak(values, lower_bound=stats.meta["parameters"]["lower_bound"]),
        )
    return spectra, {}


def _spread(names: list[str]) -> list[str]:
    """Choose a few matrices from all depths."""
    count = min(_ESD_MATRICES, len(names))
    return [names[(2 * position + 1) * len(names) // (2 * count)] for position in range(count)]


_PREPARE: dict[str, Callable[[Sequence[Path], Sequence[str], Sequence[str]], Prepared]] = {
    "alpha": _alpha,
    "layer-norms": _norms,
    "correlation": _correlation,
    "schedule": _schedule,
    "esd": _esd,
    "loss": _runs,
    "activity": _activity,
    "memory": _runs,
    "weight-norms": _weight_norms,
}
