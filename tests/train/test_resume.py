"""A run that was killed goes on to the same bits, whatever moment it was killed at."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.cli import run as command
from layerstats.errors import LayerstatsError, UsageError
from layerstats.schedules import schedule as build
from layerstats.train import METHODS, TrainConfig, train
from layerstats.train import loop as loop_module
from layerstats.train.run_directory import RunDirectory
from tests.train.tiny import config, log, weights_of

STEPS = 40
# Neither 3 (an interval) nor 4 (a basis) divides the steps between checkpoints.
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "save_every": 5,
    "accumulation": 2,
    "lora_dropout": 0.1,
    "track": ("frobenius_norm",),
    "validation_fraction": 0.1,
    "eval_every": 7,
}


def start(settings: TrainConfig) -> subprocess.Popen[bytes]:
    """The same run in a process of its own."""
    file = Path(settings.out).with_suffix(".json")
    file.write_text(json.dumps(settings.to_dict()))
    code = (
        "import json, sys, pathlib\n"
        "from layerstats.train import TrainConfig, train\n"
        "train(TrainConfig.from_dict(json.loads(pathlib.Path(sys.argv[1]).read_text())))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, str(file)], env=environment)


def wait_for(run: Path, steps: int, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        file = run / "log.jsonl"
        if file.exists() and file.read_text().count('"kind": "step"') >= steps:
            return
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    raise AssertionError("the run never got there")


def same(one: Path, other: Path) -> None:
    a, b = weights_of(one / "model"), weights_of(other / "model")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    timeless = ("tokens_per_second", "memory")
    logs = [
        [{k: v for k, v in entry.items() if k not in timeless} for entry in read(run)]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]


def read(run: Path) -> list[dict[str, Any]]:
    return [e for kind in ("step", "interval", "eval", "track") for e in log(run, kind)]


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_step(tmp_path: Path, method: str) -> None:
    torch.set_num_threads(1)
    settings = config(tmp_path, method, out="whole", **SETTINGS)
    train(settings)
    killed = replace(settings, out=str(tmp_path / "killed"))
    child = start(killed)
    at = random.SystemRandom().randrange(1, STEPS - 8)
    wait_for(tmp_path / "killed", at, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "report.json").exists(), f"killed too late, after {at}"
    result = train(killed, resume=True)
    assert result.steps == STEPS
    same(tmp_path / "whole", tmp_path / "killed")
    kept = sorted(one.name for one in (tmp_path / "killed" / "checkpoints").iterdir())
    assert kept == ["step-000035", "step-000040"]


class Trip:
    """Sends this process a signal at the n-th announcement of a phase."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, phase: str) -> None:
        self.left = number
        step = loop_module.optimizer_step

        def tripping(*args: Any, announce: Any, **options: Any) -> Any:
            def heard(name: str) -> None:
                if name == phase:
                    self.left -= 1
                    if self.left == 0:
                        os.kill(os.getpid(), signal.SIGINT)
                announce(name)

            return step(*args, announce=heard, **options)

        monkeypatch.setattr(loop_module, "optimizer_step", tripping)


@pytest.mark.parametrize("policy", ["drop", "offload", "keep"])
@pytest.mark.parametrize(
    ("number", "phase", "done"),
    [
        (14, "backward", 6),  # the second micro-batch of step 7, the first of an interval
        (18, "forward", 8),  # in the middle of an accumulation window and of an interval
        (9, "optimizer", 9),  # too late to stop: the step is done, then the run stops
        (1, "forward", 0),
    ],
)
def test_interrupted_anywhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    number: int,
    phase: str,
    done: int,
) -> None:
    method = "owlore" if number % 2 == 0 else "lisa"
    settings = config(
        tmp_path, method, out="whole", steps=15, accumulation=2, state=policy, save_every=100
    )
    train(settings)
    broken = replace(settings, out=str(tmp_path / "broken"))
    before = signal.getsignal(signal.SIGINT)  # a shell's background job begins with it ignored
    with monkeypatch.context() as patch:
        Trip(patch, number, phase)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(log(tmp_path / "broken")) == done
    train(broken, resume=True)
    same(tmp_path / "whole", tmp_path / "broken")


def test_interrupt_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path, "lisa", steps=6)
    arguments = ["train", settings.model, "--method", "lisa", "--data", settings.data]
    arguments += ["--steps", "6", "--seq-len", "16", "--batch-size", "2", "--out", settings.out]
    with monkeypatch.context() as patch:
        Trip(patch, 3, "backward")
        assert command([*arguments, "--quiet"]) == 130
    assert "--resume" in capsys.readouterr().err
    # The options of the run are known: only where it is must be said.
    assert command(["train", "--out", settings.out, "--resume", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    assert command(["train", "--out", settings.out, "--resume", "--quiet"]) == 2
    assert "finished" in capsys.readouterr().err


def test_what_may_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, "lisa", steps=9, save_every=3)
    with monkeypatch.context() as patch:
        Trip(patch, 5, "backward")
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    with pytest.raises(UsageError, match=r"lr was .*; .*--resume"):
        train(replace(settings, lr=1.0), resume=True)
    data = Path(settings.data)
    text = data.read_text()
    data.write_text(text + text)
    with pytest.raises(UsageError, match="not those that the run began with"):
        train(settings, resume=True)
    with pytest.raises(UsageError, match="holds a run"):
        train(settings)
    data.write_text(text)
    train(settings, resume=True)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint before stays whole, the message is one line, and the run can go on."""
    from layerstats.train import snapshots

    settings = config(tmp_path, "lisa", steps=9, save_every=3, out="run")
    whole = replace(settings, out=str(tmp_path / "whole"))
    train(whole)
    write, calls = snapshots.save_file, []

    def full(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        write(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save_file", full)
        with pytest.raises(LayerstatsError, match="No space left") as caught:
            train(settings)
    assert "\n" not in str(caught.value)
    assert [one.name for one in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    train(settings, resume=True)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_is_under_way_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    settings = config(tmp_path, "lisa", steps=6, save_every=3)
    with monkeypatch.context() as patch:
        Trip(patch, 5, "backward")
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    under_way = RunDirectory.open(settings.out)
    under_way.hold()
    before = (under_way.path / "log.jsonl").read_bytes()
    with pytest.raises(UsageError, match="another process is training here"):
        train(settings, resume=True)
    assert (under_way.path / "log.jsonl").read_bytes() == before
    under_way.release()
    train(settings, resume=True)


def test_a_longer_run_where_the_rate_does_not_depend_on_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr_schedule": "constant", "save_every": 3}
    train(config(tmp_path, "lisa", out="short", steps=6, **options))
    train(config(tmp_path, "lisa", out="long", steps=12, **options))
    longer = config(tmp_path, "lisa", out="short", steps=12, **options)
    train(longer, resume=True)
    same(tmp_path / "long", tmp_path / "short")
    with pytest.raises(UsageError, match="finished"):
        train(longer, resume=True)


def test_the_schedule_of_the_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule file that was changed meanwhile changes nothing in a run that has begun."""
    file = tmp_path / "plan.json"
    build("lisa", num_layers=8, expected_active=2, interval_steps=3, seed=1).save(file)
    settings = config(tmp_path, "lisa", out="whole", schedule=str(file), save_every=4)
    train(settings)
    broken = replace(settings, out=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:
        Trip(patch, 8, "backward")
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    build("lisa", num_layers=8, expected_active=5, interval_steps=2, seed=9).save(file)
    train(broken, resume=True)
    same(tmp_path / "whole", tmp_path / "broken")
