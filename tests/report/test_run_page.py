"""The page of a training run holds what the log, the report and the schedule say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstats import runs
from layerstats.errors import CheckpointError
from layerstats.report import page_of, to_html
from layerstats.report.training import MOST_STEPS, run_page
from tests.report.pages import Parsed, make_run, make_schedule


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_curves_are_the_log(run: Path) -> None:
    table = Parsed(to_html(run_page(run))).table("steps")
    steps = runs.of_kind(runs.read_log(run), "step")
    for name in ("loss", "lr", "gradient_norm", "tokens_per_second"):
        assert table[name] == [one[name] for one in steps]
    for part in ("weights", "gradients", "optimizer", "peak"):
        assert table[f"{part}_bytes"] == [one["memory"][part] for one in steps]
    held_out = {one["step"]: one["loss"] for one in runs.of_kind(runs.read_log(run), "eval")}
    assert table["held_out_loss"] == [held_out.get(step) for step in table["step"]]


def test_activity_engagement_and_tracks_are_drawn(run: Path) -> None:
    page = Parsed(to_html(run_page(run)))
    charts = {chart["id"]: chart for chart in page.data["charts"]}
    assert list(charts) == [
        "loss", "memory", "activity", "track-frobenius_norm", "turns", "moved",
        "probabilities", "plan",
    ]  # fmt: skip
    plan = make_schedule()
    assert charts["activity"]["rows"] == [[at, list(plan.active_layers(at))] for at in range(5)]
    assert charts["plan"]["rows"] == charts["activity"]["rows"]
    report = json.loads((run / runs.REPORT).read_text())
    layers, turns = page.table("layers"), page.table("turns")
    for name in (
        "active_intervals",
        "expected_intervals",
        "update_norm",
        "relative_update",
        "moved",
    ):
        assert layers[name][:8] == [one[name] for one in report["layers"]]
    assert turns["active_intervals"] == [one["active_intervals"] for one in report["layers"]]
    # Norms are 10 + 0.1 * step * layer; the first record is of step 8.
    assert page.table("track-frobenius_norm")["step_16"][5] == pytest.approx(100 * (18 / 14 - 1))


def test_an_unfinished_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    page = Parsed(to_html(run_page(make_run(tmp_path / "run", finished=False))))
    assert "the run is not finished" in page.words
    assert "a checkpoint was <damaged>" in page.words
    assert "loss" in [chart["id"] for chart in page.data["charts"]]


def test_a_run_that_has_not_logged_a_step_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    (run / runs.LOG).unlink()
    page = Parsed(to_html(page_of(run)))
    assert [chart["id"] for chart in page.data["charts"]] == ["probabilities", "plan"]


def test_verdicts_of_the_report_are_warnings(run: Path) -> None:
    file = run / runs.REPORT
    report = json.loads(file.read_text())
    file.write_text(json.dumps({**report, "verdicts": ["layer 3 moved and was never active"]}))
    notices = [(one.level, one.text) for one in run_page(run).part.notices]
    assert ("warning", "layer 3 moved and was never active") in notices


def test_a_long_run_is_thinned_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=6, finished=False)
    entry = next(one for one in runs.read_log(run) if one["kind"] == "step")
    with (run / runs.LOG).open("a") as stream:
        stream.writelines(
            json.dumps({**entry, "step": step}) + "\n" for step in range(7, 2 * MOST_STEPS + 2)
        )
    page = run_page(run)
    [table] = [one for one in page.part.tables if one.id == "steps"]
    assert MOST_STEPS / 2 < table.num_rows <= MOST_STEPS
    assert "curves show one in 3 of the 8001 steps" in str(page.part.notices)


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": 3}'])
def test_a_damaged_report_is_one_line(run: Path, text: str) -> None:
    (run / runs.REPORT).write_text(text)
    with pytest.raises(CheckpointError, match=r"report\.json: damaged"):
        run_page(run)
