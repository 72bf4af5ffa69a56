"""Tiny checkpoints made once for all tests of this room, and the text they are calibrated on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families import make_family

SAMPLES, SEQ_LEN = 4, 32

Family = Callable[[str], Path]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """family(name): the directory of a tiny checkpoint; not to be written to."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_family(name, tmp_path_factory.mktemp("families") / name)
        return made[name]

    return get


@pytest.fixture
def own(family: Family, tmp_path: Path) -> Family:
    """own(name): a copy of a tiny checkpoint that a test may change."""

    def get(name: str) -> Path:
        return Path(shutil.copytree(family(name), tmp_path / f"own-{name}"))

    return get


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (
        f"Sentence {i} tells of {i * 7 % 13} whales and {i * i % 17} ships.\n" for i in range(60)
    )
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def ids(family: Family, text: Path) -> torch.Tensor:
    """The windows the text is cut into, worked out by hand."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(family("llama"))
    tokens = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    return torch.tensor(tokens[: SAMPLES * SEQ_LEN]).view(SAMPLES, SEQ_LEN)
