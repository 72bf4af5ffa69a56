"""Activation norms the slow, obvious way: the whole model in memory, a hook on every linear map.

`full_model_sums(directory, windows)` returns sums of squares and token counts by checkpoint name.
Experts, which are slices of 3-D parameters, get a loop of their own that works out afresh which
token goes to which.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["full_model_sums", "in_float64"]

#: Where a checkpoint keeps row e of a 3-D parameter: (parameter's end, names in the file).
_EXPERT_NAMES: dict[str, list[tuple[str, list[str]]]] = {
    "mixtral": [
        (
            "mlp.experts.gate_up_proj",
            ["block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight"],
        ),
        ("mlp.experts.down_proj", ["block_sparse_moe.experts.{e}.w2.weight"]),
        ("mlp.gate.weight", ["block_sparse_moe.gate.weight"]),
    ],
    "per_expert": [
        (
            "mlp.experts.gate_up_proj",
            ["mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"],
        ),
        ("mlp.experts.down_proj", ["mlp.experts.{e}.down_proj.weight"]),
    ],
    "stacked": [
        ("experts.gate_up_proj", ["experts.gate_up_proj[{e}]"]),
        ("experts.down_proj", ["experts.down_proj[{e}]"]),
    ],
}
_HOW_STORED = {
    "mixtral": "mixtral",
    "qwen3_moe": "per_expert",
    "deepseek_v3": "per_expert",
    "gpt_oss": "stacked",
    "llama4_text": "stacked",
}


def in_float64(rows: torch.Tensor) -> np.ndarray:
    """sum_t x_tj^2 with every product and sum in float64."""
    flat = rows.detach().reshape(-1, rows.shape[-1]).double().numpy()
    return (flat * flat).sum(axis=0)


class _Sums:
    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.tokens: Counter[str] = Counter()

    def add(self, key: str, rows: torch.Tensor, *, tokens: int | None = None) -> None:
        self.sums[key] = self.sums.get(key, 0) + in_float64(rows)
        self.tokens[key] += rows.reshape(-1, rows.shape[-1]).shape[0] if tokens is None else tokens


def full_model_sums(
    directory: Path, windows: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, np.ndarray], dict[str, int], str]:
    """Run the whole model on each window; return sums and tokens by stored name, and the kernel."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
    )
    from transformers.pytorch_utils import Conv1D
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(directory)
        auto = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
        model = auto.from_pretrained(directory, dtype=dtype).eval()
    finally:
        if bars:
            logging.enable_progress_bar()
    model.set_experts_implementation("eager")
    found = _Sums()
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) or _is_router(module):
            handles.append(
                module.register_forward_pre_hook(_linear_hook(found, name), with_kwargs=True)
            )
        elif hasattr(module, "gate_up_proj") and isinstance(
            module.gate_up_proj, torch.nn.Parameter
        ):
            hook = (
                _dense_experts_hook
                if type(module).__name__ == "Llama4TextExperts"
                else _experts_hook
            )
            handles.append(module.register_forward_pre_hook(hook(found, name), with_kwargs=True))
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None])
    stored = _EXPERT_NAMES.get(_HOW_STORED.get(model.config.model_type, ""), [])
    sums, tokens = {}, {}
    for key, value in found.sums.items():
        for stored_key in _stored_names(key, stored):
            sums[stored_key], tokens[stored_key] = value, found.tokens[key]
    return sums, tokens, str(model.config._attn_implementation)


def _is_router(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    named = re.search(r"Router|Gate$", type(module).__name__)
    return bool(named) and isinstance(weight, torch.nn.Parameter) and weight.dim() == 2


def _linear_hook(found: _Sums, name: str) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> None:
        found.add(f"{name}.weight", args[0] if args else next(iter(kwargs.values())))

    return hook


def _experts_hook(found: _Sums, name: str) -> Any:
    """Experts handed the routing: redo each one's first product to know the input of its second."""

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        hidden, chosen = args[0], args[1] if len(args) > 1 else kwargs["router_indices"]
        hidden = hidden.reshape(-1, hidden.shape[-1])
        for expert in range(module.gate_up_proj.shape[0]):
            # The order of rows that transformers' own loop has: a product's last bits depend on it.
            token = torch.where((chosen == expert).T)[1]
            rows = hidden[token]
            found.add(f"{name}.gate_up_proj[{expert}]", rows)
            weight = module.gate_up_proj[expert]
            if module.is_transposed:
                product = rows @ weight + module.gate_up_proj_bias[expert]
            else:
                product = F.linear(rows, weight)
            found.add(f"{name}.down_proj[{expert}]", module._apply_gate(product))

    return hook


def _dense_experts_hook(found: _Sums, name: str) -> Any:
    """Llama 4: each expert is handed every token, those that were not routed to it as zeros."""

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        count = module.gate_up_proj.shape[0]
        hidden = args[0].view(count, -1, args[0].shape[-1])
        product = torch.bmm(hidden, module.gate_up_proj)
        for expert in range(count):
            used = int((hidden[expert].abs().sum(-1) > 0).sum())
            gate, up = product[expert].chunk(2, dim=-1)
            found.add(f"{name}.gate_up_proj[{expert}]", hidden[expert], tokens=used)
            found.add(f"{name}.down_proj[{expert}]", up * module.act_fn(gate), tokens=used)

    return hook


def _stored_names(key: str, table: list[tuple[str, list[str]]]) -> list[str]:
    match = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", key)
    assert match is not None
    name, expert = match[1], match[2]
    for end, stored in table:
        if name.endswith(end):
            return [name.removesuffix(end) + form.format(e=expert) for form in stored]
    return [key]
