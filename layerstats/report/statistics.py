"""The page of a statistics directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from layerstats.correlation import correlate
from layerstats.report.charts import LAYER_AXIS, Chart, Series, View, is_wide
from layerstats.report.commands import measure_command
from layerstats.report.notices import Notice, listed, of_statistics
from layerstats.report.page import Facts, Page, Part
from layerstats.report.schedules import schedule_part
from layerstats.report.tables import Table, from_frame
from layerstats.schedules import Schedule
from layerstats.stats import LAYER_COLUMNS, LayerStats, column_unit

__all__ = ["statistics_page"]

_ALPHAS = {
    "alpha_hill": "alpha_hill (fix-finger)",
    "alpha_mid": "alpha_mid (upper half)",
    "alpha_ks": "alpha_ks (best fit)",
    "alpha_weightwatcher": "alpha_weightwatcher",
}
_NORMS = (
    "frobenius_norm",
    "spectral_norm",
    "mean_abs",
    "stable_rank",
    "lora_norm",
    "lora_relative_norm",
    "lora_updated_norm",
)
_HEADLINE = 4


def statistics_page(stats: LayerStats, schedule: Schedule | None = None) -> Page:
    """Gather the page of a measurement, and of a schedule made for the same model.

    Raises
    ------
    UsageError
        The schedule is for another number of layers.
    """
    own = _own_part(stats)
    parts = [own]
    if schedule is not None:
        schedule.require_layers(stats.num_layers)
        parts.append(_same_model(schedule, stats))
        parts.append(schedule_part(schedule, stats=stats))
    checkpoint = stats.meta.get("checkpoint") or {}
    name = str(checkpoint.get("id") or "statistics")
    summary = f"{stats.num_layers} layers, {_count(checkpoint.get('parameters'))} parameters"
    return Page(f"{name}: statistics by layer", summary, stats.num_layers, Part.joined(parts))


def _own_part(stats: LayerStats) -> Part:
    metrics = [name for name in stats.columns() if name not in (*LAYER_COLUMNS, "heavy_tail")]
    first = ("frobenius_norm", "alpha_hill", *_lods(stats))
    preferred = [name for name in first if name in metrics]
    headline = (preferred or metrics)[:_HEADLINE]
    layers = from_frame(stats.layers, id="layers", title="Layers", headline=headline)
    matrices = from_frame(stats.matrices, id="matrices", title="Matrices")
    related, scatter = _related(stats)
    charts = [_lod(stats), _alpha(stats), _norms(stats), scatter, _map(matrices)]
    tables = [layers, matrices, related]
    return Part(
        facts=_facts(stats.meta),
        commands=(measure_command(stats.meta),) if "checkpoint" in stats.meta else (),
        notices=tuple(of_statistics(stats)),
        tables=tuple(table for table in tables if table is not None),
        charts=tuple(chart for chart in charts if chart is not None),
    )


def _same_model(schedule: Schedule, stats: LayerStats) -> Part:
    measured = (stats.meta.get("checkpoint") or {}).get("id")
    made_for = schedule.model.id
    if None in (measured, made_for) or measured == made_for:
        return Part()
    text = f"the schedule was made for {made_for}, these statistics are of {measured}"
    return Part(notices=(Notice("warning", text),))


def _facts(meta: Mapping[str, Any]) -> tuple[Facts, ...]:
    checkpoint = meta.get("checkpoint") or {}
    files = checkpoint.get("files") or []
    size = sum(int(file["bytes"]) for file in files)
    model = {
        "checkpoint": checkpoint.get("id"),
        "path": checkpoint.get("path"),
        "layers": f"{checkpoint.get('num_layers')} at {checkpoint.get('layers_path')}",
        "parameters": _count(checkpoint.get("parameters")),
        "files": f"{len(files)} ({checkpoint.get('format')}), {_count(size)} bytes",
        "embeddings": "tied" if checkpoint.get("tied_embeddings") else "not tied",
        "hash of the headers": checkpoint.get("header_hash"),
        "hash of a sample of the weights": checkpoint.get("weights_sample_hash"),
    }
    parameters = meta.get("parameters") or {}
    measured = {
        "metrics": ", ".join(meta.get("metrics") or []),
        "M of LOD": ", ".join(f"{m:g}" for m in parameters.get("m") or []),
        **{name.replace("_", " "): str(value) for name, value in parameters.items() if name != "m"},
        "adapter": (meta.get("adapter") or {}).get("path"),
        "begun": meta.get("created"),
        "seconds": meta.get("seconds"),
    }
    found = [Facts("Checkpoint", _said(model)), Facts("Measurement", _said(measured))]
    if calibration := meta.get("calibration"):
        found.append(Facts("Calibration", _said(_calibration(calibration))))
    versions = {"measured by": meta.get("created_by"), **(meta.get("versions") or {})}
    return (*found, Facts("Versions", _said(versions)))


def _calibration(page: Mapping[str, Any]) -> dict[str, Any]:
    asked = page.get("samples_asked")
    fewer = f" (of {asked} asked)" if asked not in (None, page.get("samples")) else ""
    return {
        "text": page.get("text"),
        "hash of the text": page.get("text_sha256"),
        "windows": f"{page.get('samples')}{fewer} of {page.get('seq_len')} tokens",
        "drawn": "the first ones"
        if page.get("sample_seed") is None
        else f"at random, seed {page['sample_seed']}",
        "computed in": f"{page.get('dtype')} on {page.get('device')}",
        "model class": page.get("model_class"),
        "tokenizer": page.get("tokenizer"),
    }


def _said(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in facts.items() if value not in (None, ""))


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _interval(stats: LayerStats, column: str) -> dict[str, str]:
    """Name the columns of a metric's range, those of --trust before those of ties."""
    stems = ("alpha_trust", "alpha_hill") if column == "alpha_hill" else (column,)
    for stem in stems:
        if {f"{stem}_lo", f"{stem}_hi"} <= set(stats.layers.columns):
            return {"low": f"{stem}_lo", "high": f"{stem}_hi"}
    return {}


