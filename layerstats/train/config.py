"""The settings of a training run: `TrainConfig`, and `METHODS`, what each method's name stands for.

A method is who trains (everything, adapters, layers by a schedule) times how the optimizer moves it
(AdamW, GaLore-AdamW). Here belong the settings, their defaults and the checks that need no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from layerstats.errors import UsageError, choices
from layerstats.layer_switch import STATE_POLICIES

__all__ = ["METHODS", "Method", "TrainConfig"]


@dataclass(frozen=True, slots=True)
class Method:
    """Who trains ("everything", "adapters", "layers") and how ("adamw", "galore").

    `rule` is the schedule's rule where no schedule is given; `needs_scores` says that the rule
    cannot do without statistics.
    """

    who: str
    how: str
    rule: str | None = None
    needs_scores: bool = False


#: Name -> what trains and how, of each method.
METHODS: Mapping[str, Method] = {
    "full": Method("everything", "adamw"),
    "lora": Method("adapters", "adamw"),
    "galore": Method("everything", "galore"),
    "lisa": Method("layers", "adamw", "lisa"),
    "lisa-d": Method("layers", "adamw", "lisa-d"),
    "owlore-full": Method("layers", "adamw", "owlore", needs_scores=True),
    "owlore": Method("layers", "galore", "owlore", needs_scores=True),
}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "state": STATE_POLICIES,
    "lr_schedule": ("linear", "cosine", "constant"),
    "projection": ("randomised", "svd"),
    "moments": ("rotate", "keep"),
    "dtype": ("float32", "bfloat16"),
    "lora_targets": ("blocks", "all"),
}
#: Setting -> lowest value it may have.
_AT_LEAST: Mapping[str, float] = {
    "steps": 1,
    "seq_len": 2,
    "batch_size": 1,
    "accumulation": 1,
    "warmup_steps": 0,
    "lr": 0,
    "weight_decay": 0,
    "expected_active": 0,
    "interval_steps": 1,
    "rank": 1,
    "update_interval": 1,
    "activation_warmup_steps": 0,
    "lora_dropout": 0,
    "seed": 0,
    "save_every": 1,
    "eval_every": 1,
    "track_every": 1,
    "exact_match_limit": 1,
}
#: Those of them that need not be whole.
_FRACTIONS = ("lr", "weight_decay", "expected_active", "lora_dropout")
_FILES = ("model", "data", "out", "schedule", "stats", "validation", "exact_match")
_ABOVE_ZERO = ("epochs", "scale", "eps", "max_grad_norm", "lora_alpha")
_ALWAYS_ACTIVE = ("embed", "head", "norm")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run; two runs of one config give the same weights.

    Parameters
    ----------
    model, data, out : str
        Checkpoint directory, training data (text or jsonl, see `load_data`), run directory.
    method : str
        A name in `METHODS`.
    schedule : str, optional
        Schedule file, for the layerwise methods. Without one, "lisa" and "lisa-d" make their own
        from `expected_active`, `interval_steps`, `sampling` and `seed`; "owlore-full" and "owlore"
        too if `stats` names a statistics directory or a file of scores.
    stats, metric : str, optional
        Statistics or scores for such a schedule, and their column; `lod_m7` by default.
    sampling : str
        Law of the draws, for a schedule made here: "systematic" (default), "bernoulli",
        "successive", "quota" or "reshuffle".
    expected_active : float
        Layers that train in an interval, for a schedule made here; 2 as in LISA.
    interval_steps : int
        Optimizer steps between draws, for a schedule made here.
    always_active : tuple of str, optional
        Of "embed", "head", "norm"; overrides the schedule's.
    steps, epochs : int, float, optional
        Length of the run; give one of them.
    seq_len : int
        Tokens in a window.
    batch_size, accumulation : int
        Windows in a micro-batch, and micro-batches in an optimizer step.
    packing : bool
        Fill windows with several examples (default); otherwise each has a window of its own.
    lr : float
        Peak learning rate; 3e-4 as OwLore for LLaMA-2.
    lr_schedule : str
        "linear" (default; to zero), "cosine" or "constant", after `warmup_steps` of linear warm-up
        (default: 100 as OwLore, but at most a tenth of the run).
    weight_decay, betas, eps, max_grad_norm
        AdamW's, and the norm to which the whole gradient is cut (None: never). Decay leaves out
        vectors.
    rank, update_interval, scale, projection, moments
        GaLore's: rank (default 128, or the schedule's `low_rank`), active steps between bases,
        factor of the update, how a basis is found ("randomised", the default, or "svd"), and what
        moments do when it changes ("rotate", the default, or "keep"). For "lora", `rank` is the
        adapters' (default 8).
    rank_per_layer : tuple of int, optional
        GaLore's rank, one a block, instead of `rank`.
    lora_alpha, lora_dropout, lora_targets
        LoRA's numerator of the scale (default: twice the rank), dropout, and where adapters stand:
        "blocks" (each linear map of the blocks) or "all" (embedding and head too).
    state : str
        Optimizer state of a layer that stops training: "drop" (default), "offload" to the host,
        "keep".
    activation_warmup_steps : int
        Steps of linear warm-up each time a layer begins to train; 0 as in the papers.
    correct_lr_after_reset : bool
        Scale the learning rate of a layer whose optimizer state is new by
        sqrt((1 - b1^t) / (1 + b1^t)) so that Adam's first steps are as large as its later ones.
    dtype : str
        Of weights and optimizer state. With `autocast` the forward pass computes in bfloat16.
    checkpointing : bool
        Recompute activations in the backward pass (never the reentrant way).
    device : str, optional
        "cuda" where there is one, else "cpu".
    seed : int
        Of the order of the data, the draws, dropout and new bases.
    save_every, eval_every, track_every : int, optional
        Optimizer steps between checkpoints, held-out evaluations, records of layer metrics.
    validation, validation_fraction
        Held-out data: a file, or a share of the training windows.
    exact_match, exact_match_limit
        jsonl of questions with answers ``#### N``, scored by greedy generation at the end.
    track : tuple of str
        Weight metrics to record during training, such as "frobenius_norm".

    Raises
    ------
    UsageError
        A setting is outside what is allowed, or two of them contradict each other.

    References
    ----------
    Pan et al. 2024, LISA, arXiv 2403.17919; Li et al. 2024, OwLore, arXiv 2405.18380; Zhao et al.
    2024, GaLore, arXiv 2403.03507.

    Examples
    --------
    >>> config = TrainConfig(model="m", data="d.txt", out="run", method="lisa", steps=100)
    >>> config.warmup, config.rule
    (10, 'lisa')
    """

    model: str
    data: str
    out: str
    method: str
    schedule: str | None = None
    stats: str | None = None
    metric: str | None = None
    expected_active: float = 2.0
    interval_steps: int = 20
    sampling: str = "systematic"
    always_active: tuple[str, ...] | None = None
    steps: int | None = None
    epochs: float | None = None
    seq_len: int = 512
    batch_size: int = 16
    accumulation: int = 1
    packing: bool = True
    lr: float = 3e-4
    lr_schedule: str = "linear"
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    rank: int | None = None
    rank_per_layer: tuple[int, ...] | None = None
    update_interval: int | None = None
    scale: float | None = None
    projection: str = "randomised"
    moments: str = "rotate"
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: str = "blocks"
    state: str = "drop"
    activation_warmup_steps: int = 0
    correct_lr_after_reset: bool = False
    dtype: str = "float32"
    autocast: bool = False
    checkpointing: bool = False
    device: str | None = None
    seed: int = 0
    save_every: int | None = None
    eval_every: int | None = None
    validation: str | None = None
    validation_fraction: float = 0.0
    exact_match: str | None = None
    exact_match_limit: int | None = None
    track: tuple[str, ...] = ()
    track_every: int = 10

    def __post_init__(self) -> None:
        for name in _FILES:
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(choices(name, getattr(self, name), allowed))
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        """Refuse numbers outside their range."""
        for name in (*_AT_LEAST, *_ABOVE_ZERO):
            if hasattr(getattr(self, name), "item"):  # NumPy's numbers, which JSON does not take
                object.__setattr__(self, name, getattr(self, name).item())
            _check_number(name, getattr(self, name))
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                msg = f"{name} must be at least {low:g}, not {value}"
                raise UsageError(msg)
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                msg = f"{name} must be above 0, not {value}"
                raise UsageError(msg)
        for name, value in (("beta1", self.betas[0]), ("beta2", self.betas[1])):
            _check_share(name, value)
        _check_share("validation_fraction", self.validation_fraction)
        _check_share("lora_dropout", self.lora_dropout)

    def _check_together(self) -> None:
        """Refuse settings that contradict each other."""
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            msg = f"give steps or epochs, one of the two; {given} was given"
            raise UsageError(msg)
        if self.validation is not None and self.validation_fraction:
            msg = "give validation or validation_fraction, not both"
            raise UsageError(msg)
        for name in self.always_active or ():
            if name not in _ALWAYS_ACTIVE:
                raise UsageError(choices("always-active group", name, _ALWAYS_ACTIVE))
        kind = self.kind
        if kind.who != "layers":
            for name in ("schedule", "stats", "always_active"):
                if getattr(self, name) is not None:
                    msg = f"{name} goes with the methods that sample layers, not with {self.method}"
                    raise UsageError(msg)
        elif kind.needs_scores and self.schedule is None and self.stats is None:
            msg = (
                f"{self.method} needs a schedule: make one with `layerstats schedule STATS --rule "
                f"{kind.rule} ...` and give --schedule, or give --stats"
            )
            raise UsageError(msg)
        if self.rank_per_layer is not None and kind.how != "galore":
            msg = f"rank_per_layer goes with galore and owlore, not with {self.method}"
            raise UsageError(msg)

    @property
    def kind(self) -> Method:
        """What the method's name stands for."""
        return METHODS[self.method]

    @property
    def rule(self) -> str | None:
        """The rule of the schedule that is made where none is given."""
        return self.kind.rule

    @property
    def warmup(self) -> int:
        """Warm-up steps where the length of the run is known: given, or 100 but at most a tenth."""
        return self.warmup_of(self.steps or 0)

    def warmup_of(self, steps: int) -> int:
        """Return the warm-up steps of a run of so many steps."""
        return min(100, steps // 10) if self.warmup_steps is None else self.warmup_steps

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Make a config of what `to_dict` gave and JSON brought back.

        Raises
        ------
        UsageError
            A setting that does not exist, or a value that is not allowed.
        """
        names = [one.name for one in fields(cls)]
        for name in data:
            if name not in names:
                raise UsageError(choices("setting", name, names))
        missing = [one for one in ("model", "data", "out", "method") if one not in data]
        if missing:
            msg = f"settings are missing: {', '.join(missing)}"
            raise UsageError(msg)
        tuples = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **tuples})


def _check_number(name: str, value: object) -> None:
    """Refuse what is no number, and parts where only whole numbers make sense."""
    fraction = name in _FRACTIONS or name in _ABOVE_ZERO
    allowed = (int, float) if fraction else (int,)
    if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
        msg = f"{name} must be a {'' if fraction else 'whole '}number, not {value!r}"
        raise UsageError(msg)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        msg = f"{name} must be in [0, 1), not {value}"
        raise UsageError(msg)
