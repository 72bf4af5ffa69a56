"""`layerstats report` as users call it: one file, one line, and what cannot work in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstats.cli import run
from tests.report.pages import make_run, make_schedule, make_stats


def test_it_writes_one_file_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_stats().save(tmp_path / "stats")
    out = tmp_path / "page.html"
    assert run(["report", str(tmp_path / "stats"), "--out", str(out)]) == 0
    assert capsys.readouterr().err.startswith(f"wrote {out} (")
    assert out.stat().st_size < 6_000_000
    assert run(["report", str(tmp_path / "stats"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "bytes": out.stat().st_size}


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = make_stats().save(tmp_path / "stats")
    trained = make_run(tmp_path / "run")
    plan = make_schedule(9).save(tmp_path / "nine.json")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    out = str(tmp_path / "page.html")
    for arguments, code, said in (
        ([str(model), "--out", out], 3, "neither statistics (meta.json) nor a training run"),
        ([str(tmp_path / "gone"), "--out", out], 3, "neither statistics"),
        ([str(stats), "--schedule", str(plan), "--out", out], 2, "9 layers"),
        ([str(trained), "--schedule", str(plan), "--out", out], 2, "has its own schedule"),
        ([str(stats), "--out", str(tmp_path)], 2, "is a directory"),
        ([str(stats), "--out", str(tmp_path / "no" / "page.html")], 2, "cannot be written"),
    ):
        assert run(["report", *arguments]) == code, said
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not Path(out).exists()
