"""Every family goes through inspect, measure and schedule; its LOD is the full-model oracle's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from layerstats import LayerStats, open_checkpoint
from layerstats.cli import run
from tests.families import MAIN_FAMILIES, make_family
from tests.oracles import outliers as outlier_oracle
from tests.oracles.calibration import full_model_sums

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 8
WINDOWS, SEQ_LEN = 6, 24


def model_and_text(family: str, folder: Path) -> tuple[Path, Path]:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    return make_family(family, folder / family), text


def test_a_text_of_fewer_windows_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = model_and_text("llama", tmp_path)
    command = ["measure", str(folder), "--metrics", "lod", "--tokens", str(text), "--seq-len", "24"]
    assert run([*command, "--samples", "6"]) == 0
    said = capsys.readouterr().err
    assert "asked for" not in said
    assert "experts" not in said
    assert run(command) == 0
    said = f"the text gives {len(TEXT) // 24} windows of 24 tokens; 128 were asked for (--samples)"
    assert said in capsys.readouterr().err


def test_experts_that_no_token_reached_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = model_and_text("mixtral", tmp_path)
    command = ["measure", str(folder), "--metrics", "lod", "--tokens", str(text), "--samples", "1"]
    assert run([*command, "--seq-len", "1"]) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"\d+ matrices of experts saw no token: .* LOD of their blocks is too low", said
    )


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_family(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = model_and_text(family, tmp_path)
    assert run(["inspect", str(folder), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["num_layers"] == 4
    out = tmp_path / "stats"
    arguments = [
        "--tokens",
        str(text),
        "--samples",
        str(WINDOWS),
        "--seq-len",
        str(SEQ_LEN),
        "--m",
        "2,7",
    ]
    assert (
        run(
            [
                "measure",
                str(folder),
                "--metrics",
                "lod,frobenius_norm,alpha_mid",
                *arguments,
                "--out",
                str(out),
            ]
        )
        == 0
    )
    stats = LayerStats.load(out)
    assert stats.meta["unseen"] == {}
    assert (
        run(
            [
                "schedule",
                str(out),
                "--rule",
                "owlore",
                "--metric",
                "lod_m2",
                "--expected-active",
                "2",
            ]
        )
        == 0
    )
    capsys.readouterr()

    checkpoint = open_checkpoint(folder)
    sums, tokens, kernel = full_model_sums(folder, windows(folder))
    assert stats.meta["calibration"]["attention"] == kernel
    for layer in range(4):
        matrices = checkpoint.layout.of_layer(layer)
        assert {matrix.key for matrix in matrices} == {
            key for key in sums if re.search(rf"(layers|h)\.{layer}\.", key)
        }
        scores = [
            outlier_oracle.scores(checkpoint.read_matrix(matrix), np.sqrt(sums[matrix.key]))
            for matrix in matrices
        ]
        for m in (2, 7):
            expected = outlier_oracle.lod_pct(scores, m)
            assert stats.layer_column(f"lod_m{m}")[layer] == pytest.approx(
                expected, rel=1e-4, abs=1e-12
            )
    if page["matrices"][-1]["expert"] is not None:
        assert sum(tokens.values()) > 0


def windows(folder: Path) -> torch.Tensor:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(TEXT, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: WINDOWS * SEQ_LEN]).view(WINDOWS, SEQ_LEN)
