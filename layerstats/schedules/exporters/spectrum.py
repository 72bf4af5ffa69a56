"""Spectrum: the SNR file that its axolotl plugin reads, with any score in the place of SNR.

The plugin opens ``./model_snr_results/snr_results_<slug>.json`` before it asks the network, takes
the top share of each type of matrix by "snr", and gives the names to axolotl as patterns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from layerstats.errors import UsageError, choices
from layerstats.schedules.exporters.parts import (
    header,
    low_rank_notes,
    matrix_names,
)
from layerstats.schedules.exporters.registry import (
    Export,
    ExportedFile,
    ExportRequest,
    exporter,
)
from layerstats.stats import strict_json

__all__ = ["spectrum"]

TOP_FRACTION = 0.5
PLUGIN = "axolotl.integrations.spectrum.SpectrumPlugin"
ENDS = ("^lm_head.weight$", "^model.embed_tokens.weight$")
"""What the plugin always trains."""

Entries = dict[str, dict[str, float | str]]


@exporter(
    "spectrum",
    summary="SNR file for axolotl's Spectrum plugin, and Spectrum's own YAML",
    reference="axolotl, src/axolotl/integrations/spectrum; Spectrum, spectrum.py",
    options=("top_fraction", "stats", "metric", "layers_path", "model_name"),
)
def spectrum(request: ExportRequest) -> Export:
    """Write the SNR file, axolotl's keys for it, and the selection as Spectrum's YAML.

    Without a metric each matrix carries its layer's score, so the layers with the largest scores
    are taken whole; with one, each matrix carries its own value.
    """
    schedule = request.schedule
    name = request.model_name or schedule.model.id
    if not name:
        msg = (
            "the schedule does not name its model, and the file's name depends on it: --model-name"
        )
        raise UsageError(msg)
    fraction = TOP_FRACTION if request.top_fraction is None else request.top_fraction
    if not 0 < fraction <= 1:
        msg = f"top_fraction must be above 0 and at most 1, got {fraction:g}"
        raise UsageError(msg)
    entries, notes = _entries(request)
    chosen = select(entries, fraction)
    slug = name.replace("/", "-").replace("_", "-")
    notes = [
        "a static set of matrices for the whole training: intervals, probabilities, seed and "
        f"sampling ({schedule.sampling}) are not expressed",
        f"the plugin always trains embedding and head ({' '.join(ENDS)}) and never the final norm; "
        f"the schedule always trains {', '.join(schedule.always_active) or 'nothing else'}",
        *notes,
        *low_rank_notes(schedule),
    ]
    if not chosen:
        notes.append(f"top_fraction {fraction:g} of the layers rounds down to none")
    keys = (
        f"plugins:\n  - {PLUGIN}\nspectrum_top_fraction: {fraction:g}\n"
        f"spectrum_model_name: {json.dumps(name)}\n"
        "gradient_checkpointing_kwargs:\n  use_reentrant: false\n"
    )
    title = "axolotl: start it where model_snr_results/ lies"
    folder, percent = "model_snr_results", f"{100 * fraction:g}"
    own = "unfrozen_parameters:\n" + "".join(f"- {line}\n" for line in (*ENDS, *chosen))
    return Export(
        "spectrum",
        (
            ExportedFile(
                f"{folder}/snr_results_{slug}.json", strict_json(entries, indent=2) + "\n"
            ),
            ExportedFile("axolotl-spectrum.yml", header(title, schedule, notes) + keys),
            ExportedFile(
                f"{folder}/snr_results_{slug}_unfrozenparameters_{percent}percent.yaml",
                header("Spectrum: what it would leave unfrozen", schedule, notes) + own,
            ),
        ),
        tuple(notes),
    )


def _entries(request: ExportRequest) -> tuple[Entries, list[str]]:
    names = matrix_names(request, "spectrum")
    values = _values(request)
    found: dict[str, list[float]] = {}
    types: dict[str, str] = {}
    missing = set()
    for layer, name, short, row in names:
        value = request.schedule.scores[layer] if values is None else values[row]
        if math.isfinite(value):
            # Slices of one fused tensor share a name: the tensor gets their mean.
            found.setdefault(name, []).append(value)
            types[name] = short
        else:
            missing.add(name)
    notes = [] if not missing else [f"left out, as they have no value: {len(missing)} matrices"]
    if request.metric is None and len(set(request.schedule.scores)) == 1:
        notes.append("all scores are equal, so the plugin takes the first layers: give --metric")
    entries: Entries = {
        name: {"snr": math.fsum(each) / len(each), "type": types[name]}
        for name, each in found.items()
    }
    return entries, notes


def _values(request: ExportRequest) -> list[float] | None:
    if request.metric is None:
        return None
    assert request.stats is not None  # `export` has seen to it
    table = request.stats.matrices
    column = "alpha_hill" if request.metric == "heavy_tail" else request.metric
    if column not in table.columns or table[column].dtype.kind not in "if":
        numeric = [name for name in table.columns if table[name].dtype.kind == "f"]
        raise UsageError(choices("column of matrices.csv", request.metric, numeric))
    sign = -1.0 if request.metric == "heavy_tail" else 1.0
    return [sign * float(value) for value in table[column]]


def select(entries: Mapping[str, Mapping[str, float | str]], fraction: float) -> list[str]:
    """Return what the plugin selects: of each type the top ``int(count * fraction)`` by snr.

    Examples
    --------
    >>> rows = {f"m.{i}.q": {"snr": float(i), "type": "q"} for i in range(5)}
    >>> select(rows, 0.5)
    ['m.4.q', 'm.3.q']
    """
    by_type: dict[str, list[tuple[float, str]]] = {}
    for name, entry in entries.items():
        by_type.setdefault(str(entry["type"]), []).append((float(entry["snr"]), name))
    chosen = []
    for rows in by_type.values():
        ranked = sorted(rows, key=lambda row: row[0], reverse=True)
        chosen += [name for _, name in ranked[: int(len(rows) * fraction)]]
    return chosen
