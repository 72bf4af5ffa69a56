"""What bad input gets: one clear line, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from layerstats.cli import run as command
from layerstats.errors import LayerstatsError
from layerstats.schedules import Schedule
from layerstats.schedules import schedule as build
from layerstats.train import TrainConfig, train
from layerstats.train import loop as loop_module
from layerstats.train.examples import FORMS
from tests.train.tiny import LAYERS, config, log, make_data, make_model


def arguments(folder: Path, **options: Any) -> list[str]:
    """A good command line; None leaves an option out."""
    given: dict[str, Any] = {
        "method": "lisa",
        "data": make_data(folder),
        "steps": 4,
        "seq-len": 32,
        "batch-size": 2,
        "out": folder / "run",
        **options,
    }
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return ["train", str(make_model(folder)), *words, "--quiet", "--device=cpu"]


def test_the_good_one_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(arguments(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[0] == "part"
    assert "held-out" not in err
    assert "tokens/s" in err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"method": "lissa"}, 2, "did you mean 'lisa'"),
        ({"method": "owlore"}, 2, "owlore needs a schedule"),
        ({"method": "full", "schedule": "s.json"}, 2, "sample layers"),
        ({"method": None}, 2, "missing --method"),
        ({"data": "gone.jsonl"}, 3, "gone.jsonl"),
        ({"schedule": "gone.json"}, 3, "gone.json"),
        ({"steps": None}, 2, "steps or epochs"),
        ({"epochs": 2}, 2, "both"),
        ({"steps": 0}, 2, "steps must be at least 1"),
        ({"seq-len": 4096}, 2, "2048 positions that the model takes; give seq_len (--seq-len)"),
        ({"seq-len": 1}, 2, "seq_len"),
        ({"lr": -1}, 2, "lr must be at least 0"),
        ({"always-active": "embed,tail"}, 2, "tail"),
        ({"method": "galore", "rank": 500}, 2, "largest rank"),
        ({"method": "galore", "rank-per-layer": "8,8"}, 2, "the model has 8 layers"),
        ({"method": "lora", "rank-per-layer": "8,8"}, 2, "rank_per_layer goes with"),
        ({"track": "frobenius"}, 2, "frobenius_norm"),
        ({"track": "lod"}, 2, "lod"),
        ({"sampling": "random"}, 2, "systematic"),
        ({"validation-fraction": 1.0}, 2, "validation_fraction"),
        ({"state": "forget"}, 2, "drop"),
        ({"dtype": "float8"}, 2, "bfloat16"),
        ({"exact-match": "gone.jsonl"}, 3, "gone.jsonl"),
        ({"validation": "gone.txt"}, 3, "gone.txt"),
    ],
)
def test_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    code: int,
    words: str,
) -> None:
    assert command(arguments(tmp_path, **options)) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert words in lines[0]
    assert not (tmp_path / "run").exists(), "a mistake leaves nothing behind"


def test_a_schedule_of_another_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("lisa", num_layers=12, expected_active=2).save(tmp_path / "twelve.json")
    assert command(arguments(tmp_path, schedule=tmp_path / "twelve.json")) == 2
    err = capsys.readouterr().err
    assert "12 layers" in err
    assert str(LAYERS) in err


@pytest.mark.parametrize("text", ["", "\n\n", "not json\n", '{"question": "?"}\n'])
def test_data_without_anything_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "empty.jsonl").write_text(text)
    assert command(arguments(tmp_path, data=tmp_path / "empty.jsonl")) == 2
    assert "empty.jsonl" in capsys.readouterr().err


def test_a_tokenizer_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path)
    file = Path(words[1]) / "model.safetensors.index.json"
    small = Path(words[1])
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(90)
    for one in small.glob("model*"):
        one.unlink()
    model.save_pretrained(small)
    assert not file.exists()
    assert command(words) == 2
    err = capsys.readouterr().err
    assert "has embeddings for 0..89" in err
    assert "sums.jsonl" in err


def test_no_model_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path)
    assert command([words[0], str(tmp_path / "gone"), *words[2:]]) == 3
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_not_a_number_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the weights are spoilt; the last checkpoint is kept, step and lines are named."""
    settings = config(tmp_path, "lisa", steps=9, save_every=3)
    step = loop_module.optimizer_step

    def spoilt(trainee: Any, batches: Any, *, step: int, check: Any, **options: Any) -> Any:
        def checked(loss: torch.Tensor, norm: torch.Tensor) -> None:
            nan = torch.tensor(float("nan"))
            bad = step == 4
            check(
                nan if bad and where == "loss" else loss,
                nan if bad and where != "loss" else norm,
            )

        return original(trainee, batches, step=step, check=checked, **options)

    original = step
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "optimizer_step", spoilt)
        with pytest.raises(LayerstatsError) as caught:
            train(settings)
    message = str(caught.value)
    assert f"{where} is nan at step 5" in message
    assert "sums.jsonl:" in message
    assert "the checkpoint of step 3 is kept" in message
    assert len(log(tmp_path / "run")) == 4
    train(settings, resume=True)


