"""Metrics of weights in memory are those of the same weights in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

import layerstats as ls
from layerstats.checkpoint.reader import open_checkpoint
from layerstats.errors import UsageError
from layerstats.metrics import METRICS
from layerstats.stats import LayerStats
from layerstats.train.tracking import check_metrics, layout_of, track
from tests.families import make_family

#: alpha_weightwatcher takes long and is a function of the matrix like the others.
METRICS_TRIED = [
    name for name, one in METRICS.items() if not one.needs and name != "alpha_weightwatcher"
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a measurement computes; a sum in another order has other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def layout(weights: Mapping[str, torch.Tensor]) -> Any:
    return layout_of({name: tuple(one.shape) for name, one in weights.items()})


def in_memory(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.index.entries}


def assert_same(found: dict[str, Any], stats: LayerStats) -> None:
    for column, values in found.items():
        expected = [None if v != v else float(v) for v in stats.layer_column(column)]
        assert values["layers"] == expected, column
        for kind in ("embed", "head"):
            rows = stats.layers[stats.layers["kind"] == kind]
            value = float(rows[column].iloc[0]) if len(rows) else float("nan")
            # A file's embedding is read in pieces of rows, whose norms are joined.
            assert values[kind] == (None if value != value else pytest.approx(value, rel=1e-14))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3_moe", "gpt_oss"])
def test_what_measure_says_of_the_file(family: str, tmp_path: Path) -> None:
    """Transposed (gpt2), single and fused experts, tied embeddings (gpt2)."""
    folder = make_family(family, tmp_path)
    weights = in_memory(folder)
    found = track(weights, layout(weights), METRICS_TRIED)
    assert {"frobenius_norm", "stable_rank", "alpha_hill", "alpha_ks", "mp_edge"} <= set(found)
    assert len(found["alpha_hill"]["layers"]) == 4
    assert_same(found, ls.measure(folder, metrics=METRICS_TRIED))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_other_dtypes_and_layouts_of_memory(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{n}.mlp.{name}.weight": torch.randn(shape, generator=generator).to(dtype)
        for n in range(2)
        for name, shape, dtype in [
            ("up_proj", (24, 16), torch.bfloat16),
            ("down_proj", (16, 24), torch.float16),
        ]
    }
    save_file(weights, tmp_path / "model.safetensors")
    turned = {name: torch.nn.Parameter(one.T.contiguous().T) for name, one in weights.items()}
    metrics = ["frobenius_norm", "mean_abs", "stable_rank"]
    found = track(turned, layout(turned), metrics)
    assert found == track(weights, layout(weights), metrics)
    assert_same(found, ls.measure(tmp_path, metrics=metrics))


def test_a_tied_head_is_none_by_every_name(tmp_path: Path) -> None:
    weights = in_memory(make_family("llama", tmp_path))
    untied = track(weights, layout(weights), ["frobenius_norm"])["frobenius_norm"]
    assert untied["head"] is not None
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    tied = track(weights, layout(weights), ["frobenius_norm"])["frobenius_norm"]
    assert tied["head"] is None
    assert tied["embed"] == untied["embed"]


def test_each_weight_is_asked_for_once_and_let_go(tmp_path: Path) -> None:
    """So that weights can be made on the way; only names outside the blocks are looked at twice."""
    weights = in_memory(make_family("mixtral", tmp_path))

    class Counting(Mapping[str, torch.Tensor]):
        def __init__(self) -> None:
            self.asked: dict[str, int] = {}

        def __getitem__(self, name: str) -> torch.Tensor:
            self.asked[name] = self.asked.get(name, 0) + 1
            return weights[name]

        def __iter__(self) -> Iterator[str]:
            return iter(weights)

        def __len__(self) -> int:
            return len(weights)

    counting = Counting()
    track(counting, layout(weights), ["frobenius_norm"])
    inside = [name for name in counting.asked if ".layers." in name]
    assert len(inside) > 8
    assert {counting.asked[name] for name in inside} == {1}


def test_a_weight_that_is_no_number_has_no_value(tmp_path: Path) -> None:
    weights = in_memory(make_family("llama", tmp_path))
    name = "model.layers.2.mlp.up_proj.weight"
    weights[name] = weights[name].clone()
    weights[name][0, 0] = float("nan")
    found = track(weights, layout(weights), ["frobenius_norm", "stable_rank"])
    assert found["frobenius_norm"]["layers"][2] is None
    assert None not in found["frobenius_norm"]["layers"][:2]
    broken = dict.fromkeys(weights, torch.full((4, 4), float("nan")))
    assert track(broken, layout(broken), ["stable_rank"])["stable_rank"]["layers"] == [None] * 4


def test_nothing_asked_nothing_measured() -> None:
    assert track({}, layout({}), []) == {}


@pytest.mark.parametrize("name", ["lod", "lora_norm"])
def test_what_needs_more_than_weights_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"training does not keep; available: alpha_hill, ") as it:
        check_metrics(["frobenius_norm", name])
    assert "lod," not in str(it.value)
    assert "\n" not in str(it.value)
    with pytest.raises(UsageError, match="did you mean 'alpha_hill'"):
        check_metrics(["alpha_hil"])
