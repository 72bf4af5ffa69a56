"""Everything that touches the insides of transformers (>= 5), each behind one function.

Build a model without weights, find its blocks, learn which checkpoint tensor becomes which
parameter, load a few tensors through transformers' own conversion, make buffers real, free a block
again. Nothing else in layerstats imports these names; `tests/calibration/test_hf_canary.py` tells
first when transformers moves one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerstats.errors import CheckpointError, LayerstatsError

__all__ = [
    "Plan",
    "build_model",
    "convert",
    "find_blocks",
    "find_decoder",
    "free",
    "load",
    "make_buffers_real",
    "make_plan",
]


@dataclass(frozen=True)
class Plan:
    """Which stored tensor becomes which parameter.

    `target` maps a stored name to the (first) parameter made from it, `key` to the name
    transformers is given for it, `pattern` to the source pattern of the converter it goes through
    (None: taken as it is); `unexpected` are the stored names that the model has no place for.
    """

    target: dict[str, str]
    key: dict[str, str]
    pattern: dict[str, str | None]
    unexpected: tuple[str, ...]
    mapping: tuple[Any, ...]

    def sources(self, target: str) -> list[str]:
        """Return the stored names that become one parameter, in the order they are joined."""
        from transformers.core_model_loading import dot_natural_key

        names = [name for name, found in self.target.items() if found == target]
        return sorted(names, key=lambda name: dot_natural_key(self.key[name]))


def build_model(config: Mapping[str, Any], directory: Path, *, dtype: torch.dtype) -> Any:
    """Build the model of a config.json in `directory` on the meta device: no weight has memory.

    Causal language models are preferred; a type without one (DistilBERT, ModernBERT, a multimodal
    model) is built as its bare model. The attention kernel is transformers' own choice; experts run
    one by one ("eager"), since the fused kernels hide which token goes where.

    Raises
    ------
    CheckpointError
        The architecture is not part of transformers, or its config does not fit it.
    """
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_MAPPING,
        AutoModel,
        AutoModelForCausalLM,
        __version__,
    )

    model_type = config.get("model_type")
    name = ", ".join(config.get("architectures") or []) or f"of model_type {model_type!r}"
    if model_type not in CONFIG_MAPPING:
        msg = (
            f"config.json: the architecture {name} needs code from outside transformers "
            f"{__version__}, which is never run; a newer transformers may know the model"
        )
        raise CheckpointError(msg)
    try:
        # Read once more by its own class, which knows its older spellings and its infinities.
        made = CONFIG_MAPPING[model_type].from_pretrained(directory, local_files_only=True)
        text = made.get_text_config(decoder=True)
        if getattr(made, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
            msg = (
                f"config.json: {name} is an encoder-decoder; activations can be calibrated for "
                "models of one stack only (weight-only metrics work)"
            )
            raise CheckpointError(msg)
        for part in (made, text):
            part.use_cache = False
        if type(made) in MODEL_FOR_CAUSAL_LM_MAPPING:
            auto: Any = AutoModelForCausalLM
        elif type(made) in MODEL_MAPPING:
            auto = AutoModel
        else:
            msg = f"config.json: transformers {__version__} has no text model for {name}"
            raise CheckpointError(msg)
        with torch.device("meta"):
            model = auto.from_config(made, dtype=dtype, trust_remote_code=False)
        model.set_experts_implementation("eager")
    except LayerstatsError:
        raise
    except Exception as error:  # configs of others fail in any way there is
        msg = f"config.json: transformers cannot build {name}: {_first_line(error)}"
        raise CheckpointError(msg) from error
    return model.eval()


def find_decoder(model: Any) -> tuple[str, Any]:
    """Return name and module of the text stack: embedding, blocks, final norm, no output head."""
    decoder = model.get_decoder()
    if decoder is None or decoder is model:
        decoder = model.base_model
    return next(name for name, module in model.named_modules() if module is decoder), decoder


def find_blocks(decoder: Any, config: Any) -> tuple[str, list[nn.Module]]:
    """Return the name inside the decoder and the modules of its block list.

    It is the shallowest list with as many entries as the config has layers, the largest of several.

    Raises
    ------
    CheckpointError
        There is none.
    """
    count = getattr(config, "num_hidden_layers", None)
    found = [
        (name.count("."), -sum(p.numel() for p in module.parameters()), name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(next(block.parameters(), None) is not None for block in module)
    ]
    if not found:
        msg = (
            f"{type(decoder).__name__} holds no list of {count} blocks; "
            "its activations cannot be calibrated"
        )
        raise CheckpointError(msg)
    _, _, name, blocks = min(found, key=lambda entry: entry[:3])
    return name, list(blocks)


def make_plan(model: Any, names: Mapping[str, str]) -> Plan:
    """Work out which stored tensor becomes which parameter, with transformers' own renaming.

    Parameters
    ----------
    model
        From `build_model`.
    names
        Stored name -> the same without training wrappers, tried where the stored name fits nothing.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = tuple(get_model_conversion_mapping(model))
    work = deepcopy(mapping)  # renaming leaves marks in the entries
    renamings = [entry for entry in work if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in work if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix

    def rename(key: str) -> tuple[str, str | None]:
        target, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if target not in state and key in state:
            target, pattern = rename_source_key(key, [], [], prefix, state)
        return target, pattern

    targets: dict[str, str] = {}
    keys: dict[str, str] = {}
    patterns: dict[str, str | None] = {}
    unexpected: list[str] = []
    for name, clean in names.items():
        for key in dict.fromkeys((name, clean)):
            target, pattern = rename(key)
            if target in state:
                targets[name], keys[name], patterns[name] = target, key, pattern
                break
        else:
            unexpected.append(name)
    made = {target: name for name, target in targets.items()}
    for one, other in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        # A tied pair of which the file holds only the head: it is the embedding's source.
        if other not in made and one in made and other in state:
            targets[made[one]], keys[made[one]], patterns[made[one]] = other, other, None
    return Plan(targets, keys, patterns, tuple(sorted(unexpected)), mapping)


class _Lazy:
    """A tensor that is read from the file when transformers asks for it."""

    def __init__(self, read: Callable[[str], torch.Tensor], name: str) -> None:
        self._read, self._name = read, name

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self._read(self._name)


def load(
    model: Any,
    plan: Plan,
    names: Iterable[str],
    *,
    read: Callable[[str], torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Load some stored tensors into the model: renamed, joined and turned as transformers does it.

    Raises
    ------
    CheckpointError
        A tensor does not have the shape that config.json asks for, or cannot be converted.
    """
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    tensors = {plan.key[name]: _Lazy(read, name) for name in names}
    if not tensors:
        return
    how = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        device_map={"": device},
        weight_mapping=deepcopy(list(plan.mapping)),
    )
    info, _ = convert_and_load_state_dict_in_model(model, tensors, how)
    # `missing_keys` lists the rest of the model: the caller looks for what is still on meta
    # instead.
    if info.mismatched_keys:
        name, stored, expected = min(info.mismatched_keys, key=lambda entry: str(entry[0]))
        msg = (
            f"{name}: the file holds shape {list(stored)}, config.json makes it {list(expected)}; "
            "weights and config.json do not belong together"
        )
        raise CheckpointError(msg)
    problems = [*info.conversion_errors.values(), *info.error_msgs, *sorted(info.unexpected_keys)]
    if problems:
        lines = str(problems[0]).strip().splitlines()
        msg_0 = f"transformers cannot convert the weights of this checkpoint: {lines[-1]}"
        raise CheckpointError(msg_0)


def convert(model: Any, plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Send tensors through the converter of one parameter; return what it makes by parameter name.

    Used with numbered instead of real weights to learn where each input feature goes.

    Parameters
    ----------
    tensors
        Stored name -> tensor of the stored shape, for all sources of one parameter.
    """
    from transformers.core_model_loading import WeightConverter, dot_natural_key

    names = sorted(tensors, key=lambda name: dot_natural_key(plan.key[name]))
    first, target = plan.pattern[names[0]], plan.target[names[0]]
    entries = (entry for entry in plan.mapping if isinstance(entry, WeightConverter))
    # The last converter with this pattern, as transformers' own table of patterns keeps it.
    converter = deepcopy([entry for entry in entries if first in entry.source_patterns][-1])
    for name in names:
        converter.add_tensor(
            target, plan.key[name], plan.pattern[name], lambda name=name: tensors[name]
        )
    made = converter.convert(target, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


def make_buffers_real(
    model: Any, root: Any, *, device: torch.device, skip: Iterable[nn.Module] = ()
) -> None:
    """Give the buffers below `root` that are still on meta their values, as `from_pretrained` does.

    Call it after the weights are loaded: transformers initialises whole modules and spares what is
    loaded.

    Raises
    ------
    LayerstatsError
        The model's own initialisation leaves a buffer without a value.
    """
    left_out = {id(module) for block in skip for module in block.modules()}
    owners = _owners(model)
    pending: list[tuple[str, Any, str]] = []
    for name, module in root.named_modules():
        buffers = module._buffers.items()
        meta = [key for key, value in buffers if value is not None and value.is_meta]
        if id(module) in left_out or not meta:
            continue
        for key in meta:
            module._buffers[key] = _unset(module._buffers[key], device)
            pending.append((name, module, key))
        _initialize(owners, module)
    # A few models fill the buffers of their blocks from the outermost module (Falcon-H1).
    for ancestor in _ancestors(model, root):
        pending = [entry for entry in pending if _is_unset(entry[1]._buffers[entry[2]])]
        if not pending:
            return
        _initialize(owners, ancestor)
    pending = [entry for entry in pending if _is_unset(entry[1]._buffers[entry[2]])]
    if pending:
        name, module, key = pending[0]
        msg = f"transformers gives the buffer {name}.{key} of {type(module).__name__} no value"
        raise LayerstatsError(msg)


def _initialize(owners: Mapping[int, Any], module: Any) -> None:
    from transformers.initialization import guard_torch_init_functions

    module._is_hf_initialized = False
    # Loaded tensors carry a mark and are spared; what is on meta stays there.
    with guard_torch_init_functions():
        owners[id(module)]._initialize_weights(module)


def _ancestors(model: Any, root: Any) -> list[Any]:
    """Return the modules around `root`, innermost first."""
    path = next(name for name, module in model.named_modules() if module is root).split(".")
    return [model.get_submodule(".".join(path[:end])) for end in range(len(path) - 1, -1, -1)]


def _is_unset(buffer: torch.Tensor) -> bool:
    return buffer.is_floating_point() and bool(buffer.isnan().any())


def free(module: Any) -> None:
    """Give back the memory of a module: each parameter and buffer becomes an empty meta tensor."""
    for part in module.modules():
        for key, value in part._parameters.items():
            if value is not None:
                part._parameters[key] = nn.Parameter(value.detach().to("meta"), requires_grad=False)
        for key, value in part._buffers.items():
            if value is not None:
                part._buffers[key] = value.detach().to("meta")


def _unset(buffer: Any, device: torch.device) -> torch.Tensor:
    """Return memory for a buffer, filled so that a forgotten one is noticed."""
    if buffer.is_floating_point():
        return torch.full(buffer.shape, float("nan"), dtype=buffer.dtype, device=device)
    lowest = (
        0
        if buffer.dtype in (torch.bool, torch.uint8) or buffer.is_complex()
        else torch.iinfo(buffer.dtype).min
    )
    return torch.full(buffer.shape, lowest, dtype=buffer.dtype, device=device)


def _owners(model: Any) -> dict[int, Any]:
    """Map each module to the innermost transformers model around it, which can initialise it."""
    from transformers import PreTrainedModel

    owners: dict[int, Any] = {}
    # Outer models come first in `modules()`, so inner ones overwrite them.
    for outer in model.modules():
        if isinstance(outer, PreTrainedModel):
            owners.update((id(module), outer) for module in outer.modules())
    return owners


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