def test_resume_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([*arguments(tmp_path), "--resume"]) == 3
    assert "run" in capsys.readouterr().err


def test_config_survives_json() -> None:
    settings = TrainConfig(
        model="m", data="d", out="o", method="galore", steps=3, rank_per_layer=(2, 3), track=("a",)
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert replace(settings, lr=1.0) != settings


def test_the_runs_own_schedule_says_what_was_always_active(tmp_path: Path) -> None:
    made = build("lisa", num_layers=LAYERS, expected_active=2, always_active=("norm",))
    made.save(tmp_path / "made.json")
    settings = config(tmp_path, "lisa", steps=2)
    settings = replace(
        settings, schedule=str(tmp_path / "made.json"), always_active=("embed",), steps=2
    )
    train(settings)
    kept = Schedule.from_json(Path(settings.out) / "schedule.json")
    assert kept.always_active == ("embed",)
    assert kept.probabilities == made.probabilities


def test_settings_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "m", "data": "d", "out": "o", "method": "lisa", "steps": 3}
    paths = TrainConfig(**settings | {"model": Path("m"), "schedule": Path("s.json")})
    json.dumps(paths.to_dict())
    numbers = TrainConfig(**settings | {"steps": np.int64(3), "lr": np.float32(0.5)})
    assert numbers == TrainConfig(**settings | {"lr": 0.5})
    json.dumps(numbers.to_dict())
    for name, value in {"steps": 2.5, "batch_size": 1.5, "lr": "1e-3", "rank": True}.items():
        with pytest.raises(LayerstatsError, match=f"{name} must be a .*number"):
            TrainConfig(**settings | {name: value})
    with pytest.raises(LayerstatsError, match=r"unknown dtype torch.float32"):
        TrainConfig(**settings | {"dtype": torch.float32})
    with pytest.raises(LayerstatsError, match="settings are missing: data, out, method"):
        TrainConfig.from_dict({"model": "m"})


def test_keys_of_another_form_are_answered_with_the_forms_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharegpt = tmp_path / "sharegpt.jsonl"
    sharegpt.write_text('{"conversations": [{"from": "human", "value": "a"}]}\n')
    words = arguments(tmp_path, data=sharegpt)
    assert command(words) == 2
    err = capsys.readouterr().err
    assert f"(1 bad line, {sharegpt}:1: keys are 'conversations'; give one of" in err
    assert err.count(FORMS) == err.count("text |") == 1
    sharegpt.write_text("not json\n" * 2)
    assert command(words) == 2
    err = capsys.readouterr().err
    assert f"2 bad lines, the first {sharegpt}:1: not JSON" in err
    assert err.count(FORMS) == 1


def test_a_damaged_shard_is_named_as_measure_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tmp_path)
    model = Path(words[1])
    shard = sorted(model.glob("model-*.safetensors"))[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    assert command(words) == command(["measure", str(model)]) == 4
    trained, measured = capsys.readouterr().err.strip().splitlines()
    assert trained == measured
    assert shard.name in trained
    shard.unlink()
    assert command(words) == 3
    assert f"{shard.name}: missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_that_transformers_prefers_train_beside_a_broken_index(tmp_path: Path) -> None:
    words = arguments(tmp_path)
    folder = Path(words[1])
    model = AutoModelForCausalLM.from_pretrained(folder)
    for one in folder.glob("model*"):
        one.unlink()
    model.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert command(words) == 0
