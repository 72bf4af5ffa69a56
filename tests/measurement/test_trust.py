"""`trust=True`: intervals beside numbers, verdicts beside tables, and nothing else moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats import trust
from layerstats.calibration import ActivationNorms, calibrate
from layerstats.checkpoint.reader import LayerReader, open_checkpoint
from layerstats.errors import UsageError
from layerstats.measurement import DEFAULT_METRICS, measure
from layerstats.measurement.redraws import redrawn_lod
from layerstats.numerics.powerlaw import fit_peak
from layerstats.numerics.spectrum import esd
from layerstats.stats import LayerStats
from tests.families import make_family
from tests.oracles import trust as oracle

ALL = ["frobenius_norm", "lod", "alpha_hill"]
ASKED: dict[str, Any] = {"metrics": ALL, "m": [3, 7], "samples": 9, "seq_len": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Line {i} has {i * i % 97} words.\n" for i in range(40)))
    return path


@pytest.fixture(scope="module")
def trusted(model: Path, text: Path) -> LayerStats:
    return measure(model, tokens=text, trust=True, **ASKED)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[np.ndarray], list[float]]:
    """Matrices of one type, redrawn norms with zeros and equal columns among them, and M."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    redraws = draw(st.integers(1, 9))
    spread = draw(st.sampled_from([0.0, 0.1, 2.0]))
    weights, norms = [], []
    for _ in range(draw(st.integers(1, 3))):
        rows, cols = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        # Whole numbers make scores that equal the threshold.
        values = random.integers(-4, 5, (rows, cols)) * random.choice([1.0, 1.0, 0.3], (rows, cols))
        weights.append(torch.tensor(values).to(dtype))
        base = random.integers(0, 4, cols) * np.exp(spread * random.normal(size=(redraws, cols)))
        norms.append(base)
    return weights, norms, draw(st.sampled_from([[1.0], [0.5, 2.0], [7.0, 3.0]]))


