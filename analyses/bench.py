"""What all analyses share: the model and data they run on, training runs that are kept, results.

A training run is a process of its own, so that its memory is its own; it is kept by its settings,
so that a second analysis finds it, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import layerstats as ls
from layerstats import demo_data, runs
from layerstats.numerics import esd
from layerstats.stats import strict_json
from layerstats.train import TrainConfig, train

FIGURES = Path(__file__).parents[1] / "figures"
#: Word problems of the test set to report on, and as many others to choose learning rates by.
HELD_OUT = 32
#: Training runs side by side at most; each takes up to 3 GB of memory.
AT_ONCE = 4
#: LOD's thresholds.
M = (3, 5, 7, 10, 13)


@dataclass(frozen=True)
class Bench:
    """A model with data to fine-tune it on, a directory for runs, one for pictures."""

    name: str
    quick: bool
    model: Path
    data: Path
    held_out: Path
    tuning: Path
    text: Path
    runs: Path
    figures: Path
    began: float
    command: str
    #: Run directory -> seconds that its steps took, also where it was found in the cache.
    trained: dict[str, float] = field(default_factory=dict)

    @property
    def stats(self) -> Path:
        """Statistics of the model with LOD for several M, measured once."""
        directory = self.runs / "stats-lod"
        if not (directory / "layers.csv").exists():
            ls.measure(
                self.model,
                metrics=["frobenius_norm", "lod", "alpha_hill"],
                tokens=self.text,
                m=M,
                out=directory,
                samples=4 if self.quick else 16,
                seq_len=64 if self.quick else 512,
                overwrite=directory.exists(),
            )
        return directory

    @property
    def spectra(self) -> dict[str, NDArray[np.float64]]:
        """Eigenvalues of W^T W of every matrix of a block, as layer/path; worked out once."""
        file = self.runs / "spectra.npz"
        if not file.exists():
            found: dict[str, Any] = {
                f"{layer.index}/{path}": esd(weight)
                for layer in ls.LayerReader(ls.open_checkpoint(self.model))
                for path, weight in layer.weights.items()
            }
            beside = file.with_suffix(".partial")
            with beside.open("wb") as stream:
                np.savez(stream, **found)
            beside.replace(file)
        with np.load(file, allow_pickle=False) as kept:
            return dict(kept)

    def config(self, method: str, **settings: Any) -> TrainConfig:
        """Return the settings of a run on this bench; its directory is named by them all."""
        layerwise: dict[str, Any] = {}
        if method.startswith(("lisa", "owlore")):
            layerwise = {"expected_active": 2, "interval_steps": 2 if self.quick else 10}
        if method.startswith("owlore"):
            layerwise |= {"stats": str(self.stats), "metric": "lod_m7"}
        size = {"seq_len": 32, "steps": 8} if self.quick else {"seq_len": 192, "steps": 120}
        defaults = {"batch_size": 1, "device": "cpu", "save_every": 40, **size, **layerwise}
        defaults["validation"] = str(self.held_out)
        config = TrainConfig(
            model=str(self.model),
            data=str(self.data),
            out="",
            method=method,
            **{**defaults, **settings},
        )
        digest = hashlib.sha256(strict_json(config.to_dict()).encode()).hexdigest()[:8]
        return replace(config, out=str(self.runs / f"{method}-{digest}"))

    def run(
        self,
        configs: Mapping[str, TrainConfig],
        environment: Mapping[str, str] | None = None,
        *,
        alone: bool = False,
    ) -> dict[str, Path]:
        """Train all that are not trained yet; label -> run directory.

        As many at a time as there are cores (`AT_ONCE` at most), with one thread each: that is
        faster than one with all threads, and gives the same bits on any number of cores. `alone`
        is for what measures the machine: one after the other, with all threads. `environment` is
        added to that of their processes. What stays of a finished run is its log, report and
        adapter, and the weights of seed 0: all of it would be gigabytes a run.
        """
        left = {
            config.out: config
            for config in configs.values()
            if not (Path(config.out) / "report.json").exists()
        }
        if self.quick:  # within the process, which has a test's time to keep to
            for config in left.values():
                train(config, resume=_begun(config))
                _slim(config)
            return self._found(configs)
        cores = 1 if alone else min(os.cpu_count() or 1, AT_ONCE)
        more = {**({"OMP_NUM_THREADS": "1"} if cores > 1 else {}), **(environment or {})}
        with ThreadPoolExecutor(cores) as pool:
            ends = [pool.submit(_train_alone, config, more) for config in left.values()]
            try:
                for end in ends:
                    end.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return self._found(configs)

    def _found(self, configs: Mapping[str, TrainConfig]) -> dict[str, Path]:
        for config in configs.values():
            steps = runs.of_kind(runs.read_log(config.out), "step")
            seconds = sum(one["tokens"] / one["tokens_per_second"] for one in steps)
            self.trained[config.out] = seconds
        return {label: Path(config.out) for label, config in configs.items()}

    def write(self, ax: Any, result: Mapping[str, Any]) -> None:
        """Write NAME.png and NAME.json; the JSON says how it was made."""
        from layerstats import plots

        self.figures.mkdir(parents=True, exist_ok=True)
        plots.save(ax, self.figures / f"{self.name}.png")
        made = {
            "command": self.command,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "seconds": round(time.time() - self.began, 1),
            "runs_read": len(self.trained),
            "seconds_of_their_steps": round(sum(self.trained.values())),
            "model": self.model.name,
        }
        text = strict_json({**made, **result}, indent=2) + "\n"
        (self.figures / f"{self.name}.json").write_text(text, encoding="utf-8")


def _begun(config: TrainConfig) -> bool:
    return (Path(config.out) / "config.json").exists()


def _train_alone(config: TrainConfig, environment: Mapping[str, str]) -> None:
    """Train in a process of its own; go on where an earlier one was stopped."""
    code = (
        "import json, sys; from layerstats.train import TrainConfig, train; "
        "train(TrainConfig.from_dict(json.loads(sys.argv[1])), resume=sys.argv[2] == 'True')"
    )
    settings = json.dumps(config.to_dict())
    command = [sys.executable, "-c", code, settings, str(_begun(config))]
    print(f"{datetime.now(UTC):%H:%M:%S} {config.out} lr {config.lr:g}", flush=True)
    said = Path(config.out).with_suffix(".txt")
    with said.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            command, env={**os.environ, **environment}, check=False, stdout=file, stderr=file
        )
    if done.returncode:
        sys.exit(f"the run in {config.out} ended with code {done.returncode}; {said} says why")
    _slim(config)


def _slim(config: TrainConfig) -> None:
    """Delete of a finished run what no analysis reads."""
    # Runs without held-out data measure the machine; their weights are of no use.
    has_weights = config.seed == 0 and config.validation is not None
    for name in (runs.CHECKPOINTS, *(() if has_weights else (runs.MODEL,))):
        if (Path(config.out) / name).exists():
            shutil.rmtree(Path(config.out) / name)


def open_bench(
    name: str, argv: Sequence[str], *, needs: str = "training", **more: Any
) -> tuple[Bench, argparse.Namespace]:
    """Read the options every analysis has, and `more` whole numbers of its own (name=default).

    `needs` is "training", "model" (no data to train on are made) or "nothing" (no model either).
    """
    parser = argparse.ArgumentParser(prog=f"python -m analyses.{name}")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; for tests")
    parser.add_argument("--runs", type=Path, default=None, help="where training runs are kept")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    for option, default in more.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    options = parser.parse_args(list(argv))
    kept = options.runs or demo_data.cache_directory() / "analyses"
    began = time.time()
    text = demo_data.calibration_text()
    if options.quick:
        runs = kept / "quick"
        model = demo_data.random_checkpoint(runs / "model")
        data = _sums(runs / "train.jsonl", range(60))
        held_out = _sums(runs / "held-out.jsonl", range(60, 80))
        tuning = _sums(runs / "tuning.jsonl", range(80, 100))
    else:
        runs = kept
        runs.mkdir(parents=True, exist_ok=True)
        model = Path("none") if needs == "nothing" else demo_data.demo_checkpoint()
        data, held_out, tuning = Path("none"), runs / "held-out.jsonl", runs / "tuning.jsonl"
    if needs == "training" and not options.quick:
        problems = demo_data.word_problems()
        data = problems.train
        lines = problems.test.read_text(encoding="utf-8").splitlines(keepends=True)
        held_out.write_text("".join(lines[:HELD_OUT]), encoding="utf-8")
        tuning.write_text("".join(lines[HELD_OUT : 2 * HELD_OUT]), encoding="utf-8")
    command = f"python -m analyses.{name}" + (" --quick" if options.quick else "")
    for option, default in more.items():
        given = getattr(options, option)
        command += f" --{option} {given}" if given != default else ""
    bench = Bench(
        name=name,
        quick=options.quick,
        model=model,
        data=data,
        held_out=held_out,
        tuning=tuning,
        text=text,
        runs=runs,
        figures=options.figures,
        began=began,
        command=command,
    )
    return bench, options


def _sums(file: Path, numbers: range) -> Path:
    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
