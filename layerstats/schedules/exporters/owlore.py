"""OwLore's own program: its score file, one number a line, and its flags.

The program opens one fixed name below the directory it runs in and divides the numbers by their
sum; the file it ships has another name.
"""

from __future__ import annotations

import numpy as np

from layerstats.schedules.exporters.parts import header, outside_notes, whole_active
from layerstats.schedules.exporters.registry import (
    Export,
    ExportedFile,
    ExportRequest,
    exporter,
)
from layerstats.schedules.sampling import Target, get_law
from layerstats.schedules.schedule import Schedule

__all__ = ["owlore"]

SCORE_FILE = "metric_cache/llama2_ratio_13.txt"
MODES = {"lisa": "uniform", "lisa-d": "decrease", "lisa-d-mirror": "increase"}
FIXED_GALORE = (256, 100, 1.0)


@exporter(
    "owlore",
    summary="score file and flags of OwLore's program (successive sampling)",
    reference="OwLore, src/lmflow/pipeline/finetuner.py",
)
def owlore(request: ExportRequest) -> Export:
    """Write the flags and, for rules the program does not know itself, the score file."""
    schedule = request.schedule
    count = whole_active(schedule, "OwLore's program")
    parameters = schedule.provenance.parameters
    plain = not {"floor", "temperature"} & set(parameters)
    mode = MODES.get(schedule.rule, "owl") if plain else "owl"
    files = []
    notes = _law_notes(schedule, count) + outside_notes(schedule, "OwLore's program")
    if mode == "owl":
        # With a floor the probabilities hold more of the wish than the scores before it.
        values = schedule.probabilities if "floor" in parameters else schedule.scores
        files.append(ExportedFile(SCORE_FILE, "".join(f"{value!r}\n" for value in values)))
        notes.append(
            f"run it where {SCORE_FILE} lies: the name is fixed in its code, whatever the model; "
            "the file takes no comments"
        )
        notes += _floor_notes(schedule)
    galore = schedule.low_rank is not None
    if schedule.low_rank is not None:
        mine = (
            schedule.low_rank.rank,
            schedule.low_rank.update_interval,
            float(schedule.low_rank.scale),
        )
        if mine != FIXED_GALORE:
            notes.append(
                f"its GaLore has rank, gap and scale {FIXED_GALORE} fixed in its code; the "
                f"schedule wants {mine}"
            )
    text = (
        header("OwLore: flags for its program; source this file", schedule, notes)
        + "OWLORE_ARGS=(\n  --use_lisa 1\n"
        + f"  --lisa_activated_layers {count}\n"
        + f"  --lisa_interval_steps {schedule.interval_steps}\n"
        + f"  --lisa_prob_mode {mode}\n"
        + ("  --galore True\n" if galore else "")
        + ")\n"
        + '# python examples/finetune.py "${OWLORE_ARGS[@]}" ...\n'
    )
    files.append(ExportedFile("owlore-args.sh", text))
    return Export("owlore", tuple(files), tuple(notes))


def _law_notes(schedule: Schedule, count: int) -> list[str]:
    """Say by how much the program's law misses the schedule's probabilities, layer by layer."""
    weights = schedule.scores
    if "floor" in schedule.provenance.parameters:
        weights = schedule.probabilities
    theirs = get_law("successive").inclusion(Target(weights, schedule.probabilities, count))
    wanted = np.array(schedule.inclusion_probabilities)
    notes = []
    gap = np.abs(theirs - wanted)
    if gap.max() > 1e-6:
        worst = int(gap.argmax())
        notes.append(
            "its draws without replacement do not give the schedule's probabilities: layer "
            f"{worst} gets {theirs[worst]:.4g} instead of {wanted[worst]:.4g} (a schedule with "
            "--sampling successive shows all)"
        )
    notes.append(
        f"it draws with numpy's global random numbers: seed {schedule.seed} and the plan are not "
        "followed, and a resumed run draws again"
    )
    return notes


def _floor_notes(schedule: Schedule) -> list[str]:
    if "floor" not in schedule.provenance.parameters:
        return []
    return ["the score file holds probabilities, as the floor is not part of the scores"]