def _lods(stats: LayerStats) -> list[str]:
    names = [name for name in stats.columns() if name.startswith("lod_m")]
    own = [name for name in names if not name.endswith(("_lo", "_hi", "_share"))]
    return sorted(own, key=lambda name: float(name.removeprefix("lod_m")))


def _lod(stats: LayerStats) -> Chart | None:
    columns = _lods(stats)
    if not columns:
        return None
    series = [Series(name, name, "line", **_interval(stats, name)) for name in columns]
    wide = is_wide(*(stats.layer_column(name) for name in columns))
    view = View("LOD", "LOD (% of a block's weights)", tuple(series), log=wide)
    drawn = any(one.low for one in series)
    note = "Bars: 95 % interval over calibration windows." if drawn else ""
    return Chart("lod", "Outliers: LOD by layer", "xy", "layers", (view,), note=note)


def _alpha(stats: LayerStats) -> Chart | None:
    columns = [name for name in _ALPHAS if name in stats.columns()]
    if not columns:
        return None
    series = [Series(name, _ALPHAS[name], "line", **_interval(stats, name)) for name in columns]
    wide = is_wide(*(stats.layer_column(name) for name in columns))
    view = View("alpha", "Power-law exponent alpha", tuple(series), log=wide)
    note = "Lower is heavier."
    if any(one.low for one in series):
        note += " Bars: range of alpha_hill over the histogram bins that could be the fullest"
        near = "alpha_trust_lo" in stats.layers.columns
        note += " and those beside them." if near else "."
    return Chart("alpha", "Heavy tails: alpha by layer", "xy", "layers", (view,), note=note)


def _norms(stats: LayerStats) -> Chart | None:
    drawn = {*_lods(stats), *_ALPHAS, "heavy_tail"}
    rest = [name for name in stats.columns() if name not in drawn]
    rest = [name for name in rest if not name.endswith(("_lo", "_hi"))]
    ordered = [*(n for n in _NORMS if n in rest), *(n for n in rest if n not in _NORMS)]
    views = tuple(
        View(
            name,
            _with_unit(name),
            (Series(name, name),),
            log=is_wide(stats.layer_column(name)),
            note=_ends(stats, name),
        )
        for name in ordered
        if stats.layer_column(name).notna().any()
    )
    return Chart("norms", "Norms and others by layer", "xy", "layers", views) if views else None


def _ends(stats: LayerStats, column: str) -> str:
    """Say the values outside the blocks, which would dwarf the blocks' if they were drawn."""
    rows = stats.layers[stats.layers["kind"] != "block"]
    known = [
        f"{kind} {value:.5g}"
        for kind, value in zip(rows["kind"], rows[column].astype(float), strict=True)
        if math.isfinite(value)
    ]
    return f"Outside the blocks: {listed(known)}." if known else ""


def _with_unit(column: str) -> str:
    unit = column_unit(column)
    return f"{column} ({unit})" if unit else column


def _related(stats: LayerStats) -> tuple[Table | None, Chart | None]:
    """Relate LOD to the heavy tail, as OwLore's Figure 2, by Spearman's rank correlation."""
    lods = _lods(stats)
    if not lods or "heavy_tail" not in stats.columns():
        return None, None
    frame = stats.blocks[["layer", *lods]].assign(heavy_tail=stats.layer_column("heavy_tail"))
    table = from_frame(frame.reset_index(drop=True), id="related", title="LOD and heavy tail")
    views = []
    for name in lods:
        [found] = correlate(stats, [name, "heavy_tail"])
        lo, hi = found.interval
        said = (
            found.note
            or f"Spearman's rho {found.rho:.3f}, p {found.p_value:.2g}, {found.n} layers, "
            f"95 % interval [{lo:.3f}, {hi:.3f}]"
        )
        said = said.rstrip(".") + "."
        views.append(
            View(
                name,
                _with_unit(name),
                (Series(name, name, "dots"),),
                log=is_wide(stats.layer_column(name)),
                x="heavy_tail",
                x_axis="heavy_tail = minus alpha_hill",
                note=f"{said[0].upper()}{said[1:]} To the right: heavier tails.",
            )
        )
    hidden = Table(table.id, table.title, table.columns, table.values, shown=False)
    return hidden, Chart("related", "LOD against heavy tail", "scatter", "related", tuple(views))


def _map(matrices: Table) -> Chart | None:
    outside = ("layer", "expert", "rows", "cols", "parameters")
    names = [
        column.name
        for column in matrices.columns
        if column.kind in ("whole", "number")
        and column.name not in outside
        and any(value is not None for value in matrices.values[column.name])
    ]
    if "module" not in matrices.values or not names:
        return None
    chosen = sorted(names, key=lambda name: name != "alpha_hill")
    views = tuple(
        View(name, _with_unit(name), log=is_wide(matrices.values[name])) for name in chosen
    )
    return Chart("map", "Matrix by matrix", "matrix", "matrices", views, x_axis=LAYER_AXIS)
