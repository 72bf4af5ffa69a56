from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstats import LayerReader, open_checkpoint
from layerstats.errors import CheckpointError, LayerstatsError, MissingError, UsageError
from layerstats.measurement import measure
from layerstats.metrics import METRICS, combine, resolve
from layerstats.stats import LOD_NAME, LayerStats, lod_column
from tests.conftest import llama_tensors, write_checkpoint

WEIGHT_METRICS = ["frobenius_norm", "mean_abs", "spectral_norm", "stable_rank"]
ALPHAS = ["alpha_hill", "alpha_mid", "alpha_ks"]


def read_all(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.csv"))}


def test_norms_equal_their_definition(tiny: Path) -> None:
    stats = measure(tiny, metrics=WEIGHT_METRICS)
    tensors = llama_tensors()
    for _, row in stats.matrices.iterrows():
        weight = tensors[row["name"]].double()
        values = torch.linalg.svdvals(weight)
        assert row["frobenius_norm"] == pytest.approx(
            math.sqrt(float((weight**2).sum())), rel=1e-12
        )
        assert row["mean_abs"] == pytest.approx(float(weight.abs().mean()), rel=1e-12)
        assert row["spectral_norm"] == pytest.approx(float(values[0]), rel=1e-12)
        assert row["stable_rank"] == pytest.approx(
            float((values**2).sum() / values[0] ** 2), rel=1e-11
        )


def test_a_blocks_norm_is_that_of_all_its_matrices_joined(tiny: Path) -> None:
    stats = measure(tiny, metrics=["frobenius_norm", "mean_abs", "spectral_norm"])
    for layer in range(4):
        parts = [
            weight.double().flatten()
            for name, weight in llama_tensors().items()
            if name.startswith(f"model.layers.{layer}.") and "norm" not in name
        ]
        joined = torch.cat(parts)
        assert stats.layer_column("frobenius_norm")[layer] == pytest.approx(
            float(joined.norm()), rel=1e-12
        )
        assert stats.layer_column("mean_abs")[layer] == pytest.approx(
            float(joined.abs().mean()), rel=1e-12
        )


def test_embedding_has_norms_and_no_alpha(tiny: Path) -> None:
    stats = measure(tiny, metrics=["frobenius_norm", "alpha_hill"])
    embed = stats.layers[stats.layers["kind"] == "embed"].iloc[0]
    assert embed["frobenius_norm"] == pytest.approx(
        float(llama_tensors()["model.embed_tokens.weight"].double().norm()), rel=1e-12
    )
    assert pd.isna(embed["alpha_hill"])
    assert pd.isna(embed["layer"])


def test_results_do_not_depend_on_workers_or_shards(tmp_path: Path) -> None:
    tables = []
    for number, (shards, workers) in enumerate([(1, 1), (3, 1), (3, 4), (7, 2)]):
        folder = write_checkpoint(tmp_path / f"{number}", llama_tensors(), shards=shards)
        stats = measure(folder, metrics=WEIGHT_METRICS + ALPHAS, workers=workers)
        tables.append((stats.matrices, stats.layers))
    for matrices, layers in tables[1:]:
        pd.testing.assert_frame_equal(matrices, tables[0][0], check_exact=True)
        pd.testing.assert_frame_equal(layers, tables[0][1], check_exact=True)


def test_what_is_saved_reads_back_the_same(tiny: Path, tmp_path: Path) -> None:
    stats = measure(tiny, metrics=WEIGHT_METRICS + ALPHAS, out=tmp_path / "out")
    again = LayerStats.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.matrices, stats.matrices, check_exact=True)
    pd.testing.assert_frame_equal(again.layers, stats.layers, check_exact=True)
    assert again.meta["checkpoint"]["num_layers"] == 4
    assert again.meta["units"]["alpha_hill"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "layers.csv",
        "matrices.csv",
        "meta.json",
    ]


@pytest.mark.parametrize("m", [7, "x", [], [0], [float("nan")], [7, float("inf")], ["a"]])
def test_thresholds_that_make_no_sense_are_refused(tiny: Path, m: object) -> None:
    with pytest.raises(UsageError, match="m is"):
        measure(tiny, metrics=["mean_abs"], m=m)  # type: ignore[arg-type]


def test_a_column_is_named_by_all_digits_of_its_threshold() -> None:
    names = {7: "lod_m7", 2.5: "lod_m2.5", 1e-5: "lod_m0.00001", 1234567.5: "lod_m1234567.5"}
    for m, name in names.items():
        assert lod_column(m) == name
        assert LOD_NAME.fullmatch(name)


def test_every_measured_column_has_a_unit(tiny: Path) -> None:
    stats = measure(tiny, metrics=[*WEIGHT_METRICS, *ALPHAS, "noise_edge"])
    assert all(stats.meta["units"].values())


def test_what_was_not_measured_says_what_to_measure(tiny: Path) -> None:
    stats = measure(tiny, metrics=["mean_abs"])
    for column, how in (
        ("alpha_hill", "alpha_hill"),
        ("heavy_tail", "alpha_hill"),
        ("snr", "noise_edge"),
        ("alpha_ks_xmin", "alpha_ks"),
    ):
        with pytest.raises(UsageError, match=f"--metrics {how}$"):
            stats.layer_column(column)


