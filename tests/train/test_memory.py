"""Plans: what they say, the heaviest layers, refusals; and beside real runs of the trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import layerstats.train.loop as loop
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from layerstats.schedules import Schedule, schedule
from layerstats.train import METHODS, TrainConfig, train
from layerstats.train.fake_model import load_code
from layerstats.train.live_bytes import LiveBytes, MemoryUse
from layerstats.train.memory import MemoryPlan, plan_memory
from layerstats.train.presets import model_config
from layerstats.train.worst_case import worst_case
from tests.train.tiny import config, make_model
from tests.train.tiny_fake import shape


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The config.json of a small Llama."""
    (tmp_path / "config.json").write_text(json.dumps(shape(num_hidden_layers=4).to_dict()))
    return tmp_path / "config.json"


def plan(source: Path, method: str = "lisa", **settings: Any) -> MemoryPlan:
    return plan_memory(source, method=method, **{"seq_len": 16, "batch_size": 1, **settings})


# --- beside real runs of the trainer ---------------------------------------------------------


def counted_run(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[MemoryUse, TrainConfig]:
    """Run `train` with its real step counted, from its first step to its last."""
    settings = config(folder, method, steps=6)
    load_code(model_config(settings.model), adapters=True)
    live, bounds = LiveBytes(), []
    original = loop.optimizer_step

    def counted(trainee: Any, batches: Any, *, announce: Any, **rest: Any) -> Any:
        def both(phase: str) -> None:
            live.phase(phase)
            announce(phase)

        bounds.append(live.position)
        result = original(trainee, batches, announce=both, **rest)
        bounds.append(live.position)
        return result

    monkeypatch.setattr(loop, "optimizer_step", counted)
    with live:
        train(settings)
    return live.use(since=bounds[0], until=bounds[-1]), settings


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_what_a_run_of_the_trainer_takes_to_the_byte(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use, run = counted_run(tmp_path, method, monkeypatch)
    names = ("seq_len", "batch_size", "dtype", "rank", "steps")
    same = {name: getattr(run, name) for name in names}
    if METHODS[method].who != "layers":
        found = plan(Path(run.model), method, **same)
        assert (found.peak_bytes, found.peak_phase) == (use.peak_bytes, use.peak_phase)
        return
    drawn = Schedule.from_json(Path(run.out) / "schedule.json")
    bound = plan(Path(run.model), method, schedule=drawn, **same)
    assert bound.peak_bytes >= use.peak_bytes
    exact = [
        plan(Path(run.model), method, schedule=drawn, layers=layers, **same)
        for layers in drawn.plan(2)
    ]
    assert max(one.peak_bytes for one in exact) == use.peak_bytes
    assert bound.worst_case is not None
    assert bound.intervals[0]["layers"] == bound.worst_case["heaviest_layers"]


HIGH_WATER = """
import gc, json, sys, torch
from layerstats.train.high_water import HighWater
from tests.train.tiny_fake import make_config, rehearse_fake, rehearse_real, shape

def large(layers, words):
    return shape(hidden_size=768, intermediate_size=2048, num_hidden_layers=layers,
                 vocab_size=words, max_position_embeddings=64)

def settings(method):
    return make_config(method, seq_len=64, rank=8, dtype=sys.argv[1],
                       checkpointing=sys.argv[2] == "True")

# Once before with the same widths: libraries' code and their own buffers are not the run's.
for method in ("lora", "owlore", "owlore-full"):
    rehearse_real(settings(method), large(2, 512), [(0,), (1,)])
for method in json.loads(sys.argv[3]):
    config = settings(method)
    planned = rehearse_fake(config, large(3, 8192), [(0,), (2,)])
    gc.collect()
    mark = HighWater(torch.device("cpu"))
    before = mark.peak
    real = rehearse_real(config, large(3, 8192), [(0,), (2,)])
    print(method, planned.use.peak_bytes, real.use.peak_bytes, mark.peak - before)
    del real
    gc.collect()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets its high-water mark back")
@pytest.mark.parametrize(("dtype", "checkpointing"), [("float32", False), ("bfloat16", True)])
def test_within_seven_percent_of_the_high_water_mark_of_a_process(
    dtype: str, checkpointing: bool
) -> None:
    """All methods, 120 to 540 MB. Freed memory goes to the system, or it could not be seen."""
    back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", HIGH_WATER, dtype, str(checkpointing), json.dumps(list(METHODS))],
        env={**os.environ, **back, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {
        line.split()[0]: tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines()
    }
    assert set(found) == set(METHODS)
    for method, (planned, counted, measured) in found.items():
        assert planned == counted, method
        assert measured == pytest.approx(planned, rel=0.07), method


def test_seventy_billion_parameters_in_less_than_two_gigabytes() -> None:
    """The process that plans OwLore for Llama 2 70B, its libraries included."""
    code = (
        "import resource; from layerstats.train.memory import plan_memory; "
        "found = plan_memory('llama-2-70b', method='owlore', seq_len=1024, batch_size=1, "
        "layers=(78, 79)); "
        "print(found.peak_bytes, found.part_peaks_bytes['weights'], "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, weights, resident = map(int, done.stdout.split())
    # Two tables of inverse frequencies stand beside the weights, 64 numbers each.
    assert weights == 2 * 68_976_648_192 + 2 * 64 * 4
    assert 150e9 < peak < 180e9
    assert resident < 2e9


# --- what a plan says ------------------------------------------------------------------------


def test_the_json_has_the_promised_keys(tiny: Path) -> None:
    found = plan(tiny, checkpointing=True, dtype="float32").to_dict()
    document = json.loads(json.dumps(found, allow_nan=False))
    for key in ("method", "peak_bytes", "peak_phase", "sum_of_parts_bytes", "assumptions"):
        assert document[key]
    assert document["simulated"] is True
    assert set(document["parts_at_peak_bytes"]) == {
        "weights", "gradients", "optimizer", "activations",
    }  # fmt: skip
    assert sum(document["parts_at_peak_bytes"].values()) == document["peak_bytes"]
    assert sum(document["part_peaks_bytes"].values()) == document["sum_of_parts_bytes"]
    assert document["peak_bytes"] == max(document["phase_peaks_bytes"].values())
    assert document["reserved_bytes_estimate"] >= document["peak_bytes"]
    assert document["peak_bytes"] == max(one["peak_bytes"] for one in document["intervals"])
    assert document["settings"]["checkpointing"] is True
    assert "simulated" in document["assumptions"][0]


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"seq_len": 8}, {"seq_len": 16}),
        ({"batch_size": 1}, {"batch_size": 2}),
        ({"expected_active": 1}, {"expected_active": 3}),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}),
        ({"always_active": ("norm",)}, {"always_active": ("embed", "head", "norm")}),
        ({"state": "drop"}, {"state": "keep"}),
        ({"method": "lisa"}, {"method": "full"}),
        ({"method": "owlore", "rank": 2}, {"method": "owlore", "rank": 16}),
        ({"method": "owlore", "rank": 2}, {"method": "owlore-full"}),
        ({"checkpointing": True, "seq_len": 64}, {"checkpointing": False, "seq_len": 64}),
    ],
)
def test_more_takes_more(tiny: Path, less: dict[str, Any], more: dict[str, Any]) -> None:
    assert plan(tiny, **less).peak_bytes < plan(tiny, **more).peak_bytes


@pytest.mark.parametrize("groups", [(), ("embed", "head", "norm")])
def test_the_bound_holds_for_every_draw(tmp_path: Path, groups: tuple[str, ...]) -> None:
    """With the embedding training or at rest: no pair of layers takes more than the plan says."""
    (tmp_path / "config.json").write_text(
        json.dumps(shape(num_hidden_layers=4, vocab_size=8).to_dict())
    )
    bound = plan(tmp_path, always_active=groups)
    every = {
        (low, high): plan(tmp_path, always_active=groups, layers=(low, high)).peak_bytes
        for low in range(4)
        for high in range(low + 1, 4)
    }
    assert max(every.values()) == bound.peak_bytes
    assert bound.active_layers is not None
    assert every[bound.active_layers] == bound.peak_bytes  # type: ignore[index]
    assert len(set(every.values())) > 1


def test_the_schedules_file_decides(tiny: Path, tmp_path: Path) -> None:
    made = schedule("lisa-d", num_layers=4, expected_active=2, sampling="bernoulli", seed=3)
    made.save(tmp_path / "schedule.json")
    found = plan(tiny, schedule=tmp_path / "schedule.json", steps=200)
    assert found.worst_case is not None
    drawn = made.plan(10)
    assert found.worst_case["intervals"] == 10
    assert found.worst_case["largest_drawn"] == max(map(len, drawn))
    assert found.worst_case["heaviest_layers"] == max(drawn, key=len)
    assert drawn[found.worst_case["heaviest_interval"]] == found.worst_case["heaviest_layers"]
    same = plan(tiny, schedule=made, steps=200)
    assert replace(same, seconds=found.seconds) == found


# --- the heaviest layers ---------------------------------------------------------------------


def test_bernoulli_is_sized_for_its_tail() -> None:
    """Uniform, two of 32 expected: 99 of 100 intervals have at most 6 layers."""
    lisa = schedule("lisa", num_layers=32, expected_active=2, sampling="bernoulli", seed=1)
    found = worst_case(lisa, [1] * 32, steps=20)
    assert (found.quantile_99, found.intervals, found.layers) == (6, 1, 6)
    long = worst_case(lisa, [1] * 32, steps=20 * 5000)
    assert long.largest_drawn == max(map(len, lisa.plan(5000))) == long.layers > 6
    fixed = worst_case(schedule("lisa", num_layers=32, expected_active=2), [1] * 32, steps=2000)
    assert (fixed.layers, fixed.quantile_99, fixed.largest_drawn) == (2, 2, 2)


def test_a_fraction_rounds_up_and_rare_counts_are_left_to_the_draws() -> None:
    assert (
        worst_case(schedule("lisa", num_layers=8, expected_active=2.5), [1] * 8, steps=20).layers
        == 3
    )
    rare = schedule("lisa", num_layers=8, expected_active=2.004, seed=4)
    found = worst_case(rare, [1] * 8, steps=20)
    assert found.quantile_99 == 2
    assert found.layers == found.largest_drawn == len(rare.active_layers(0))


def test_unequal_layers_the_largest_that_can_be_drawn() -> None:
    """Large layers first; of equal ones the lowest, the highest; never what cannot be drawn."""
    flat = schedule("lisa", num_layers=5, expected_active=2)
    assert worst_case(flat, [1, 9, 1, 9, 1], steps=20).draws == ((1, 3),)
    assert worst_case(flat, [9, 1, 1, 1, 1], steps=20).draws == ((0, 1), (0, 4))
    never = schedule("owlore", [0.0, 1.0, 1.0, 1.0, 1.0], expected_active=2, metric="given")
    assert worst_case(never, [9, 1, 1, 1, 1], steps=20).draws == ((1, 2), (3, 4))


def test_where_the_embedding_rests_the_lowest_layer_is_rehearsed_with_the_highest() -> None:
    frozen = schedule("lisa", num_layers=6, expected_active=2, always_active=("head",))
    assert worst_case(frozen, [1] * 6, steps=20).draws == ((0, 1), (4, 5), (0, 5))


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"method": "lsia"}, UsageError, "did you mean 'lisa'"),
        ({"seq_len": 65}, UsageError, "65 is more than the 64 positions"),
        ({"method": "owlore", "rank": 999}, UsageError, "rank 999 is above"),
        ({"dtype": "float16"}, UsageError, "dtype"),
        ({"state": "forget"}, UsageError, "state"),
        ({"always_active": ("embedding",)}, UsageError, "always"),
        ({"sequence_length": 8}, UsageError, "sequence_length"),
        ({"method": "full", "always_active": ("embed",)}, UsageError, "full"),
        ({"schedule": "nowhere.json"}, MissingError, "nowhere.json"),
        ({"layers": (7,)}, UsageError, "layers"),
        ({"method": "full", "layers": (1,)}, UsageError, "layers"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny: Path, settings: dict[str, Any], error: type[LayerstatsError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        plan(tiny, **settings)
    assert "\n" not in str(caught.value)


def test_a_schedule_of_another_depth_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="3 layers but the model has 4"):
        plan(tiny, schedule=schedule("lisa", num_layers=3, expected_active=1))


def test_models_that_are_not_to_be_simulated_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CheckpointError, match="no causal language model of type 'vit'"):
        plan(tmp_path)
    experts = shape("mixtral", num_local_experts=8, hidden_size=64, intermediate_size=64)
    (tmp_path / "config.json").write_text(json.dumps(experts.to_dict()))
    with pytest.raises(LayerstatsError, match=r"cannot be simulated .*bfloat16"):
        plan(tmp_path, dtype="float32")
    assert plan(tmp_path, dtype="bfloat16").peak_bytes > 0


def test_a_checkpoint_directory_is_a_source(tmp_path: Path) -> None:
    found = plan(make_model(tmp_path), "full", dtype="float32")
    files = sum(one.stat().st_size for one in (tmp_path / "model").glob("*.safetensors"))
    assert found.part_peaks_bytes["weights"] == pytest.approx(found.parameters * 4, rel=0.01)
    assert files > 0
