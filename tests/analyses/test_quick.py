"""Every analysis runs with --quick, without network, and leaves a picture and a strict JSON."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "figures"
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "analyses").glob("*.py")
    if re.search(r"^def main\(argv", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
)
KEYS = {"command", "date", "seconds", "model"}
#: Those that compare with a published number say so, and in words.
EXPLAINED = {"inputs", "published", "same_direction", "reading"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all: what two analyses need is made once."""
    return tmp_path_factory.mktemp("runs")


def strict(file: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {file.name}")

    found = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def check(name: str, figures: Path) -> dict[str, Any]:
    picture = (figures / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    found = strict(figures / f"{name}.json")
    assert found.keys() >= KEYS | EXPLAINED
    assert found["command"].startswith(f"python -m analyses.{name}")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert found["seconds"] > 0
    assert len(found["reading"]) > 60
    assert found["same_direction"] in (True, False, None)
    return found


def test_the_scripts_are_found() -> None:
    assert {"loss_curves", "sampling_laws", "lod_anatomy"} <= set(SCRIPTS)
    assert "bench" not in SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_quick_run_writes_both_files(
    name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fetch in ("demo_checkpoint", "word_problems"):
        monkeypatch.delattr(f"layerstats.demo_data.{fetch}")
    source = (ROOT / "analyses" / f"{name}.py").read_text(encoding="utf-8")
    few = [
        word
        for option in ("seeds", "rounds")
        if re.search(rf"\b{option}=\d", source)
        for word in (f"--{option}", "1")
    ]
    folders = ["--runs", str(runs), "--figures", str(tmp_path)]
    importlib.import_module(f"analyses.{name}").main(["--quick", *folders, *few])
    assert "--quick" in check(name, tmp_path)["command"]


@pytest.mark.parametrize(
    "name", sorted(f.stem for f in FIGURES.glob("*.json") if f.stem in SCRIPTS)
)
def test_what_is_committed_is_a_full_run(name: str) -> None:
    assert "--quick" not in check(name, FIGURES)["command"]
