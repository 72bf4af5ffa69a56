"""How the tables beside this file write tensor names short, and blocks that many families share.

`expand` turns `"h.{0..3}.mlp.{up|down}.weight": (8, 4)` into every name it stands for. Sizes are
small, names are the real ones (or, where a case says so, names that nobody has used yet).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstats.checkpoint.index import DTYPE_BITS, CheckpointIndex, TensorEntry

__all__ = [
    "LLAMA_ENDS",
    "Case",
    "D",
    "F",
    "V",
    "as_index",
    "bart",
    "bert",
    "clip",
    "expand",
    "gpt2",
    "llama",
    "t5",
]

Spec = Mapping[str, tuple[Any, ...]]

V, D, F = 320, 64, 96  # rows of the embedding, width, inner width


def expand(spec: Spec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return name -> (dtype, shape); a first string in the tuple is the dtype, F32 without."""
    tensors = {}
    for pattern, value in spec.items():
        dtype, shape = (
            (value[0], value[1:]) if value and isinstance(value[0], str) else ("F32", value)
        )
        choices = [_choices(part) for part in re.split(r"\{(.*?)\}", pattern)[1::2]]
        template = re.sub(r"\{.*?\}", "{}", pattern)
        for combination in itertools.product(*choices):
            tensors[template.format(*combination)] = (dtype, tuple(shape))
    return tensors


def _choices(part: str) -> list[str]:
    if ".." in part:
        first, last = map(int, part.split(".."))
        return [str(number) for number in range(first, last + 1)]
    return part.split("|")


def as_index(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> CheckpointIndex:
    """Make an index of tensors that lie in no file."""
    entries, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BITS.get(dtype, 8) // 8
        for number in shape:
            size *= number
        entries[name] = TensorEntry(name, Path("x.safetensors"), dtype, shape, size, offset)
        offset += size
    return CheckpointIndex(
        Path("x"), Path("x"), "safetensors", entries, (Path("x.safetensors"),), ""
    )


@dataclass(frozen=True)
class Case:
    """`per_block` is the number of matrices of each layer (one number: of every layer)."""

    spec: Spec
    layers: int
    path: str | None
    per_block: int | list[int]
    stacks: dict[str, int] = field(default_factory=dict)
    tied: bool = False
    turned: str | None = None  # pattern of exactly the names stored as (in, out)
    config: dict[str, Any] | None = None
    note: str | None = None


def llama(prefix: str = "model.layers.{0..2}.", width: int = D, inner: int = F) -> dict[str, Any]:
    """The seven matrices and two norms of a Llama block."""
    return {
        prefix + "self_attn.{q|k|v|o}_proj.weight": (width, width),
        prefix + "mlp.{gate|up}_proj.weight": (inner, width),
        prefix + "mlp.down_proj.weight": (width, inner),
        prefix + "{input|post_attention}_layernorm.weight": (width,),
    }


def bert(prefix: str, width: int = D, inner: int = F) -> dict[str, Any]:
    """The six matrices of a BERT block, with biases and norms."""
    return {
        prefix + "attention.self.{query|key|value}.weight": (width, width),
        prefix + "attention.self.{query|key|value}.bias": (width,),
        prefix + "attention.output.dense.weight": (width, width),
        prefix + "attention.output.LayerNorm.{weight|bias}": (width,),
        prefix + "intermediate.dense.weight": (inner, width),
        prefix + "output.dense.weight": (width, inner),
        prefix + "output.LayerNorm.{weight|bias}": (width,),
    }


def bart(prefix: str, *, cross: bool, width: int = D) -> dict[str, Any]:
    """A block of BART, Whisper, M2M: six matrices, ten with cross-attention."""
    parts = "{self_attn|encoder_attn}" if cross else "self_attn"
    return {
        prefix + parts + ".{q|k|v|out}_proj.weight": (width, width),
        prefix + parts + ".{q|v|out}_proj.bias": (width,),
        prefix + "fc1.weight": (F, width),
        prefix + "fc2.weight": (width, F),
        prefix + "{self_attn_layer_norm|final_layer_norm}.{weight|bias}": (width,),
    }


def clip(prefix: str, width: int = 48) -> dict[str, Any]:
    """A block of a CLIP or SigLIP tower."""
    return {
        prefix + "self_attn.{q|k|v|out}_proj.weight": (width, width),
        prefix + "self_attn.{q|k|v|out}_proj.bias": (width,),
        prefix + "mlp.fc1.weight": (72, width),
        prefix + "mlp.fc2.weight": (width, 72),
        prefix + "layer_norm{1|2}.{weight|bias}": (width,),
    }


def gpt2(prefix: str) -> dict[str, Any]:
    """GPT-2 as the hub stores it: Conv1D weights and causal masks."""
    return {
        prefix + "wte.weight": (V, D),
        prefix + "wpe.weight": (40, D),
        prefix + "h.{0..2}.attn.bias": (1, 1, 40, 40),
        prefix + "h.{0..2}.attn.masked_bias": (),
        prefix + "h.{0..2}.attn.c_attn.weight": (D, 3 * D),
        prefix + "h.{0..2}.attn.c_attn.bias": (3 * D,),
        prefix + "h.{0..2}.attn.c_proj.weight": (D, D),
        prefix + "h.{0..2}.attn.c_proj.bias": (D,),
        prefix + "h.{0..2}.mlp.c_fc.weight": (D, 4 * D),
        prefix + "h.{0..2}.mlp.c_fc.bias": (4 * D,),
        prefix + "h.{0..2}.mlp.c_proj.weight": (4 * D, D),
        prefix + "h.{0..2}.mlp.c_proj.bias": (D,),
        prefix + "h.{0..2}.ln_{1|2}.{weight|bias}": (D,),
        prefix + "ln_f.{weight|bias}": (D,),
    }


def t5(side: str, blocks: int, *, per_block_bias: bool = False) -> dict[str, Any]:
    """One side of T5: sub-layers in a list of their own inside the block."""
    start = f"{side}.block.{{0..{blocks - 1}}}.layer."
    last = 1 if side == "encoder" else 2
    names: dict[str, Any] = {
        start + "0.SelfAttention.{q|k|v|o}.weight": (D, D),
        start + f"{{0..{last}}}.layer_norm.weight": (D,),
        start + f"{last}.DenseReluDense.wi_{{0|1}}.weight": (F, D),
        start + f"{last}.DenseReluDense.wo.weight": (D, F),
    }
    where = start if per_block_bias else f"{side}.block.0.layer."
    names[where + "0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
    if side == "decoder":
        names[start + "1.EncDecAttention.{q|k|v|o}.weight"] = (D, D)
    return names


LLAMA_ENDS: dict[str, Any] = {
    "model.embed_tokens.weight": (V, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (V, D),
}
