"""`layerstats measure`, `correlate`, `plot`: numbers by layer, how they hang together, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from layerstats.cli.console import as_list, as_numbers, emit_json, note, print_table, progress_bar
from layerstats.cli.doubts import verdict_line
from layerstats.errors import IncompleteError

if TYPE_CHECKING:
    from layerstats.stats import LayerStats

__all__ = ["register"]

_SHOWN = (
    "frobenius_norm",
    "mean_abs",
    "spectral_norm",
    "stable_rank",
    "alpha_hill",
    "alpha_mid",
    "alpha_ks",
    "alpha_weightwatcher",
    "mp_edge",
    "num_spikes",
    "snr",
)

# Of fewer layers not even a perfect order is rarer than one in twenty by chance.
_FEW_LAYERS = 5


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(measure)
    app.command()(correlate)
    app.command()(plot)
    app.command()(metrics)


def measure(
    ckpt: str = typer.Argument(
        ..., metavar="CKPT", help="Directory, .safetensors, .index.json or .gguf file."
    ),
    metrics: str | None = typer.Option(
        None,
        help="Names with commas, listed by `layerstats metrics`; by default frobenius_norm, "
        "mean_abs, stable_rank, alpha_hill, and lod where --tokens or --activations is given.",
    ),
    tokens: Path | None = typer.Option(None, metavar="TEXT", help="Calibration text, for lod."),
    out: Path | None = typer.Option(
        None, metavar="DIR", help="Where layers.csv, matrices.csv, meta.json go."
    ),
    m: str = typer.Option("7", help="Thresholds M of LOD, with commas."),
    adapter: Path | None = typer.Option(
        None, metavar="LORA_DIR", help="PEFT adapter, for lora_norm."
    ),
    samples: int = typer.Option(128, min=1, help="Calibration windows."),
    seq_len: int = typer.Option(2048, min=1, help="Tokens in a window."),
    sample_seed: int | None = typer.Option(
        None, help="Draw windows at random instead of the first ones."
    ),
    activations: Path | None = typer.Option(
        None, metavar="FILE", help="Use kept activation norms."
    ),
    save_activations: Path | None = typer.Option(
        None, metavar="FILE", help="Keep the activation norms."
    ),
    dtype: str = typer.Option("float32", help="Precision of the calibration's forward pass."),
    device: str = typer.Option("cpu", help="cpu, cuda or cuda:N."),
    precision: str = typer.Option(
        "float64",
        help="float64 | certified: products in float32 where error bars allow | auto: the same "
        "where it saves time.",
    ),
    lower_bound: str = typer.Option(
        "reference", help="reference | intended, of fix-finger's search window."
    ),
    workers: int | None = typer.Option(
        None, help="Matrices measured at a time; all processors by default."
    ),
    trust: bool = typer.Option(
        False, "--trust", help="Add intervals, and verdicts: which rankings of layers are noise."
    ),
    bootstrap: int = typer.Option(100, help="Resamples of calibration windows, for --trust."),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with an unfinished measurement in --out."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is in --out."),
    strict: bool = typer.Option(
        False, "--strict", help="Exit with 6 if anything could not be measured."
    ),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Measure every layer of a checkpoint, one layer in memory at a time."""
    from layerstats.measurement import measure as run

    with progress_bar(off=quiet) as progress:
        stats = run(
            ckpt,
            metrics=None if metrics is None else as_list(metrics),
            tokens=tokens,
            activations=activations,
            save_activations=save_activations,
            adapter=adapter,
            out=out,
            m=as_numbers("--m", m),
            lower_bound=lower_bound,
            precision=precision,
            samples=samples,
            seq_len=seq_len,
            sample_seed=sample_seed,
            dtype=dtype,
            device=device,
            workers=workers,
            trust=trust,
            bootstrap=bootstrap,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    problems = _problems(stats)
    if json:
        emit_json(
            {
                "out": str(out) if out else None,
                "num_layers": stats.num_layers,
                "matrices": len(stats.matrices),
                "skipped": problems,
                "seconds": stats.meta["seconds"],
                **({"trust": stats.verdicts()} if trust else {}),
            }
        )
    else:
        _print_layers(stats)
    _remarks(stats, problems, verdicts=trust and not json)
    if out is not None and not json:
        note(f"wrote {out}")
    if strict and problems:
        msg = f"{len(problems)} tensors could not be measured (--strict)"
        raise IncompleteError(msg)


def _remarks(stats: LayerStats, problems: list[dict[str, str]], *, verdicts: bool) -> None:
    """Say what a reader of the table would miss."""
    if verdicts:
        for column, verdict in stats.verdicts()["metrics"].items():
            note(f"{column}: {verdict_line(verdict)}")
    seen = stats.meta["calibration"] or {}
    if seen.get("samples_asked", 0) > seen.get("samples", 0):
        note(
            f"the text gives {seen['samples']} windows of {seen['seq_len']} tokens; "
            f"{seen['samples_asked']} were asked for (--samples)"
        )
    if idle := seen.get("matrices_without_tokens", 0):
        note(
            f"{idle} matrices of experts saw no token: none of their weights can be an outlier, "
            "and the LOD of their blocks is too low; take a longer text"
        )
    for problem in problems[:10]:
        note(f"not measured: {problem['name']}: {problem['reason']}")
    if len(problems) > 10:
        note(f"not measured: {len(problems) - 10} more, see meta.json and the column status")


def _problems(stats: LayerStats) -> list[dict[str, str]]:
    """Collect what ought to have been measured and was not."""
    failed = stats.matrices[stats.matrices["status"] != "ok"]
    rows = [
        {"name": str(row["name"]), "reason": str(row["status"])} for _, row in failed.iterrows()
    ]
    rows += [{"name": name, "reason": reason} for name, reason in stats.meta["unseen"].items()]
    rows += [
        {"name": skip["name"], "reason": skip["reason"]}
        for skip in stats.meta["skipped"]
        if skip["lost"]
    ]
    adapter = stats.meta["adapter"]
    return rows + (adapter["skipped"] if adapter else [])


def _print_layers(stats: LayerStats) -> None:
    table = stats.layers
    shown = [
        name for name in table.columns if name in _SHOWN or name.startswith(("lod_m", "lora_"))
    ]
    rows: list[list[Any]] = []
    for _, row in table.iterrows():
        label = str(row["layer"]) if row["kind"] == "block" else str(row["kind"])
        rows.append([label, *(float(row[name]) for name in shown)])
    print_table(["layer", *shown], rows)


def correlate(
    sources: list[str] = typer.Argument(
        ...,
        metavar="DIR|FILE...",
        help="A statistics directory, or files with one number a line (or FILE.csv:COLUMN).",
    ),
    metrics: str | None = typer.Option(
        None, help="Columns of DIR, with commas; all pairs are taken."
    ),
    method: str = typer.Option("spearman", help="spearman | kendall."),
    exclude_ends: bool = typer.Option(
        False, "--exclude-ends", help="Leave out the first and the last layer."
    ),
    bootstrap: int = typer.Option(2000, min=0, help="Resamples for the interval."),
    seed: int = typer.Option(0, help="Of the resampling."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Correlate metrics over the layers: rho, p-value, bootstrap interval, n."""
    from layerstats.correlation import correlate_sources

    pairs = correlate_sources(
        sources,
        as_list(metrics) or None,
        method=method,
        exclude_ends=exclude_ends,
        bootstrap=bootstrap,
        seed=seed,
    )
    if json:
        emit_json({"pairs": [pair.to_dict() for pair in pairs]})
        return
    rows = [
        [
            pair.x,
            pair.y,
            pair.method,
            f"{pair.rho:.3f}",
            f"{pair.p_value:.2g}",
            pair.n,
            f"[{pair.interval[0]:.3f}, {pair.interval[1]:.3f}]",
        ]
        for pair in pairs
    ]
    print_table(["x", "y", "method", "rho", "p_value", "n", "interval"], rows)
    for reason in dict.fromkeys(pair.note for pair in pairs if pair.note):
        note(reason)
    few = min(pair.n for pair in pairs)
    if few < _FEW_LAYERS:
        note(f"{few} layers are too few to tell a correlation from chance")


def plot(
    sources: list[Path] = typer.Argument(
        ..., metavar="DIR...", help="Statistics or run directories, or a schedule.json."
    ),
    kind: str = typer.Option(
        ...,
        help="layer-norms | lod | alpha | esd | correlation | schedule; of training runs loss | "
        "activity | memory | weight-norms.",
    ),
    out: Path = typer.Option(..., metavar="FILE", help="PNG, SVG or PDF."),
    metrics: str | None = typer.Option(None, help="Columns, for the kinds that take them."),
    matrix: list[str] | None = typer.Option(None, help="Matrix names, for esd; repeat the option."),
) -> None:
    """Draw one picture."""
    from layerstats.cli.pictures import draw

    draw(sources, kind=kind, out=out, metrics=as_list(metrics), matrices=matrix or [])
    note(f"wrote {out}")


def metrics(json: bool = typer.Option(False, "--json", help="Print one JSON document.")) -> None:
    """List what `measure` can measure."""
    from layerstats.metrics import METRICS

    if json:
        emit_json(
            [
                {"name": found.name, "grain": found.grain, "needs": found.needs}
                | {"summary": found.summary, "reference": found.reference}
                for found in METRICS.values()
            ]
        )
        return
    print_table(
        ["metric", "of each", "needs", "what it is"],
        [
            [found.name, found.grain, found.needs or "weights", found.summary]
            for found in METRICS.values()
        ],
    )
