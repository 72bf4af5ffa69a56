"""The command line as users see it: documents on stdout, one line for a mistake, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.cli import run
from tests.conftest import llama_tensors, write_checkpoint

COMMANDS = ["inspect", "measure", "metrics", "trust", "correlate", "plot", "schedule", "demo"]


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    return strict(capsys.readouterr().out)


@pytest.fixture
def stats(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "stats"
    assert run(["measure", str(tiny), "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def test_inspect(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = document(capsys, "inspect", str(tiny))
    assert page["num_layers"] == 4
    assert page["layers_path"] == "model.layers"
    assert page["tied_embeddings"] is True
    assert page["parameters"] == sum(weight.numel() for weight in llama_tensors().values())
    assert page["bytes"] == 4 * page["parameters"]
    assert len(page["matrices"]) == 4 * 7 + 1
    assert {skip["reason"] for skip in page["skipped"]} == {"norm weight"}
    first = page["matrices"][0]
    assert (first["name"], first["kind"], first["layer"]) == (
        "model.embed_tokens.weight",
        "embed",
        None,
    )
    down = next(row for row in page["matrices"] if row["module"] == "mlp.down_proj")
    assert (down["shape"], down["dtype"], down["layer"], down["kind"]) == (
        [16, 48],
        "F32",
        0,
        "mlp",
    )
    assert run(["inspect", str(tiny)]) == 0
    assert "4 layers at model.layers" in capsys.readouterr().out


def test_measure(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = document(
        capsys, "measure", str(tiny), "--metrics", "frobenius_norm", "--out", str(tmp_path / "s")
    )
    assert page["num_layers"] == 4
    assert page["matrices"] == 29
    assert page["skipped"] == []
    assert page["out"] == str(tmp_path / "s")
    strict((tmp_path / "s" / "meta.json").read_text())


def test_strict_fails_when_something_could_not_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = llama_tensors()
    tensors["model.layers.2.mlp.up_proj.weight"].fill_(float("nan"))
    tensors["model.layers.1.mlp.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
    folder = write_checkpoint(tmp_path / "bad", tensors)
    page = document(capsys, "measure", str(folder), "--metrics", "alpha_mid,frobenius_norm")
    assert {row["name"] for row in page["skipped"]} == {
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.1.mlp.qweight",
    }
    assert run(["measure", str(folder), "--metrics", "alpha_mid", "--strict"]) == 6
    assert "2 tensors could not be measured" in capsys.readouterr().err


def test_correlate_and_plot(
    stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = document(capsys, "correlate", str(stats), "--metrics", "frobenius_norm,heavy_tail")
    [pair] = page["pairs"]
    assert (pair["x"], pair["y"], pair["n"], pair["method"]) == (
        "frobenius_norm",
        "heavy_tail",
        4,
        "spearman",
    )
    assert -1 <= pair["interval"][0] <= pair["interval"][1] <= 1
    assert run(["correlate", str(stats), "--metrics", "frobenius_norm,heavy_tail"]) == 0
    assert "4 layers are too few to tell a correlation from chance" in capsys.readouterr().err
    for kind in ("layer-norms", "alpha", "esd"):
        picture = tmp_path / f"{kind}.svg"
        assert run(["plot", str(stats), "--kind", kind, "--out", str(picture)]) == 0
        assert picture.read_text().lstrip().startswith("<?xml")
    correlation = tmp_path / "c.png"
    assert (
        run(
            [
                "plot",
                str(stats),
                "--kind",
                "correlation",
                "--metrics",
                "mean_abs,heavy_tail",
                "--out",
                str(correlation),
            ]
        )
        == 0
    )
    assert correlation.read_bytes().startswith(b"\x89PNG")


def test_published_scores_correlate_as_the_paper_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OwLore's Figure 2 on public numbers: LOD of LLaMA-2-7B against minus alpha, block means."""
    data = Path(__file__).parents[1] / "data"
    alphas = [float(line) for line in (data / "llama2_7b_alpha_peak.txt").read_text().split()]
    means = [-sum(alphas[start : start + 7]) / 7 for start in range(0, 224, 7)]
    reversed_alpha = tmp_path / "heavy_tail.txt"
    reversed_alpha.write_text("".join(f"{value!r}\n" for value in means))
    lod = data / "llama2_7b_lod_m13_percent.txt"
    [pair] = document(capsys, "correlate", str(lod), str(reversed_alpha))["pairs"]
    assert round(pair["rho"], 3) == 0.775
    assert pair["p_value"] == pytest.approx(1.9e-7, rel=0.02)
    assert run(["correlate", str(lod), str(reversed_alpha)]) == 0
    assert "0.775" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["inspect", "nowhere"], 3, "nowhere"),
        (["inspect"], 2, "CKPT"),
        (["frobnicate"], 2, "frobnicate"),
        (["measure", "nowhere"], 3, "nowhere"),
        (["measure", "TINY", "--metrics", "alpha"], 2, "unknown metric 'alpha'"),
        (["measure", "TINY", "--metrics", "lod"], 2, "--tokens"),
        (["measure", "TINY", "--metrics", "lod", "--tokens", "TINY/config.json"], 3, "config.json"),
        (["measure", "TINY", "--metrics", "mean_abs", "--tokens", "x"], 2, "leave --tokens out"),
        (["measure", "TINY", "--metrics", ""], 2, "no metric given"),
        (["measure", "TINY", "--tokens", "TINY/config.json"], 3, "config.json"),
        (["measure", "TINY", "--m", "seven"], 2, "--m is 'seven'"),
        (["measure", "TINY", "--workers", "two"], 2, "--workers"),
        (["correlate", "nowhere"], 3, "nowhere"),
        (["correlate", "nowhere", "--metrics", "a,b"], 3, "nowhere: no such file or directory"),
        (["schedule", "nowhere", "--rule", "owlore"], 3, "give a statistics directory, a text"),
        (
            ["plot", "TINY", "--kind", "schedule", "--out", "x.png"],
            2,
            "a directory, not a schedule",
        ),
        (["export", "TINY", "--to", "axolotl"], 2, "a directory, not a schedule"),
        (["plot", "nowhere", "--kind", "lod", "--out", "x.png"], 3, "nowhere"),
        (["plot", "TINY", "--kind", "pie", "--out", "x.png"], 2, "pie"),
        (["schedule", "--rule", "lisa"], 2, "expected-active"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    arguments: list[str], code: int, text: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([part.replace("TINY", str(tiny)) for part in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda file: file.write_bytes(b""), 4),
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), 4),
        (lambda file: file.unlink(), 3),
        (lambda file: file.write_bytes(b"\xff" * 100), 4),
    ],
    ids=["empty", "truncated", "missing", "garbage"],
)
@pytest.mark.parametrize("command", ["inspect", "measure"])
def test_a_damaged_shard_is_named(
    damage: Any,
    code: int,
    command: str,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(tiny / "model-00002-of-00003.safetensors")
    extra = ["--out", str(tmp_path / "out")] if command == "measure" else []
    assert run([command, str(tiny), *extra]) == code
    shown = capsys.readouterr().err
    assert "model-00002-of-00003.safetensors" in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_lod_without_a_tokenizer_is_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 100)
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 16, "vocab_size": 40}
    config |= {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}
    (tiny / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    assert (
        run(["measure", str(tiny), "--metrics", "lod", "--tokens", str(text), "--out", str(out)])
        == 3
    )
    shown = capsys.readouterr().err
    assert "tokenizer" in shown
    assert shown.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "Usage: layerstats" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [1, 0])
