"""The comparisons of fine-tuning runs against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analyses import owlore_appendix_gamma, owlore_table1_lisa_d, owlore_table3_methods, run_summary
from analyses.fine_tuning import final, questions
from analyses.owlore_variants import METHOD, variant_runs
from layerstats import runs

# Student's t, two degrees of freedom, 97.5 %.
T = 4.302653


def run_directory(path: Path, losses: list[float], held_out: dict[int, float]) -> Path:
    """Return a run of ten tokens a step, five a second, with two layers, the first trained."""
    path.mkdir()
    log: list[dict[str, Any]] = [{"kind": "eval", "step": 0, "loss": 4.0}]
    for step, loss in enumerate(losses, start=1):
        memory = {"peak": 100 + 10 * step, "base": 40}
        log.append({"kind": "step", "step": step, "loss": loss, "tokens": 10,
                    "tokens_per_second": 5.0, "memory": memory})  # fmt: skip
        if step in held_out:
            log.append({"kind": "eval", "step": step, "loss": held_out[step]})
    answers = {"correct": 1, "total": 4, "rate": 0.25, "samples": [{"generated": "7"}]}
    log.append({"kind": "eval", "step": len(losses), "exact_match": answers})
    config = {"lr": 0.1, "steps": len(losses), "seq_len": 10, "batch_size": 1, "interval_steps": 5}
    report = {
        "steps": len(losses),
        "eval_loss": list(held_out.values())[-1],
        "peak_bytes": 100 + 10 * len(losses),
        "optimizer_bytes": {"max": 7},
        "loss": {"first_mean": losses[0], "last_mean": losses[-1], "mean_over": 1},
        "layers": [
            {"moved": True, "active_steps": 10, "expected_intervals": 1.5},
            {"moved": False, "active_steps": 0, "expected_intervals": 0.5},
        ],
    }
    kept = {"format": runs.FORMAT, "version": runs.VERSION, "config": config}
    (path / runs.CONFIG).write_text(json.dumps(kept), encoding="utf-8")
    (path / runs.LOG).write_text("".join(json.dumps(e) + "\n" for e in log), encoding="utf-8")
    (path / runs.REPORT).write_text(json.dumps(report), encoding="utf-8")
    return path


def test_differences_are_taken_within_seeds() -> None:
    found = run_summary.difference({0: 1.0, 1: 5.0, 2: 9.0}, {2: 8.0, 0: 3.0, 1: 5.0})
    assert found["per_seed"] == {0: -2.0, 1: 0.0, 2: 1.0}
    # Mean -1/3, variance ((5/3)^2 + (1/3)^2 + (4/3)^2) / 2 = 7/3, half width t sqrt(7/9).
    assert found["mean"] == pytest.approx(-1 / 3)
    half = T * (7 / 9) ** 0.5
    assert found["interval"] == pytest.approx([-1 / 3 - half, -1 / 3 + half])
    assert not found["told_apart"]
    assert run_summary.direction(found) is None
    assert "smaller than the seeds can tell" in run_summary.in_words(found)


@pytest.mark.parametrize(
    ("shift", "lower", "word"), [(-1.0, True, "lower"), (1.0, False, "higher")]
)
def test_a_steady_difference_is_told_apart_though_seeds_differ_more(
    shift: float, lower: bool, word: str
) -> None:
    those = {0: 1.0, 1: 50.0, 2: 900.0}
    these = {seed: loss + shift + 0.01 * seed for seed, loss in those.items()}
    found = run_summary.difference(these, those)
    assert found["told_apart"]
    assert run_summary.direction(found) is lower
    assert run_summary.in_words(found).endswith(word)


def test_one_seed_tells_nothing_apart_and_has_no_width() -> None:
    found = run_summary.difference({0: 1.0}, {0: 3.0})
    assert found["interval"] == [-2.0, -2.0]
    assert run_summary.direction(found) is None
    assert "one seed" in run_summary.in_words(found)


def test_equal_runs_are_not_told_apart() -> None:
    found = run_summary.difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert found["interval"] == [0.0, 0.0]
    assert not found["told_apart"]


def test_a_claim_holds_if_all_its_parts_do_and_fails_if_one_fails() -> None:
    assert run_summary.agreement([True, True]) is True
    assert run_summary.agreement([True, None]) is None
    assert run_summary.agreement([None, False, True]) is False


@pytest.mark.parametrize(("right", "said"), [([0, 0], "No run answered"), ([1, 9], "1 to 9 of 32")])
def test_exact_match_of_few_problems_ranks_nothing(right: list[int], said: str) -> None:
    rows = [{"correct": {0: number}, "questions": 32} for number in right]
    assert said in run_summary.exact_match_in_words(rows)


def test_the_summary_of_a_run(tmp_path: Path) -> None:
    found = run_summary.summary(run_directory(tmp_path / "run", [3.0, 2.0, 1.0], {2: 3.5, 3: 2.5}))
    assert found["tokens"] == 30
    assert found["minutes_of_training"] == pytest.approx(0.1)
    assert found["tokens_per_second"] == pytest.approx(5.0)
    assert found["peak_bytes"] == 130
    assert found["training_peak_bytes"] == 90
    assert (found["held_out_before"], found["held_out_loss"]) == (4.0, 2.5)
    assert (found["correct"], found["questions"]) == (1, 4)
    assert (found["layers_that_moved"], found["sample"]) == (1, "7")


def test_seeds_that_were_asked_nothing_have_no_answers(tmp_path: Path) -> None:
    asked = run_summary.summary(run_directory(tmp_path / "0", [3.0, 2.0], {2: 3.5}))
    log = run_directory(tmp_path / "1", [3.0, 2.0], {2: 2.5}) / runs.LOG
    log.write_text("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]))
    row = run_summary.row({0: asked, 1: run_summary.summary(tmp_path / "1")})
    assert (row["correct"], row["questions"]) == ({0: 1}, 4)
    assert row["held_out_loss"]["mean"] == 3.0


def test_bands_hold_mean_and_ends_of_seeds_and_leave_answers_out(tmp_path: Path) -> None:
    seeds = {
        0: run_directory(tmp_path / "0", [3.0, 2.0, 1.0], {3: 2.0}),
        1: run_directory(tmp_path / "1", [6.0, 3.0, 3.0], {3: 3.0}),
        2: run_directory(tmp_path / "2", [3.0, 1.0, 2.0], {3: 7.0}),
    }
    found = run_summary.bands(seeds, 1)
    assert found["training"] == {"step": [1, 2, 3], "mean": [4.0, 2.0, 2.0],
                                 "least": [3.0, 1.0, 1.0], "largest": [6.0, 3.0, 3.0]}  # fmt: skip
    assert found["held_out"] == {"step": [0, 3], "mean": [4.0, 4.0], "least": [4.0, 2.0],
                                 "largest": [4.0, 7.0]}  # fmt: skip


def test_steps_of_layers_beside_what_chance_expects(tmp_path: Path) -> None:
    seeds = {s: run_directory(tmp_path / str(s), [1.0], {1: 1.0}) for s in range(2)}
    found = owlore_table1_lisa_d.trained_steps(seeds)
    assert found["mean"] == [10.0, 0.0]
    assert found["expected"] == [7.5, 2.5]
    assert found["never"] == {0: 1, 1: 1}


@pytest.mark.parametrize(("best", "expected"), [(1e-3, True), (3e-4, False), (3e-3, False)])
def test_an_optimum_at_the_edge_of_the_search_is_seen(best: float, expected: bool) -> None:
    search = {"lr": best, "tried": {"0.0003": 2.0, "0.001": 1.0, "0.003": float("inf")}}
    assert owlore_table3_methods.inside(search) is expected


def test_memory_is_relative_to_gamma_1_of_the_same_seed() -> None:
    table = {
        gamma: {seed: {"training_peak_bytes": size} for seed, size in enumerate(sizes)}
        for gamma, sizes in {"1": (100, 200), "2": (150, 220)}.items()
    }
    found = owlore_appendix_gamma.relative_peaks(table)
    assert found["1"]["per_seed"] == {0: 1.0, 1: 1.0}
    assert found["2"]["mean"] == pytest.approx(1.3)


class NoTraining:
    """A bench that names runs and trains none."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bench, name)

    def run(self, configs: Any) -> dict[str, Path]:
        return {label: Path(config.out) for label, config in configs.items()}


