"""The trainer's step on fake tensors takes what it takes on real ones, to the byte."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from layerstats.errors import LayerstatsError
from layerstats.train import METHODS
from layerstats.train.fake_model import fake_model, fake_tensors, load_code
from tests.train.tiny_fake import LAYERS, lisa, make_config, rehearse_fake, rehearse_real, shape


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_fake_is_real_to_the_byte(method: str, dtype: str, checkpointing: bool) -> None:
    """Peak, phase, parts, each interval, even the order that the allocator's estimate sees."""
    config = make_config(method, dtype=dtype, checkpointing=checkpointing)
    real = rehearse_real(config, shape())
    assert rehearse_fake(config, shape()) == real
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    assert real.use.parts_at_peak_bytes["weights"] >= real.parameters * size
    assert real.use.peak_bytes < real.use.sum_of_parts_bytes


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("owlore", {"state": "keep"}),
        ("owlore", {"state": "offload"}),
        ("lisa", {"always_active": ()}),
        ("lisa", {"autocast": True}),
        ("lisa", {"accumulation": 2}),
        ("lisa", {"max_grad_norm": None}),
        ("lora", {"lora_dropout": 0.1, "lora_targets": "all"}),
        ("galore", {"projection": "svd", "rank_per_layer": (2, 4)}),
    ],
)
def test_settings_of_the_trainer_count(method: str, settings: dict[str, Any]) -> None:
    config = make_config(method, **settings)
    fake = rehearse_fake(config, shape())
    assert fake == rehearse_real(config, shape())
    assert (
        fake.use != rehearse_fake(make_config(method), shape()).use or "max_grad_norm" in settings
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "resid_pdrop": 0.0}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 8}),
        ("gemma2", {"head_dim": 8}),
        ("mixtral", {"num_local_experts": 8, "hidden_size": 64, "intermediate_size": 64}),
    ],
)
def test_other_families_too(kind: str, settings: dict[str, Any]) -> None:
    config = make_config("lisa", dtype="bfloat16")
    assert rehearse_fake(config, shape(kind, **settings)) == rehearse_real(
        config, shape(kind, **settings)
    )


def test_two_steps_an_interval_are_enough() -> None:
    """What comes later takes no more: a third interval of the same layers changes nothing."""
    for method in ("owlore", "full", "galore", "lora"):
        config = make_config(method)
        once = rehearse_fake(config, shape(), [(0,), (1,)])
        more = rehearse_fake(config, shape(), [(0,), (1,), (0,), (1,)])
        assert more.use == once.use


def test_kept_states_are_those_of_a_run_in_which_every_layer_had_its_turn() -> None:
    """The state that `rehearse` makes beforehand is what intervals one by one would leave."""
    config = make_config("lisa", state="keep")
    found = rehearse_fake(config, shape(), [(0,), (1,)])
    dropped = rehearse_fake(make_config("lisa"), shape(), [(0,), (1,)])
    layer = (found.intervals[0].trainable - _outside()) * 4
    assert found.use.peak_bytes == dropped.use.peak_bytes + 2 * layer + 4 * 9  # nine steps' counts
    away = rehearse_fake(make_config("lisa", state="offload"), shape(), [(0,), (1,)])
    assert away.use.peak_bytes == dropped.use.peak_bytes
    # While layers are exchanged both are on the host for a moment.
    assert away.use.host_bytes == 2 * (2 * layer + 4 * 9)


def _outside() -> int:
    """Parameters of embedding, head and last norm."""
    return 2 * 160 * 32 + 32


def test_by_hand() -> None:
    """Weights, gradients and Adam's moments of full fine-tuning, counted on paper."""
    config = make_config("full")
    use = rehearse_fake(config, shape()).use
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 88 + 2 * 32
    parameters = LAYERS * layer + _outside()
    inverse_frequencies = 2 * 4
    tensors = LAYERS * 9 + 3
    assert use.part_peaks_bytes["weights"] == 4 * (parameters + inverse_frequencies)
    assert use.part_peaks_bytes["gradients"] == 4 * parameters
    assert use.part_peaks_bytes["optimizer"] == 8 * parameters + 4 * tensors


