"""What LOD counts: scale between tensors, outliers within them, the first token, or chance.

SmolLM2's blocks, their tensors as they are and rescaled; with the first token in or out; from 1 to
64 calibration windows. `python -m analyses.lod_anatomy [--quick]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import layerstats as ls
from analyses import first_token, lod_ways
from analyses.bench import open_bench
from analyses.drawings import lod_anatomy
from analyses.lod_ways import JOINED, WITHIN, M
from layerstats.correlation import correlate
from layerstats.numerics import block_outliers
from layerstats.trust import chance_quantile


def main(argv: Sequence[str] = ()) -> None:
    """Count LOD in every way, correlate with the usual one, draw, write down."""
    bench, _ = open_bench("lod_anatomy", argv, needs="model")
    windows, length, few = (8, 32, 4) if bench.quick else (64, 256, 16)
    checkpoint = ls.open_checkpoint(bench.model)
    seen = ls.calibrate(checkpoint, bench.text, samples=windows, seq_len=length, groups=windows)
    first = first_token.variants(
        bench.model, bench.text, bench.runs / "first-token", samples=few, seq_len=length
    )
    percent: dict[str, list[Any]] = {}
    parts: dict[int, list[Any]] = {2**i: [] for i in range(10) if 2**i < windows}
    shares = []
    for layer in ls.LayerReader(checkpoint):
        keys = [matrix.key for matrix in layer.matrices.values()]
        weights = [layer.weights[path] for path in layer.matrices]
        norms = [seen.norms[key] for key in keys]
        ways = dict(lod_ways.rescaled(weights, norms))
        for name, squares in first.items():
            ways[name] = lod_ways.lod(weights, [np.sqrt(squares[key]) for key in keys])
        for name, value in ways.items():
            percent.setdefault(name, []).append(value)
        share = np.array(block_outliers(weights, norms, M, per_matrix=False).share_frac)[:, 0]
        shares.append(dict(zip(layer.matrices, share, strict=True)))
        each = [seen.group_norms[key] ** 2 for key in keys]
        for n, found in parts.items():
            sets = [[np.sqrt(one[at : at + n].sum(axis=0)) for one in each]
                    for at in range(0, windows, n)]  # fmt: skip
            found.append([lod_ways.lod(weights, chosen) for chosen in sets])
    table = {name: np.array(values) for name, values in percent.items()}
    result = {
        "inputs": {"M": M, "windows": windows, "seq_len": length, "first_token_windows": few,
                   "text": bench.text.name},
        "lod_percent": {name: {f"m{m:g}": values[:, i].tolist() for i, m in enumerate(M)}
                        for name, values in table.items()},
        "mean_lod_percent_m7": {name: values[:, 0].mean() for name, values in table.items()},
        "share_of_outliers_m7": {path: float(np.nanmean([share[path] for share in shares]))
                                 for path in shares[0]},
        "agreement": _agreements(table),
        "windows": {str(n): lod_ways.stability(np.array(found)) for n, found in parts.items()},
        "chance": chance_quantile(len(shares)),
        "published": {"windows": 128, "seq_len": 2048, "source": "OWL's and OwLore's code"},
        "same_direction": None,
    }  # fmt: skip
    bench.write(lod_anatomy.draw(result), {**result, "reading": reading(result)})


def _agreements(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return Spearman's rho over layers, M = 7, of each way with the one that it varies."""
    found = {}
    for name, values in table.items():
        usual = first_token.NAMES[0] if name in first_token.NAMES else JOINED
        if name != usual:
            [pair] = correlate({usual: table[usual][:, 0], name: values[:, 0]})
            found[name] = pair.to_dict()
    return found


def reading(result: Mapping[str, Any]) -> str:
    """Say in words what the numbers of a result mean."""
    mean = result["mean_lod_percent_m7"]
    rho = {name: pair["rho"] for name, pair in result["agreement"].items()}
    one = result["windows"]["1"]
    return (
        f"No published claim about the parts. With all tensors of a block at the same mean score "
        f"{100 * mean[WITHIN] / mean[JOINED]:.0f} % of LOD is left: the rest is scale between "
        f"tensors, most of it in the last layers. The order of layers hardly changes (rho "
        f"{rho[WITHIN]:.2f}). It owes more to the inputs than to the weights (weights alone: "
        f"{rho['weights alone']:.2f}). The first token, BOS or not, in or out, changes nothing "
        f"that matters (rho at least {min(rho[name] for name in first_token.NAMES[1:]):.2f}). "
        f"A single window ranks layers nearly as any other does (mean rho "
        f"{one['m7']['mean']:.2f} for M = 7, {one['m13']['mean']:.2f} for M = 13): within one "
        "book, that is; other kinds of text were not tried."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
