"""Which tensors form the blocks of a model, found from names and shapes alone.

A block list is a place in the names where a number stands (`model.layers.7.…`). The outermost such
places are the candidates; what is nested deeper (experts, sub-layers) belongs to a block. Among
several candidates the main text stack is the one that no name marks as a tower and whose width and
path agree with the token embedding.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Blocks", "canonical_names", "find_stacks", "find_token_table", "is_token_table"]

Shapes = Mapping[str, tuple[int, ...]]

_WRAPPERS = frozenset(
    [
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "base_layer",
    ]
)
_TOWER = re.compile(
    r"vision|visual|image|video|audio|speech|sound|wav2|\bvit\b|vit_|patch|mtp|nextn|eagle|medusa"
    r"|draft|adapter|lora|prompt|projector|connector|merger|resampler|qformer|q_former|perceiver"
    r"|expert|codec|talker|depth_decoder|code_predictor|vocoder|bridge|tower"
)
_MULTI_TOKEN = frozenset(
    ["eh_proj", "enorm", "hnorm", "shared_head", "embed_tokens", "nextn", "mtp_block"]
)
_TOKENS = re.compile(r"emb|wte|word_emb|tok_|shared$")
_NOT_TOKENS = re.compile(
    r"pos|wpe|type|segment|patch|norm|ln_|vision|visual|image|audio|rotary|proj|out$|unemb"
)
_NO_INPUT = re.compile(r"head|class|logit|score|predict|out|proj|fc")
_CROSS = re.compile(r"cross|encdec|enc_dec|encoder_attn|inter_attention")
_QUERY = re.compile(r"^(q|wq|to_q|q_proj|q_lin|linear_q|query|query_(net|proj|layer))$")
_ATTENTION = re.compile(r"att|q_proj|query|qkv|q_lin|wq")
_NUMBER = re.compile(r"(?:(?<=\.)|^)[0-9]+(?=\.)")
_GLUED = re.compile(r"^([A-Za-z][A-Za-z_]*?)_?(\d+)$")


@dataclass(frozen=True)
class Blocks:
    """One block list: `path` as a user writes it, and the name prefix of each block in order.

    `beside` is a second list whose elements belong to the same blocks (attention and feed-forward
    numbered apart, as XLM has them).
    """

    path: str
    prefixes: tuple[str, ...]
    parameters: int
    beside: Blocks | None = None


def canonical_names(shapes: Shapes) -> dict[str, str]:
    """Map each stored name to one without training wrappers, the block's number standing alone.

    Wrappers are `module.`, `_orig_mod.`, FSDP's and checkpointing's infixes; `layer_3.attn` becomes
    `layer.3.attn` where no block list is found otherwise.

    Examples
    --------
    >>> canonical_names({"module.h.0._checkpoint_wrapped_module.w.weight": (2, 2)})
    {'module.h.0._checkpoint_wrapped_module.w.weight': 'h.0.w.weight'}
    """
    clean = {name: _without_wrappers(name) for name in shapes}
    # Should two stored names become one, the "wrapper" carries meaning after all.
    if len(set(clean.values())) < len(clean):
        clean = {name: name for name in shapes}
    if not _usable({clean[name]: shape for name, shape in shapes.items()}):
        apart = {name: _unglued(new) for name, new in clean.items()}
        unique = len(set(apart.values())) == len(apart)
        if unique and _usable({apart[name]: shape for name, shape in shapes.items()}):
            return apart
    return clean


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[2:] if parts[:2] == ["base_model", "model"] else parts)


def _unglued(name: str) -> str:
    """Set the first number that is glued to a word of the module path apart: `layer_3.w.weight`."""
    parts = name.split(".")
    for position, part in enumerate(parts[:-2]):
        if match := _GLUED.match(part):
            return ".".join([*parts[:position], match[1], match[2], *parts[position + 1 :]])
    return name


def _usable(shapes: Shapes) -> bool:
    """Tell whether some number in the names has more than one matrix behind it, as a block has."""
    seen: set[str] = set()
    for name, shape in shapes.items():
        if (number := _NUMBER.search(name)) and _looks_like_matrix(name, shape):
            if name[: number.end()] in seen:
                return True
            seen.add(name[: number.end()])
    return False


def is_token_table(name: str, shape: tuple[int, ...]) -> bool:
    """Tell by name and shape whether a tensor outside the blocks is a token embedding."""
    module = name.removesuffix(".weight")
    leaf = module.rpartition(".")[2].lower()
    return len(shape) == 2 and bool(_TOKENS.search(leaf)) and not _NOT_TOKENS.search(module.lower())


def find_token_table(stacks: Sequence[Blocks], shapes: Shapes) -> str | None:
    """Name the token embedding: by its name, else a tall matrix outside the lists, near them."""
    prefixes = tuple(prefix + "." for stack in stacks for prefix in _all_prefixes(stack))
    if not prefixes:
        return None
    outside = {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}
    # A linear map may be called an embedding, too: it has a bias, or is a vector in two dimensions.
    tables = {
        name: shape
        for name, shape in outside.items()
        if is_token_table(name, shape)
        and min(shape) > 1
        and name.removesuffix("weight") + "bias" not in shapes
    }
    if tables:
        return min(tables, key=lambda name: (-tables[name][0], -tables[name][1], name))
    # A head is as tall; an embedding more often shares its path with the blocks.
    tall = {
        name: (max(len(_shared_path(name, stack.path)) for stack in stacks), shape[0], name)
        for name, shape in outside.items()
        if len(shape) == 2 and shape[0] >= 4 * shape[1] > 4 and not _NO_INPUT.search(name.lower())
    }
    return max(tall, key=tall.__getitem__, default=None)


def find_stacks(shapes: Shapes) -> tuple[list[Blocks], list[Blocks]]:
    """Split the block lists of a model into those that count as its layers and the others.

    Parameters
    ----------
    shapes
        Canonical name and shape of every tensor.

    Returns
    -------
    main, others
        `main` is empty (no block list), one stack, or encoder and decoder in this order; `others`
        holds towers, multi-token-prediction blocks and whatever else is a list.
    """
    model = _Model(shapes)
    stacks = _joined(model.stacks(), model)
    if not stacks:
        return [], []
    table = find_token_table(stacks, shapes)
    towers = {stack.path for stack in stacks if table and _is_tower(stack, table, model)}
    best = max(stacks, key=lambda stack: (stack.path not in towers, *_rank(stack, table, model)))
    main = [best]
    if best.path not in towers:
        free = [stack for stack in stacks if stack is not best and stack.path not in towers]
        main = _with_mate(best, free, model)
    others = [stack for stack in stacks if stack not in main]
    main[-1], extra = _split_multi_token(main[-1], model)
    return main, others + extra


class _Model:
    """The names of a model sorted once by the numbers in them, for look-ups in constant time."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        #: list path -> prefixes of its elements; element prefix -> its matrices; -> all its tensors
        self.lists: dict[str, set[str]] = defaultdict(set)
        self.matrices: dict[str, list[str]] = defaultdict(list)
        self.tensors: dict[str, list[str]] = defaultdict(list)
        #: kernels over the three colours of an image or a film
        self.image_kernels = [
            name
            for name, shape in shapes.items()
            if len(shape) in (4, 5) and shape[1] == 3 and "bias" not in name
        ]
        for name, shape in shapes.items():
            matrix = _looks_like_matrix(name, shape)
            for number in _NUMBER.finditer(name):
                prefix = name[: number.end()]
                self.lists[name[: max(number.start() - 1, 0)]].add(prefix)
                self.tensors[prefix].append(name)
                if matrix:
                    self.matrices[prefix].append(name)
        self.inner: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.lists, key=lambda path: (len(path), path)):
            numbers = list(_NUMBER.finditer(path + "."))
            if numbers:
                self.inner[path[: numbers[-1].end()]].append(path)

    def stacks(self) -> list[Blocks]:
        """Collect the outermost lists whose elements hold matrices."""
        outermost = sorted(path for path in self.lists if not _numbers(path))
        found = [stack for path in outermost if (stack := self.expand(path)) is not None]
        # A lone matrix behind a number is an element of a Sequential, not a block.
        return [
            stack
            for stack in found
            if len(stack.prefixes) > 1 or len(self.matrices[stack.prefixes[0]]) > 1
        ]

    def expand(self, path: str) -> Blocks | None:
        """Turn a list into blocks, one list deeper where its elements are stages of blocks."""
        prefixes: list[str] = []
        shown = path
        for element in sorted(self.lists[path], key=_numbers):
            inner = self.inner_blocks(element)
            if inner is not None:
                prefixes += inner.prefixes
                shown = inner.path if len(self.lists[path]) == 1 or not path else path
            elif self.matrices[element]:
                prefixes.append(element)
        # A sequential model keeps embedding and head in the same list, before and behind.
        if any(len(self.matrices[prefix]) > 1 for prefix in prefixes):
            while len(self.matrices[prefixes[0]]) == 1:
                del prefixes[0]
            while len(self.matrices[prefixes[-1]]) == 1:
                del prefixes[-1]
        return self.blocks(shown, prefixes) if prefixes else None

    def blocks(self, path: str, prefixes: Sequence[str]) -> Blocks:
        names = (name for prefix in prefixes for name in self.matrices[prefix])
        return Blocks(path, tuple(prefixes), sum(math.prod(self.shapes[name]) for name in names))

    def inner_blocks(self, element: str) -> Blocks | None:
        """Return the block list inside `element` if the element is only a wrapper around one.

        Experts and sub-layers must not be taken for blocks: a wrapper has next to no matrix of its
        own beside the list and its embeddings, and each block in it has attention and at least four
        matrices; what is called a stage may hold blocks without attention.
        """
        stage = "stage" in element.lower()
        for path in self.inner[element]:
            inside = [self.matrices[block] for block in self.lists[path]]
            if "expert" in path or min(map(len, inside)) < (2 if stage else 4):
                continue
            attention = (any(_ATTENTION.search(name.lower()) for name in block) for block in inside)
            if not stage and not all(attention):
                continue
            start = path + "."
            own = [name for name in self.matrices[element] if not name.startswith(start)]
            if sum("emb" not in name for name in own) <= 1:
                return self.expand(path)
        return None