def test_a_variant_that_changes_nothing_is_the_run_that_methods_are_compared_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analyses import fine_tuning, owlore_variants
    from analyses.bench import open_bench

    def rates(*_: Any) -> dict[str, Any]:
        return {METHOD: {"lr": 1e-3, "tried": {}}}

    for module in (fine_tuning, owlore_variants):
        monkeypatch.setattr(module, "best_rates", rates)
    opened, _ = open_bench("owlore_appendix_m", ["--quick", "--runs", str(tmp_path)])
    bench: Any = NoTraining(opened)
    gammas = {"1": {"expected_active": 1}, "2": {"expected_active": 2}}
    by_gamma = variant_runs(bench, gammas, 2)
    by_m = variant_runs(bench, {"3": {"metric": "lod_m3"}, "7": {"metric": "lod_m7"}}, 2)
    usual = {s: Path(final(bench, METHOD, {METHOD: 1e-3}, s, **questions(bench, s)).out)
             for s in range(2)}  # fmt: skip
    assert by_gamma["2"] == by_m["7"] == usual
    others = {*by_gamma["1"].values(), *by_m["3"].values(), *usual.values()}
    assert len(others) == 6
    with pytest.raises(ValueError, match="as it is compared"):
        variant_runs(bench, {"1": {"expected_active": 1}}, 1)
