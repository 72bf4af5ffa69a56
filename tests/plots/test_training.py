"""Pictures of training runs: the artists carry the log's numbers, and labels say whose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from layerstats import plots
from layerstats.cli import run as command
from layerstats.errors import UsageError
from layerstats.plots.canvas import new_axes
from layerstats.plots.logs import smoothed
from layerstats.schedules import schedule as make

KINDS = ("loss", "activity", "memory", "weight-norms")


def of_gid(ax: Axes, gid: str) -> list[Any]:
    return [line for line in ax.lines if line.get_gid() == gid]


def losses(log: list[dict[str, Any]], kind: str = "step") -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in log if entry["kind"] == kind]


def notes(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_gid() == "note"]


# loss


def test_loss_draws_every_step_and_the_held_out_points(run_log: Any) -> None:
    log = run_log(12)
    ax = plots.loss(log)
    [raw] = of_gid(ax, "raw")
    np.testing.assert_array_equal(np.transpose(raw.get_data()), losses(log))
    [points] = of_gid(ax, "held-out")
    np.testing.assert_array_equal(np.transpose(points.get_data()), losses(log, "eval"))
    [bold] = [line for line in ax.lines if line.get_label().startswith("training, mean of\n9 ")]
    values = np.array([loss for _, loss in losses(log)])
    assert bold.get_ydata()[100] == pytest.approx(values[96:105].mean())
    assert ax.get_xlabel() == "Optimizer step"


def test_losses_of_several_runs_are_told_apart_and_smoothed_alike(run_log: Any) -> None:
    runs = {"lisa": run_log(12), "full": run_log(12, seed=1, steps=50)}
    ax = plots.loss(runs)
    bold = {str(line.get_label()): line for line in ax.lines if line.get_label() in runs}
    assert list(bold) == ["lisa", "full"]
    for look in ("color", "linestyle"):
        assert len({getattr(line, f"get_{look}")() for line in bold.values()}) == 2
    for label, line in bold.items():
        values = np.array([loss for _, loss in losses(runs[label])])
        np.testing.assert_array_equal(line.get_ydata(), smoothed(values, 9))
    marks = of_gid(ax, "held-out")
    assert [line.get_markeredgecolor() for line in marks] == [
        line.get_color() for line in bold.values()
    ]


def test_a_loss_that_was_no_number_is_a_gap_and_named(run_log: Any) -> None:
    log = run_log(12, steps=20)
    for entry in log:
        if entry["kind"] == "step" and entry["step"] in (3, 4, 5, 9):
            entry["loss"] = None
    ax = plots.loss(log, smooth=1)
    assert np.flatnonzero(np.isnan(ax.lines[0].get_ydata())).tolist() == [2, 3, 4, 8]
    assert notes(ax) == ["no finite loss: steps 3-5, 9"]
    assert notes(plots.loss({"a": log, "b": log, "c": run_log(12)})) == [
        "no finite loss: steps 3-5, 9 (a, b)"
    ]


def test_an_eval_without_loss_is_no_point(run_log: Any) -> None:
    """The exact match at the end of a run is an entry of its own."""
    log = [*run_log(12, steps=20), {"kind": "eval", "step": 20, "exact_match": {"rate": 0.5}}]
    assert of_gid(plots.loss(log), "held-out") == []


@given(
    arrays(float, st.integers(1, 60), elements=st.floats(-9, 9) | st.just(float("nan"))),
    st.integers(0, 20),
)
def test_smoothing_is_a_mean_inside_and_a_line_at_the_ends(values: Any, half: int) -> None:
    found = smoothed(values, 2 * half + 1)
    for at in range(len(values)):
        low, high = max(0, at - half), min(len(values), at + half + 1)
        x = np.arange(low, high)[np.isfinite(values[low:high])]
        if len(x) == 0:
            assert np.isnan(found[at])
        elif high - low == 2 * half + 1 or len(x) < 3:
            assert found[at] == pytest.approx(values[x].mean(), abs=1e-9)
        else:
            assert found[at] == pytest.approx(np.polyval(np.polyfit(x, values[x], 1), at), abs=1e-6)


def test_smoothing_keeps_a_straight_line() -> None:
    line = 3.0 - 0.01 * np.arange(50)
    np.testing.assert_allclose(smoothed(line, 21), line, atol=1e-12)


# activity


def cells(ax: Axes) -> np.ndarray:
    (mesh,) = [group for group in ax.collections if isinstance(group, QuadMesh)]
    return np.asarray(mesh.get_array())


def test_activity_counts_the_intervals_of_the_log(run_log: Any) -> None:
    log = run_log(12)
    begun = [entry for entry in log if entry["kind"] == "interval"]
    ax = plots.activity(log, num_layers=14)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [sum(n in one["active_layers"] for one in begun) for n in range(14)]
    raster = ax.get_figure(root=True).axes[1]
    grid = cells(raster)
    assert grid.shape == (20, 14)
    for row, entry in zip(grid, begun, strict=True):
        assert np.flatnonzero(row).tolist() == entry["active_layers"]
    assert ax.get_xlim() == raster.get_xlim()
    assert raster.get_ylim() == (19.5, -0.5)  # time runs downwards


def test_an_interval_logged_twice_around_a_resume_counts_once(run_log: Any) -> None:
    log = run_log(12)
    [third] = [entry for entry in log if entry["kind"] == "interval" and entry["interval"] == 2]
    heights = [bar.get_height() for bar in plots.activity(log).patches]
    again = plots.activity([*log, {**third, "step": 25}])
    assert [bar.get_height() for bar in again.patches] == heights


@pytest.mark.parametrize(("sampling", "spread"), [("systematic", True), ("quota", False)])
def test_activity_beside_what_was_expected(sampling: str, spread: bool) -> None:
    rule = make("lisa", num_layers=8, expected_active=2, seed=1, sampling=sampling)
    log = [
        {"kind": "interval", "interval": n, "active_layers": rule.active_layers(n)}
        for n in range(12)
    ]
    ax = plots.activity(log, schedule=rule)
    (line,) = [line for line in ax.lines if line.get_label() == "expected"]
    assert list(line.get_ydata()) == [3.0] * 9
    bands = [band for band in ax.collections if "standard deviations" in str(band.get_label())]
    assert len(bands) == spread
    if spread:
        height = bands[0].get_datalim(ax.transData).intervaly
        deviation = np.sqrt(12 * 0.25 * 0.75)
        np.testing.assert_allclose(height, [0.0, 3.0 + 2.0 * deviation], atol=1e-12)


def test_many_intervals_share_rows_without_losing_any() -> None:
    rule = make("lisa", num_layers=8, expected_active=2, seed=1)
    log = [
        {"kind": "interval", "interval": n, "active_layers": rule.active_layers(n)}
        for n in range(1001)
    ]
    ax = plots.activity(log)
    raster = ax.get_figure(root=True).axes[1]
    grid = cells(raster)
    assert len(grid) <= 150
    counts = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(7 * grid.sum(axis=0), counts)
    assert raster.get_ylim() == (1000.5, -0.5)
    legend = raster.get_legend()
    assert legend is not None
    assert "of 7\nintervals" in legend.get_texts()[0].get_text()


def test_activity_of_a_run_that_sampled_nothing_is_refused(run_log: Any) -> None:
    log = [entry for entry in run_log(12) if entry["kind"] != "interval"]
    with pytest.raises(UsageError, match="samples no layers"):
        plots.activity(log)
    with pytest.raises(UsageError, match="draws one run, 2 were given"):
        plots.activity({"a": run_log(12), "b": run_log(12)})
    with pytest.raises(UsageError, match="the log has layer 11, but there are 4 layers"):
        plots.activity(run_log(12, seed=3, steps=400), num_layers=4)


def test_the_raster_can_be_placed_or_left_out(run_log: Any) -> None:
    below = new_axes(size=(4.0, 3.0))
    plots.activity(run_log(5), ax=new_axes(size=(4.0, 3.0)), raster_ax=below)
    assert len(below.collections) == 1
    alone = plots.activity(run_log(5), ax=new_axes(size=(4.0, 3.0)))
    assert alone.get_figure(root=True).axes == [alone]


# memory


def memory_of(log: list[dict[str, Any]], part: str) -> np.ndarray:
    return np.array([entry["memory"][part] for entry in log if entry["kind"] == "step"])


def test_memory_stacks_the_parts_in_gb(run_log: Any) -> None:
    log = run_log(12)
    ax = plots.memory(log)
    floor = np.zeros(200)
    for part, area in zip(("weights", "gradients", "optimizer"), ax.collections, strict=True):
        assert str(area.get_label()).startswith(part)
        top = floor + memory_of(log, part) / 1e9
        low, high = area.get_datalim(ax.transData).intervaly
        assert (low, high) == (pytest.approx(floor.min()), pytest.approx(top.max()))
        corners = {tuple(point) for point in area.get_paths()[0].vertices.round(6)}
        for step in (1, 57, 200):  # from half a step before to half a step behind
            corner = step - 0.5, round(float(top[step - 1]), 6)
            assert corner in corners
            assert (corner[0], round(float(floor[step - 1]), 6)) in corners
        floor = top
    [peak] = of_gid(ax, "peak")
    np.testing.assert_allclose(peak.get_ydata(), 24.0)
    assert ax.get_ylim()[0] == 0.0
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == [
        "peak (cuda allocator)",
        "optimizer state",
        "gradients",
        "weights",
    ]


def test_memory_of_several_runs_is_a_bar_each_at_its_fullest(run_log: Any) -> None:
    runs = {"lisa": run_log(12), "full": run_log(12, seed=1)}
    for entry in runs["full"]:
        if entry["kind"] == "step":
            entry["memory"] = {**entry["memory"], "optimizer": 27e9, "peak": 60e9}
    ax = plots.memory(runs)
    widths = {
        str(bars.get_label()): [bar.get_width() for bar in bars.patches] for bars in ax.containers
    }
    assert widths == {
        "weights": [13.5, 13.5],
        "gradients": [2.0, 2.0],
        "optimizer state": [8.0, 27.0],
    }
    assert [label.get_text() for label in ax.get_yticklabels()] == ["lisa", "full"]
    [peaks] = of_gid(ax, "peak")
    assert list(peaks.get_xdata()) == [24.0, 60.0]


def test_small_runs_are_shown_in_smaller_units() -> None:
    held = {"weights": 4e6, "gradients": 1e6, "optimizer": 2e6, "peak": None}
    log = [{"kind": "step", "step": n, "memory": held} for n in (1, 2, 3)]
    ax = plots.memory(log)
    assert ax.get_ylabel() == "Memory (MB = 10⁶ bytes)"
    assert ax.collections[2].get_datalim(ax.transData).y1 == pytest.approx(7.0)


@pytest.mark.parametrize("several", [False, True])
def test_a_peak_far_above_is_written_and_not_drawn(several: bool, texts: Any) -> None:
    """A toy model in a process of half a gigabyte."""
    held = {"weights": 4e6, "gradients": 1e6, "optimizer": 2e6, "peak": 4.8e8}
    held["measured_by"] = "process high-water mark"  # type: ignore[assignment]
    log = [{"kind": "step", "step": n, "memory": held} for n in (1, 2, 3)]
    ax = plots.memory({"a": log, "b": log} if several else log)
    assert "MB = 10⁶ bytes" in ax.get_ylabel() + ax.get_xlabel()
    assert (ax.get_xlim() if several else ax.get_ylim())[1] < 10.0
    [peak] = of_gid(ax, "peak")
    assert np.isnan(peak.get_xdata() if several else peak.get_ydata()).all()
    assert notes(ax) == ["not drawn: peak (process high-water mark), up to 0.48 GB"]
    legend = ax.get_legend()
    assert legend is not None
    assert not any("peak" in text.get_text() for text in legend.get_texts())
    assert texts(ax.get_figure(root=True)).cut_off() == []


# weight-norms


def record(step: int, layers: list[float | None], **ends: Any) -> dict[str, Any]:
    values = {"layers": layers, "embed": None, "head": None, **ends}
    return {"kind": "track", "step": step, "metrics": {"frobenius_norm": values}}


def test_weight_norms_are_means_over_the_records(run_log: Any) -> None:
    log = run_log(12)
    ax = plots.weight_norms({"lisa": log, "other": [record(0, [1.0] * 12)]})
    tracked = [e["metrics"]["frobenius_norm"] for e in log if e["kind"] == "track"]
    assert len(tracked) == 4
    (line,) = [line for line in ax.lines if line.get_label() == "lisa"]
    np.testing.assert_allclose(
        line.get_ydata(), np.mean([one["layers"] for one in tracked], axis=0), rtol=1e-14
    )
    [embed] = of_gid(ax, "embed")
    [head] = of_gid(ax, "head")
    assert list(embed.get_ydata()) == [1104.0]
    assert list(head.get_ydata()) == [pytest.approx(np.mean([one["head"] for one in tracked]))]
    assert [" ".join(note.split()) for note in notes(ax)] == [
        "mean over 4 records, steps 1 to 151 (lisa); 1 record, of step 0 (other)"
    ]


def test_weight_norms_at_both_ends() -> None:
    log = [record(0, [1.0, 2.0], embed=3.0), record(5, [9.0, 9.0]), record(10, [1.5, 2.0])]
    ax = plots.weight_norms(log, when="ends")
    drawn = {str(line.get_label()): list(line.get_ydata()) for line in ax.lines[:2]}
    drawn |= {
        str(line.get_label()): list(line.get_ydata())
        for line in ax.lines
        if str(line.get_label()).startswith("step")
    }
    assert drawn["step 0"] == [1.0, 2.0]
    assert drawn["step 10"] == [1.5, 2.0]
    assert [list(line.get_ydata()) for line in of_gid(ax, "embed")] == [[3.0]]
    assert notes(ax) == []


def test_a_layer_without_a_value_in_one_record_has_no_mean() -> None:
    ax = plots.weight_norms([record(0, [1.0, None, 2.0]), record(1, [1.0, 5.0, 2.0])])
    assert np.isnan(ax.lines[0].get_ydata()).tolist() == [False, True, False]
    assert notes(ax) == ["× no value: layer 1\nmean over 2 records, steps 0 to 1"]


def test_a_long_label_fits(texts: Any) -> None:
    log = [record(0, [2.0, 3.0])]
    log[0]["metrics"] = {"alpha_hill": log[0]["metrics"]["frobenius_norm"]}
    ax = plots.weight_norms(log, column="alpha_hill")
    assert texts(ax.get_figure(root=True)).cut_off() == []


def test_a_metric_that_was_not_tracked_is_named(run_log: Any) -> None:
    with pytest.raises(UsageError, match="did not track 'alpha_hill'; it tracked frobenius_norm"):
        plots.weight_norms(run_log(12), column="alpha_hill")
    untracked = [entry for entry in run_log(12) if entry["kind"] != "track"]
    with pytest.raises(UsageError, match="b tracked no metric; train with --track frobenius_norm"):
        plots.weight_norms({"a": run_log(12), "b": untracked})
    with pytest.raises(UsageError, match="unknown time 'end'; did you mean 'ends'"):
        plots.weight_norms(run_log(12), when="end")


# All of them


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_log_is_refused(kind: str, stats: Any) -> None:
    for wrong in ("out/run", stats(4), [{"step": 1}]):
        with pytest.raises(UsageError, match=r"cannot plot a .* as a run; .*read_log"):
            plots.plot(kind, wrong)
    with pytest.raises(UsageError):
        plots.plot(kind, {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_has_only_begun_is_refused_in_one_line(kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        plots.plot(kind, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["loss", "memory", "weight-norms"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_texts_of_several_runs_can_be_read(kind: str, count: int, run_log: Any, texts: Any) -> None:
    runs = {f"runs/llama2-7b-owlore-rank128-{n}": run_log(30, seed=n) for n in range(count)}
    seen = texts(plots.plot(kind, runs).get_figure(root=True))
    assert seen.overlaps() == []
    assert seen.cut_off() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_one_step_is_drawn(kind: str, run_log: Any, texts: Any) -> None:
    seen = texts(plots.plot(kind, run_log(2, steps=1)).get_figure(root=True))
    assert seen.overlaps() == []
    assert seen.cut_off() == []


# The command


def write_run(folder: Path, log: list[dict[str, Any]], num_layers: int = 6) -> Path:
    folder.mkdir(parents=True)
    page = {"format": "layerstats-run", "version": 1, "config": {}}
    (folder / "config.json").write_text(json.dumps(page))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    rule = make("lisa", num_layers=num_layers, expected_active=1)
    rule.save(folder / "schedule.json")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_draws_runs(
    kind: str, run_log: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "lisa", run_log(6))
    two = write_run(tmp_path / "full", run_log(6, seed=1))
    picture = tmp_path / "a.png"
    assert command(["plot", str(one), "--kind", kind, "--out", str(picture)]) == 0
    single = picture.read_bytes()
    assert single.startswith(b"\x89PNG")
    code = command(["plot", str(one), str(two), "--kind", kind, "--out", str(picture)])
    if kind == "activity":
        assert code == 2
        assert "activity draws one source, 2 were given" in capsys.readouterr().err
    else:
        assert code == 0
        assert picture.read_bytes() != single


def test_runs_are_labelled_by_their_directories(
    run_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerstats.cli import pictures

    drawn: list[tuple[Any, dict[str, Any]]] = []

    def note(kind: str, data: Any, **options: Any) -> Axes:
        drawn.append((data, options))
        return new_axes(size=(2.0, 2.0))

    monkeypatch.setattr(plots, "plot", note)
    runs = [write_run(tmp_path / name, run_log(6)) for name in ("a/lisa", "b/lisa", "b/full")]
    options: dict[str, Any] = {"out": tmp_path / "a.png", "metrics": (), "matrices": ()}
    pictures.draw(runs[1:], kind="loss", **options)
    assert list(drawn[-1][0]) == ["lisa", "full"]
    pictures.draw(runs[:2], kind="loss", **options)
    assert list(drawn[-1][0]) == [str(run) for run in runs[:2]]
    with pytest.raises(UsageError, match="was given twice"):
        pictures.draw([runs[0], runs[0]], kind="loss", **options)
    pictures.draw(runs[:1], kind="weight-norms", **{**options, "metrics": ["mean_abs"]})
    assert drawn[-1] == (run_log(6), {"column": "mean_abs"})
    pictures.draw(runs[:1], kind="activity", **options)
    assert drawn[-1][1]["schedule"].num_layers == 6


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere", "--kind", "loss"], 3, "no such run directory"),
        ([".", "--kind", "loss"], 3, "no run here"),
        (["RUN", "--kind", "loss", "--metrics", "mean_abs"], 2, "--metrics goes with"),
        (["RUN", "--kind", "weight-norms", "--metrics", "a,b"], 2, "draws one metric, 2"),
        (["RUN", "--kind", "memory", "--matrix", "x"], 2, "--matrix goes with --kind esd"),
        (["RUN", "RUN", "--kind", "lod"], 2, "loss, memory, weight-norms"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    says: str,
    run_log: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "RUN", run_log(6))
    assert command(["plot", *arguments, "--out", "a.png"]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_plans_beside_what_was_measured() -> None:
    """A bar's length is the peak; the marks stand where sums and measurements do."""
    parts = {"weights": 4e9, "gradients": 1e9, "optimizer": 2e9, "activations": 3e9}
    small = {name: size / 2 for name, size in parts.items()}
    plans = {
        "lisa": {"parts_at_peak_bytes": parts, "sum_of_parts_bytes": 11e9},
        "lora": {"parts_at_peak_bytes": small, "sum_of_parts_bytes": 6e9},
    }
    ax = plots.memory_plan(plans, measured={"lisa": 10.5e9, "lora": 5.1e9})
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert max(ends[::2]) == pytest.approx(10.0)
    assert max(ends[1::2]) == pytest.approx(5.0)
    marks = {line.get_gid(): list(line.get_xdata()) for line in ax.lines}
    assert marks == {"sum of parts": [11.0, 6.0], "measured": [10.5, 5.1]}
    assert "simulated" in ax.get_xlabel()
    with pytest.raises(UsageError, match="at least one plan"):
        plots.memory_plan({})
