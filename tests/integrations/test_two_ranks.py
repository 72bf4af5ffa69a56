"""The callback under DDP, in two real processes: the same layers, the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integrations.tiny import lisa

ROOT = Path(__file__).parents[2]
RANK = """
import hashlib, json, os, sys
from pathlib import Path
from layerstats.integrations.transformers import LayerScheduleCallback
from tests.integrations.tiny import Snapshots, make_model, make_trainer, moved

folder = Path(sys.argv[1])
callback, seen = LayerScheduleCallback(folder / "schedule.json"), Snapshots()
trainer = make_trainer(
    make_model(), folder, [callback, seen], steps=11, ddp_backend="gloo"
)
trainer.train()
weights = b"".join(one.numpy().tobytes() for one in seen.weights[-1].values())
steps = [sorted(moved(*pair)) for pair in zip(seen.weights, seen.weights[1:])]
told = [os.environ["WORLD_SIZE"], hashlib.sha256(weights).hexdigest(), steps, seen.state_bytes]
(folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(told))
"""


def test_two_ranks_train_the_same_layers_to_the_same_weights(tmp_path: Path) -> None:
    plan = lisa()
    plan.save(tmp_path / "schedule.json")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    ranks, _, steps, state_bytes = first
    assert ranks == "2"
    expected = [
        {"embed", "head", "norm", *map(str, plan.active_layers(at // 5))} for at in range(11)
    ]
    assert list(map(set, steps)) == expected
    assert len(set(state_bytes)) == 1
