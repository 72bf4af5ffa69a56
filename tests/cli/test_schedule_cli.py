"""`layerstats schedule` and `export` as a user types them: rules, --explain, exports, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from layerstats.cli import run
from layerstats.schedules import Schedule, json_schema
from layerstats.schedules.exporters import EXPORTERS
from layerstats.schedules.rules import RULES
from tests.conftest import llama_tensors, write_checkpoint

LOD = Path(__file__).parents[1] / "data" / "llama2_7b_lod_m13_percent.txt"


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedules")
    checkpoint = write_checkpoint(folder / "tiny", llama_tensors(layers=4))
    metrics = "frobenius_norm,stable_rank,alpha_hill"
    arguments = ["measure", str(checkpoint), "--metrics", metrics, "--out", str(folder / "stats")]
    assert run([*arguments, "--quiet"]) == 0
    return folder / "stats"


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    return strict(capsys.readouterr().out)


def words(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run([*map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        "--rule lisa --num-layers 4",
        "--rule lisa-d-mirror --num-layers 4",
        "STATS --rule owlore --metric frobenius_norm --floor 0.3 --temperature 0.5",
        "STATS --rule owlore-reverse --metric stable_rank",
        "STATS --rule metric --metric stable_rank --direction decreasing",
        "STATS --rule metric --metric heavy_tail",
        "STATS --rule blend --metric frobenius_norm=0.7,heavy_tail=0.3",
        "STATS --rule blend --metric frobenius_norm=0.7,stable_rank=-0.3 --normalise rank",
    ],
)
def test_every_rule_makes_a_valid_document(
    options: str, stats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options.replace("STATS", str(stats)).split()
    page = document(capsys, "schedule", *arguments, "--expected-active", 2)
    jsonschema.validate(page, json_schema())
    assert sum(page["probabilities"]) == pytest.approx(2)
    assert Schedule.from_dict(page).num_layers == 4


def test_lisa_theory_of_two_directories(
    stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "lora.txt"
    lora.write_text("3\n2\n2\n1\n")
    page = document(
        capsys, "schedule", lora, "--rule", "lisa-theory", "--full", stats, "--expected-active", 1
    )
    assert page["provenance"]["parameters"] == {"full": str(stats)}
    assert page["metric"] == "lora/frobenius_norm"
    both = document(
        capsys, "schedule", stats, "--rule", "lisa-theory", "--full", stats,
        "--metric", "frobenius_norm", "--expected-active", 1,
    )  # fmt: skip
    assert both["probabilities"] == [0.25] * 4


def test_explain_says_it_all(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = words(
        capsys, "schedule", stats, "--rule", "metric", "--metric", "frobenius_norm",
        "--expected-active", 1, "--explain", "--steps", 50,
    )  # fmt: skip
    for part in (
        "rule   metric, metric frobenius_norm", "law    systematic: fixed size",
        "run    50 steps = 3 intervals of 20 steps, seed 0",
        "layers active in an interval, expected", "in 99 % of the intervals at most",
        "layers that never train, expected", "share of the always-active group",
        "memory of the worst interval", "their Adam states", "never      chance",
        "both Adam moments all in that type", "warning: the scores are nearly equal",
    ):  # fmt: skip
        assert part in shown, part
    table = shown.partition("\n\n")[2].splitlines()
    header, *rows = table[:5]
    assert header.split() == [
        "layer",
        "score",
        "target",
        "inclusion",
        "intervals",
        "steps",
        "never",
    ]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    assert all(len(line) <= 100 for line in shown.splitlines() if "warning" not in line)


def test_explain_as_json_is_the_same(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = document(
        capsys, "schedule", LOD, "--rule", "owlore", "--expected-active", 8, "--sampling",
        "successive", "--explain", "--steps", 122,
    )  # fmt: skip
    found = page.pop("explain")
    assert Schedule.from_dict(page).sampling == "successive"
    assert found["steps"] == 122
    assert found["intervals"] == 7
    assert found["expected_untrained"] == pytest.approx(7.5, abs=0.06)
    assert found["active_layers"]["max"] == 8
    assert found["worst_case"] is None
    assert found["layers"][1]["inclusion"] == pytest.approx(0.755, abs=5e-4)
    assert any("does not give the target" in text for text in found["warnings"])
    sized = document(
        capsys, "schedule", "--rule", "lisa", "--num-layers", 4, "--expected-active", 1,
        "--explain", "--stats", stats,
    )["explain"]  # fmt: skip
    block = 4 * 16 * 16 + 3 * 48 * 16
    assert sized["worst_case"]["layer_parameters"] == block
    assert sized["worst_case"]["always_active_parameters"] == {"embed": 640}
    assert sized["worst_case"]["bytes"]["bf16"]["active_sum"] == 8 * (block + 640)
    assert "fp32 (4)" in sized["assumptions"][0]


def test_a_schedule_file_can_be_explained_later(
    tmp_path: Path, stats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.json"
    words(capsys, "schedule", LOD, "--rule", "owlore", "--expected-active", 2, "--out", file)
    shown = words(capsys, "schedule", file, "--explain", "--steps", 2000, "--list", 2)
    assert "give the model's statistics as --stats DIR" in shown
    assert "interval  steps  active layers" in shown
    assert re.search(r"layers that never train, expected +1.44", shown)
    again = tmp_path / "again.json"
    words(capsys, "schedule", file, "--out", again)
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_every_target_exports(
    target: str, stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.json"
    words(
        capsys, "schedule", stats, "--rule", "metric", "--metric", "stable_rank",
        "--expected-active", 2, "--out", file,
    )  # fmt: skip
    more = ["--stats", stats] if target in {"spectrum", "peft"} else []
    page = document(capsys, "export", file, "--to", target, "--out", tmp_path / target, *more)
    assert page["target"] == target
    assert page["files"]
    assert all(Path(name).stat().st_size for name in page["files"])
    assert page["notes"]
    capsys.readouterr()
    assert run([*map(str, ["export", file, "--to", target, "--out", "-", *more])]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("note: ") == len(page["notes"])
    for name in page["files"]:
        assert Path(name).read_text() in shown.out


def test_export_writes_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words(capsys, "schedule", LOD, "--rule", "owlore", "--expected-active", 2, "--out", "s.json")
    assert words(capsys, "export", "s.json", "--to", "owlore").split() == [
        "metric_cache/llama2_ratio_13.txt",
        "owlore-args.sh",
    ]
    assert 'layerstats_schedule: "s.json"' in words(
        capsys, "export", "s.json", "--to", "axolotl", "--layers-path", "model.layers", "--out", "-"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("schedule LOD --rule owlore", 2, "missing --expected-active"),
        ("schedule LOD --expected-active 2", 2, "missing --rule"),
        ("schedule nowhere.json --explain", 3, "no such file"),
        ("schedule nowhere --rule owlore --expected-active 2", 3, "nowhere"),
        ("schedule FILE --expected-active 2", 2, "is a schedule already"),
        ("schedule FILE --rule owlore --expected-active 2", 2, "is no list of scores"),
        ("schedule LOD --rule owlore --expected-active 2 --explain --steps 0", 2, "steps"),
        ("schedule LOD --rule blend --metric a=1 --expected-active 2", 2, "statistics directory"),
        ("schedule LOD --rule owlore --floor 0.5 --expected-active 2", 2, "0.0625"),
        ("schedule LOD --rule owlore --direction up --expected-active 2", 2, "no direction"),
        ("schedule LOD --rule lisa-theory --full LOD2 --expected-active 2", 3, "LOD2"),
        ("export", 2, "missing SCHEDULE"),
        ("export FILE", 2, "missing --to"),
        ("export nowhere.json --to axolotl", 3, "nowhere.json"),
        ("export FILE --to axolot", 2, "did you mean 'axolotl'"),
        ("export FILE --to axolotl", 2, "--layers-path model.layers"),
        ("export FILE --to owlore --interval 3", 2, "does not use --interval"),
        ("export LOD --to owlore", 4, "is not"),
        ("export FILE --to owlore --out FILE/x", 2, "cannot be made"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    arguments: str, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.json"
    words(capsys, "schedule", LOD, "--rule", "owlore", "--expected-active", 2, "--out", file)
    capsys.readouterr()
    names = {"LOD": str(LOD), "FILE": str(file), "FILE/x": f"{file}/x"}
    assert run([names.get(part, part) for part in arguments.split()]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert shown.err.count("\n") == 1


def test_help_names_every_rule_and_target(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "".join(words(capsys, "schedule", "--help").split())
    for name in RULES:
        assert name in shown
    shown = "".join(words(capsys, "export", "--help").split())
    for name in EXPORTERS:
        assert name in shown


def test_what_a_reader_of_the_table_would_miss_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "schedule.json")
    plain = ["schedule", "--rule", "lisa", "--num-layers", "4", "--out", out, "--expected-active"]
    assert run([*plain, "2"]) == 0
    assert "besides them train in every interval: embed, head, norm" in capsys.readouterr().err
    assert run([*plain, "9", "--always-active", ""]) == 0
    said = capsys.readouterr().err
    assert "9 active layers were asked for; all 4 always train" in said
    assert "besides" not in said
