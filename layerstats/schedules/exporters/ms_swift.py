"""ms-swift: a static set of layers by regular expression, and the flags of its uniform LISA.

Its expression is searched anywhere in a parameter's name, so ours is anchored at the start.
"""

from __future__ import annotations

import re

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

__all__ = ["ms_swift"]


@exporter(
    "ms-swift",
    summary="flags: a static set (trainable_parameters_regex), LISA (uniform)",
    reference="ms-swift, swift/utils/torch_utils.py (activate_parameters), LISA arguments",
    options=("interval", "top_fraction", "stats", "layers_path"),
)
def ms_swift(request: ExportRequest) -> Export:
    """Write two files of flags, each a bash array."""
    schedule, path = request.schedule, layers_path(request)
    layers, words = static_layers(request)
    names, unnamed = always_active_names(request)
    static = [
        f"a static set: {words}; nothing is drawn and nothing changes",
        *unnamed,
        *low_rank_notes(schedule),
    ]
    numbers = "|".join(map(str, layers))
    inside = [f"{re.escape(path)}\\.({numbers})\\.", *(f"{re.escape(name)}\\." for name in names)]
    regex = f"^({'|'.join(inside)})"
    files = [
        ExportedFile(
            "ms-swift-static.sh",
            header("ms-swift: a static set of layers; source this file", schedule, static)
            + "SWIFT_ARGS=(\n  --tuner_type full\n  --freeze_parameters_ratio 1\n"
            + f"  --trainable_parameters_regex '{regex}'\n)\n"
            + '# swift sft "${SWIFT_ARGS[@]}" ...   (before version 4: --train_type full)\n',
        )
    ]
    notes = [f"ms-swift-static.sh: {note}" for note in static]
    if schedule.target.whole_number:
        lisa = [
            *uniform_notes(schedule, "ms-swift's LISA"),
            "versions that freeze before the optimizer exists train only the first draw (issue "
            "10140): check that later layers move",
        ]
        files.append(
            ExportedFile(
                "ms-swift-lisa.sh",
                header("ms-swift: its own LISA, every layer alike", schedule, lisa)
                + "SWIFT_ARGS=(\n  --tuner_type full\n"
                + f"  --lisa_activated_layers {int(schedule.expected_active)}\n"
                + f"  --lisa_step_interval {schedule.interval_steps}\n)\n"
                + '# swift sft "${SWIFT_ARGS[@]}" ...\n',
            )
        )
        notes += [f"ms-swift-lisa.sh: {note}" for note in lisa]
    else:
        notes.append(
            "no ms-swift-lisa.sh: its LISA trains a whole number of layers, the schedule "
            f"{schedule.expected_active:g} on average"
        )
    return Export("ms-swift", tuple(files), tuple(notes))