def test_a_closed_pipe_is_no_error(lines: int, tiny: Path) -> None:
    command = f"{sys.executable} -m layerstats inspect {tiny} --json"
    script = f"set -o pipefail; {command} | {'head -1' if lines else 'true'}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_on_the_hub_is_told_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "owner/name"]) == 3
    assert "hf download owner/name --local-dir name" in capsys.readouterr().err
    assert run(["inspect", "some/where/name"]) == 3
    assert "hf download" not in capsys.readouterr().err


def test_an_interrupt_leaves_with_130(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("layerstats.measurement.measure", interrupt)
    assert run(["measure", str(tiny)]) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_bug_of_ours_is_one_line_too(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom\nand more")

    monkeypatch.delenv("LAYERSTATS_DEBUG", raising=False)
    monkeypatch.setattr("layerstats.measurement.measure", fail)
    assert run(["measure", str(tiny)]) == 1
    shown = capsys.readouterr().err
    assert "please report" in shown
    assert "Traceback" not in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("layerstats 0.")


def test_the_demo_goes_on_without_a_registry(tmp_path: Path) -> None:
    """Offline: the demo says so and works on a random model, labelled as one."""
    environment = os.environ | {
        "LAYERSTATS_CACHE_DIR": str(tmp_path / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
    }
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "layerstats", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "RANDOM" in done.stderr
    assert len(list(out.glob("*.png"))) == 6
    assert strict((out / "schedule.json").read_text())["rule"] == "owlore"