def _looks_like_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Tell weights from vectors and kernels; packed weights in one column were matrices."""
    if "bias" in name.rpartition(".")[2] or 0 in shape:
        return False
    if len(shape) == 3:
        return 1 not in shape and "conv" not in name.lower()
    return len(shape) == 2 and max(shape) > 1


def _numbers(path: str) -> list[int]:
    return [int(part) for part in path.split(".") if part.isdecimal()]


def _all_prefixes(stack: Blocks) -> Iterator[str]:
    yield from stack.prefixes
    if stack.beside is not None:
        yield from stack.beside.prefixes


def _joined(stacks: list[Blocks], model: _Model) -> list[Blocks]:
    """Join lists beside each other, one all attention and one all feed-forward, into blocks."""
    kinds: dict[tuple[str, tuple[int, ...]], dict[bool, list[Blocks]]] = {}
    for stack in stacks:
        names = [name.lower() for prefix in stack.prefixes for name in model.matrices[prefix]]
        attention = {bool(_ATTENTION.search(name)) for name in names}
        if len(attention) == 1:
            numbers = tuple(_numbers(prefix)[-1] for prefix in stack.prefixes)
            group = kinds.setdefault((stack.path.rpartition(".")[0], numbers), {})
            group.setdefault(attention.pop(), []).append(stack)
    for group in kinds.values():
        if {key: len(found) for key, found in group.items()} == {True: 1, False: 1}:
            (first,), (second,) = group[True], group[False]
            if len(first.prefixes) > 1:
                size = first.parameters + second.parameters
                both = dataclasses.replace(first, parameters=size, beside=second)
                stacks = [
                    both if stack is first else stack for stack in stacks if stack is not second
                ]
    return stacks


def _rank(stack: Blocks, table: str | None, model: _Model) -> tuple[float, ...]:
    """Order candidates: whole blocks, as wide as the token embedding, no decoder, near, large."""
    per_block = Counter(min(len(model.matrices[prefix]), 4) for prefix in stack.prefixes)
    whole = per_block.most_common(1)[0][0] >= 2
    if table is None:
        return whole, stack.parameters
    return (
        whole,
        _width(stack, model) == model.shapes[table][1],
        not _has_cross_attention(stack, model),
        len(_shared_path(table, stack.path)),
        stack.parameters,
    )


def _width(stack: Blocks, model: _Model) -> int:
    """Return the hidden size of a stack: the dimension that the matrices of a block share most."""
    matrices = model.matrices[stack.prefixes[0]]
    sizes = Counter(size for name in matrices for size in set(model.shapes[name][-2:]))
    return max(sizes, key=lambda size: (sizes[size], -size), default=0)


def _shared_path(one: str, other: str) -> list[str]:
    shared = []
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        shared.append(left)
    return shared


def _is_tower(stack: Blocks, table: str, model: _Model) -> bool:
    """Tell whether a name, or an image kernel nearer than the token table, marks a tower.

    What the stack's path shares with the token table's cannot set the two apart
    (`speecht5.encoder`).
    """
    shared = len(_shared_path(table, stack.path))
    if _TOWER.search(".".join(stack.path.split(".")[shared:]).lower()):
        return True
    start = stack.path + "."
    return any(
        len(_shared_path(name, stack.path)) > shared
        for name in model.image_kernels
        if not name.startswith(start)
    )


def _with_mate(best: Blocks, stacks: Sequence[Blocks], model: _Model) -> list[Blocks]:
    """Return the stack alone, or with the encoder or decoder that belongs to it.

    Their paths part at a word with `encoder` in one and `decoder` in the other, and the decoder
    attends to the encoder or is as wide.
    """
    mirrored = (best.path.replace("decoder", "encoder"), best.path.replace("encoder", "decoder"))
    for stack in sorted(stacks, key=lambda stack: stack.path not in mirrored):
        for encoder, decoder in ((best, stack), (stack, best)):
            shared = len(_shared_path(encoder.path, decoder.path))
            words = [blocks.path.lower().split(".")[shared:][:1] for blocks in (encoder, decoder)]
            if not all(words) or "encoder" not in words[0][0] or "decoder" not in words[1][0]:
                continue
            if _has_cross_attention(decoder, model) or _width(best, model) == _width(stack, model):
                return [encoder, decoder]
    return [best]


def _has_cross_attention(stack: Blocks, model: _Model) -> bool:
    """Tell by name, or by a block that holds two modules with a query projection."""
    names = [name.removesuffix(".weight").lower() for name in model.matrices[stack.prefixes[-1]]]
    if any(_CROSS.search(name) for name in names):
        return True
    queries = {name.rpartition(".")[0] for name in names if _QUERY.match(name.rpartition(".")[2])}
    # Queries in a numbered list (`attns.0`, `attns.1`) are several self-attentions.
    return sum(not _numbers(module[len(stack.prefixes[-1]) :]) for module in queries) > 1


def _split_multi_token(stack: Blocks, model: _Model) -> tuple[Blocks, list[Blocks]]:
    """Part blocks that predict further tokens (DeepSeek's, GLM's) from the end of the main list."""
    keep = len(stack.prefixes)
    while keep > 1 and _predicts_further(stack.prefixes[keep - 1], model):
        keep -= 1
    if keep == len(stack.prefixes):
        return stack, []
    tail = model.blocks(f"{stack.path} (multi-token prediction)", stack.prefixes[keep:])
    return model.blocks(stack.path, stack.prefixes[:keep]), [tail]


def _predicts_further(prefix: str, model: _Model) -> bool:
    start = len(prefix) + 1
    return any(
        not _MULTI_TOKEN.isdisjoint(name[start:].split(".")) for name in model.tensors[prefix]
    )