def test_layers_that_are_not_there_are_named(tiny: Path) -> None:
    with pytest.raises(UsageError, match="layer 99 is not there; the checkpoint has layers 0 to 3"):
        LayerReader(open_checkpoint(tiny), [0, 99])


def test_statistics_are_not_saved_over_a_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a directory"):
        measure(tiny, metrics=["mean_abs"]).save(tmp_path / "file")


def test_certified_alphas_are_those_of_float64_and_say_so(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "wide", llama_tensors(layers=2, width=64))
    exact = measure(folder, metrics=ALPHAS)
    found = measure(folder, metrics=ALPHAS, precision="certified", out=tmp_path / "out")
    again = LayerStats.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.matrices, found.matrices, check_exact=True)
    pd.testing.assert_frame_equal(again.layers, found.layers, check_exact=True)
    blocks = found.matrices[found.matrices["layer"].notna()]
    square = blocks["rows"] == blocks["cols"]
    assert set(blocks["alpha_precision"][square]) == {"float64"}
    assert "float32" in set(blocks["alpha_precision"][~square])
    assert "alpha_precision" not in found.layers
    assert "alpha_precision" not in exact.matrices
    for name in ALPHAS:
        np.testing.assert_allclose(found.matrices[name], exact.matrices[name], rtol=1e-4)
        np.testing.assert_allclose(found.layers[name], exact.layers[name], rtol=1e-4)


def broken(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = llama_tensors()
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = change(tensors[name].clone())
    return tensors


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weight: weight.index_fill_(0, torch.tensor([2]), float("nan")), "non-finite"),
        (lambda weight: weight.fill_(float("inf")), "non-finite"),
        (lambda weight: weight.zero_(), "zero"),
        (lambda weight: weight[:1], "at least two eigenvalues"),
    ],
    ids=["nan", "inf", "zero", "one-row"],
)
def test_a_bad_matrix_says_why_and_leaves_the_others_alone(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    good = measure(
        write_checkpoint(tmp_path / "good", llama_tensors()), metrics=[*ALPHAS, "frobenius_norm"]
    )
    bad = measure(
        write_checkpoint(tmp_path / "bad", broken(change)), metrics=[*ALPHAS, "frobenius_norm"]
    )
    rows = bad.matrices.set_index("name")
    name = "model.layers.1.self_attn.q_proj.weight"
    assert reason in rows.loc[name, "status"]
    assert math.isnan(rows.loc[name, "alpha_hill"])
    others = rows.index != name
    pd.testing.assert_frame_equal(
        rows[others], good.matrices.set_index("name")[others], check_exact=True
    )
    layers = bad.layers.set_index("name")
    assert reason in layers.loc["layer 1", "status"]
    assert (layers.drop("layer 1")["status"] == "ok").all()
    # Alpha of the block is the mean of what could be measured.
    q = rows[(rows["layer"] == 1) & others]["alpha_mid"]
    assert layers.loc["layer 1", "alpha_mid"] == pytest.approx(q.mean(), rel=1e-12)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
def test_a_resumed_run_gives_the_same_files(tiny: Path, tmp_path: Path, stop_after: int) -> None:
    whole = tmp_path / "whole"
    measure(tiny, metrics=WEIGHT_METRICS + ALPHAS, out=whole)
    seen = 0

    def stop(phase: str, done: float, total: float) -> None:
        nonlocal seen
        seen += 1
        if seen > stop_after:
            raise KeyboardInterrupt

    halved = tmp_path / "halved"
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, metrics=WEIGHT_METRICS + ALPHAS, out=halved, progress=stop)
    assert (halved / "journal.jsonl").exists()
    assert not (halved / "layers.csv").exists()
    # What a kill in the middle of a write leaves behind.
    with (halved / "journal.jsonl").open("a") as stream:
        stream.write('{"layer": 3, "blo')
    measured: list[float] = []
    measure(
        tiny, metrics=WEIGHT_METRICS + ALPHAS, out=halved, resume=True,
        progress=lambda phase, done, total: measured.append(done),
    )  # fmt: skip
    assert read_all(halved) == read_all(whole)
    assert len(measured) == 5 - (stop_after + 1)


def test_kill_and_resume_in_another_process(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "ckpt", llama_tensors(layers=40, width=96), shards=3)
    command = [
        sys.executable,
        "-m",
        "layerstats",
        "measure",
        str(checkpoint),
        "--workers",
        "1",
        "--quiet",
    ]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    out = tmp_path / "killed"
    running = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = out / "journal.jsonl"
    while running.poll() is None and not (
        journal.exists() and journal.read_bytes().count(b"\n") > 3
    ):
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    if not journal.exists():
        pytest.skip("the run was over before it could be killed")
    subprocess.run([*command, "--out", str(out), "--resume"], check=True, capture_output=True)
    assert read_all(out) == read_all(tmp_path / "whole")


