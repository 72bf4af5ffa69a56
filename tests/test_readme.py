"""The README's commands and Python run as they stand there, and print what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from layerstats.cli import app, run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINT = "~/.cache/layerstats/smollm2-135m"

pytestmark = pytest.mark.real


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[tuple[list[str], list[str]]]:
    """(arguments, lines shown) of each `$ layerstats` command."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            if command.startswith("layerstats "):
                found.append((shlex.split(command)[1:], [line for line in shown if line.strip()]))
    return found


def shape(line: str) -> str:
    """A line without its numbers and the width of its columns: those may move by a last digit."""
    line = re.sub(r"^\S*smollm2-135m: ", "", line)
    return re.sub(r"-?\d[\d.e+-]*", "#", re.sub(r"\s+", " ", line)).strip()


def test_the_readmes_commands_run_and_print_what_it_shows(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("layerstats", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 7
    for arguments, shown in commands():
        assert run([part.replace(CHECKPOINT, str(smollm2)) for part in arguments]) == 0, arguments
        printed = capsys.readouterr().out.splitlines()
        exact = any("llama2_7b" in part for part in arguments)
        seen = [line if exact else shape(line) for line in printed]
        for line in shown:
            assert line == "..." or (line if exact else shape(line)) in seen, line


def test_the_readmes_python_runs_and_prints_what_it_shows(
    smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = blocks("python")
    exec(compile(code.replace(CHECKPOINT, str(smollm2)), "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"print\(.*\)  # (.*)", code)


def test_the_readme_names_every_command_and_existing_files() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(names) > 5
    for command in names:
        assert f"layerstats {command}" in README or f"make {command}" in README, command
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_readme_quotes_speeds_from_the_results_alone() -> None:
    section = README.split("## Speed and memory")[1].split("\n## ")[0]
    files = sorted((ROOT / "benchmarks").glob("results*.md"))
    results = "".join(file.read_text(encoding="utf-8") for file in files)
    quoted = re.findall(r"\d+\.\d+(?=x| layers)", section)
    assert len(quoted) >= 8
    for number in quoted:
        assert f"| {number}" in results, number
