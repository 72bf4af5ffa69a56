"""Each option of each command is typed at least once, and what it says arrives where it belongs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from layerstats.cli import app, run
from tests.train.tiny import LAYERS, make_data, make_model

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its data, a text and scores."""
    made = tmp_path_factory.mktemp("options")
    make_model(made)
    make_data(made)
    made.joinpath("text.txt").write_text("Call me Ishmael. " * 60, encoding="utf-8")
    made.joinpath("scores.txt").write_text("".join(f"{LAYERS - n}\n" for n in range(LAYERS)))
    return made


def typed(folder: Path, line: str) -> list[str]:
    """Split a command line; words with a slash before them are files of the folder."""
    return [str(folder / word[1:]) if word.startswith("/") else word for word in line.split()]


def document(folder: Path, line: str, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert run(typed(folder, line)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def expect(found: Any, **values: Any) -> None:
    assert {name: found[name] for name in values} == values


@pytest.fixture(scope="module")
def stats(folder: Path) -> Path:
    line = (
        "measure /model --metrics lod,alpha_hill,alpha_ks --tokens /text.txt --samples 4 "
        "--seq-len 32 --sample-seed 3 --dtype bfloat16 --device cpu --precision certified --m 2,7 "
        "--lower-bound intended --workers 2 --out /stats --overwrite --quiet"
    )
    assert run(typed(folder, line)) == 0
    assert run(typed(folder, line)) == 0
    return folder / "stats"


def test_measure_and_correlate(
    folder: Path, stats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = json.loads((stats / "meta.json").read_text(encoding="utf-8"))
    expect(meta["parameters"], precision="certified", lower_bound="intended", m=[2.0, 7.0])
    expect(meta["calibration"], sample_seed=3, dtype="bfloat16", samples=4, seq_len=32)
    line = "correlate /stats --metrics lod_m2,heavy_tail --method kendall --bootstrap 50 --json"
    pairs = [
        document(folder, f"{line} --exclude-ends --seed {seed}", capsys)["pairs"][0]
        for seed in (5, 6)
    ]
    assert [pair["n"] for pair in pairs] == [LAYERS - 2, LAYERS - 2]
    assert pairs[0]["rho"] == pairs[1]["rho"]
    assert pairs[0]["interval"] != pairs[1]["interval"]


def test_schedule_and_export(folder: Path, stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(folder, "schedule --json-schema", capsys)["type"] == "object"
    line = (
        "schedule /stats --rule owlore --metric lod_m2 --expected-active 2 --interval-steps 7 "
        "--seed 9 --rank 4 --update-interval 11 --scale 0.5 --model org/name "
        "--out /schedule.json --json"
    )
    found = document(folder, line, capsys)
    expect(found, interval_steps=7, seed=9, metric="lod_m2")
    expect(found["model"], id="org/name", num_layers=LAYERS)
    expect(found["low_rank"], rank=4, update_interval=11, scale=0.5)
    export = "export /schedule.json --stats /stats --out - --json"
    few, many = (
        document(folder, f"{export} --to spectrum --top-fraction {share}", capsys)["texts"]
        for share in (0.25, 0.75)
    )
    assert sum(map(len, few.values())) < sum(map(len, many.values()))
    peft = document(folder, f"{export} --to peft --mean-rank 5", capsys)
    assert '"r": 5' in "".join(peft["texts"].values())
    sparsity = document(
        folder, f"{export} --to sparsity --sparsity 0.5 --spread 0.05 --method owl", capsys
    )
    assert sparsity["texts"]


def test_train_with_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "train /model --method owlore --data /sums.jsonl --stats /scores.txt --expected-active 2 "
        "--interval-steps 2 --sampling quota --always-active norm --epochs 0.5 --seq-len 64 "
        "--batch-size 2 --accumulation 2 --no-packing --lr 1e-3 --lr-schedule cosine "
        "--warmup-steps 1 --weight-decay 0.1 --max-grad-norm 0 --rank-per-layer 1,2,3,4,4,3,2,1 "
        "--update-interval 2 --scale 0.5 --projection svd --moments keep --state offload "
        "--activation-warmup-steps 1 --correct-lr-after-reset --dtype bfloat16 --autocast "
        "--checkpointing --device cpu --seed 4 --save-every 2 --eval-every 2 "
        "--validation-fraction 0.2 --exact-match /sums.jsonl --exact-match-limit 2 "
        "--track frobenius_norm --track-every 2 --out /run --quiet --json"
    )
    found = document(folder, line, capsys)
    assert found["steps"] > 2
    config = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))["config"]
    expect(
        config, epochs=0.5, accumulation=2, packing=False, lr=1e-3, lr_schedule="cosine",
        warmup_steps=1, weight_decay=0.1, max_grad_norm=None, update_interval=2, scale=0.5,
        rank_per_layer=[1, 2, 3, 4, 4, 3, 2, 1], projection="svd", moments="keep", state="offload",
        activation_warmup_steps=1, correct_lr_after_reset=True, dtype="bfloat16", autocast=True,
        checkpointing=True, seed=4, save_every=2, eval_every=2, validation_fraction=0.2,
        exact_match_limit=2, track=["frobenius_norm"], track_every=2, sampling="quota",
    )  # fmt: skip


def test_train_lora_and_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    line = (
        "train /model --method lora --data /sums.jsonl --steps 2 --seq-len 32 --batch-size 2 "
        "--packing --rank 2 --lora-alpha 3 --lora-dropout 0.1 --lora-targets all "
        "--validation /sums.jsonl --device cpu --out /lora --quiet --json"
    )
    assert document(folder, line, capsys)["eval_loss"] > 0
    config = json.loads((folder / "lora" / "config.json").read_text(encoding="utf-8"))["config"]
    expect(config, rank=2, lora_alpha=3.0, lora_dropout=0.1, lora_targets="all", packing=True)
    line = "memory /model --method lisa --seq-len 32 --batch-size 1 --steps 10 --json"
    plain = document(folder, line, capsys)
    less = document(folder, f"{line} --always-active norm --checkpointing", capsys)
    more = document(folder, f"{line} --dtype float32 --state keep --accumulation 2", capsys)
    assert less["peak_bytes"] < plain["peak_bytes"] < more["peak_bytes"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("measure /model --m 7,nan --metrics lod --tokens /text.txt", "thresholds above 0"),
        ("measure /model --metrics mean_abs --adapter /lora", "add lora_norm to --metrics"),
        ("schedule /made.json --seed 5 --sampling quota --out /x.json", "leave --seed, --sampling"),
        (
            "schedule --rule lisa --num-layers 4 --expected-active 2 --scale 3",
            "--scale go with --rank",
        ),
        ("memory /model --budget 1GB --plot /x.png", "leave --plot out"),
        ("memory /model --budget 1GB rank=1,2", "leave rank=1,2 out"),
        ("train /model --method full --rank 8", "--rank goes with lora, galore, owlore, not with"),
        ("train /model --method full --state keep", "not with full"),
        ("train /model --method lisa --stats /scores.txt", "owlore-full, owlore, not with lisa"),
        ("train /model --method lisa --lora-alpha 3", "--lora-alpha goes with lora, not with lisa"),
        (
            "train /model --method lisa --schedule /made.json --expected-active 5",
            "--expected-active are for a schedule made here",
        ),
        ("train /model --method lisa --eval-every 2", "needs held-out data"),
        ("train /model --method lisa --device x", "unknown device 'x'"),
    ],
)
def test_what_would_be_ignored_is_refused(
    line: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{line} --data /sums.jsonl --steps 2 --out /y" if line.startswith("train") else line
    plain = "schedule --rule lisa --num-layers 8 --expected-active 2 --out /made.json"
    assert run(typed(folder, plain)) == 0
    capsys.readouterr()
    assert run(typed(folder, line)) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert not (folder / "y").exists()


def test_budget_takes_the_batch_size_that_is_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "memory /model --method lisa --budget 1GB --batch-size 2 --seq-len 32 --quiet --json"
    assert {fit["batch_size"] for fit in document(folder, line, capsys)["fits"]} == {2}


def test_metrics_of_all_kinds_are_in_the_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(typed(folder, "measure /model --metrics noise_edge --quiet")) == 0
    assert "mp_edge" in capsys.readouterr().out.splitlines()[0]


def test_no_option_is_left_out() -> None:
    texts = "".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("*.py"))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    never = [
        f"{name} {option}"
        for name, command in commands.items()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and not re.search(rf"{option}(?![\w-])", texts)
    ]
    assert never == []
