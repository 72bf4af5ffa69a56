"""One block in memory at a time, hidden states within a budget, no trace left behind."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from layerstats.calibration import hidden, visit
from layerstats.calibration.hidden import HiddenStates
from layerstats.calibration.quiet import quiet
from layerstats.calibration.stack import Stack
from layerstats.errors import LayerstatsError
from tests.calibration.conftest import SAMPLES, SEQ_LEN, Family
from tests.calibration.test_full_model import assert_same, measured, rewrite, tensors_of
from tests.families import VOCABULARY, make_tokenizer


@pytest.mark.parametrize("name", ["llama", "mixtral", "rwkv"])
def test_one_block_at_a_time(
    name: str, family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a block is loaded, nothing of an earlier one is alive any more."""
    alive: list[weakref.ref[torch.Tensor]] = []
    peaks: list[int] = []
    load = Stack.load_block

    def watched(self: Stack, number: int) -> dict[str, torch.Tensor]:
        gc.collect()
        assert not [ref for ref in alive if ref() is not None and not ref().is_meta]
        parameters = load(self, number)
        real = [b for block in self.blocks for b in block.parameters() if not b.is_meta]
        peaks.append(len({id(value) for value in real}) - len(parameters))
        alive.extend(weakref.ref(value) for value in parameters.values())
        return parameters

    monkeypatch.setattr(Stack, "load_block", watched)
    seen: list[tuple[int, int]] = []
    measured(family(name), text, progress=lambda done, total: seen.append((done, total)))
    assert peaks == [0] * 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounts")
def test_the_process_does_not_grow_from_block_to_block(tmp_path: Path, text: Path) -> None:
    """Freed blocks must go back to the system: glibc by itself would keep one for each block."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=6,
    )
    with torch.random.fork_rng(devices=[]), quiet(torch.device("cpu")):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(tmp_path)
    block_bytes = 4 * sum(p.numel() for p in model.model.layers[0].parameters())
    del model
    make_tokenizer(tmp_path)
    sizes: list[int] = []
    measured(tmp_path, text, progress=lambda done, total: sizes.append(anonymous_bytes()))
    assert len(sizes) == 12
    assert sizes[-1] - sizes[1] < block_bytes


def test_only_embedding_rows_that_occur_are_read(
    family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerstats.checkpoint.reader import Checkpoint

    read: list[str] = []
    whole = Checkpoint.read

    def watched(self: Checkpoint, name: str) -> torch.Tensor:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(Checkpoint, "read", watched)
    for name in ("llama", "llama_tied", "gpt2", "opt", "bloom", "gpt_neox"):
        read.clear()
        measured(family(name), text)
        assert read
        shapes = {n: tensor.shape for n, tensor in tensors_of(family(name)).items()}
        assert not [n for n in read if VOCABULARY in shapes[n]], name
        assert len(read) == len(set(read)), "a tensor was read twice"


def test_whole_embedding_where_rows_are_not_enough(
    family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that multiplies with its embedding itself cannot do with rows."""
    expected = measured(family("llama"), text)
    run = Stack.run

    def needs_table(self: Stack, ids: torch.Tensor) -> None:
        _ = float(self.decoder.embed_tokens.weight.sum())
        run(self, ids)

    monkeypatch.setattr(Stack, "run", needs_table)
    assert_same(measured(family("llama"), text), expected)


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_spilled_states_change_no_bit(
    name: str,
    dtype: str,
    family: Family,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = measured(family(name), text, dtype=dtype)
    assert expected.info["hidden_states"] == "memory"
    size = SAMPLES * SEQ_LEN * 64 * (4 if dtype == "float32" else 2)
    assert (
        measured(family(name), text, dtype=dtype, hidden_budget_bytes=size).info["hidden_states"]
        == "memory"
    )
    found = measured(family(name), text, dtype=dtype, hidden_budget_bytes=size - 1)
    assert found.info["hidden_states"] == "disk"
    assert_same(found, expected)
    assert list(tmp_path.iterdir()) == []


def open_files() -> int:
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.exists() else 0


def test_no_file_is_left_after_an_error(
    own: Family, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = own("llama")
    tensors = tensors_of(directory)
    tensors["model.layers.2.mlp.up_proj.weight"].fill_(float("nan"))
    rewrite(directory, tensors)
    spill = tmp_path / "spill"
    spill.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spill))
    before = open_files()
    with pytest.raises(LayerstatsError, match="block 2"):
        measured(directory, text, hidden_budget_bytes=0)
    gc.collect()
    assert list(spill.iterdir()) == []
    assert before == open_files()


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hidden.tempfile, "TemporaryFile", full)
    states = HiddenStates(2, budget_bytes=0)
    with pytest.raises(LayerstatsError, match=r"No space left on device\); set TMPDIR"):
        states.put(0, torch.ones(1, 2, 3))


def test_states_keep_shape_and_dtype() -> None:
    with HiddenStates(3, budget_bytes=0) as states:
        for window in range(3):
            states.put(window, torch.full((1, 2, 3), float(window), dtype=torch.bfloat16))
        states.put(1, torch.full((1, 2, 3), 7.0, dtype=torch.bfloat16))
        assert [float(states.get(window).sum()) for window in range(3)] == [0.0, 42.0, 12.0]
        with pytest.raises(LayerstatsError, match="change from"):
            states.put(2, torch.zeros(1, 2, 4, dtype=torch.bfloat16))


def snapshot() -> dict[str, Any]:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.utils import logging

    return {
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "rng": torch.random.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "verbosity": logging.get_verbosity(),
        "bars": logging.is_progress_bar_enabled(),
        "hub bars": are_progress_bars_disabled(),
        "experts": sorted(ALL_EXPERTS_FUNCTIONS.valid_keys()),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "python threads": {thread.name for thread in threading.enumerate()},
    }


@pytest.mark.parametrize("name", ["llama", "mixtral", "bamba"])
@pytest.mark.parametrize("fails", [False, True])
def test_global_state_is_restored(
    name: str, fails: bool, family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    measured(family(name), text)  # first imports may register things
    if fails:
        add = visit.Visits._add

        def break_late(self: visit.Visits, number: int, recorder: Any) -> None:
            add(self, number, recorder)
            if number == 2:
                raise LayerstatsError("for the test")

        monkeypatch.setattr(visit.Visits, "_add", break_late)
    logging.set_verbosity_info()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = snapshot()
        if fails:
            with pytest.raises(LayerstatsError, match="for the test"):
                measured(family(name), text)
        else:
            measured(family(name), text)
        assert snapshot() == before
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity_warning()


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "bert", "bamba"])
def test_nothing_is_printed(
    name: str, family: Family, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """These make transformers warn about their config, or show a bar for each block."""
    family(name)
    capfd.readouterr()
    measured(family(name), text)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
