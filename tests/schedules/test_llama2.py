"""The whole way on LLaMA-2-7B's published outlier scores: targets, draws, processes, ranks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from layerstats.schedules import LAWS, Schedule, ScheduleLog, refresh, schedule
from layerstats.schedules.adaptive import GradientNorms

DATA = Path(__file__).parents[1] / "data"
LOD = np.loadtxt(DATA / "llama2_7b_lod_m13_percent.txt")
GAMMAS = [2, 4, 8, 16]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_targets_sum_to_gamma_and_draws_meet_them(gamma: int) -> None:
    """5 standard errors of a binomial count, over 32 layers: fails for one seed in 50,000."""
    made = schedule("owlore", LOD, expected_active=gamma)
    pi = np.array(made.probabilities)
    assert math.fsum(pi) == pytest.approx(gamma, rel=1e-15)
    assert pi.max() <= 1
    assert pi.min() > 0
    draws = 50_000
    counts = np.zeros(32)
    for interval in range(draws):
        active = made.active_layers(interval)
        assert len(active) == gamma
        counts[list(active)] += 1
    assert np.all(np.abs(counts - draws * pi) <= 5 * np.sqrt(draws * pi * (1 - pi)))


@pytest.mark.parametrize(
    ("size", "heaviest", "lightest"), [(2, 0.258, 0.0171), (4, 0.467, 0.0361), (8, 0.755, 0.0811)]
)
def test_owlores_program_as_it_really_is(size: int, heaviest: float, lightest: float) -> None:
    made = schedule("owlore", LOD, expected_active=size, sampling="successive")
    exact = made.inclusion_probabilities
    assert (round(max(exact), 3), round(min(exact), 4)) == (heaviest, lightest)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_quota_is_never_more_than_one_off(gamma: int) -> None:
    made = schedule("owlore", LOD, expected_active=gamma, sampling="quota")
    pi, counts = np.array(made.probabilities), np.zeros(32)
    for interval, active in enumerate(made.plan(1000), start=1):
        counts[list(active)] += 1
        assert np.abs(counts - interval * pi).max() < 1


PLAN = """
import json, sys
from layerstats.schedules import Schedule, ScheduleLog
schedule = Schedule.from_json(sys.argv[1])
log = ScheduleLog.load(sys.argv[2])
first = schedule.interval_of(int(sys.argv[3]))
print(json.dumps([[plan.active_layers(i) for i in range(first, 20)] for plan in (schedule, log)]))
"""


@pytest.mark.parametrize("law", ["systematic", "quota"])
def test_a_fresh_process_and_a_resumed_one_go_on_with_the_plan(law: str, tmp_path: Path) -> None:
    made = schedule("owlore", LOD, expected_active=4, sampling=law, seed=11)
    file = made.save(tmp_path / "schedule.json")
    log = ScheduleLog.start(tmp_path / "log.jsonl", made)
    norms = GradientNorms(tuple(float(layer + 1) for layer in range(32)))
    log = log.append_to(tmp_path / "log.jsonl", refresh(made, norms, interval=10))
    for step in (0, 130):  # 130 is in the middle of interval 6
        done = subprocess.run(
            [sys.executable, "-c", PLAN, file, tmp_path / "log.jsonl", str(step)],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "1"},
        )  # fmt: skip
        span = range(step // 20, 20)
        assert json.loads(done.stdout) == [
            [list(plan.active_layers(interval)) for interval in span] for plan in (made, log)
        ]


RANK = """
import json, sys
import torch.distributed as dist
from layerstats.schedules import Schedule
rank, store, files = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
schedules = [Schedule.from_json(file) for file in files]
mine = [[made.active_layers(interval) for interval in range(50)] for made in schedules]
everyone = [None, None]
dist.all_gather_object(everyone, mine)
dist.destroy_process_group()
print(json.dumps(everyone))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_of_a_gloo_group_agree_without_talking(tmp_path: Path) -> None:
    """Each rank reads the file and draws by itself; what the other drew is only compared."""
    made = [schedule("owlore", LOD, expected_active=4, sampling=law) for law in sorted(LAWS)]
    files = [plan.save(tmp_path / f"{plan.sampling}.json") for plan in made]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), tmp_path / "store", *files],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONHASHSEED": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    here = [[list(active) for active in plan.plan(50)] for plan in made]
    for stdout, _ in outputs:
        assert json.loads(stdout) == [here, here]


def test_the_golden_file_is_still_this_schedule() -> None:
    golden = Schedule.from_json(DATA / "schedule_owlore_llama2_7b.json")
    again = schedule("owlore", LOD, expected_active=2)
    assert golden.probabilities == again.probabilities
    assert golden.plan(100) == again.plan(100)
