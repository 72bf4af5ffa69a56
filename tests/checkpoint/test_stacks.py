"""Block lists are found from names and shapes alone: tables of names, and laws for all of them."""

from __future__ import annotations

import random

import pytest

from layerstats.checkpoint.layout import find_layout
from layerstats.checkpoint.stacks import canonical_names, find_stacks
from tests.checkpoint.names import decoders, encoders, hybrids, multimodal, unusual
from tests.checkpoint.names.spec import D, F, V, as_index, expand, llama

CASES = decoders.CASES | encoders.CASES | hybrids.CASES | multimodal.CASES | unusual.CASES


@pytest.mark.parametrize("name", CASES)
def test_known_names(name: str) -> None:
    case = CASES[name]
    tensors = expand(case.spec)
    layout = find_layout(as_index(tensors), case.config)
    assert (layout.num_layers, layout.layers_path) == (case.layers, case.path)
    assert {stack.path: stack.num_blocks for stack in layout.stacks} == case.stacks
    wanted = case.per_block
    per_block = [wanted] * case.layers if isinstance(wanted, int) else wanted
    assert [len(layout.of_layer(layer)) for layer in range(layout.num_layers)] == per_block
    assert layout.tied_embeddings is case.tied
    assert not case.note or any(case.note in note for note in layout.notes)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_a_matrix_or_skipped_and_no_name_is_used_twice(name: str) -> None:
    tensors = expand(CASES[name].spec)
    layout = find_layout(as_index(tensors), CASES[name].config)
    measured = {matrix.name for matrix in layout.matrices}
    skipped = {skip.name for skip in layout.skipped}
    assert measured | skipped == set(tensors)
    assert not measured & skipped
    assert len({matrix.key for matrix in layout.matrices}) == len(layout.matrices)
    inside = [(matrix.layer, matrix.path) for matrix in layout.matrices if matrix.layer is not None]
    assert len(set(inside)) == len(inside)


@pytest.mark.parametrize("name", CASES)
def test_order_of_tensors_changes_nothing(name: str) -> None:
    tensors = expand(CASES[name].spec)
    layout = find_layout(as_index(tensors), CASES[name].config)
    shuffled = list(tensors)
    random.Random(0).shuffle(shuffled)
    assert (
        find_layout(as_index({key: tensors[key] for key in shuffled}), CASES[name].config) == layout
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "_fsdp_wrapped_module."])
def test_wrapper_prefixes_change_nothing(name: str, wrapper: str) -> None:
    case = CASES[name]
    plain = find_layout(as_index(expand(case.spec)), case.config)
    wrapped = find_layout(
        as_index({wrapper + key: value for key, value in expand(case.spec).items()}), case.config
    )
    assert [(m.layer, m.path, m.kind) for m in wrapped.matrices] == [
        (m.layer, m.path, m.kind) for m in plain.matrices
    ]
    assert (wrapped.layers_path, wrapped.stacks) == (plain.layers_path, plain.stacks)


@pytest.mark.parametrize("infix", ["_checkpoint_wrapped_module.", "_orig_mod."])
def test_an_infix_behind_the_number_changes_nothing(infix: str) -> None:
    spec = llama("model.layers.{0..2}." + infix)
    main, _ = find_stacks({new: (2, 2) for new in canonical_names(_shapes(spec)).values()})
    assert [stack.path for stack in main] == ["model.layers"]


@pytest.mark.parametrize("name", ["llama", "gpt-2 as saved today", "t5", "llava", "mixtral"])
def test_config_changes_nothing_about_the_blocks(name: str) -> None:
    index = as_index(expand(CASES[name].spec))
    bare = find_layout(index, None)
    told = find_layout(
        index, {"num_hidden_layers": 77, "tie_word_embeddings": bare.tied_embeddings}
    )
    assert (told.matrices, told.num_layers, told.stacks) == (
        bare.matrices,
        bare.num_layers,
        bare.stacks,
    )


@pytest.mark.parametrize(
    "tower", ["sight.parts", "model.sight.parts", "aaa.h", "zzz.model.layers", "backbone2.blocks"]
)
@pytest.mark.parametrize("blocks", [1, 9])
@pytest.mark.parametrize("width", [24, 2 * D])
def test_a_tower_of_any_name_length_and_width_is_not_taken_for_the_model(
    tower: str, blocks: int, width: int
) -> None:
    spec = {
        "model.embed_tokens.weight": (V, D),
        **llama(),
        **llama(f"{tower}.{{0..{blocks - 1}}}.", width, F),
    }
    main, others = find_stacks(_shapes(spec))
    assert [stack.path for stack in main] == ["model.layers"]
    assert [(stack.path, len(stack.prefixes)) for stack in others] == [(tower, blocks)]


@pytest.mark.parametrize("blocks", [1, 2, 12])
@pytest.mark.parametrize("experts", [1, 2, 64])
def test_experts_are_never_blocks(blocks: int, experts: int) -> None:
    spec = {
        "model.embed_tokens.weight": (V, D),
        f"model.layers.{{0..{blocks - 1}}}.self_attn.{{q|k|v|o}}_proj.weight": (D, D),
        f"model.layers.{{0..{blocks - 1}}}.ffn.list.{{0..{experts - 1}}}.{{w1|w2|w3}}.weight": (
            D,
            D,
        ),
    }
    main, others = find_stacks(_shapes(spec))
    assert [(stack.path, len(stack.prefixes)) for stack in main] == [("model.layers", blocks)]
    assert others == []


def test_numbers_are_sorted_as_numbers() -> None:
    main, _ = find_stacks(_shapes(llama("model.layers.{0..11}.")))
    assert main[0].prefixes == tuple(f"model.layers.{number}" for number in range(12))


def test_a_wrapper_that_carries_meaning_stays() -> None:
    """Were `module` taken out here, two tensors would have one name."""
    shapes = {"module.h.0.w.weight": (2, 2), "h.0.w.weight": (2, 2), "h.0.v.weight": (2, 2)}
    assert canonical_names(shapes) == {name: name for name in shapes}


def test_thousands_of_experts_are_laid_out_by_looking_at_each_name_a_few_times() -> None:
    """Twice the names must cost about twice the calls; a scan per expert would cost four times."""
    assert _calls(200) < 2.3 * _calls(100)


def _calls(experts: int) -> int:
    import cProfile
    import pstats

    spec = {
        "model.embed_tokens.weight": (V, D),
        f"model.layers.{{0..9}}.mlp.experts.{{0..{experts - 1}}}.{{gate|up|down}}_proj.weight": (
            D,
            D,
        ),
    }
    index = as_index(expand(spec))
    with cProfile.Profile() as profile:
        find_layout(index)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def _shapes(spec: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in expand(spec).items()}
