"""axolotl: our plugin (exact), its own LISA keys (uniform), and a static `unfrozen_parameters`.

Its matcher turns every dot of a pattern into a literal one and matches from the start of the
parameter's name, so patterns are written with raw dots and end in one: ``^model.layers.1.`` does
not hit layers 10 to 19, and an escaped dot would match nothing, silently.
"""

from __future__ import annotations

import json

from layerstats.schedules.exporters.parts import (
    always_active_names,
    header,
    layers_path,
    low_rank_notes,
    static_layers,
    uniform_notes,
)
from layerstats.schedules.exporters.registry import (
    Export,
    ExportedFile,
    ExportRequest,
    exporter,
)

__all__ = ["axolotl"]

PLUGIN = "layerstats.integrations.axolotl.LayerstatsPlugin"


@exporter(
    "axolotl",
    summary="YAML: our plugin (exact), LISA keys (uniform), unfrozen_parameters (a static set)",
    reference="axolotl, src/axolotl/utils/freeze.py and utils/callbacks/lisa.py",
    options=("interval", "top_fraction", "stats", "layers_path"),
)
def axolotl(request: ExportRequest) -> Export:
    """Write three pieces of YAML, each to be copied alone into axolotl's config."""
    schedule, path = request.schedule, layers_path(request)
    notes = [
        "axolotl-plugin.yml is exactly this schedule: put its lines into your axolotl "
        "configuration, install layerstats beside axolotl, keep the schedule file where axolotl "
        "is started",
        "the other files are for axolotl without layerstats; use one file, they exclude each other",
    ]
    plugin = [
        "exact: probabilities, sampling law, seed and resuming are the schedule's",
        "put these lines into your axolotl configuration; if it has plugins, add to its list",
        "layerstats must be installed in axolotl's environment; the path is taken from the "
        "directory that axolotl is started in",
        "add layerstats_state: keep to keep the optimizer state of layers that stop (else dropped)",
    ]
    files = [
        ExportedFile(
            "axolotl-plugin.yml",
            header("axolotl: this schedule, by layerstats' plugin", schedule, plugin)
            + f"plugins:\n  - {PLUGIN}\n"
            + f"layerstats_schedule: {json.dumps(request.source or 'schedule.json')}\n",
        )
    ]
    if schedule.target.whole_number:
        lisa = [
            *uniform_notes(schedule, "axolotl's LISA"),
            "axolotl draws again at step 1, so the first set trains for one step",
        ]
        notes += [f"axolotl-lisa.yml: {note}" for note in lisa]
        files.append(
            ExportedFile(
                "axolotl-lisa.yml",
                header("axolotl: its own LISA, every layer alike", schedule, lisa)
                + f"lisa_n_layers: {int(schedule.expected_active)}\n"
                + f"lisa_step_interval: {schedule.interval_steps}\n"
                + f"lisa_layers_attribute: {path}\n",
            )
        )
    else:
        notes.append(
            "no axolotl-lisa.yml: its LISA trains a whole number of layers, the schedule "
            f"{schedule.expected_active:g} on average"
        )
    static, static_file = _static(request, path)
    files.append(static_file)
    return Export(
        "axolotl", tuple(files), (*notes, *(f"axolotl-unfrozen.yml: {note}" for note in static))
    )


def _static(request: ExportRequest, path: str) -> tuple[list[str], ExportedFile]:
    layers, words = static_layers(request)
    names, unnamed = always_active_names(request)
    notes = [
        f"a static set: {words}; nothing is drawn and nothing changes",
        *unnamed,
        *low_rank_notes(request.schedule),
        "FSDP1 needs use_orig_params; if embeddings stay frozen, do not use re-entrant "
        "checkpointing",
    ]
    patterns = [f"^{name}." for name in names] + [f"^{path}.{layer}." for layer in layers]
    text = header("axolotl: a static set of layers", request.schedule, notes)
    text += "unfrozen_parameters:\n" + "".join(f"  - {json.dumps(line)}\n" for line in patterns)
    text += "gradient_checkpointing_kwargs:\n  use_reentrant: false\n"
    return notes, ExportedFile("axolotl-unfrozen.yml", text)
