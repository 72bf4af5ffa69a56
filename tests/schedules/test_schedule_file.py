"""The schedule file: golden text, exact round trip, its JSON Schema, and every kind of damage."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats.errors import CheckpointError, MissingError, UsageError
from layerstats.schedules import LAWS, Provenance, Schedule, json_schema, schedule

DATA = Path(__file__).parents[1] / "data"
LOD = DATA / "llama2_7b_lod_m13_percent.txt"
GOLDEN = DATA / "schedule_owlore_llama2_7b.json"


def owlore() -> Schedule:
    made = schedule(
        "owlore",
        np.loadtxt(LOD),
        expected_active=2,
        metric="lod_m13",
        model="meta-llama/Llama-2-7b-hf",
        low_rank={"rank": 128, "update_interval": 200, "scale": 1.0},
    )
    origin = Provenance(created_by="layerstats 0.1.0", stats=LOD.name)
    return dataclasses.replace(made, provenance=origin)


def test_golden_file_is_written_byte_for_byte(tmp_path: Path) -> None:
    file = owlore().save(tmp_path / "schedule.json")
    assert file.read_bytes() == GOLDEN.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]


def test_keys_stand_as_designed() -> None:
    keys = (
        "format version model rule metric scores expected_active interval_steps seed probabilities "
        "sampling inclusion_probabilities always_active low_rank provenance"
    )
    assert list(json.loads(GOLDEN.read_text())) == keys.split()
    assert set(json_schema()["required"]) == set(keys.split()) == set(json_schema()["properties"])
    assert json_schema()["properties"]["sampling"]["enum"] == [
        "systematic", "bernoulli", "successive", "quota", "reshuffle",
    ]  # fmt: skip
    assert set(json_schema()["properties"]["sampling"]["enum"]) == set(LAWS)


@pytest.mark.parametrize("law", sorted(LAWS))
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_round_trip_is_exact_and_valid(law: str, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
    made = schedule(
        "owlore",
        scores,
        expected_active=data.draw(st.integers(1, len(scores))),
        seed=data.draw(st.integers(0, 2**63 - 1)),
        interval_steps=data.draw(st.integers(1, 1000)),
        sampling=law,
        model=data.draw(st.sampled_from(["org/name", "ein Modell", '模型 "x"'])),
        always_active=tuple(data.draw(st.sets(st.sampled_from(["embed", "head", "norm"])))),
        low_rank=data.draw(st.sampled_from([None, {"rank": 4, "scale": 0.25}])),
    )
    text = made.to_json()
    jsonschema.validate(json.loads(text), json_schema())
    again = Schedule.from_json(text)
    assert again == made
    assert again.to_json() == text
    assert again.plan(5) == made.plan(5)
    assert hash(again) == hash(made)


def test_the_schema_is_a_schema_and_refuses() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    data = owlore().to_dict() | {"extra": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json_schema())


def test_another_process_draws_the_same_layers() -> None:
    code = (
        "import sys; from layerstats.schedules import Schedule; "
        "print([Schedule.from_json(sys.argv[1]).active_layers(i) for i in (7, 3, 10**12)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, GOLDEN], capture_output=True, text=True, check=True
    )
    here = Schedule.from_json(GOLDEN)
    assert done.stdout.strip() == str([here.active_layers(i) for i in (7, 3, 10**12)])


def test_steps_and_plan() -> None:
    made = Schedule.from_json(GOLDEN)
    assert [made.interval_of(step) for step in (0, 19, 20, 130)] == [0, 0, 1, 6]
    assert made.plan(3, start=4) == [made.active_layers(interval) for interval in (4, 5, 6)]
    made.require_layers(32)
    with pytest.raises(UsageError, match="for 32 layers but the model has 30"):
        made.require_layers(30)
    for bad in (-1, 1.5, True):
        with pytest.raises(UsageError, match="interval must be a whole number"):
            made.active_layers(bad)  # type: ignore[arg-type]


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return apply


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(key)


DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (change("format", to="axolotl"), "format is 'axolotl', expected 'layerstats-schedule'"),
    (drop("format"), "format is None"),
    (change("version", to=2), r"version 2 is newer than this program reads \(1\); update"),
    (change("version", to="1"), "version is '1', expected 1"),
    (change("version", to=True), "version is True"),
    (drop("seed"), "lacks the key 'seed'"),
    (change("sed", to=1), "unknown key 'sed'; did you mean 'seed'"),
    (change("model", "layers", to=1), "unknown key 'model.layers'"),
    (change("provenance", "when", to=1), "unknown key 'provenance.when'"),
    (change("low_rank", "r", to=1), "unknown key 'low_rank.r'"),
    (change("model", to=[]), r"model must be an object, got \[\]"),
    (change("model", "num_layers", to=31), "scores has 32 values, but model.num_layers is 31"),
    (change("model", "num_layers", to=0), "model.num_layers must be a whole number from 1"),
    (change("scores", to=[1.0]), "scores has 1 values"),
    (change("scores", 3, to="x"), r'scores\[3\] must be a number, got "x"'),
    (change("scores", 3, to=None), r"scores\[3\] must be a number, got null"),
    (change("scores", 3, to=10**400), "number too large"),
    (change("probabilities", 0, to=0.5), "probabilities sum to .*, not to expected_active 2"),
    (change("probabilities", 0, to=1.5), r"probabilities\[0\] is 1.5; it must be from 0 to 1"),
    (change("probabilities", 0, to=-0.5), r"probabilities\[0\] is -0.5"),
    (change("probabilities", 0, to=True), r"probabilities\[0\] must be a number, got true"),
    (change("inclusion_probabilities", 5, to=0.9), r"inclusion_probabilities\[5\] is 0.9, but"),
    (change("inclusion_probabilities", to=[]), "inclusion_probabilities has 0 values"),
    (change("expected_active", to=3), "probabilities sum to 2, not to expected_active 3"),
    (change("expected_active", to=33), "expected_active 33 is more than the 32 layers"),
    (change("expected_active", to=0), "expected_active must be a number above 0"),
    (change("expected_active", to="2"), "expected_active must be a whole number or a number"),
    (change("interval_steps", to=20.5), "interval_steps must be a whole number"),
    (change("interval_steps", to=0), "interval_steps must be a whole number from 1"),
    (change("seed", to=-1), "seed must be a whole number from 0"),
    (change("seed", to=2**63), "seed must be a whole number from 0"),
    (change("sampling", to="sytematic"), "did you mean 'systematic'"),
    (change("sampling", to="successive"), "successive sampling of these probabilities gives"),
    (change("always_active", to=["lm_head"]), "always_active has unknown 'lm_head'"),
    (change("always_active", to=[1]), r"always_active\[0\] must be text"),
    (change("low_rank", "rank", to=0), "low_rank.rank must be a whole number from 1"),
    (change("low_rank", "scale", to=0), "low_rank.scale must be a number above 0"),
    (change("low_rank", to=128), "low_rank must be an object or null, got 128"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_damage_is_named_with_the_file(
    damage: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path
) -> None:
    data = json.loads(GOLDEN.read_text())
    damage(data)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=words) as error:
        Schedule.from_json(file)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        (GOLDEN.read_text()[:300], "is not JSON"),
        (GOLDEN.read_text().replace('"seed": 0', '"seed": NaN'), "contains NaN"),
        (GOLDEN.read_text().replace('"seed": 0', '"seed": -Infinity'), "contains -Infinity"),
        (GOLDEN.read_text().replace("0.2678", "1e999, 0.2678", 1), "scores has 33 values"),
        (GOLDEN.read_text().replace("0.26780904265883054", "1e999", 1), r"scores\[0\] is inf"),
        (GOLDEN.read_text().replace('"seed": 0', '"seed": 0, "seed": 1'), "'seed' twice"),
        ("[" * 200_000, "nested too deeply"),
        ('{"version": ' + "1" * 5000 + "}", "number too long"),
    ],
    ids=range(10),
)
def test_text_that_is_no_schedule(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=words) as error:
        Schedule.from_json(str(file))
    assert str(error.value).startswith(f"{file}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        Schedule.from_json(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Schedule.from_json(tmp_path / ("x" * 300))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        Schedule.from_json(tmp_path / "bytes.json")


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        owlore().save(tmp_path / "nowhere" / "schedule.json")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_the_place_of_a_schedule(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"a directory, not a schedule; .* layerstats schedule STATS"
    ):
        Schedule.from_json(tmp_path)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        Schedule.from_json(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: a directory of statistics, not a schedule; make one first: layerstats "
        f"schedule {tmp_path} --rule owlore --expected-active 2 --out schedule.json"
    )
    owlore().save(tmp_path / "schedule.json")
    with pytest.raises(UsageError, match=f"give {tmp_path / 'schedule.json'}$"):
        Schedule.from_json(tmp_path)
