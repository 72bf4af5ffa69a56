"""`layerstats train`: one run of the trainer, from options to a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerstats.cli.console import (
    amount,
    as_list,
    emit_json,
    note,
    option,
    print_table,
    progress_bar,
)
from layerstats.errors import UsageError

if TYPE_CHECKING:
    from layerstats.train import TrainConfig, TrainResult

__all__ = ["register"]

#: Option -> who trains, how, or True for methods that need scores
#: (`layerstats.train.config.METHODS`), where it says something.
_GOES_WITH: dict[str, tuple[str | bool, ...]] = {
    **dict.fromkeys(("stats", "metric"), (True,)),
    "rank": ("galore", "adapters"),
    **dict.fromkeys(("update_interval", "scale", "projection", "moments"), ("galore",)),
    **dict.fromkeys(("lora_alpha", "lora_dropout", "lora_targets"), ("adapters",)),
    **dict.fromkeys(
        (
            "expected_active",
            "interval_steps",
            "sampling",
            "state",
            "activation_warmup_steps",
            "correct_lr_after_reset",
        ),
        ("layers",),
    ),
}
_WITHOUT_SCHEDULE = ("expected_active", "interval_steps", "sampling", "stats", "metric")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(train)


def train(
    ckpt: Path | None = typer.Argument(
        None, metavar="CKPT", help="Directory of a transformers model; not needed with --resume."
    ),
    method: str | None = typer.Option(
        None, help="full | lora | galore | lisa | lisa-d | owlore-full | owlore."
    ),
    data: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Text, or jsonl with text, prompt+response, messages, question+answer or "
        "instruction+output.",
    ),
    out: Path = typer.Option(..., metavar="RUN", help="Directory of the run."),
    schedule: Path | None = typer.Option(
        None, metavar="FILE", help="Schedule, for the methods that sample layers."
    ),
    stats: Path | None = typer.Option(
        None, metavar="DIR", help="Statistics or scores, to make OwLore's schedule of."
    ),
    metric: str | None = typer.Option(None, help="Column of --stats; lod_m7 by default."),
    expected_active: float | None = typer.Option(
        None, help="Layers that train in an interval, without --schedule. [2]"
    ),
    interval_steps: int | None = typer.Option(
        None, help="Steps between draws, without --schedule. [20]"
    ),
    sampling: str | None = typer.Option(None, help="Law of the draws. [systematic]"),
    always_active: str | None = typer.Option(
        None, help="Of embed,head,norm: what trains in every interval; '' for nothing."
    ),
    steps: int | None = typer.Option(None, help="Optimizer steps of the run."),
    epochs: float | None = typer.Option(None, help="Passes over the data, instead of --steps."),
    seq_len: int | None = typer.Option(None, help="Tokens in a window. [512]"),
    batch_size: int | None = typer.Option(None, help="Windows in a micro-batch. [16]"),
    accumulation: int | None = typer.Option(None, help="Micro-batches in a step. [1]"),
    packing: bool | None = typer.Option(
        None, "--packing/--no-packing", help="Fill windows with several examples. [packing]"
    ),
    lr: float | None = typer.Option(None, help="Peak learning rate. [3e-4]"),
    lr_schedule: str | None = typer.Option(None, help="linear | cosine | constant. [linear]"),
    warmup_steps: int | None = typer.Option(None, help="[100, at most a tenth of the run]"),
    weight_decay: float | None = typer.Option(None, help="[0]"),
    max_grad_norm: float | None = typer.Option(
        None, help="Norm that the gradient is cut to; 0 for never. [1]"
    ),
    rank: int | None = typer.Option(None, help="Of GaLore's projection [128] or of LoRA [8]."),
    rank_per_layer: str | None = typer.Option(
        None, help="GaLore's ranks, one a layer, with commas."
    ),
    update_interval: int | None = typer.Option(
        None, help="Active steps between GaLore bases. [200]"
    ),
    scale: float | None = typer.Option(None, help="Factor of GaLore's update. [1]"),
    projection: str | None = typer.Option(None, help="randomised | svd. [randomised]"),
    moments: str | None = typer.Option(
        None, help="rotate | keep, when the basis changes. [rotate]"
    ),
    lora_alpha: float | None = typer.Option(None, help="[twice the rank]"),
    lora_dropout: float | None = typer.Option(None, help="[0]"),
    lora_targets: str | None = typer.Option(
        None, help="blocks | all (embedding and head too). [blocks]"
    ),
    state: str | None = typer.Option(
        None, help="Optimizer state of a layer that stops: drop | offload | keep. [drop]"
    ),
    activation_warmup_steps: int | None = typer.Option(
        None, help="Warm-up each time a layer begins to train. [0]"
    ),
    correct_lr_after_reset: bool | None = typer.Option(
        None, "--correct-lr-after-reset", help="Shrink Adam's first steps after a reset."
    ),
    dtype: str | None = typer.Option(
        None, help="float32 | bfloat16, of weights and states. [float32]"
    ),
    autocast: bool | None = typer.Option(None, "--autocast", help="Compute in bfloat16."),
    checkpointing: bool | None = typer.Option(
        None, "--checkpointing", help="Recompute activations in the backward pass."
    ),
    device: str | None = typer.Option(None, help="cpu | cuda. [cuda where there is one]"),
    seed: int | None = typer.Option(None, help="[0]"),
    save_every: int | None = typer.Option(None, help="Steps between checkpoints."),
    eval_every: int | None = typer.Option(None, help="Steps between held-out losses."),
    validation: Path | None = typer.Option(None, metavar="FILE", help="Held-out data."),
    validation_fraction: float | None = typer.Option(None, help="Or a share of --data."),
    exact_match: Path | None = typer.Option(
        None, metavar="FILE", help="jsonl of questions with answers `#### N`, scored at the end."
    ),
    exact_match_limit: int | None = typer.Option(None, help="Only so many of them."),
    track: str | None = typer.Option(
        None, help="Weight metrics to record during training, as frobenius_norm."
    ),
    track_every: int | None = typer.Option(None, help="Steps between these records. [10]"),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in --out."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Fine-tune a model by one of seven methods, and report what really trained."""
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("ckpt", "resume", "quiet", "json"):
        given.pop(name, None)
    if ckpt is not None:
        given["model"] = ckpt
    from layerstats.train import train as run

    config = _config(given, resume=resume)
    with progress_bar(off=quiet) as progress:
        result = run(config, resume=resume, progress=progress)
    if json:
        emit_json(result.to_dict())
    else:
        _print(result)


