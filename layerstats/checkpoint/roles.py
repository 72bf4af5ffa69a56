"""What a tensor is, told from its own name, dtype and shape: matrix or not, attention or MLP, which way it lies.

The lists of words live here and nowhere else; `layout.py` puts the answers together for a whole checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "MEASURED_DTYPES",
    "is_loss",
    "matrix_kind",
    "skip_reason",
    "split_expert",
    "turned_conv1d",
    "turned_experts",
]

#: Dtypes whose values torch can turn into floating point one by one.
MEASURED_DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
    + ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
)
_REAL_SAFETENSORS_ONLY = frozenset(("C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"))

_BUFFERS = frozenset(
    ("inv_freq", "masked_bias", "position_ids", "token_type_ids", "causal_mask", "mask", "cos_cached")
    + ("sin_cached", "relative_position_index", "num_batches_tracked", "running_mean", "running_var", "embed_scale")
)
_QUANTISATION = re.compile(
    r"(^|[._])(qweight|qzeros|scales?|zeros|zero_point|g_idx|absmax|quant_map|quant_state|scb|weight_format"
    r"|scale_inv|weight_shape|weight_packed|weight_scale|input_scale|output_scale|k_scale|v_scale|blocks)$"
    r"|quant_state|weight_scale|input_scale"
)
_NORM = re.compile(r"norm|(^|[._])ln([._\d]|$)")
_STATE_SPACE = re.compile(r"^(A_log|D|dt_bias|time_(decay|first|faaaa|mix|maa).*)$")
_ATTENTION = re.compile(r"att|[qkv]_proj|[qkvo]_lin|query|(^|\.)(key|value)|qkv|c_attn|o_proj|out_proj|rel_pos|wq|wk|wv|wo$")
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|(^|\.)ff(\.|$)|moe|expert|router|gate|up_proj|down_proj|fc|densereludense|intermediate"
    r"|output\.dense|lin[12]|(^|\.)w[123]$|dense|linear"
)
#: Module names of GPT-2's Conv1D; a square one can only be told by its neighbours.
_CONV1D_NAMES = frozenset(("c_attn", "c_proj", "c_fc", "q_attn"))


def skip_reason(name: str, dtype: str, shape: tuple[int, ...], *, in_block: bool) -> str | None:
    """Say why a tensor is no weight matrix, or return None for a matrix (or a stack of experts).

    Parameters
    ----------
    name
        Canonical name, `model.layers.0.input_layernorm.weight`.
    dtype, shape
        As the header gives them.
    in_block
        Whether the tensor belongs to one of the model's blocks: only there a 3-D tensor is a stack of experts.

    Examples
    --------
    >>> skip_reason("h.0.attn.bias", "F32", (1, 1, 8, 8), in_block=True)
    'stored mask or buffer'
    >>> skip_reason("h.0.mlp.c_fc.weight", "F32", (8, 32), in_block=True) is None
    True
    """
    module, _, leaf = name.rpartition(".")
    words = name.lower()
    last = module.rpartition(".")[2].lower() if leaf == "weight" else leaf.lower()
    if leaf in _BUFFERS or "rotary" in words:
        return "stored mask or buffer"
    if "lora_" in words or "magnitude_vector" in words:
        return "LoRA factor; measure it with --adapter"
    if leaf.lower().endswith("bias"):
        # GPT-2 and GPT-NeoX store their causal mask as a 4-D tensor called `attn.bias`.
        return "bias" if len(shape) <= 2 else "stored mask or buffer"
    if _NORM.search(last) or (leaf != "weight" and _NORM.search(module.rpartition(".")[2].lower())):
        return "norm weight"
    if leaf != "weight" and _QUANTISATION.search(leaf.lower()):
        return "packed or quantisation data; dequantise the checkpoint first"
    if _STATE_SPACE.match(leaf):
        return "state-space parameter"
    if leaf == "weight" and "bias" in last:
        return "position-bias table"
    return _shape_reason(words, leaf, dtype, shape, in_block)


def _shape_reason(words: str, leaf: str, dtype: str, shape: tuple[int, ...], in_block: bool) -> str | None:
    sizes = [size for size in shape if size != 1]
    if 0 in shape:
        return f"empty tensor of shape {list(shape)}"
    if len(shape) < 2 or (len(shape) > 2 and len(sizes) < 2):
        return "vector or scalar"
    if len(shape) == 3 and ("conv" in words or 1 in shape[1:]):
        return f"convolution kernel of shape {list(shape)}"
    if len(shape) == 3 and not in_block:
        return f"3-D tensor of shape {list(shape)} outside the blocks"
    if len(shape) > 3:
        return f"{len(shape)}-D tensor of shape {list(shape)}: no matrix"
    if dtype not in MEASURED_DTYPES:
        known = dtype in _REAL_SAFETENSORS_ONLY
        return f"dtype {dtype} cannot be measured" if known else f"type {dtype} cannot be dequantised"
    if leaf != "weight" and dtype.startswith(("I", "U", "BOOL")):
        return f"stored buffer of dtype {dtype}"
    return None


def is_loss(reason: str) -> bool:
    """Tell reasons that hide weights from reasons that leave out what is no weight matrix."""
    return "cannot be" in reason or "dequantise" in reason or "outside the blocks" in reason


def split_expert(module: str) -> tuple[str, int | None]:
    """Take the expert's number out of a module name.

    Examples
    --------
    >>> split_expert("mlp.experts.3.gate_proj")
    ('mlp.experts.gate_proj', 3)
    >>> split_expert("layer.0.SelfAttention.q")
    ('layer.0.SelfAttention.q', None)
    """
    parts = module.split(".")
    for position in range(len(parts) - 1):
        if "expert" in parts[position].lower() and parts[position + 1].isdigit():
            return ".".join(parts[: position + 1] + parts[position + 2 :]), int(parts[position + 1])
    return module, None


def matrix_kind(module: str) -> str:
    """Sort a matrix of a block into `attn`, `mlp` or `other` by its module name.

    Examples
    --------
    >>> [matrix_kind(name) for name in ("attn.c_proj", "attention.output.dense", "output.dense", "mixer.in_proj")]
    ['attn', 'attn', 'mlp', 'other']
    """
    words = module.lower()
    parents = words.rpartition(".")[0]
    # The parent decides where it speaks: `mlp.gate` and `attention.dense` hold words of both lists.
    for text in (parents, words):
        for kind, pattern in (("attn", _ATTENTION), ("mlp", _MLP)):
            if text and pattern.search(text):
                return kind
    return "other"


def turned_conv1d(
    matrices: Iterable[tuple[str, tuple[int, int], int | None]],
) -> set[str]:
    """Name the tensors stored as (in_features, out_features), as GPT-2's Conv1D does.

    A bias is as long as the outputs, so it tells for matrices that are not square. A square one follows the
    others if it carries one of Conv1D's names and all of them that can be told are turned.
    """
    votes: dict[str, bool] = {}
    square: list[str] = []
    for name, (rows, cols), bias in matrices:
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if bias is not None and rows != cols and bias in (rows, cols):
            votes[name] = bias == cols
        elif rows == cols and leaf in _CONV1D_NAMES:
            square.append(name)
    turned = {name for name, is_turned in votes.items() if is_turned}
    conv_votes = [votes[name] for name in votes if name.removesuffix(".weight").rpartition(".")[2] in _CONV1D_NAMES]
    return turned | set(square) if conv_votes and all(conv_votes) else turned


def turned_experts(tensors: Iterable[tuple[str, tuple[int, int]]], width: int) -> set[str]:
    """Name the fused expert tensors stored as (expert, in_features, out_features).

    Projections up read the hidden size `width`, projections down write it. Where both sizes are equal the tensor
    follows its neighbours.
    """
    votes: dict[str, bool] = {}
    unclear: list[str] = []
    for name, (rows, cols) in dict(tensors).items():
        down = bool(re.search(r"down|w2|fc2|output|wo(\.|$)|c_proj", name.rpartition("expert")[2].lower() or name))
        reads, writes = (cols == width, rows == width) if not down else (rows == width, cols == width)
        if reads != writes:
            votes[name] = writes
        else:
            unclear.append(name)
    turned = {name for name, is_turned in votes.items() if is_turned}
    return turned | set(unclear) if votes and all(votes.values()) else turned