@given(blocks())
@settings(deadline=None, max_examples=150)
def test_all_redraws_at_once_equal_one_after_the_other(
    block: tuple[list[torch.Tensor], list[np.ndarray], list[float]],
) -> None:
    weights, norms, m = block
    np.testing.assert_array_equal(
        redrawn_lod(weights, norms, m), oracle.redrawn_lod(weights, norms, m)
    )


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e36])
def test_redraws_of_a_large_matrix(size: float) -> None:
    """Several blocks of rows, and more unsure weights than are compared at a time."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(700, 300, generator=draw) * size]
    norms = [np.exp(np.random.default_rng(0).normal(size=(5, 300)))]
    np.testing.assert_array_equal(
        redrawn_lod(weights, norms, [1.5, 6]), oracle.redrawn_lod(weights, norms, [1.5, 6])
    )


def test_lod_intervals_are_bootstrap_percentiles(
    model: Path, text: Path, trusted: LayerStats
) -> None:
    checkpoint = open_checkpoint(model)
    seen = calibrate(checkpoint, text, samples=9, seq_len=16, groups=16)
    assert seen.groups == 9
    draws = trust.group_draws(9, bootstrap=100, splits=50, seed=0)
    for layer in LayerReader(checkpoint):
        weights = list(layer.weights.values())
        squares = [seen.group_norms[layer.matrices[path].key] ** 2 for path in layer.weights]
        norms = [np.sqrt(draws.bootstrap @ square) for square in squares]
        redrawn = oracle.redrawn_lod(weights, norms, [3, 7])
        row = trusted.blocks.loc[layer.index]
        for column, values in zip(["lod_m3", "lod_m7"], redrawn, strict=True):
            assert row[f"{column}_lo"] == pytest.approx(np.quantile(values, 0.025), rel=1e-12)
            assert row[f"{column}_hi"] == pytest.approx(np.quantile(values, 0.975), rel=1e-12)


def test_alpha_ranges_hold_the_neighbouring_bins(model: Path, trusted: LayerStats) -> None:
    checkpoint = open_checkpoint(model)
    rows = trusted.matrices[trusted.matrices["layer"].notna()]
    assert len(rows) == 4 * 7
    by_name = {matrix.name: matrix for matrix in checkpoint.layout.matrices}
    for _, row in rows.iterrows():
        fit = fit_peak(esd(checkpoint.read_matrix(by_name[row["name"]])), neighbours=1)
        assert (row["alpha_trust_lo"], row["alpha_trust_hi"]) == (fit.alpha_lo, fit.alpha_hi)
        assert row["alpha_trust_lo"] <= row["alpha_hill_lo"] <= row["alpha_hill"]
        assert row["alpha_hill"] <= row["alpha_hill_hi"] <= row["alpha_trust_hi"]
    mean = rows[rows["layer"] == 2]["alpha_trust_hi"].mean()
    assert trusted.blocks.loc[2, "alpha_trust_hi"] == pytest.approx(mean, rel=1e-12)


def test_what_was_there_without_trust_is_untouched(
    model: Path, text: Path, trusted: LayerStats
) -> None:
    metrics = [*ALL, "alpha_mid", "alpha_ks"]
    plain = measure(model, tokens=text, **ASKED | {"metrics": metrics})
    assert "trust" not in plain.meta
    assert "groups" not in plain.meta["calibration"]
    assert not [
        name for name in plain.layers if name.endswith(("_lo", "_hi")) and "hill" not in name
    ]
    for old, new in ((plain.layers, trusted.layers), (plain.matrices, trusted.matrices)):
        pd.testing.assert_frame_equal(new[list(old.columns)], old, check_exact=True)
    with pytest.raises(UsageError, match="without --trust"):
        plain.verdicts()


def test_the_page_of_verdicts(trusted: LayerStats, tmp_path: Path) -> None:
    page = trusted.verdicts()
    assert (page["groups"], page["bootstrap"], page["splits"], page["seed"]) == (9, 100, 50, 0)
    sources = {column: verdict["source"] for column, verdict in page["metrics"].items()}
    assert sources == {
        **{"lod_m3": "windows", "lod_m7": "windows", "alpha_hill": "bins"},
        "frobenius_norm": "exact",
        **{"alpha_mid": "fit", "alpha_ks": "fit"},
    }
    assert page["rules"].keys() == {"windows", "bins", "exact", "fit"}
    assert len(page["alpha_rules"]) == 3
    rho = page["alpha_rules"]["alpha_hill ~ alpha_mid"]
    expected = trusted.blocks[["alpha_hill", "alpha_mid"]].corr(method="spearman").iloc[0, 1]
    assert rho == pytest.approx(expected)
    top = page["metrics"]["lod_m7"]["top_layer"]
    assert top == trusted.layer_column("lod_m7").idxmax()
    assert page["metrics"]["alpha_hill"]["top_layer"] == trusted.layer_column("alpha_hill").idxmin()
    assert LayerStats.load(trusted.save(tmp_path / "s")).verdicts() == page


def files_of(folder: Path) -> tuple[bytes, bytes, Any]:
    page = json.loads((folder / "meta.json").read_text())["trust"]
    return (folder / "layers.csv").read_bytes(), (folder / "matrices.csv").read_bytes(), page


@pytest.mark.parametrize("stop_after", [1, 4, 6, 8])
def test_a_resumed_run_comes_to_the_same_verdicts(
    model: Path, text: Path, trusted: LayerStats, tmp_path: Path, stop_after: int
) -> None:
    """Killed in calibration, behind it, in the layers, and before the tables are written."""
    whole = trusted.save(tmp_path / "whole")
    seen = 0

    def stop(phase: str, done: float, total: float) -> None:
        nonlocal seen
        seen += 1
        if seen > stop_after:
            raise KeyboardInterrupt

    out = tmp_path / "halved"
    with pytest.raises(KeyboardInterrupt):
        measure(model, tokens=text, trust=True, out=out, progress=stop, **ASKED)
    resume = stop_after >= 4
    if resume:
        with pytest.raises(UsageError, match="another trust"):
            measure(model, tokens=text, trust=True, bootstrap=50, out=out, resume=True, **ASKED)
    measure(model, tokens=text, trust=True, out=out, resume=resume, **ASKED)
    assert files_of(out) == files_of(whole)


def test_the_seed_decides(model: Path, text: Path, trusted: LayerStats) -> None:
    asked = {"metrics": ["lod"], "samples": 9, "seq_len": 16, "trust": True, "bootstrap": 20}
    first, again, other = (
        measure(model, tokens=text, workers=workers, sample_seed=seed, **asked)  # type: ignore[arg-type]
        for workers, seed in ((1, 1), (3, 1), (1, 2))
    )
    pd.testing.assert_frame_equal(first.layers, again.layers, check_exact=True)
    assert first.verdicts() == again.verdicts()
    assert first.verdicts()["seed"] == 1
    assert (first.layers["lod_m7_lo"] != other.layers["lod_m7_lo"]).any()


def test_kept_norms_need_groups(
    model: Path, text: Path, trusted: LayerStats, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(model)
    kept = calibrate(checkpoint, text, samples=9, seq_len=16, groups=16).save(tmp_path / "g")
    again = measure(model, metrics=ALL, m=[3, 7], activations=kept, trust=True)
    pd.testing.assert_frame_equal(again.layers, trusted.layers, check_exact=True)
    loaded = ActivationNorms.load(kept)
    plain = ActivationNorms(loaded.norms, loaded.tokens, loaded.unseen, loaded.info)
    plain.save(tmp_path / "p")
    with pytest.raises(UsageError, match="--trust --save-activations"):
        measure(model, metrics=ALL, activations=tmp_path / "p", trust=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 3}, "at least 4"),
        ({"bootstrap": 5}, "at least 20"),
        ({"samples": 100, "seq_len": 250}, "3 windows; trust needs at least 4"),
    ],
)
def test_too_little_to_redraw_is_said(
    model: Path, text: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        measure(
            model, tokens=text, trust=True, out=tmp_path / "out",
            **{"metrics": ["lod"], "samples": 9, "seq_len": 16} | options,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_weights_alone_need_no_text(model: Path) -> None:
    page = measure(
        model, metrics=["mean_abs", "alpha_hill"], precision="auto", trust=True
    ).verdicts()
    assert page["groups"] is None
    assert page["metrics"]["alpha_hill"]["source"] == "bins"
    assert page["metrics"]["mean_abs"]["source"] == "exact"


def test_lod_is_measured_by_default_where_there_is_input_for_it(
    model: Path, text: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    of_text = measure(model, tokens=text, samples=2, seq_len=16, save_activations=kept)
    assert of_text.meta["metrics"] == [*DEFAULT_METRICS, "lod"]
    explicit = measure(
        model, metrics=[*DEFAULT_METRICS, "lod"], tokens=text, samples=2, seq_len=16
    )  # fmt: skip
    of_norms = measure(model, activations=kept)
    for other in (explicit, of_norms):
        pd.testing.assert_frame_equal(of_text.layers, other.layers, check_exact=True)
    assert measure(model).meta["metrics"] == list(DEFAULT_METRICS)
