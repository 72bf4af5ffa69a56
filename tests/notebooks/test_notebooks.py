"""The notebooks run from top to bottom on the tiny model; what is committed is of a real run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKPOINT = "LAYERSTATS_NOTEBOOK_CHECKPOINT"


def load(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(notebook: dict[str, Any]) -> list[str]:
    """All that the outputs say, pictures left out."""
    found = []
    for cell in code(notebook):
        for output in cell["outputs"]:
            found += ["".join(output.get("text", []))]
            data = output.get("data", {})
            found += ["".join(data[kind]) for kind in data if kind.startswith("text/")]
    return found


@pytest.fixture(scope="session")
def runner() -> ModuleType:
    pytest.importorskip("nbclient", reason="nbclient runs the notebooks (dependency group dev)")
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from layerstats.demo_data import random_checkpoint

    return random_checkpoint(tmp_path_factory.mktemp("notebooks") / "tiny")


def test_there_are_the_three() -> None:
    assert [file.name[:2] for file in NOTEBOOKS] == ["01", "02", "03"]


# jupyter_client and zmq leave loops and sockets to the garbage collector; none of it is ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs_on_the_tiny_model(
    file: Path, runner: ModuleType, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in a cell is raised; every cell that shows something still does."""
    monkeypatch.setenv(CHECKPOINT, str(tiny_checkpoint))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fresh, kept = runner.execute(file, timeout_seconds=300), load(file)
    shown = [[output["output_type"] for output in cell["outputs"]] for cell in code(fresh)]
    assert [bool(one) for one in shown] == [bool(cell["outputs"]) for cell in code(kept)]
    for cell in code(fresh):
        for output in cell["outputs"]:
            assert output.get("name") != "stderr", output["text"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_is_committed_was_run_in_order_and_is_clean(file: Path) -> None:
    notebook = load(file)
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) >= 5
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell["outputs"])
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not cell["metadata"] for cell in notebook["cells"])
    assert file.stat().st_size < 400_000
    for text in texts(notebook):
        assert not re.search(r"/(home|root|Users|tmp|work|private)/", text), text
    for cell in cells:
        assert all(output.get("name") != "stderr" for output in cell["outputs"])


@pytest.mark.parametrize("file", NOTEBOOKS[:2], ids=lambda file: file.stem)
def test_measurements_are_committed_from_the_real_checkpoint(file: Path) -> None:
    """SmolLM2-135M has 30 layers and 210 matrices, the tiny model 8 and 56."""
    joined = "\n".join(texts(load(file)))
    assert "30 blocks at model.layers" in joined or "a tie in 107 of 210 matrices" in joined


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_says_how_to_choose_the_checkpoint(file: Path) -> None:
    assert CHECKPOINT in "".join(load(file)["cells"][0]["source"])
    assert any(CHECKPOINT in "".join(cell["source"]) for cell in code(load(file)))
