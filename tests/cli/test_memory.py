"""`layerstats memory`: plans, sweeps, budgets and their mistakes, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstats.cli import run
from layerstats.demo_data import random_checkpoint

SMALL = ["--seq-len=16", "--batch-size=1", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_checkpoint(tmp_path_factory.mktemp("memory") / "model"))


def test_one_plan(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", model, "--method=owlore", "--rank=8", *SMALL]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "part", "weights", "gradients", "optimizer", "activations", "together",
    ]  # fmt: skip
    assert "simulated peak" in err
    assert run([*words, "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    wanted = {"method", "peak_bytes", "peak_phase", "parts_at_peak_bytes", "sum_of_parts_bytes"}
    assert wanted | {"reserved_bytes_estimate", "assumptions", "simulated"} <= page.keys()
    assert sum(page["parts_at_peak_bytes"].values()) == page["peak_bytes"]
    assert page["settings"]["rank"] == 8


def test_a_config_file_is_enough(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text((Path(model) / "config.json").read_text())
    sizes = []
    for source in (model, str(file)):
        assert run(["memory", source, "--method=full", "--json", *SMALL]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["peak_bytes"])
    assert sizes[0] == sizes[1]


def test_sweep_and_picture(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bars.png"
    words = ["memory", model, "--method=owlore", "--sweep", "expected-active=1,4", "rank=4,8"]
    assert run([*words, "--plot", str(file), *SMALL]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["expected_active", "rank"]
    assert [row[:2] for row in rows[1:]] == [["1", "4"], ["1", "8"], ["4", "4"], ["4", "8"]]
    assert file.stat().st_size > 5000
    assert run([*words, "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert found[0]["peak_bytes"] < found[2]["peak_bytes"]


def test_several_methods_are_a_sweep(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["memory", model, "--method=lisa,full", "--expected-active=1", *SMALL]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["method", "lisa", "full"]


def test_budget(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", model, "--method=lisa", *SMALL]
    assert run([*words, "--budget=1GB"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:2] == ["lisa", "8"]
    assert run([*words, "--budget=1MB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["llama-2-7", "--method=lisa"], 3, "llama-2-7b"),
        (["llama-2-7b"], 2, "missing --method"),
        (["llama-2-7b", "--method=lissa"], 2, "did you mean 'lisa'"),
        (["llama-2-7b", "--method=lisa", "--sweep", "rank"], 2, "NAME=VALUES"),
        (["llama-2-7b", "--budget=24 bananas"], 2, "24GB"),
        (["llama-2-7b", "--budget=0GB"], 2, "above 0"),
    ],
)
def test_mistakes(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["memory", *words, "--quiet"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1
