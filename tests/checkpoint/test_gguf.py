"""GGUF files read as a checkpoint: against gguf's and transformers' own readers."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from layerstats.checkpoint import gguf as reading
from layerstats.checkpoint.gguf import (
    ARRAYS_KEY,
    NAMES_KEY,
    read_gguf_array,
    read_gguf_index,
    read_gguf_tensor,
)
from layerstats.checkpoint.gguf_names import TRANSLATED, translate
from layerstats.errors import MissingError
from tests.checkpoint import tiny_gguf as tiny


def read_all(path: Path) -> dict[str, np.ndarray]:
    entries, metadata = read_gguf_index(path)
    return {name: read_gguf_tensor(entry, metadata).numpy() for name, entry in entries.items()}


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_1, Type.Q4_0, Type.Q5_1]
)
def test_each_type_gives_back_the_tensors_in_their_own_row_order(tmp_path, kind):
    tensors = tiny.dense_tensors(tied=False)
    found = read_all(tiny.write(tmp_path / "m.gguf", tensors, kind=kind))
    assert set(found) == set(tensors)
    for name, weight in tensors.items():
        np.testing.assert_array_equal(found[name], tiny.quantized(weight, kind), err_msg=name)


def test_types_may_differ_between_tensors(tmp_path):
    tensors = tiny.dense_tensors()

    def kind(name: str) -> Type:
        return Type.Q8_0 if "embed" in name else Type.Q4_1 if "mlp" in name else Type.F16

    path = tiny.write(tmp_path / "m.gguf", tensors, kind=kind)
    entries, _ = read_gguf_index(path)
    assert entries["model.embed_tokens.weight"].dtype == "Q8_0"
    assert entries["model.layers.0.mlp.up_proj.weight"].dtype == "Q4_1"
    assert entries["model.norm.weight"].dtype == "F32"
    for name, weight in read_all(path).items():
        np.testing.assert_array_equal(weight, tiny.quantized(tensors[name], kind(name)))


def test_the_index_agrees_with_the_package(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors(), kind=Type.Q4_1)
    entries, metadata = read_gguf_index(path)
    reader = gguf.GGUFReader(path)
    stored = {metadata[NAMES_KEY][name]: entry for name, entry in entries.items()}
    assert len(stored) == len(reader.tensors)
    for tensor in reader.tensors:
        entry = stored[tensor.name]
        assert entry.offset == tensor.data_offset
        assert entry.nbytes == tensor.n_bytes
        assert entry.dtype == tensor.tensor_type.name
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert metadata[key] == field.contents()
    assert list(entries.values()) == sorted(entries.values(), key=lambda entry: entry.offset)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "olmo2", "phi3"])
def test_rows_of_architectures_that_are_written_as_they_are_stay(tmp_path, architecture):
    tensors = {
        name: weight
        for name, weight in tiny.dense_tensors().items()
        if "layernorm" not in name and name != "model.norm.weight"
    }
    if architecture == "phi3":
        tensors = {name: weight for name, weight in tensors.items() if "mlp" not in name}
    path = tmp_path / "m.gguf"
    found = read_all(tiny.write(path, tensors, architecture=architecture, permuted=False))
    for name, weight in tensors.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_gemma_norms_lose_the_one_that_was_added(tmp_path, architecture):
    norm = np.linspace(-0.5, 0.5, tiny.WIDTH, dtype=np.float32)
    names = ["model.norm.weight", "model.layers.1.input_layernorm.weight"]
    if architecture == "gemma3":
        names.append("model.layers.1.self_attn.q_norm.weight")
    path = tiny.write(
        tmp_path / "m.gguf", dict.fromkeys(names, norm + 1), architecture=architecture
    )
    for name, weight in read_all(path).items():
        np.testing.assert_allclose(weight, norm, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("architecture", "block", "gate", "down"),
    [
        ("llama", "block_sparse_moe", "w1", "w2"),
        ("qwen2moe", "mlp", "gate_proj", "down_proj"),
        ("qwen3moe", "mlp", "gate_proj", "down_proj"),
        ("olmoe", "mlp", "gate_proj", "down_proj"),
    ],
)
@pytest.mark.parametrize("kind", [Type.F16, Type.Q8_0])
def test_fused_experts_become_entries_of_their_own(tmp_path, architecture, block, gate, down, kind):
    rng = np.random.default_rng(1)
    experts = 3
    fused = {
        f"model.layers.0.{block}.experts.{gate}": rng.standard_normal((experts, 96, 64)),
        f"model.layers.0.{block}.experts.{down}": rng.standard_normal((experts, 64, 96)),
    }
    router = {f"model.layers.0.{block}.gate.weight": rng.standard_normal((experts, 64))}
    # gguf's table knows Mixtral's fused tensors by another spelling.
    spelled = {"w1": "ffn_gate_exps", "gate_proj": "ffn_gate_exps"}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    for name, weight in fused.items():
        stem = spelled.get(name.rpartition(".")[2], "ffn_down_exps")
        data = gguf.quantize(weight.astype(np.float32), kind)
        writer.add_tensor(f"blk.0.{stem}.weight", data, raw_dtype=kind)
    for weight in router.values():
        writer.add_tensor("blk.0.ffn_gate_inp.weight", weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entries, metadata = read_gguf_index(tmp_path / "m.gguf")
    assert len(entries) == 2 * experts + 1
    for name, weight in fused.items():
        stem, _, leaf = name.rpartition(".")
        for expert in range(experts):
            entry = entries[f"{stem}.{expert}.{leaf}.weight"]
            expected = tiny.quantized(weight[expert].astype(np.float32), kind)
            assert entry.shape == expected.shape
            np.testing.assert_array_equal(read_gguf_tensor(entry, metadata).numpy(), expected)
    assert entries[next(iter(router))].shape == (experts, 64)


def test_shared_expert_gate_gets_its_row_back(tmp_path):
    gate = np.arange(64, dtype=np.float32)
    name = "model.layers.0.mlp.shared_expert_gate.weight"
    path = tiny.write(tmp_path / "m.gguf", {name: gate}, architecture="qwen2moe")
    np.testing.assert_array_equal(read_all(path)[name], gate[None])


def model_names(architecture: str) -> list[str]:
    """Names in a checkpoint of transformers' own model of this architecture."""
    import transformers

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": tiny.LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "pad_token_id": 0,
    }
    kinds = {
        "llama": "Llama",
        "mistral3": "Ministral3",
        "arcee": "Arcee",
        "smollm3": "SmolLM3",
        "granite": "Granite",
        "olmo": "Olmo",
        "olmo2": "Olmo2",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma": "Gemma",
        "gemma2": "Gemma2",
        "gemma3": "Gemma3Text",
        "phi3": "Phi3",
        "command-r": "Cohere",
        "cohere2": "Cohere2",
    }
    config = getattr(transformers, f"{kinds[architecture]}Config")(**sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return [name for name, _ in model.named_parameters()]


MOE_NAMES = {
    "qwen2moe": (
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
        "mlp.shared_expert.down_proj.weight",
        "self_attn.q_proj.bias",
    ),
    "qwen3moe": ("mlp.gate.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    "olmoe": ("mlp.gate.weight", "self_attn.q_norm.weight", "post_attention_layernorm.weight"),
}


@pytest.mark.parametrize("architecture", sorted(TRANSLATED))
def test_translation_is_the_inverse_of_the_packages_table(architecture):
    """Each tensor that transformers' model has comes back from gguf's name for it."""
    if architecture in MOE_NAMES:
        names = [f"model.layers.1.{part}" for part in MOE_NAMES[architecture]]
    else:
        names = model_names(architecture)
    assert names
    for name in names:
        assert translate(architecture, tiny.gguf_name(architecture, name)) == name


def test_an_unknown_architecture_keeps_its_names(tmp_path):
    weight = np.ones((64, 64), dtype=np.float32)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("blk.0.ssm_in.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert list(read_gguf_index(path)[0]) == ["blk.0.ssm_in.weight"]


def test_an_unknown_part_stays_in_its_block():
    assert translate("llama", "blk.7.attn_sinks.weight") == "model.layers.7.attn_sinks.weight"
    assert translate("llama", "rope_freqs.weight") == "rope_freqs.weight"
    old = translate("llama", "blk.7.ffn_down.5.weight")
    assert old == "model.layers.7.block_sparse_moe.experts.5.w2.weight"


def test_the_size_of_the_pieces_does_not_matter(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors(), kind=Type.Q4_1)
    whole = read_all(path)
    monkeypatch.setattr(reading, "_PIECE_ELEMENTS", 1000)
    for name, weight in read_all(path).items():
        np.testing.assert_array_equal(weight, whole[name])


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_nothing_stays_mapped_or_open(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors(), kind=Type.Q4_1)
    kept = read_all(path)
    assert kept
    assert str(path) not in Path("/proc/self/maps").read_text()
    links = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert path not in links


def test_long_arrays_are_left_in_the_file_and_read_on_demand(tmp_path):
    scores = [float(number) for number in range(3000)]
    words = [f"word {number}" for number in range(3000)]

    def values(writer: gguf.GGUFWriter) -> None:
        writer.add_array("x.scores", scores)
        writer.add_array("x.words", words)
        writer.add_array("x.few", [1, 2, 3])

    path = tiny.write(tmp_path / "m.gguf", tiny.dense_tensors(), values=values)
    entries, metadata = read_gguf_index(path)
    assert metadata[ARRAYS_KEY] == {"x.scores": 3000, "x.words": 3000}
    assert "x.words" not in metadata
    assert metadata["x.few"] == [1, 2, 3]
    assert read_gguf_array(path, "x.words") == words
    assert read_gguf_array(path, "x.scores") == scores
    assert read_gguf_array(path, "x.few") == [1, 2, 3]
    with pytest.raises(MissingError, match=r"x\.none"):
        read_gguf_array(path, "x.none")
    weight = tiny.dense_tensors()["model.norm.weight"]
    np.testing.assert_array_equal(
        read_gguf_tensor(entries["model.norm.weight"], metadata).numpy(), weight
    )


def test_a_split_file_is_read_from_any_part(tmp_path):
    tensors = tiny.dense_tensors()
    names = list(tensors)
    parts = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):

        def values(writer: gguf.GGUFWriter, number: int = number) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)

        half = {name: tensors[name] for name in names[number::2]}
        tiny.write(part, half, values=values)
    for part in parts:
        found = read_all(part)
        assert set(found) == set(tensors)
        np.testing.assert_array_equal(found[names[3]], tensors[names[3]])
    parts[1].unlink()
    with pytest.raises(MissingError, match="m-00002-of-00002"):
        read_gguf_index(parts[0])
