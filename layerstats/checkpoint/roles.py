"""What a tensor is, told from its own name, dtype and shape: matrix or not, its part, its turn.

The lists of words live here and nowhere else; `layout.py` puts the answers together for a whole
checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

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
    (
        "F64",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "I8",
        "I16",
        "I32",
        "I64",
        "U8",
        "U16",
        "U32",
        "U64",
        "BOOL",
    )
)
_REAL_SAFETENSORS_ONLY = frozenset(("C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"))

_BUFFERS = frozenset(
    (
        "inv_freq",
        "masked_bias",
        "position_ids",
        "token_type_ids",
        "causal_mask",
        "mask",
        "cos_cached",
        "sin_cached",
        "relative_position_index",
        "num_batches_tracked",
        "running_mean",
        "running_var",
        "embed_scale",
    )
)
#: Weights in a form that is no matrix of numbers, and what is stored to undo it.
_PACKED = re.compile(r"(^|_)(qweight|weight_packed|blocks|w_q)$")
_QUANTISATION = re.compile(
    r"(^|[._])(qzeros|scales?|zeros?|zero_point|g_idx|absmax|quant_map|quant_state|scb"
    r"|weight_format"
    r"|scale_inv|weight_shape|nbits|group_size|input_scale|output_scale|k_scale|v_scale)$"
    r"|quant_state|weight_scale|input_scale"
)
#: Look-up tables of a block: positions and distances, no linear maps.
_TABLE = re.compile(
    r"(^|_)emb(ed|edding)?s?($|_rel|_table)|rel_pos_[hwt]$|bias(es)?(_table|_[uv])?$"
)
_NORM = re.compile(r"norm|(^|[._])ln([._\d]|$)")
_STATE_SPACE = re.compile(r"^(A_log|D|dt_bias|time_(decay|first|faaaa|mix|maa).*)$")
_ATTENTION = re.compile(
    r"att|[qkv]_proj|[qkvo]_lin|query|(^|\.)(key|value)|qkv|c_attn|o_proj|out_proj|rel_pos"
    r"|wq|wk|wv|wo$"
)
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|(^|\.)ff(\.|$)|moe|expert|router|gate|up_proj|down_proj|fc|densereludense"
    r"|intermediate"
    r"|output\.dense|lin[12]|(^|\.)w[123]$|dense|linear"
)
#: What a projection back to the hidden size is called.
_DOWN = re.compile(r"down|w2|fc2|(^|_)wo$|out|c_proj")
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
        Whether the tensor belongs to one of the model's blocks: only there a 3-D tensor is a stack
        of experts.

    Examples
    --------
    >>> skip_reason("h.0.attn.bias", "F32", (1, 1, 8, 8), in_block=True)
    'stored mask or buffer'
    >>> skip_reason("h.0.mlp.c_fc.weight", "F32", (8, 32), in_block=True) is None
    True
    """
    module, _, leaf = name.rpartition(".")
    words = name.lower()
    owner = _last_word(module)
    last = owner if leaf == "weight" else leaf.lower()
    if leaf in _BUFFERS or "rotary" in words:
        return "stored mask or buffer"
    if "lora_" in words or "magnitude_vector" in words:
        return "LoRA factor; measure it with --adapter"
    if leaf.lower().endswith("bias"):
        # GPT-2 and GPT-NeoX store their causal mask as a 4-D tensor called `attn.bias`.
        return "bias" if len(shape) <= 2 else "stored mask or buffer"
    if _NORM.search(last) or (leaf != "weight" and _NORM.search(owner)):
        return "norm weight"
    if leaf != "weight" and _PACKED.search(leaf.lower()):
        return "packed weights; dequantise the checkpoint first"
    if leaf != "weight" and _QUANTISATION.search(leaf.lower()):
        return "scale or other quantisation data"
    if _STATE_SPACE.match(leaf):
        return "state-space parameter"
    if in_block and _TABLE.search(last):
        return "bias or position table"
    return _shape_reason(words, leaf, dtype, shape, in_block)


