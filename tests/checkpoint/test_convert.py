"""GGUF to a Hugging Face directory: whole, exact, readable by transformers, else refused."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

from layerstats.checkpoint.bpe_tokenizer import ByteLevelBpe, byte_alphabet, write_tokenizer
from layerstats.checkpoint.convert import convert_gguf
from layerstats.checkpoint.gguf import read_gguf_index, read_gguf_tensor
from layerstats.checkpoint.writer import staged_directory, write_json, write_shards
from layerstats.demo_data import fetch_gguf
from layerstats.errors import CheckpointError, NetworkError, UsageError
from tests.checkpoint import tiny_gguf as tiny


def read_directory(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
            found |= {name: stored.get_tensor(name).clone() for name in names}
    return found


def tiny_file(path: Path, *, tied: bool = True, pre: str = "gpt-2", **more) -> Path:
    def values(writer: gguf.GGUFWriter) -> None:
        tiny.add_byte_tokenizer(writer, pre)
        for key, value in more.items():
            writer.add_key_value(key.replace("__", "."), *value)

    return tiny.write(path, tiny.dense_tensors(tied=tied), kind=Type.Q8_0, values=values)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_tensor_is_the_one_read_from_the_file(tmp_path, tied, dtype):
    path = tiny_file(tmp_path / "m.gguf", tied=tied)
    out = convert_gguf(path, tmp_path / "out", max_shard_bytes=60_000, dtype=dtype)
    found = read_directory(out)
    entries, metadata = read_gguf_index(path)
    assert set(found) == set(entries)
    for name, entry in entries.items():
        expected = read_gguf_tensor(entry, metadata).to(getattr(torch, dtype))
        assert torch.equal(found[name], expected), name
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied


def test_shards_follow_the_blocks_and_the_index_names_them(tmp_path):
    out = convert_gguf(tiny_file(tmp_path / "m.gguf"), tmp_path / "out", max_shard_bytes=60_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in read_directory(out).values()
    )
    for file in files:
        with safe_open(out / file, framework="pt") as stored:
            names = list(stored.keys())
        assert {index["weight_map"][name] for name in names} == {file}
        sizes = sum(read_directory(out)[name].nbytes for name in names)
        assert sizes <= 60_000 or len(names) == 1
    assert index["weight_map"]["model.embed_tokens.weight"] == files[0]
    assert index["weight_map"]["model.norm.weight"] == files[-1]


def test_one_shard_needs_no_index(tmp_path):
    out = convert_gguf(tiny_file(tmp_path / "m.gguf"), tmp_path / "out")
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_transformers_opens_the_directory_and_its_own_loader_agrees(tmp_path):
    import transformers

    path = tiny_file(tmp_path / "m.gguf", tied=False)
    out = convert_gguf(path, tmp_path / "out", dtype="float32")
    ours = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    for key in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "vocab_size",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    ):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    assert ours.config.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps, rel=1e-6)
    assert ours.config.rope_parameters["rope_theta"] == 10000.0


TEXT = "of the 12345 thefts <|begin|> the\n\n Ärger 12"


def pieces(path: Path, text: str = TEXT) -> list[str]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


def test_pre_tokenizers_cut_as_they_should(tmp_path):
    found = {}
    for pre in ("gpt-2", "smollm", "llama-bpe"):
        path = tiny_file(tmp_path / f"{pre}.gguf", pre=pre)
        found[pre] = pieces(convert_gguf(path, tmp_path / pre))
    for tokens in found.values():
        assert tokens[:3] == ["of", "Ġthe", "Ġ"]
        assert "<|begin|>" in tokens
    assert found["gpt-2"][3:8] == ["123", "4", "5", "Ġthe", "f"]
    assert found["smollm"][3:8] == ["1", "2", "3", "4", "5"]  # each digit alone
    assert found["llama-bpe"][3:6] == ["123", "4", "5"]  # three digits at the most


def test_the_first_token_is_added_where_the_file_says_so(tmp_path):
    import transformers

    for pre, more, expected in (
        ("llama-bpe", {}, True),
        ("llama-bpe", {"tokenizer__ggml__add_bos_token": (False, gguf.GGUFValueType.BOOL)}, False),
        ("gpt-2", {}, False),
        ("gpt-2", {"tokenizer__ggml__add_bos_token": (True, gguf.GGUFValueType.BOOL)}, True),
    ):
        name = f"{pre}-{expected}-{len(more)}"
        out = convert_gguf(tiny_file(tmp_path / f"{name}.gguf", pre=pre, **more), tmp_path / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        ids = tokenizer("of").input_ids
        assert (ids[0] == tokenizer.bos_token_id == 262) is expected
        assert tokenizer.eos_token == "<|end|>"


def test_the_tokenizer_is_that_of_transformers_gguf_loader(tmp_path):
    import transformers

    for pre in ("gpt-2", "llama-bpe"):
        folder = tmp_path / f"in-{pre}"
        folder.mkdir()
        path = tiny_file(folder / "m.gguf", pre=pre)
        theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")
        out = convert_gguf(path, tmp_path / pre)
        ours = transformers.AutoTokenizer.from_pretrained(out)
        expected = theirs(TEXT, add_special_tokens=False).input_ids
        assert ours(TEXT, add_special_tokens=False).input_ids == expected


STRING, NUMBER = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pre": "qwen2"}, "'qwen2'"),
        ({"llama__rope__scaling__type": ("yarn", STRING)}, "rotary"),
        ({"llama__attention__key_length": (32, NUMBER)}, "rotates 16 of 32"),
    ],
)
def test_what_cannot_be_written_exactly_is_refused(tmp_path, changes, word):
    path = tiny_file(tmp_path / "m.gguf", **changes)
    with pytest.raises(UsageError, match=word) as caught:
        convert_gguf(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.gguf"]


def test_other_architectures_and_experts_are_refused(tmp_path):
    path = tiny.write(tmp_path / "q.gguf", tiny.dense_tensors(), architecture="qwen2")
    with pytest.raises(UsageError, match="'qwen2'"):
        convert_gguf(path, tmp_path / "out")
    router = {"model.layers.0.block_sparse_moe.gate.weight": np.ones((4, 64), dtype=np.float32)}
    path = tiny.write(
        tmp_path / "e.gguf", tiny.dense_tensors() | router, values=tiny.add_byte_tokenizer
    )
    with pytest.raises(UsageError, match="block_sparse_moe"):
        convert_gguf(path, tmp_path / "out")
    lost = "model.layers.1.self_attn.k_proj.weight"
    rest = {name: weight for name, weight in tiny.dense_tensors().items() if name != lost}
    path = tiny.write(tmp_path / "l.gguf", rest, values=tiny.add_byte_tokenizer)
    with pytest.raises(CheckpointError, match=lost):
        convert_gguf(path, tmp_path / "out")


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    path = tiny_file(tmp_path / "m.gguf")

    def fail(*_args: object) -> torch.Tensor:
        msg = "disk on fire"
        raise OSError(msg)

    monkeypatch.setattr("layerstats.checkpoint.convert.read_gguf_tensor", fail)
    with pytest.raises(OSError, match="disk on fire"):
        convert_gguf(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_an_existing_directory_is_not_touched(tmp_path):
    path = tiny_file(tmp_path / "m.gguf")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        convert_gguf(path, out)
    with pytest.raises(UsageError, match="exists already"), staged_directory(tmp_path / "b"):
        (tmp_path / "b").mkdir()  # somebody else was faster
    assert list(out.iterdir()) == []
    assert not list(tmp_path.glob(".*"))


def test_the_writer_checks_what_it_is_given(tmp_path):
    with pytest.raises(UsageError, match="bfloat16"):
        write_shards(tmp_path, {"a": (1,)}, torch.ones, dtype="int4")
    with pytest.raises(UsageError, match="max_shard_bytes"):
        write_shards(tmp_path, {"a": (1,)}, torch.ones, max_shard_bytes=0)
    with pytest.raises(ValueError, match="planned"):
        write_shards(tmp_path, {"a": (2,)}, lambda _: torch.ones(3))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))


def test_scalars_and_views_are_written_as_they_are(tmp_path):
    tensors = {"a": torch.tensor(3.0), "b": torch.arange(6.0).reshape(2, 3).T}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_shards(tmp_path, shapes, tensors.__getitem__, dtype="float32")
    found = read_directory(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_the_vocabulary_is_checked(tmp_path):
    alphabet = byte_alphabet()
    with pytest.raises(UsageError, match="did you mean 'gpt-2'"):
        write_tokenizer(tmp_path, ByteLevelBpe(alphabet, (), "gpt2"))
    with pytest.raises(CheckpointError, match="'a' is in the vocabulary twice"):
        write_tokenizer(tmp_path, ByteLevelBpe([*alphabet, "a"], (), "gpt-2"))
    with pytest.raises(CheckpointError, match="bos_token has id 256"):
        write_tokenizer(tmp_path, ByteLevelBpe(alphabet, (), "gpt-2", special={"bos_token": 256}))


def test_the_alphabet_is_that_of_gpt2():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = bytes_to_unicode()
    assert byte_alphabet() == [table[byte] for byte in range(256)]


@pytest.fixture(scope="module")
def real_gguf(tmp_path_factory) -> Path:
    """The GGUF file itself; the cache of the demo keeps only what is made of it."""
    try:
        return fetch_gguf(tmp_path_factory.mktemp("gguf"))
    except NetworkError as error:
        pytest.skip(str(error))


@pytest.mark.real
def test_real_file_gives_the_tensors_of_transformers_own_loader(real_gguf):
    import transformers

    entries, metadata = read_gguf_index(real_gguf)
    assert len(entries) == 272
    model = transformers.AutoModelForCausalLM.from_pretrained(
        real_gguf.parent, gguf_file=real_gguf.name, dtype=torch.float32
    )
    expected = model.state_dict()
    assert set(expected) - set(entries) == {"lm_head.weight"}  # tied
    for name, entry in entries.items():
        assert torch.equal(read_gguf_tensor(entry, metadata), expected[name]), name


@pytest.mark.real
def test_cached_checkpoint_holds_the_real_file_in_bfloat16(real_gguf, smollm2):
    entries, metadata = read_gguf_index(real_gguf)
    found = read_directory(smollm2)
    assert set(found) == set(entries)
    for name, entry in entries.items():
        assert torch.equal(found[name], read_gguf_tensor(entry, metadata).bfloat16()), name