def test_resume_refuses_another_question(tiny: Path, tmp_path: Path) -> None:
    def stop(phase: str, done: float, total: float) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, metrics=["frobenius_norm"], out=out, progress=stop)
    with pytest.raises(UsageError, match="another metrics"):
        measure(tiny, metrics=["mean_abs"], out=out, resume=True)
    with pytest.raises(UsageError, match="--resume"):
        measure(tiny, metrics=["frobenius_norm"], out=out)
    (out / "journal.jsonl").write_text("nonsense\n")
    with pytest.raises(CheckpointError, match=r"journal\.jsonl: damaged"):
        measure(tiny, metrics=["frobenius_norm"], out=out, resume=True)
    measure(tiny, metrics=["frobenius_norm"], out=out, overwrite=True)


def test_an_existing_directory_is_not_touched(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    measure(tiny, metrics=["mean_abs"], out=out)  # an empty directory is as good as none
    before = read_all(out)
    with pytest.raises(UsageError, match="finished measurement"):
        measure(tiny, metrics=["frobenius_norm"], out=out)
    assert read_all(out) == before
    measure(tiny, metrics=["frobenius_norm"], out=out, overwrite=True)
    assert read_all(out) != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        measure(tiny, out=other)
    assert (other / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"metrics": ["alpha_hil"]}, UsageError, "did you mean 'alpha_hill'"),
        ({"metrics": []}, UsageError, "no metric"),
        ({"metrics": ["lod"]}, UsageError, "--tokens"),
        ({"metrics": ["lora_norm"]}, UsageError, "--adapter"),
        ({"m": [0]}, UsageError, "above 0"),
        ({"m": []}, UsageError, "thresholds"),
        ({"lower_bound": "odd"}, UsageError, "lower_bound"),
        ({"workers": 0}, UsageError, "workers"),
        ({"device": "tpu"}, UsageError, "device"),
        ({"device": "mps"}, UsageError, "device"),
        ({"resume": True}, UsageError, "--out"),
        ({"metrics": ["lod"], "tokens": "x", "activations": "y"}, UsageError, "both"),
        ({"metrics": ["lod"], "activations": "nowhere.safetensors"}, MissingError, "nowhere"),
        ({"metrics": ["lora_norm"], "adapter": "nowhere"}, MissingError, "nowhere"),
        ({"metrics": ["mean_abs"], "tokens": "x"}, UsageError, "add lod to .* leave --tokens out"),
        ({"metrics": ["mean_abs"], "activations": "x"}, UsageError, "--activations given, but"),
        ({"save_activations": "x"}, UsageError, "--save-activations given, but none"),
        ({"tokens": "x", "activations": "y"}, UsageError, "both"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tiny: Path, tmp_path: Path, options: dict[str, object], error: type[LayerstatsError], text: str
) -> None:
    out = None if options.get("resume") else tmp_path / "out"
    with pytest.raises(error, match=text) as caught:
        measure(tiny, out=out, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_cuda_without_a_gpu_is_one_line(tiny: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="torch sees 0 CUDA devices"):
        measure(tiny, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_equals_cpu(tiny: Path) -> None:
    cpu, gpu = (
        measure(tiny, metrics=[*WEIGHT_METRICS, "alpha_mid"], device=where)
        for where in ("cpu", "cuda")
    )
    numbers = cpu.matrices.select_dtypes("float").columns
    np.testing.assert_allclose(gpu.matrices[numbers], cpu.matrices[numbers], rtol=1e-9)


def test_threads_are_given_back(tiny: Path) -> None:
    before = torch.get_num_threads()
    measure(tiny, metrics=["alpha_mid"])
    assert torch.get_num_threads() == before


def test_embeddings_are_read_in_pieces(tmp_path: Path) -> None:
    table = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(3))
    folder = write_checkpoint(
        tmp_path / "wide", llama_tensors() | {"model.embed_tokens.weight": table}
    )
    row = measure(folder, metrics=["frobenius_norm", "mean_abs"]).matrices.iloc[0]
    assert row["frobenius_norm"] == pytest.approx(float(table.double().norm()), rel=1e-12)
    assert row["mean_abs"] == pytest.approx(float(table.double().abs().mean()), rel=1e-12)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1e6)), min_size=1, max_size=6))
@settings(deadline=None)
def test_combined_norm_is_the_norm_of_norms(rows: list[tuple[int, float]]) -> None:
    tables = [
        {"parameters": size, "frobenius_norm": value, "alpha_hill": value} for size, value in rows
    ]
    values = combine(tables, ["frobenius_norm", "alpha_hill"])
    assert values["frobenius_norm"] == pytest.approx(math.hypot(*(value for _, value in rows)))
    assert values["alpha_hill"] == pytest.approx(sum(value for _, value in rows) / len(rows))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name: str) -> None:
    assert METRICS[name].summary.endswith(".")
    assert METRICS[name] in resolve([name])
    assert METRICS[name].grain in ("matrix", "block")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_one_line(tiny: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        measure(tiny, out=locked / "out")