def _last_word(module: str) -> str:
    """Return the last part of a path that is no number: of `k_norms.0` it is `k_norms`."""
    while True:
        module, _, word = module.rpartition(".")
        if not (word.isdecimal() and module):
            return word.lower()


def _shape_reason(
    words: str, leaf: str, dtype: str, shape: tuple[int, ...], in_block: bool
) -> str | None:
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
        return (
            f"dtype {dtype} cannot be measured" if known else f"type {dtype} cannot be dequantised"
        )
    if leaf != "weight" and dtype.startswith(("I", "U", "BOOL")):
        return f"stored buffer of dtype {dtype}"
    return None


def is_loss(reason: str) -> bool:
    """Tell reasons that hide weights from reasons that leave out what is no weight matrix."""
    return any(word in reason for word in ("cannot be", "dequantise", "3-D tensor"))


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
    >>> [matrix_kind(name) for name in ("attn.c_proj", "attention.output.dense", "output.dense")]
    ['attn', 'attn', 'mlp']
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

    A bias is as long as the outputs, so it tells for matrices that are not square. A square one
    follows the others if it carries one of Conv1D's names and all of them that can be told are
    turned.
    """
    votes: dict[str, bool] = {}
    conv1d_votes: list[bool] = []
    square: set[str] = set()
    for name, (rows, cols), bias in matrices:
        is_named = name.removesuffix(".weight").rpartition(".")[2] in _CONV1D_NAMES
        if bias is not None and rows != cols and bias in (rows, cols):
            votes[name] = bias == cols
            if is_named:
                conv1d_votes.append(votes[name])
        elif rows == cols and is_named:
            square.add(name)
    turned = {name for name, is_turned in votes.items() if is_turned}
    return turned | square if conv1d_votes and all(conv1d_votes) else turned


def turned_experts(tensors: Iterable[tuple[str, tuple[int, int]]], width: int) -> set[str]:
    """Name the fused expert tensors stored as (expert, in_features, out_features).

    Tensors of one module are turned together: what the projection up writes, gated (twice as wide)
    or not, the projection down reads. Where that fits both ways, up reads and down writes the
    hidden size `width`. A module that neither tells follows the others.

    Examples
    --------
    >>> sorted(turned_experts([("experts.up", (4, 16)), ("experts.down", (8, 4))], 4))
    ['experts.down', 'experts.up']
    >>> turned_experts([("experts.up", (16, 4)), ("experts.down", (4, 8))], 4)
    set()
    """
    modules: dict[str, dict[str, tuple[int, int]]] = {}
    for name, shape in tensors:
        modules.setdefault(name.removesuffix(".weight").rpartition(".")[0], {})[name] = shape
    votes = {module: _is_turned(members, width) for module, members in modules.items()}
    known = [vote for vote in votes.values() if vote is not None]
    rest = bool(known) and all(known)
    return {
        name
        for module, members in modules.items()
        if (rest if (vote := votes[module]) is None else vote)
        for name in members
    }


def _is_turned(members: Mapping[str, tuple[int, int]], width: int) -> bool | None:
    """Tell whether the expert tensors of one module are stored (in, out); None if nothing tells."""
    down = {
        name for name in members if _DOWN.search(name.removesuffix(".weight").rpartition(".")[2])
    }
    if not down and len(set(members.values())) == 2:
        smaller = min(members.values(), key=math.prod)
        down = {name for name, shape in members.items() if shape == smaller}
    downs = [members[name] for name in down]
    ups = [shape for name, shape in members.items() if name not in down]
    for up in ups:
        for read in downs:
            straight = up[1] == read[0] and up[0] in (read[1], 2 * read[1])
            turned = up[0] == read[1] and up[1] in (read[0], 2 * read[0])
            if straight != turned:
                return turned
    hidden = [shape[::-1] for shape in ups] + downs
    votes = {first == width for first, second in hidden if (first == width) != (second == width)}
    return not votes.pop() if len(votes) == 1 else None
