"""`measure --trust` and `trust DIR` as users see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerstats.cli import run


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def trusted(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "trusted"
    asked = ["measure", str(tiny), "--metrics", "mean_abs,alpha_hill", "--trust", "--out", str(out)]
    assert run([*asked, "--json"]) == 0
    page = strict(capsys.readouterr().out)
    assert page["trust"] == strict((out / "meta.json").read_text())["trust"]
    return out


def test_trust_prints_a_table_the_words_and_the_rules(
    trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trust", str(trusted)]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].split()[:2] == ["metric", "rho"]
    assert [line.split()[0] for line in lines[1:5]] == [
        "alpha_hill", "mean_abs", "alpha_mid", "alpha_ks",
    ]  # fmt: skip
    # Four layers of random numbers: nothing to rank.
    assert "alpha_hill: this ranking of layers is not distinguishable from noise; " in shown
    assert "of 3 other layers overlap that of the top layer" in shown
    assert "bins: distinguishable if the 5 % quantile" in shown
    assert "alpha_hill ~ alpha_mid" in shown


def test_trust_as_json_is_the_page_of_meta_json(
    trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trust", str(trusted), "--json"]) == 0
    page = strict(capsys.readouterr().out)
    assert page == strict((trusted / "meta.json").read_text())["trust"]
    assert page["metrics"]["alpha_hill"]["distinguishable"] is False
    assert page["metrics"]["mean_abs"]["rho_q05"] is None


def test_measure_says_the_verdicts_and_shows_no_bins(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["measure", str(tiny), "--metrics", "mean_abs,alpha_hill", "--trust", "-q"]) == 0
    said = capsys.readouterr().err
    assert "alpha_hill: this ranking of layers is not distinguishable from noise" in said
    assert "mean_abs: computed from the weights alone" in said
    assert run(["measure", str(tiny), "--metrics", "mean_abs", "-q"]) == 0
    assert "from noise" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["without", "missing"])
def test_nothing_to_trust_is_one_line(
    kind: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plain"
    if kind == "without":
        assert run(["measure", str(tiny), "--metrics", "mean_abs", "--out", str(out)]) == 0
    capsys.readouterr()
    assert run(["trust", str(out)]) == (2 if kind == "without" else 3)
    assert len(capsys.readouterr().err.splitlines()) == 1
