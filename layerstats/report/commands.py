"""The command lines that give the same numbers again, from what the files say of themselves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from layerstats.schedules import RULES, Schedule

__all__ = ["USUAL", "measure_command", "report_command", "schedule_command", "train_command"]

#: Settings that `layerstats train` assumes where nothing is said; a command leaves them out.
USUAL: Mapping[str, Any] = {
    "expected_active": 2.0,
    "interval_steps": 20,
    "sampling": "systematic",
    "seq_len": 512,
    "batch_size": 16,
    "accumulation": 1,
    "packing": True,
    "lr": 3e-4,
    "lr_schedule": "linear",
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "max_grad_norm": 1.0,
    "projection": "randomised",
    "moments": "rotate",
    "lora_dropout": 0.0,
    "lora_targets": "blocks",
    "state": "drop",
    "activation_warmup_steps": 0,
    "correct_lr_after_reset": False,
    "dtype": "float32",
    "autocast": False,
    "checkpointing": False,
    "seed": 0,
    "validation_fraction": 0.0,
    "track": [],
    "track_every": 10,
}
#: Settings that only Python takes.
_PYTHON_ONLY = ("betas", "eps")


def measure_command(meta: Mapping[str, Any]) -> str:
    """Return the `layerstats measure` that a statistics directory's meta.json describes.

    Examples
    --------
    >>> meta = {"checkpoint": {"path": "my model"}, "metrics": ["alpha_hill"], "parameters": {}}
    >>> measure_command(meta)
    "layerstats measure 'my model' --metrics alpha_hill --out stats"
    """
    parameters = meta.get("parameters") or {}
    words = ["layerstats", "measure", str(meta["checkpoint"]["path"])]
    words += ["--metrics", ",".join(meta["metrics"])]
    if "lod" in meta["metrics"]:
        words += ["--m", ",".join(f"{m:g}" for m in parameters.get("m", []))]
    words += _calibration(meta.get("calibration"))
    if adapter := meta.get("adapter"):
        words += ["--adapter", str(adapter["path"])]
    for name, usual in (("lower_bound", "reference"), ("precision", "float64")):
        if parameters.get(name, usual) != usual:
            words += [_option(name), str(parameters[name])]
    if trust := meta.get("trust"):
        words += ["--trust", "--bootstrap", str(trust["bootstrap"])]
    return shlex.join([*words, "--out", "stats"])


def _calibration(page: Mapping[str, Any] | None) -> list[str]:
    if not page or "text" not in page:
        return []
    words = ["--tokens", str(page["text"]), "--samples", str(page["samples"])]
    words += ["--seq-len", str(page["seq_len"])]
    if page.get("sample_seed") is not None:
        words += ["--sample-seed", str(page["sample_seed"])]
    for name, usual in (("dtype", "float32"), ("device", "cpu")):
        if page.get(name, usual) != usual:
            words += [_option(name), str(page[name])]
    return words


#: What a schedule's provenance keeps of the options it was made with, option for option.
_KEPT = ("direction", "normalise", "temperature", "floor", "full")
#: What follows from the metric by itself.
_DERIVED = ("score_map",)


def schedule_command(schedule: Schedule) -> str | None:
    """Return the `layerstats schedule` that makes a schedule; None where its file does not say all.

    Examples
    --------
    >>> from layerstats.schedules import schedule
    >>> schedule_command(schedule("lisa", num_layers=8, expected_active=2))
    'layerstats schedule --rule lisa --num-layers 8 --expected-active 2 --out schedule.json'
    """
    parameters = schedule.provenance.parameters
    scored = schedule.rule in RULES and RULES[schedule.rule].needs_scores
    if schedule.rule not in RULES or schedule.rule in ("blend", "adaptive"):
        return None
    if set(parameters) - {*_KEPT, *_DERIVED} or (scored and schedule.provenance.stats is None):
        return None
    words = ["layerstats", "schedule", *([str(schedule.provenance.stats)] if scored else [])]
    words += ["--rule", schedule.rule]
    words += [] if scored else ["--num-layers", str(schedule.num_layers)]
    words += ["--metric", schedule.metric] if schedule.metric else []
    words += ["--expected-active", f"{schedule.expected_active!r}"]
    always = ",".join(schedule.always_active)
    for name, value, usual in (
        ("interval_steps", schedule.interval_steps, 20),
        ("seed", schedule.seed, 0),
        ("sampling", schedule.sampling, "systematic"),
        ("always_active", always, "embed,head,norm"),
    ):
        words += [_option(name), str(value)] if value != usual else []
    if low := schedule.low_rank:
        words += ["--rank", str(low.rank), "--update-interval", str(low.update_interval)]
        words += ["--scale", repr(low.scale)]
    for name in _KEPT:
        words += [_option(name), str(parameters[name])] if name in parameters else []
    return shlex.join([*words, "--out", "schedule.json"])


def train_command(config: Mapping[str, Any]) -> str:
    """Return the `layerstats train` with a run's settings; what is usual is left out.

    Examples
    --------
    >>> train_command({"model": "m", "method": "full", "data": "d", "steps": 9, "seed": 0})
    'layerstats train m --method full --data d --steps 9 --out run'
    """
    words = ["layerstats", "train", str(config["model"])]
    unusual = {
        name: value
        for name, value in config.items()
        if name not in ("model", "out", *_PYTHON_ONLY) and value != USUAL.get(name)
    }
    for name, value in unusual.items():
        words += _words(name, value)
    odd = [name for name in _PYTHON_ONLY if config.get(name, USUAL[name]) != USUAL[name]]
    said = f"  # and {', '.join(odd)}, by TrainConfig in Python" if odd else ""
    return shlex.join([*words, "--out", "run"]) + said


def _words(name: str, value: Any) -> list[str]:
    if name == "packing":
        return ["--no-packing"]
    if value is True:
        return [_option(name)]
    if value is None:  # a setting whose absence is unusual: only the norm to cut at
        return [_option(name), "0"]
    if isinstance(value, (list, tuple)):
        return [_option(name), ",".join(map(str, value))]
    return [_option(name), str(value)]


def report_command(source: str, schedule: str | None) -> str:
    """Return the `layerstats report` that made the page."""
    words = ["layerstats", "report", source]
    words += ["--schedule", schedule] if schedule else []
    return shlex.join([*words, "--out", "report.html"])


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
