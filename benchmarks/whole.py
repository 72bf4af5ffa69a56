"""The whole real checkpoint: alpha of all matrices, and norms with LOD and alpha end to end.

The other side does what its programs do: weightwatcher's analyze of every matrix, then OWL's way to
the outlier ratio (the model in memory, hooks on every Linear, a float32 copy of a block's scores).
`python -m benchmarks whole`
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import Row, interleaved, single_thread
from benchmarks.peers import alphapruning_peak, owl_lod, weightwatcher_alpha
from benchmarks.spectra import RULES, against, alpha, fits
from layerstats import LayerReader, measure, open_checkpoint
from layerstats.demo_data import calibration_text, demo_checkpoint

SAMPLES, SEQ_LEN = 8, 128
PROMISED = {"float64": 3.0, "auto": 4.5}
END_TO_END = 2.5
WHY = (
    "SmolLM2-135M in `auto`: of its 210 matrices 120 are square or small, where float32 gains "
    "nothing. The 90 others save half the time of their products, which for float64 already run at "
    "the speed of the GEMM; their eigenvalues stay in float64. A quarter of the whole is LAPACK's "
    "tridiagonal QR iteration, one division waiting for another; an eigensolver of our own is not "
    "what this project is for."
)


def main() -> list[Row]:
    path = demo_checkpoint()
    with single_thread():
        return _alphas(path) + _end_to_end(path)


def _weights(path: Path) -> list[torch.Tensor]:
    return [
        weight for layer in LayerReader(open_checkpoint(path)) for weight in layer.weights.values()
    ]


def _alphas(path: Path) -> list[Row]:
    weights = _weights(path)

    def ours(precision: str, rule: str) -> list[Any]:
        return [fits(weight, rule, precision) for weight in weights]

    seconds, results = interleaved(
        {
            **{
                f"{precision} {rule}": functools.partial(ours, precision, rule)
                for precision in ("float64", "auto", "certified")
                for rule, _ in RULES.values()
            },
            "weightwatcher": lambda: [weightwatcher_alpha(weight) for weight in weights],
            "AlphaPruning": lambda: [alphapruning_peak(weight) for weight in weights],
        },
        3,
    )
    _check(results)
    rows = []
    count = len(weights)
    for rule, column in RULES.values():
        for precision in ("auto", "certified"):
            name = f"{precision} {rule}"
            rows.append(
                Row(
                    f"SmolLM2-135M, {column}, {precision}: time over float64",
                    f"{seconds[name] / seconds[f'float64 {rule}']:.2f}x",
                    "",
                    None,
                    f"{_share(results[name])} of {count} in float32",
                )
            )
    for precision, promised in PROMISED.items():
        for peer, (rule, column) in RULES.items():
            name = f"{precision} {rule}"
            rows.append(
                against(
                    f"SmolLM2-135M, {column} of {count} matrices: {precision} against {peer}",
                    (seconds[peer], seconds[name]),
                    promised,
                    f", {_share(results[name])} of {count} in float32",
                    WHY,
                )
            )
    return rows


def _check(results: dict[str, Any]) -> None:
    """Exactness first: no ratio is printed for a wrong number."""
    for rule, _ in RULES.values():
        exact = [alpha(found) for found in results[f"float64 {rule}"]]
        for precision in ("auto", "certified"):
            found = [alpha(found) for found in results[f"{precision} {rule}"]]
            assert np.allclose(found, exact, rtol=1e-4)
    searched = np.array([alpha(found) for found in results["float64 ks"]])
    assert np.allclose(results["weightwatcher"], searched, rtol=1e-4)
    peaks = np.array([alpha(found) for found in results["float64 peak"]])
    untied = np.array(["tie" not in found.peak.flag for found in results["float64 peak"]])
    assert np.abs(np.array(results["AlphaPruning"]) - peaks)[untied].max() < 1e-3


def _share(found: list[Any]) -> int:
    return sum(fit.precision == "float32" for fit in found)


def _end_to_end(path: Path) -> list[Row]:
    text = calibration_text()

    def ours() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return measure(
                path,
                metrics=["frobenius_norm", "alpha_ks", "lod"],
                tokens=text,
                samples=SAMPLES,
                seq_len=SEQ_LEN,
                workers=1,
                precision="auto",
                out=Path(folder) / "out",
            )

    def theirs() -> list[float]:
        for weight in _weights(path):
            weightwatcher_alpha(weight)
        return _owl_way(path, text)

    seconds, results = interleaved({"ours": ours, "theirs": theirs}, 3)
    found = results["ours"].layer_column("lod_m7").to_numpy()
    assert np.allclose(found, results["theirs"], rtol=1e-3), "LOD differs"
    ratio = seconds["theirs"] / seconds["ours"]
    return [
        Row(
            "SmolLM2-135M, norms + LOD + alpha_ks (auto) end to end, forward passes on both sides, "
            "against weightwatcher then OWL's way",
            f"{ratio:.1f}x",
            f"≥ {END_TO_END}x",
            ratio >= END_TO_END,
            f"{seconds['theirs']:.1f} s against {seconds['ours']:.1f} s, {SAMPLES} "
            f"windows of {SEQ_LEN}",
            "End to end: the float32 forward pass, which both sides pay and whose products run at "
            "the speed of the GEMM, and the spectra are three quarters of ours. The rest is "
            "reading, converting, tokenizer, norms and counts, each a twentieth or less.",
        )
    ]


def _owl_way(path: Path, text: Path) -> list[float]:
    """Load the model, hook every Linear, run the windows, join each block's scores, count."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    windows = torch.tensor(ids[: SAMPLES * SEQ_LEN]).view(SAMPLES, SEQ_LEN)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def record(_module: Any, args: Any, _output: Any) -> None:
            squares = args[0].reshape(-1, args[0].shape[-1]).float().pow(2).sum(0)
            sums[name] = sums.get(name, torch.zeros(())) + squares

        return record

    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for name, module in linears.items():
        module.register_forward_hook(hook(name))
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None])
    ratios = []
    for layer in range(model.config.num_hidden_layers):
        names = [name for name in linears if f".layers.{layer}." in name]
        weights = [linears[name].weight.data for name in names]
        ratios.append(
            owl_lod(weights, [np.sqrt(sums[name].double().numpy()) for name in names], 7.0)
        )
    return ratios
