"""Model configs by name, so that a plan needs no checkpoint: sizes of public models as data.

Only what decides memory is here: shapes, heads, tied tables, positions. Weights are not, and no
network is asked.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerstats.errors import CheckpointError, MissingError, choices

__all__ = ["PRESETS", "model_config"]


def _llama(
    hidden: int, inner: int, layers: int, heads: int, kv: int, **rest: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **rest,
    }


def _llama3(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    third = {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}
    return _llama(hidden, inner, layers, heads, 8, **third)


def _qwen(
    hidden: int, inner: int, layers: int, heads: int, kv: int, *, tied: bool, vocab: int = 152064
) -> dict[str, Any]:
    return {
        **_llama(hidden, inner, layers, heads, kv),
        "model_type": "qwen2",
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8),
    "llama-3-8b": _llama3(4096, 14336, 32, 32),
    "llama-3-70b": _llama3(8192, 28672, 80, 64),
    "mistral-7b": _llama(
        4096, 14336, 32, 32, 8, model_type="mistral", max_position_embeddings=32768,
        sliding_window=4096,
    ),
    "qwen2.5-0.5b": _qwen(896, 4864, 24, 14, 2, tied=True, vocab=151936),
    "qwen2.5-1.5b": _qwen(1536, 8960, 28, 12, 2, tied=True, vocab=151936),
    "qwen2.5-3b": _qwen(2048, 11008, 36, 16, 2, tied=True, vocab=151936),
    "qwen2.5-7b": _qwen(3584, 18944, 28, 28, 4, tied=False),
    "qwen2.5-14b": _qwen(5120, 13824, 48, 40, 8, tied=False),
    "qwen2.5-32b": _qwen(5120, 27648, 64, 40, 8, tied=False),
    "qwen2.5-72b": _qwen(8192, 29568, 80, 64, 8, tied=False),
    "smollm2-135m": _llama(
        576, 1536, 30, 9, 3, vocab_size=49152, max_position_embeddings=8192, rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
}  # fmt: skip
"""What transformers' config class of `model_type` is given, by name.

From the config.json files published with Llama 2, Llama 3, Mistral 7B v0.1, Qwen2.5 (base) and
SmolLM2-135M.
"""


def model_config(source: str | Path | Any) -> Any:
    """Return the transformers config of a preset, a config.json or a checkpoint directory.

    Parameters
    ----------
    source : str, Path or transformers config
        A name of `PRESETS`, a ``*.json`` file, or a directory with a config.json; a file of
        weights stands for the directory it is in. Of a config a copy is made.

    Returns
    -------
    transformers.PreTrainedConfig

    Raises
    ------
    MissingError
        Neither a preset nor a file or directory of that name; no config.json in the directory.
    CheckpointError
        The file is no JSON object, or its model type is unknown to transformers.

    Examples
    --------
    >>> model_config("llama-2-7b").hidden_size
    4096
    >>> model_config("llama2-7b")
    Traceback (most recent call last):
    ...
    layerstats.errors.MissingError: unknown preset 'llama2-7b'; did you mean 'llama-2-7b'? ...
    """
    if hasattr(source, "model_type"):
        return copy.deepcopy(source)
    name = str(source)
    if name.lower() in PRESETS:
        return _build(PRESETS[name.lower()], name)
    path = Path(source)
    if not path.exists():
        hint = "; a config.json or a directory with one will do too, but this path does not exist"
        raise MissingError(choices("preset", name, PRESETS) + hint)
    if path.suffix != ".json" or path.name.endswith(".index.json"):
        path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        msg = f"{path}: there is no config.json; give one, or a preset: {', '.join(PRESETS)}"
        raise MissingError(msg)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read as JSON ({error}); give the config.json of a model"
        raise CheckpointError(msg) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        msg = f"{path}: has no model_type; give the config.json of a transformers model"
        raise CheckpointError(msg)
    return _build(settings, str(path))


def _build(settings: Mapping[str, Any], source: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = settings["model_type"]
    if kind not in CONFIG_MAPPING:
        msg = f"{source}: transformers does not know the model type {kind!r}"
        raise CheckpointError(msg)
    rest = {key: value for key, value in settings.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(kind, **rest)
    except Exception as error:  # configs of others fail in any way there is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"{source}: transformers cannot make a config of it: {reason}"
        raise CheckpointError(msg) from error
