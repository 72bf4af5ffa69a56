"""The end of a run: the model as a directory, what it scores, and the report of what trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layerstats import runs
from layerstats.stats import replace_file, strict_json
from layerstats.train.adapters import merge
from layerstats.train.config import TrainConfig
from layerstats.train.engagement import Engagement, engagement
from layerstats.train.evaluate import exact_match
from layerstats.train.methods import Trainee
from layerstats.train.model import load_model, save_model
from layerstats.train.run_directory import RunDirectory

__all__ = ["TrainResult", "finish"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Parameters
    ----------
    out : Path
        The run directory; ``out / "model"`` loads with `from_pretrained`.
    steps : int
    final_loss : float
        Of the last step, nats per token.
    eval_loss : float or None
        Held-out loss at the end, nats per token; None without held-out data.
    exact_match : float or None
        Share of questions answered right, in [0, 1]; None if not asked for.
    peak_bytes : int
        The largest memory during the steps; see `HighWater`.
    tokens_per_second : float
        Over all steps, switches of layers and bases counted, evaluation and writing not.
    skipped_backward : float
        Share of all passes through a block that the backward pass left out, in [0, 1): those below
        the lowest active block while the embedding is frozen.
    engagement : Engagement
        Per layer: active, expected, moved, by how much.
    """

    out: Path
    steps: int
    final_loss: float
    eval_loss: float | None
    exact_match: float | None
    peak_bytes: int
    tokens_per_second: float
    skipped_backward: float
    engagement: Engagement

    def to_dict(self) -> dict[str, Any]:
        """Return everything by name, ready for JSON; the layers stand under `layers`."""
        own = {
            "steps": self.steps,
            "final_loss": self.final_loss,
            "eval_loss": self.eval_loss,
            "exact_match": self.exact_match,
            "peak_bytes": self.peak_bytes,
            "tokens_per_second": self.tokens_per_second,
            "skipped_backward": self.skipped_backward,
            "out": str(self.out),
        }
        return {**own, **self.engagement.to_dict()}

    def summary(self, amount: Callable[..., str]) -> str:
        """Return the run in one line; `amount` writes bytes."""
        parts = [f"{self.steps} steps", f"loss {self.final_loss:.4f}"]
        if self.eval_loss is not None:
            parts.append(f"held-out {self.eval_loss:.4f}")
        if self.exact_match is not None:
            parts.append(f"exact match {self.exact_match:.1%}")
        if self.skipped_backward:
            parts.append(f"backward pass through {1 - self.skipped_backward:.0%} of the blocks")
        parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        parts.append(f"peak memory {amount(self.peak_bytes, 'B')}")
        return ", ".join(parts)


def finish(
    config: TrainConfig, run: RunDirectory, trainee: Trainee, tokenizer: Any, *, seconds: float
) -> TrainResult:
    """Write the model, score it, compare it with what it was, and write report.json.

    The weights at the start are read from the checkpoint again, on the host.
    """
    trainee.clear_gradients()
    trainee.optimizer.state.clear()
    if config.kind.who == "adapters":
        save_model(trainee.model, tokenizer, run.path / "adapter")
    model = merge(trainee.model)
    model.requires_grad_(False)
    save_model(model, tokenizer, run.model_directory)
    rate = _score(config, run, model, tokenizer)
    before = load_model(replace(config, device="cpu"), "cpu")
    entries = run.entries()
    report = engagement(
        dict(before.named_parameters(remove_duplicate=False)),
        dict(model.named_parameters(remove_duplicate=False)),
        trainee.parts,
        trainee.schedule,
        entries,
        trained=_trained(config),
    )
    result = _result(run, entries, report, rate, seconds)
    replace_file(run.report_file, strict_json(result.to_dict(), indent=2) + "\n")
    return result


def _score(config: TrainConfig, run: RunDirectory, model: Any, tokenizer: Any) -> float | None:
    """Have the model answer questions, if asked, and log how many were right."""
    if config.exact_match is None:
        return None
    score = exact_match(
        model,
        tokenizer,
        config.exact_match,
        limit=config.exact_match_limit,
    )
    last = runs.of_kind(run.entries(), "step")[-1]["step"]
    run.log({"kind": "eval", "step": last, "exact_match": score.to_dict()})
    return score.rate


def _trained(config: TrainConfig) -> tuple[str, ...] | None:
    """Return the groups outside the blocks that are to move; None: what the schedule says."""
    if config.kind.who == "adapters":
        return ("embed", "head") if config.lora_targets == "all" else ()
    return config.always_active


def _result(
    run: RunDirectory,
    entries: list[runs.Entry],
    report: Engagement,
    rate: float | None,
    seconds: float,
) -> TrainResult:
    steps = runs.of_kind(entries, "step")
    held_out = [one for one in runs.of_kind(entries, "eval") if one.get("loss") is not None]
    return TrainResult(
        out=run.path,
        steps=len(steps),
        final_loss=steps[-1]["loss"],
        eval_loss=held_out[-1]["loss"] if held_out else None,
        exact_match=rate,
        peak_bytes=max(one["memory"]["peak"] for one in steps),
        tokens_per_second=sum(one["tokens"] for one in steps) / seconds,
        skipped_backward=_skipped(entries, len(report.layers)),
        engagement=report,
    )


def _skipped(entries: list[runs.Entry], num_layers: int) -> float:
    """Return the share of blocks that the backward pass did not enter, over all steps."""
    skipped, total = 0, 0
    now = 0
    for entry in entries:
        if entry["kind"] == "interval":
            now = entry["skipped_blocks"]
        elif entry["kind"] == "step":
            skipped, total = skipped + now, total + num_layers
    return skipped / total
