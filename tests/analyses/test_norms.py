"""Norms by place, importance and operations against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from analyses import (
    flops,
    iteration_time,
    lisa_fig2_weight_norms,
    lisa_theory_probabilities,
    norm_runs,
)
from layerstats import demo_data
from layerstats.train import METHODS, TrainConfig, train

#: One matrix of a block would do; these are small enough to count by hand.
TINY = flops.Shapes(layers=2, hidden=2, attention=2, key_value=1, mlp=3, vocabulary=5)


def test_operations_of_a_tiny_model_are_those_counted_by_hand() -> None:
    # A block: q 4, k 2, v 2, o 4, mlp 3 x 6 = 30 weights; two blocks 60, head 10. 3 tokens.
    # Forward: 2 x 3 x 60 = 360, head 60, scores and values 2 x (2 x 3 x 3 x 2) x 2 layers = 144.
    assert (TINY.block, TINY.table) == (30, 10)
    counted = {m: flops.iteration(TINY, m, tokens=3, active=1, rank=1) for m in METHODS}
    assert counted["full"] == 3 * (360 + 60 + 144)
    assert counted["lisa"] == counted["full"] - 180  # one block's weights have no gradient
    # (in + out): q 4, k 3, v 3, o 4, mlp 5 x 3 = 29 numbers of rank 1, 3 passes, 3 tokens.
    assert counted["lora"] == 2 * 360 + 3 * 144 + 2 * 60 + 3 * 2 * 3 * 2 * 29
    assert counted["galore"] == counted["full"] + 2 * 4 * 30
    assert counted["owlore"] == counted["lisa"] + 4 * 30
    everything = flops.iteration(TINY, "lisa-d", tokens=3, active=2)
    assert everything == counted["full"]


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    path = demo_data.random_checkpoint(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    shapes, ids = flops.shapes_of(path), torch.arange(24)[None]
    with FlopCounterMode(display=False) as full:
        model(input_ids=ids, labels=ids).loss.backward()
    for name, weight in model.named_parameters():
        weight.requires_grad_(".layers." not in name or ".layers.3." in name)
    with FlopCounterMode(display=False) as lisa:
        model(input_ids=ids, labels=ids).loss.backward()
    # Rotary positions are the rest.
    for method, found in (("full", full), ("lisa", lisa)):
        expected = flops.iteration(shapes, method, tokens=24, active=1)
        assert found.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_the_products_of_lisa_on_smollm2_are_three_quarters_of_full() -> None:
    smol = flops.Shapes(30, 576, 576, 192, 1536, 49152)
    settings: dict[str, Any] = {"tokens": 192, "active": 2}
    ratio = flops.iteration(smol, "lisa", **settings) / flops.iteration(smol, "full", **settings)
    blocks, head, scores = 30 * 3538944, 28311552, 30 * 2 * 192 * 576
    by_hand = ((2 + 2 / 30) * blocks + 3 * head + 3 * scores) / (3 * (blocks + head + scores))
    assert ratio == pytest.approx(by_hand)
    assert round(ratio, 3) == 0.766


def test_p_is_the_ratio_of_norms_and_blocks_share_gamma() -> None:
    lora = np.array([[30.0, 1.0, 2.0, 3.0, 2.0, 1.0], [10.0, 1.0, 2.0, 3.0, 2.0, 4.0]])
    full = np.array([[10.0, 1.0, 1.0, 1.0, 1.0, 2.0], [10.0, 1.0, 1.0, 1.0, 1.0, 2.0]])
    row = lisa_theory_probabilities.row(lora, full, np.array([1.0, 2.0, 4.0, 3.0]))
    assert row["p"]["seeds"] == [[3, 1, 2, 3, 2, 0.5], [1, 1, 2, 3, 2, 2]]
    assert row["embed_over_blocks"]["seeds"] == [1.5, 0.5]
    assert row["head_over_blocks"]["seeds"] == [0.25, 1.0]
    assert row["block_probabilities"]["mean"] == pytest.approx([0.25, 0.5, 0.75, 0.5])
    assert row["max_over_min"]["mean"] == 3
    # Shares 1, 2, 3, 2 of 8 against 2 of 8 each: one of eight goes elsewhere.
    assert row["draws_elsewhere"]["mean"] == pytest.approx(1 / 8)
    assert row["coefficient_of_variation"]["mean"] == pytest.approx(np.sqrt(2 / 3) / 2)
    assert row["spearman_of_two_seeds"]["least"] == pytest.approx(1)
    # Ranks 1, 2.5, 4, 2.5 and 1, 2, 4, 3: 4.5 / sqrt(4.5 * 5).
    assert row["spearman_with_lod"]["rho"] == pytest.approx(4.5 / np.sqrt(22.5))


def test_far_takes_the_end_that_is_above_twice_both_its_blocks_and_full() -> None:
    def found(lora: list[list[float]], full: list[list[float]]) -> bool:
        pair = {"LoRA": np.array(lora), "full": np.array(full)}
        return lisa_fig2_weight_norms.is_far(lisa_fig2_weight_norms._skews(pair))

    flat = [[1.0, 1.0, 1.0, 1.0]] * 2
    assert found([[5.0, 1.0, 1.0, 1.0]] * 2, flat)
    assert not found([[5.0, 1.0, 1.0, 1.0]] * 2, [[5.0, 1.0, 1.0, 1.0]] * 2)
    assert not found([[1.9, 1.0, 1.0, 1.0]] * 2, flat)
    assert not found([[9.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 1.0]], flat)  # wide interval
    # The embedding is above its blocks, the head above full's: no end is both.
    assert not found([[5.0, 1.0, 1.0, 1.0]] * 2, [[5.0, 1.0, 1.0, 0.1]] * 2)


def test_a_verdict_needs_readings_that_agree_and_two_seeds() -> None:
    assert norm_runs.verdict({"a": True, "b": True}, 3) is True
    assert norm_runs.verdict({"a": False, "b": False}, 2) is False
    assert norm_runs.verdict({"a": True, "b": False}, 3) is None
    assert norm_runs.verdict({"a": True, "b": True}, 1) is None


def short(tmp_path: Path, method: str, **settings: Any) -> TrainConfig:
    path = demo_data.random_checkpoint(tmp_path / "model")
    data = tmp_path / "data.txt"
    data.write_text("one two three four five six seven eight\n" * 40, encoding="utf-8")
    shared: dict[str, Any] = {"model": str(path), "data": str(data), "seq_len": 16, "steps": 3,
                              "batch_size": 1, "device": "cpu", "warmup_steps": 0}  # fmt: skip
    return TrainConfig(**{**shared, **settings}, method=method, out=str(tmp_path / method))


def test_norms_of_runs_are_those_of_their_files(tmp_path: Path) -> None:
    found = {"full": {0: tmp_path / "full"}, "lora": {0: tmp_path / "lora"}}
    shared: dict[str, Any] = {"track": ("frobenius_norm",), "track_every": 1, "lr": 1e-2}
    train(short(tmp_path, "full", **shared))
    train(short(tmp_path, "lora", **shared, lora_targets="all"))
    table = norm_runs.norms(found)
    with safe_open(tmp_path / "lora" / "adapter" / "adapter_model.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name).double() for name in sorted(file.keys())}
    parts = {"embed": "embed_tokens.lora_embedding", "2": ".layers.2.", "head": "lm_head.lora_"}
    at = {name: n for n, name in enumerate(norm_runs.places(8))}
    for place, piece in parts.items():
        flat = [one.flatten() for name, one in kept.items() if piece in name and "lora_" in name]
        expected = float(torch.cat(flat).norm())
        assert table["lora"]["adapter"][0, at[place]] == pytest.approx(expected)
    full, before = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64)
                    for one in (tmp_path / "full" / "model", tmp_path / "model"))  # fmt: skip
    ends = [one.get_input_embeddings().weight.detach() for one in (full, before)]
    assert table["full"]["last"][0, [0, -1]] == pytest.approx([float(ends[0].norm())] * 2)
    moved = float((ends[0] - ends[1]).norm())
    assert table["full"]["update"][0, [0, -1]] == pytest.approx([moved] * 2, rel=1e-4)
    log = [json.loads(line) for line in (tmp_path / "full" / "log.jsonl").read_text().splitlines()]
    pages = [one["metrics"]["frobenius_norm"] for one in log if one["kind"] == "track"]
    after = np.mean([page["layers"][2] for page in pages[1:]])
    assert len(pages) == 4
    assert table["full"]["weights"][0, at["2"]] == pytest.approx(after)


def test_the_adapter_at_the_start_is_pefts(tmp_path: Path) -> None:
    config = short(tmp_path, "lora", lora_targets="all", lr=0.0)
    train(config)
    drawn = norm_runs._adapter(Path(config.out) / "adapter")
    hidden = flops.shapes_of(Path(config.model)).hidden
    expected = norm_runs.adapter_at_start(Path(config.out) / "adapter", hidden)
    assert expected["embed"] == pytest.approx(drawn[0], rel=0.05)
    assert expected["block"] == pytest.approx(drawn[1:-1].mean(), rel=0.05)
    assert expected["head"] == pytest.approx(drawn[-1], rel=0.05)


def test_times_leave_the_first_steps_out_and_ratios_go_round_by_round(tmp_path: Path) -> None:
    seconds = [9.0, 9.0, 2.0, 4.0, 3.0, 1.0]
    entries: list[dict[str, Any]] = [{"kind": "interval", "step": at, "interval": at}
                                     for at in (1, 4)]  # fmt: skip
    entries += [{"kind": "step", "step": n, "tokens": 6, "tokens_per_second": 6 / one,
                 "trainable": 5} for n, one in enumerate(seconds, start=1)]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    one = iteration_time._times(tmp_path / "log.jsonl")
    assert (one["seconds"], one["mean"], one["first"]) == pytest.approx((2.5, 2.5, 4.0))
    own = [{**one, "seconds": value} for value in (1.0, 3.0)]
    full = [{**one, "seconds": value, "trainable": 10} for value in (2.0, 4.0)]
    row = iteration_time._row({"lisa": own, "full": full}, "lisa")
    assert row["over_full"]["rounds"] == [0.5, 0.75]
    assert row["trained_over_full"] == 0.5
