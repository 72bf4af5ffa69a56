"""Parameters sorted by block, embedding, head, norm and the rest, for many naming schemes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from layerstats.checkpoint.index import read_index
from layerstats.checkpoint.layout import find_layout
from layerstats.checkpoint.parts import find_parts
from tests.families import FAMILIES, make_family

Shapes = dict[str, tuple[int, ...]]


def llama(prefix: str = "model.", blocks: int = 3, head: str | None = "lm_head.weight") -> Shapes:
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (64, 8), f"{prefix}norm.weight": (8,)}
    for block in range(blocks):
        start = f"{prefix}layers.{block}."
        shapes |= {f"{start}self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
        shapes |= {f"{start}mlp.up_proj.weight": (24, 8), f"{start}mlp.down_proj.weight": (8, 24)}
        shapes |= {f"{start}input_layernorm.weight": (8,), f"{start}self_attn.q_proj.bias": (8,)}
    return shapes | ({head: (64, 8)} if head else {})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_place_that_agrees_with_the_layout(
    tmp_path: Path, family: str
) -> None:
    index = read_index(make_family(family, tmp_path / family))
    layout = find_layout(index)
    parts = find_parts({name: entry.shape for name, entry in index.entries.items()})
    assert len(parts.layers) == layout.num_layers
    names = [name for names in (*parts.layers, *parts.outside.values()) for name in names]
    assert sorted(names) == sorted(index.entries)
    for matrix in layout.matrices:
        place = parts.outside[matrix.kind] if matrix.layer is None else parts.layers[matrix.layer]
        assert matrix.name in place
    assert parts.outside["embed"]
    # Blocks of one model hold about the same.
    sizes = [sum(math.prod(index.entries[name].shape) for name in names) for names in parts.layers]
    assert min(sizes) > 0


def test_norms_and_biases_of_a_block_belong_to_it() -> None:
    parts = find_parts(llama())
    assert all(len(names) == 8 for names in parts.layers)
    assert {group: len(names) for group, names in parts.outside.items()} == {
        "embed": 1,
        "head": 1,
        "norm": 1,
        "other": 0,
    }


def test_biases_outside_go_with_their_weights() -> None:
    shapes = llama() | {"model.norm.bias": (8,), "lm_head.bias": (64,), "score.bias": (2,)}
    outside = find_parts(shapes).outside
    assert outside["norm"] == ("model.norm.weight", "model.norm.bias")
    assert outside["head"] == ("lm_head.weight", "lm_head.bias")
    assert outside["other"] == ("score.bias",)


@pytest.mark.parametrize(
    "prefix",
    ["module.model.", "_orig_mod.model.", "base_model.model.model.", "_fsdp_wrapped_module.model."],
)
def test_wrappers_change_nothing_but_names(prefix: str) -> None:
    plain = find_parts(llama())
    wrapped = find_parts(llama(prefix, head=prefix.replace("model.", "", 1) + "lm_head.weight"))
    assert [len(names) for names in wrapped.layers] == [len(names) for names in plain.layers]
    assert wrapped.outside["embed"] == (f"{prefix}embed_tokens.weight",)


def test_adapters_belong_to_the_block_they_stand_in() -> None:
    shapes = llama("base_model.model.model.", head="base_model.model.lm_head.weight")
    start = "base_model.model.model.layers.1.self_attn.q_proj"
    shapes[f"{start}.base_layer.weight"] = shapes.pop(f"{start}.weight")
    shapes |= {f"{start}.lora_A.default.weight": (2, 8), f"{start}.lora_B.default.weight": (8, 2)}
    parts = find_parts(shapes)
    assert len(parts.layers) == 3
    assert f"{start}.lora_A.default.weight" in parts.layers[1]


def test_a_tower_with_its_embedding_and_norm_is_no_part_of_the_text_model() -> None:
    shapes = llama("model.language_model.")
    tower = "model.vision_tower."
    for block in range(5):
        start = f"{tower}encoder.layers.{block}."
        shapes |= {f"{start}self_attn.{name}_proj.weight": (6, 6) for name in "qkv"}
        shapes |= {f"{start}mlp.fc1.weight": (12, 6), f"{start}mlp.fc2.weight": (6, 12)}
    shapes |= {f"{tower}embeddings.position_embedding.weight": (16, 6)}
    shapes |= {f"{tower}post_layernorm.weight": (6,), "model.projector.linear.weight": (8, 6)}
    parts = find_parts(shapes)
    assert len(parts.layers) == 3
    assert parts.outside["embed"] == ("model.language_model.embed_tokens.weight",)
    assert parts.outside["norm"] == ("model.language_model.norm.weight",)
    assert len(parts.outside["other"]) == 5 * 5 + 3


def test_blocks_that_predict_further_tokens_are_no_layers() -> None:
    shapes = llama(blocks=4)
    shapes |= {"model.layers.3.eh_proj.weight": (8, 16), "model.layers.3.enorm.weight": (8,)}
    parts = find_parts(shapes)
    assert len(parts.layers) == 3
    assert len(parts.outside["other"]) == 10


def test_names_without_blocks() -> None:
    parts = find_parts({"weight": (4, 4), "bias": (4,)})
    assert parts.layers == ()
    assert parts.layers_path is None
