"""LMFlow: the flags of its LISA, which draws all layers alike."""

from __future__ import annotations

from layerstats.schedules.exporters.parts import header, layers_path, uniform_notes, whole_active
from layerstats.schedules.exporters.registry import (
    Export,
    ExportedFile,
    ExportRequest,
    exporter,
)

__all__ = ["lmflow"]


@exporter(
    "lmflow",
    summary="flags of LMFlow's LISA (uniform)",
    reference="LMFlow, src/lmflow/args.py and pipeline/finetuner.py",
    options=("layers_path",),
)
def lmflow(request: ExportRequest) -> Export:
    """Write LMFlow's flags as a bash array.

    The interval's flag is `lisa_interval_steps`; some of LMFlow's READMEs say `lisa_step_interval`,
    which its argument parser does not know. The path starts at the trainer, so `model.` stands in
    front of the model's own path.
    """
    schedule = request.schedule
    count = whole_active(schedule, "LMFlow")
    notes = [
        *uniform_notes(schedule, "LMFlow"),
        "the layers attribute is read only for model classes that LMFlow does not know",
    ]
    text = (
        header("LMFlow: flags for its LISA; source this file", schedule, notes)
        + "LISA_ARGS=(\n"
        + "  --use_lisa 1\n"
        + f"  --lisa_activated_layers {count}\n"
        + f"  --lisa_interval_steps {schedule.interval_steps}\n"
        + f"  --lisa_layers_attribute model.{layers_path(request)}\n"
        + ")\n"
        + '# python examples/finetune.py "${LISA_ARGS[@]}" ...\n'
    )
    return Export("lmflow", (ExportedFile("lmflow-lisa.sh", text),), tuple(notes))
