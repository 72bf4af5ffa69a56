"""The parts of the analyses against slow restatements of what they claim to be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit

from analyses import claims, convex, first_token, lod_ways
from analyses.intervals import mean_interval
from layerstats import demo_data
from layerstats.numerics import block_outliers

FIGURES = Path(__file__).parents[2] / "figures"


def test_the_interval_is_students() -> None:
    values = np.random.default_rng(0).standard_normal(9)
    expected = stats.t.interval(0.95, 8, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values)["interval"] == pytest.approx(expected)


def test_the_optimum_is_one_and_all_layers_with_sgd_is_plain_sgd() -> None:
    problem, steps = convex.make_problem(), 40
    x, y, w = problem.x, problem.y, np.zeros(problem.x.shape[1])
    draw, gaps = np.random.default_rng(1), []
    for t in range(steps):
        z = x @ w
        loss = np.mean(np.log1p(np.exp(z)) - y * z) + convex.DECAY / 2 * w @ w
        gaps.append(loss - problem.best)
        rows = draw.integers(convex.ROWS, size=(1, convex.BATCH))[0]
        gradient = x[rows].T @ (expit(x[rows] @ w) - y[rows]) / convex.BATCH + convex.DECAY * w
        w = (w - 3.0 / np.sqrt(t + 1) * gradient).clip(-convex.BOX, convex.BOX)
    assert min(gaps) > 0
    found = convex.averaged_gaps(problem, "SGD", 16, drop=False, seeds=1, steps=steps)
    assert found[0] == pytest.approx(np.cumsum(gaps) / np.arange(1, steps + 1), rel=1e-9)


def test_adam_on_all_layers_is_torchs() -> None:
    problem, steps = convex.make_problem(), 12
    x, y = torch.tensor(problem.x), torch.tensor(problem.y)
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=1.0, eps=1e-8)
    draw, gaps = np.random.default_rng(1), []
    for t in range(steps):
        with torch.no_grad():
            z = x @ w
            loss = (torch.nn.functional.softplus(z) - y * z).mean()
            gaps.append(float(loss + convex.DECAY / 2 * w @ w) - problem.best)
        rows = draw.integers(convex.ROWS, size=(1, convex.BATCH))[0]
        z = x[rows] @ w
        loss = (torch.nn.functional.softplus(z) - y[rows] * z).mean() + convex.DECAY / 2 * w @ w
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = convex.STEP["Adam"] / np.sqrt(t + 1)
        adam.step()
        with torch.no_grad():
            w.clamp_(-convex.BOX, convex.BOX)
    found = convex.averaged_gaps(problem, "Adam", 16, drop=True, seeds=1, steps=steps)
    assert found[0] == pytest.approx(np.cumsum(gaps) / np.arange(1, steps + 1), rel=1e-9)


def test_tensors_of_equal_mean_score_have_the_mean_of_their_own_lods() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(40, 30, generator=draw) ** 3, 9 * torch.randn(20, 30, generator=draw)]
    norms = [np.random.default_rng(i).lognormal(size=30) for i in range(2)]
    found = dict(lod_ways.rescaled(weights, norms))
    own = np.array(block_outliers(weights, norms, lod_ways.M).matrix_lod_pct)
    assert found[lod_ways.WITHIN] == pytest.approx(np.average(own, axis=0, weights=[1200, 600]))
    assert found[lod_ways.JOINED] != pytest.approx(found[lod_ways.WITHIN])


def test_stability_of_equal_sets_is_one_and_of_opposite_sets_minus_one() -> None:
    layers = np.arange(6.0)
    same = np.stack([layers, layers + 1], axis=1)
    opposite = np.stack([layers, -layers], axis=1)
    found = lod_ways.stability(np.stack([same, opposite], axis=2))
    assert found["m7"]["mean"] == pytest.approx(1)
    assert found["m13"]["largest"] == pytest.approx(-1)


def test_norms_without_the_first_token_are_those_of_hooks(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo_data.random_checkpoint(tmp_path / "model")
    text = demo_data.calibration_text()
    found = first_token.variants(path, text, tmp_path / "texts", samples=3, seq_len=8)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    ids = tokenizer(text.read_text(encoding="utf-8")[:60], add_special_tokens=False)["input_ids"]
    plain = [ids[at : at + 8] for at in (0, 8, 16)]
    bos = [[tokenizer.bos_token_id, *ids[at : at + 7]] for at in (0, 7, 14)]
    name = "model.layers.5.mlp.down_proj"
    seen: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    squares = {}
    for label, windows in (("plain", plain), ("bos", bos)):
        seen.clear()
        with torch.no_grad():
            for window in windows:
                model(torch.tensor([window]))
        inputs = torch.stack(seen)
        squares[label] = (inputs**2).sum(dim=(0, 1)).numpy()
        squares[label + ", first out"] = (inputs[:, 1:] ** 2).sum(dim=(0, 1)).numpy()
    for ours, hooks in zip(first_token.NAMES, squares.values(), strict=True):
        [key] = [key for key in found[ours] if key.startswith(name)]
        assert found[ours][key] == pytest.approx(hooks, rel=1e-6), ours


def test_the_table_of_claims_is_that_of_the_json_files(tmp_path: Path) -> None:
    readme = (FIGURES / "README.md").read_text(encoding="utf-8")
    assert claims.table() in readme
    for file in FIGURES.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    claims.write(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme
    changed = tmp_path / "lod_anatomy.json"
    found = json.loads(changed.read_text(encoding="utf-8"))
    found["windows"]["1"]["m7"]["mean"] = 0.123
    changed.write_text(json.dumps(found), encoding="utf-8")
    assert "0.123" in claims.table(tmp_path)
    assert "0.123" not in readme


def test_every_result_is_in_the_table_of_claims() -> None:
    results = {file.stem for file in FIGURES.glob("*.json")}
    assert results == {row[0] for row in claims.ROWS}


def test_open_answers_are_said_as_such() -> None:
    cells = ("{same_direction}", "{found:.1~}")
    said = {True: "yes", False: "no", None: "not settled"}
    for answer, word in said.items():
        found = {"same_direction": answer, "found": {"mean": -1.0, "interval": [-2.0, 0.5]}}
        filled = [claims._Places().vformat(cell, (), {"found": found}) for cell in cells]
        assert filled == [word, "\N{MINUS SIGN}1.0 [\N{MINUS SIGN}2.0, 0.5]"]
