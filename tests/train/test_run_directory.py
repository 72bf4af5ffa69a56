"""The directory of a run: nobody's files are overwritten, a kill or a full disk costs at most what
was being written, and what is read back is what was saved, to the bit."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerstats import runs
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from layerstats.train import snapshots
from layerstats.train.run_directory import MAY_CHANGE, RunDirectory

CONFIG = {
    "model": "base",
    "out": "run",
    "lr": 3e-4,
    "betas": (0.9, 0.999),
    "steps": 100,
    "epochs": None,
    "lr_schedule": "linear",
    "warmup_steps": None,
    "seed": 0,
    "save_every": 10,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((3, 2), value)}


def save(run: RunDirectory, step: int) -> Path:
    moments = {"a.weight": {"exp_avg": torch.full((3, 2), step / 2)}}
    return run.save(step, weights(float(step)), moments, {"tokens": step * 512})


def names(run: RunDirectory) -> list[str]:
    folder = run.path / "checkpoints"
    return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []


# Beginning and going on


def test_create_writes_the_config_and_open_reads_it(run: RunDirectory) -> None:
    assert RunDirectory.open(run.path).config == run.config == {**CONFIG, "betas": [0.9, 0.999]}
    assert [one.name for one in run.path.iterdir()] == ["config.json"]
    assert run.entries() == []
    assert run.latest() is None


def test_create_never_touches_what_is_there(run: RunDirectory, tmp_path: Path) -> None:
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run; add --resume .* or choose another --out"):
        RunDirectory.create(run.path, {})
    assert (run.path / "config.json").read_bytes() == before
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": []}')
    with pytest.raises(UsageError, match=r"other files \(config.json\); choose another --out"):
        RunDirectory.create(model, {})
    with pytest.raises(UsageError, match="is a file"):
        RunDirectory.create(model / "config.json", {})
    with pytest.raises(UsageError, match="holds a run"):
        RunDirectory.check_new(run.path)
    RunDirectory.check_new(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_create_takes_an_empty_directory_and_one_where_it_was_killed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", {"lr": 1}).config == {"lr": 1}
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.json.77.partial").write_text("{")
    assert RunDirectory.create(tmp_path / "killed", {"lr": 2}).config == {"lr": 2}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, MissingError, "no run here"),
        ("{", CheckpointError, "not valid JSON"),
        ('{"architectures": []}', CheckpointError, "not the config of a layerstats run"),
        (
            '{"format": "layerstats-run", "version": 9, "config": {}}',
            CheckpointError,
            "expected layerstats-run 1, found 9",
        ),
    ],
)
def test_open_names_what_is_wrong(
    text: str | None, error: type[LayerstatsError], says: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=says) as caught:
        RunDirectory.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_that_differ_are_all_named(run: RunDirectory) -> None:
    run.check_same(CONFIG)
    changed = {**CONFIG, "lr": 1e-3, "betas": (0.9, 0.95), "out": "elsewhere", "rank": 8}
    with pytest.raises(UsageError) as caught:
        run.check_same(changed)
    message = str(caught.value)
    assert "lr was 0.0003, now 0.001" in message
    assert "betas was [0.9, 0.999], now [0.9, 0.95]" in message
    assert "rank was not there, now 8" in message
    assert "elsewhere" not in message
    assert "\n" not in message


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_what_changes_no_weight_may_change(key: str, run: RunDirectory) -> None:
    run.adopt({**CONFIG, key: "another"})
    assert RunDirectory.open(run.path).config[key] == "another"


def test_may_change_names_settings_that_exist() -> None:
    config = pytest.importorskip("layerstats.train.config")
    assert set(MAY_CHANGE) <= set(config.TrainConfig.__dataclass_fields__)


def test_two_processes_never_train_in_one_directory(run: RunDirectory) -> None:
    pytest.importorskip("fcntl")
    run.hold()
    code = (
        "import sys; from layerstats.train.run_directory import RunDirectory; "
        "RunDirectory.open(sys.argv[1]).hold()"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is training here; wait for its end" in other.stderr
    run.release()
    run.release()
    assert subprocess.run(command, check=False).returncode == 0
    run.hold()  # the other process is gone, and its hold with it
    run.release()


def test_a_longer_run_only_where_the_learning_rate_stays(tmp_path: Path) -> None:
    for schedule, warmup, allowed in [
        ("constant", 10, True),
        ("constant", None, False),
        ("linear", 10, False),
        ("cosine", 10, False),
    ]:
        config = {**CONFIG, "lr_schedule": schedule, "warmup_steps": warmup}
        run = RunDirectory.create(tmp_path / f"{schedule}{warmup}", config)
        if allowed:
            run.adopt({**config, "steps": 200})
            assert RunDirectory.open(run.path).config["steps"] == 200
        else:
            with pytest.raises(UsageError, match=r"steps was 100, now 200 \(the learning rate"):
                run.adopt({**config, "steps": 200})
            assert RunDirectory.open(run.path).config["steps"] == 100


# The log


def test_entries_come_back_as_they_were_written(run: RunDirectory) -> None:
    run.log({"kind": "step", "step": 1, "loss": 0.1 + 0.2, "active_layers": (3, 7)})
    run.log({"kind": "step", "step": 2, "loss": float("nan")})
    assert run.entries() == [
        {"kind": "step", "step": 1, "loss": 0.1 + 0.2, "active_layers": [3, 7]},
        {"kind": "step", "step": 2, "loss": None},
    ]


@pytest.mark.parametrize("torn", ['{"kind": "step", "st', "\0\0\0\0", '{"kind": "step"}'])
def test_a_torn_last_line_is_dropped_and_written_over(torn: str, run: RunDirectory) -> None:
    run.log({"kind": "step", "step": 1})
    with (run.path / "log.jsonl").open("a") as stream:
        stream.write(torn)
    assert [entry["step"] for entry in run.entries()] == [1]
    again = RunDirectory.open(run.path)
    again.log({"kind": "step", "step": 2})
    assert [entry["step"] for entry in again.entries()] == [1, 2]


def test_a_damaged_line_in_the_middle_is_named(run: RunDirectory) -> None:
    (run.path / "log.jsonl").write_text('{"kind": "step"}\n{"kind"\n{"kind": "step"}\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        run.entries()
    (run.path / "log.jsonl").write_text('{"kind": "step"}\n[1]\n{"kind": "step"}\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        run.entries()


def test_truncate_drops_what_came_after_the_checkpoint(run: RunDirectory) -> None:
    for entry in [
        {"kind": "interval", "step": 1, "interval": 0},
        {"kind": "step", "step": 1},
        {"kind": "step", "step": 2},
        {"kind": "remark"},
        {"kind": "eval", "step": 2},
        {"kind": "step", "step": 3},
        {"kind": "end"},
    ]:
        run.log(entry)
    run.truncate(2)
    kinds = [(entry["kind"], entry.get("step")) for entry in run.entries()]
    assert kinds == [("interval", 1), ("step", 1), ("step", 2), ("remark", None), ("eval", 2)]
    run.log({"kind": "step", "step": 3})
    assert run.entries()[-1] == {"kind": "step", "step": 3}
    run.truncate(0)
    assert run.entries() == []
    assert sorted(one.name for one in run.path.iterdir()) == ["config.json", "log.jsonl"]


def test_a_log_that_cannot_be_written_stays_whole(run: RunDirectory) -> None:
    """A limit on the size of files stands for the full disk: half of the line would fit."""
    run.log({"kind": "step", "step": 1})
    script = (
        "import sys, resource\n"
        "from layerstats.errors import UsageError\n"
        "from layerstats.train.run_directory import RunDirectory\n"
        "run = RunDirectory.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    run.log({'kind': 'step', 'step': 2, 'text': 'x' * 200})\n"
        "except UsageError as error:\n"
        "    sys.exit('cannot be written' not in str(error))\n"
        "sys.exit(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run.path)], check=False)
    assert done.returncode == 0
    assert (run.path / "log.jsonl").read_bytes().count(b"\n") == 1
    assert (run.path / "log.jsonl").read_bytes().endswith(b"}\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100


def test_reading_a_log_needs_neither_torch_nor_a_run_object(run: RunDirectory) -> None:
    run.log({"kind": "step", "step": 1})
    script = (
        "import sys\n"
        "from layerstats.runs import read_log\n"
        "assert read_log(sys.argv[1]) == read_log(sys.argv[1] + '/log.jsonl')\n"
        "assert read_log(sys.argv[1])[0]['step'] == 1\n"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(run.path)], check=True)
    with pytest.raises(MissingError, match="no such run directory or log"):
        runs.read_log(run.path / "nowhere")


# Checkpoints


def test_a_checkpoint_comes_back_to_the_bit(run: RunDirectory) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    model = {
        "bf16": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "turned": base.T,
        "slice": base[:, 1:3],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "special": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "flags": torch.tensor([True, False]),
    }
    moments = {"a.b::c": {"step": torch.tensor(7.0), "exp_avg": torch.ones(2, 2).half()}}
    run.save(12, model, moments, {"rng": [1, 2**63], "loss": None})
    found = run.latest()
    assert found is not None
    assert (found.step, found.state) == (12, {"rng": [1, 2**63], "loss": None})
    loaded = found.load_model(model)
    for name, tensor in model.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(
            loaded[name].contiguous().reshape(-1).view(torch.uint8),
            tensor.detach().contiguous().reshape(-1).view(torch.uint8),
        )
    [(name, state)] = found.load_optimizer().items()
    assert name == "a.b::c"
    assert state["step"].shape == ()
    assert state["exp_avg"].dtype == torch.float16
    assert [one.name for one in sorted(found.directory.iterdir())] == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
            st.lists(st.integers(0, 3), max_size=3),
            st.booleans(),
        ),
        max_size=5,
    )
)
def test_any_tensors_come_back(tmp_path_factory: Any, kinds: list[Any]) -> None:
    model = {}
    for at, (dtype, shape, turned) in enumerate(kinds):
        tensor = torch.arange(27).reshape(3, 3, 3).to(dtype)[tuple(slice(n) for n in shape)]
        model[f"t{at}"] = tensor.transpose(0, -1) if turned else tensor
    folder = tmp_path_factory.mktemp("any")
    snapshots.save(folder, 0, model, {}, {})
    found, problems = snapshots.newest(folder)
    assert found is not None
    assert problems == []
    loaded = found.load_model(model)
    for name, tensor in model.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tied_tensors_are_stored_once_and_come_back_tied(run: RunDirectory) -> None:
    table = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    model = {"embed": table, "head": table, "part": table[:10], "other": torch.zeros(100, 8)}
    path = run.save(1, model, {}, {})
    assert (path / "model.safetensors").stat().st_size < 4 * (2 * 800 + 80) + 600
    found = run.latest()
    assert found is not None
    loaded = found.load_model(["embed", "head", "part", "other"])
    assert loaded["embed"] is loaded["head"]
    assert torch.equal(loaded["part"], table[:10])


def test_another_model_is_refused_by_name(run: RunDirectory) -> None:
    save(run, 1)
    found = run.latest()
    assert found is not None
    with pytest.raises(CheckpointError, match=r"it lacks b \(1 in all\), it has a.weight too"):
        found.load_model(["b"])


def test_the_last_two_are_kept(run: RunDirectory) -> None:
    for step in (1, 2, 3, 1_234_567):
        save(run, step)
    assert names(run) == ["step-000003", "step-1234567"]
    found = run.latest()
    assert found is not None
    assert found.step == 1_234_567


def test_the_same_step_again_replaces(run: RunDirectory) -> None:
    save(run, 4)
    run.save(4, weights(9.0), {}, {})
    assert names(run) == ["step-000004"]
    found = run.latest()
    assert found is not None
    assert torch.equal(found.load_model()["a.weight"], torch.full((3, 2), 9.0))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def garble(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "garbled": garble,
    "lost": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "half a state": lambda folder: (folder / "state.json").write_text("{"),
    "other state": lambda folder: (folder / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(
    damage: str, run: RunDirectory
) -> None:
    save(run, 10)
    DAMAGES[damage](save(run, 20))
    found = run.latest()
    assert found is not None
    assert found.step == 10
    run.latest()
    [note] = [entry for entry in run.entries() if entry["kind"] == "note"]
    assert note["step"] == 10
    assert "step-000020: damaged checkpoint (" in note["message"]
    assert note["message"].endswith("; going on from step 10")
    save(run, 15)  # the damaged one must not push a whole one out, nor be found again
    assert names(run) == ["step-000010", "step-000015"]


def test_when_all_are_damaged_there_is_none(run: RunDirectory) -> None:
    cut(save(run, 10))
    assert run.latest() is None
    assert "no other checkpoint" in run.entries()[0]["message"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("again", [False, True])
def test_a_full_disk_leaves_the_checkpoint_before(
    file: str, again: bool, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file does not fit, and also when the same step is written again."""
    save(run, 10)
    real = snapshots.save_file

    def full(*given: Any) -> None:
        if Path(given[-1]).name == file:
            Path(given[-1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(*given)

    def full_text(path: Path, *_: Any, **__: Any) -> int:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "save_file", full)
    if file == "state.json":
        monkeypatch.setattr(Path, "write_text", full_text)
    with pytest.raises(UsageError, match=r"\(No space left on device\); free space") as caught:
        save(run, 10 if again else 20)
    assert "\n" not in str(caught.value)
    assert names(run) == ["step-000010"]
    found = run.latest()
    assert found is not None
    assert torch.equal(found.load_model()["a.weight"], weights(10.0)["a.weight"])


def test_the_writer_of_tensors_reports_a_limit_too(run: RunDirectory) -> None:
    """safetensors has its own error for what the system says."""
    script = (
        "import sys, resource, torch\n"
        "from layerstats.errors import UsageError\n"
        "from layerstats.train.run_directory import RunDirectory\n"
        "run = RunDirectory.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    run.save(2, {'a': torch.ones(100_000)}, {}, {})\n"
        "except UsageError as error:\n"
        "    sys.exit('File too large' not in str(error))\n"
        "sys.exit(2)\n"
    )
    save(run, 1)
    done = subprocess.run([sys.executable, "-c", script, str(run.path)], check=False)
    assert done.returncode == 0
    assert names(run) == ["step-000001"]


def test_everything_is_on_the_disk_before_it_gets_its_name(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power must not find a name with nothing behind it."""
    synced: list[tuple[str, bool]] = []
    real, target = snapshots.sync, run.path / "checkpoints" / "step-000007"

    def noting(path: Path) -> None:
        synced.append((path.name, target.exists()))
        real(path)

    monkeypatch.setattr(snapshots, "sync", noting)
    run.log({"kind": "step", "step": 7})
    save(run, 7)
    before = [name for name, there in synced if not there]
    assert before[:4] == ["log.jsonl", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert before[4].startswith(".step-000007.")
    assert [name for name, there in synced if there] == ["checkpoints"]


def test_leftovers_of_killed_saves_go(run: RunDirectory) -> None:
    save(run, 1)
    folder = run.path / "checkpoints"
    leftover = folder / ".step-000002.77-abcd.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert run.latest() is not None
    save(run, 3)
    assert names(run) == ["step-000001", "step-000003"]


def test_a_checkpoint_set_aside_by_a_killed_save_is_put_back(run: RunDirectory) -> None:
    """Killed while the same step was being written again: the only checkpoint must not be lost."""
    path = save(run, 5)
    path.rename(path.with_name(".step-000005.replaced"))
    found = run.latest()
    assert found is not None
    assert found.step == 5
    assert names(run) == ["step-000005"]


def test_a_kill_at_any_moment_leaves_a_run_that_goes_on(run: RunDirectory) -> None:
    """A process that logs and saves without end is killed; what it leaves is whole."""
    script = (
        "import sys, torch\n"
        "from layerstats.train.run_directory import RunDirectory\n"
        "run = RunDirectory.open(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for step in range(1, 1_000_000):\n"
        "    run.log({'kind': 'step', 'step': step, 'text': 'x' * 500})\n"
        "    run.save(step, {'a': torch.full((200, 200), float(step))}, {}, {'step': step})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        while len(names(run)) < 2:
            assert process.poll() is None
        process.kill()
    found = run.latest()
    assert found is not None
    assert found.step == found.state["step"]
    assert bool((found.load_model()["a"] == found.step).all())
    assert [entry["step"] for entry in run.entries()][: found.step] == list(
        range(1, found.step + 1)
    )
    run.truncate(found.step)
    save(run, found.step + 1)
    assert names(run)[-1] == f"step-{found.step + 1:06d}"
    assert len(names(run)) == 2


def test_a_file_replaced_after_loading_changes_nothing(run: RunDirectory) -> None:
    """Tensors are read where they lie; the file going away must not matter."""
    save(run, 1)
    found = run.latest()
    assert found is not None
    loaded = found.load_model()
    for step in (2, 3, 4):
        save(run, step)
    assert torch.equal(loaded["a.weight"], weights(1.0)["a.weight"])


def test_state_is_strict_json(run: RunDirectory) -> None:
    path = run.save(1, {}, {}, {"loss": float("inf"), "layers": (1, 2)})
    text = (path / "state.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["state"] == {
        "loss": None,
        "layers": [1, 2],
    }