def test_position_matters_where_the_embedding_rests() -> None:
    """The lower the lowest layer that trains, the more the forward pass has to keep."""
    config = make_config("lisa", always_active=())
    low, high = rehearse_fake(config, shape(num_hidden_layers=4), [(0,), (3,)]).intervals
    assert low.use.peak_bytes > high.use.peak_bytes
    assert low.layers == (0,)
    assert low.trainable == high.trainable


def test_nothing_of_torch_or_transformers_is_left_changed() -> None:
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        rehearse_fake(make_config("lora", lora_dropout=0.1), shape())
        assert torch.equal(torch.rand(2), expected)
    assert masking_utils.find_packed_sequence_indices is before
    assert type(torch.zeros(1)) is torch.Tensor
    with pytest.raises(ZeroDivisionError), fake_tensors():
        _ = 1 / (masking_utils.find_packed_sequence_indices is before)
    assert masking_utils.find_packed_sequence_indices is before
    assert type(torch.zeros(1)) is torch.Tensor


def test_the_name_that_is_patched_exists_and_its_absence_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import masking_utils

    assert callable(masking_utils.find_packed_sequence_indices)
    monkeypatch.delattr(masking_utils, "find_packed_sequence_indices")
    with pytest.raises(LayerstatsError, match=r"no masking_utils\.find_packed_sequence_indices"):
        fake_tensors().__enter__()


def test_the_patch_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it fake tensors take more than real ones: a mask of seq_len x seq_len."""
    from transformers import masking_utils

    original = masking_utils.find_packed_sequence_indices
    config = make_config("full")
    load_code(shape())
    with fake_tensors():
        monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", original)
        from tests.train.tiny_fake import _rehearse

        unpatched = _rehearse(fake_model(shape(), dtype="float32"), config, ())
    monkeypatch.undo()
    assert unpatched.use.peak_bytes > rehearse_real(config, shape()).use.peak_bytes


def test_the_schedules_other_sides_are_its_own() -> None:
    """Which groups are always active and GaLore's rank come from the schedule."""
    import dataclasses

    from layerstats.schedules import LowRank
    from layerstats.train.model import prepare
    from layerstats.train.rehearsal import rehearse

    def peak(rank: int, always: tuple[str, ...]) -> int:
        plan = dataclasses.replace(lisa(), always_active=always, low_rank=LowRank(rank, 1, 1.0))
        config = make_config("owlore", rank=None, update_interval=None)
        load_code(shape())
        with fake_tensors():
            model = prepare(fake_model(shape(), dtype="float32"), config)
            return rehearse(model, config, plan, [(0,), (1,)]).use.sum_of_parts_bytes

    ranks = [peak(rank, ("embed", "head", "norm")) for rank in (2, 8)]
    assert ranks[0] < ranks[1]
    assert peak(2, ("norm",)) < ranks[0]


def test_fake_weights_are_those_of_a_loaded_checkpoint(tmp_path: Any) -> None:
    """Names, shapes, types and tying, buffers too, in both dtypes."""
    from transformers import AutoModelForCausalLM

    for tied, dtype in itertools.product([False, True], ["float32", "bfloat16"]):
        made = AutoModelForCausalLM.from_config(shape(tie_word_embeddings=tied))
        made.save_pretrained(tmp_path / str(tied))
        real = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied), dtype=dtype)
        with fake_tensors():
            fake = fake_model(shape(tie_word_embeddings=tied), dtype=dtype)

        def listed(model: Any) -> list[tuple[Any, ...]]:
            both = [*model.named_parameters(), *model.named_buffers()]
            return [(name, tuple(one.shape), one.dtype) for name, one in both]

        assert listed(fake) == listed(real)