def _config(given: dict[str, Any], *, resume: bool) -> TrainConfig:
    """Make the config of the options given; with --resume the run's own fill in what is not."""
    from layerstats.train import RunDirectory, TrainConfig

    if not resume:
        _check_idle(given)
    plain = {name: str(one) if isinstance(one, Path) else one for name, one in given.items()}
    for name in ("always_active", "track"):
        if name in plain:
            plain[name] = tuple(as_list(plain[name]))
    if "rank_per_layer" in plain:
        plain["rank_per_layer"] = tuple(_ranks(plain["rank_per_layer"]))
    if plain.get("max_grad_norm") == 0:
        plain["max_grad_norm"] = None
    if resume:
        before = RunDirectory.open(plain["out"]).config
        return TrainConfig.from_dict({**before, **plain})
    needed = {"model": "CKPT", "method": "--method", "data": "--data"}
    missing = [shown for name, shown in needed.items() if name not in plain]
    if missing:
        msg = (
            f"missing {', '.join(missing)}; for example: layerstats train CKPT --method lisa "
            "--data train.jsonl --steps 200 --out run"
        )
        raise UsageError(msg)
    return TrainConfig.from_dict(plain)


def _check_idle(given: Mapping[str, Any]) -> None:
    """Refuse options that the run would never look at."""
    from layerstats.train.config import METHODS

    kinds = {name: {one.who, one.how, one.needs_scores} for name, one in METHODS.items()}
    mine = kinds.get(given.get("method", ""))
    for name in given:
        wanted = _GOES_WITH.get(name)
        if mine is not None and wanted is not None and not mine & set(wanted):
            able = [other for other, kind in kinds.items() if kind & set(wanted)]
            msg = f"{option(name)} goes with {', '.join(able)}, not with {given['method']}"
            raise UsageError(msg)
    idle = [option(name) for name in _WITHOUT_SCHEDULE if name in given]
    if "schedule" in given and idle:
        msg = f"{', '.join(idle)} are for a schedule made here; --schedule has its own"
        raise UsageError(msg)
    if "eval_every" in given and not {"validation", "validation_fraction"} & given.keys():
        msg = "--eval-every needs held-out data: give --validation or --validation-fraction"
        raise UsageError(msg)


def _ranks(text: str) -> list[int]:
    try:
        return [int(one) for one in as_list(text)]
    except ValueError as error:
        msg = f"--rank-per-layer takes whole numbers with commas, not {text!r}"
        raise UsageError(msg) from error


def _print(result: TrainResult) -> None:
    rows = result.engagement.rows()
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    for verdict in result.engagement.verdicts:
        note(verdict)
    note(result.summary(amount))
    note(f"wrote {result.out}")
