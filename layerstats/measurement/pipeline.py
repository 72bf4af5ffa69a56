"""The measurement: a checkpoint goes through the metrics layer by layer, `LayerStats` comes out.

`measure` checks what was asked, calibrates if a metric needs it, streams the layers and hands each
one's matrices to a pool of workers. All concurrency of the library is here; how rows become tables
is in `tables.py`, what makes a run resumable in `journal.py`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from layerstats.checkpoint.layout import Matrix
from layerstats.checkpoint.lora import Adapter, open_adapter
from layerstats.checkpoint.reader import Checkpoint, Layer, LayerReader, open_checkpoint
from layerstats.devices import check_device
from layerstats.errors import LayerstatsError
from layerstats.measurement.activations import activation_norms
from layerstats.measurement.doubts import (
    alpha_range,
    check_trust,
    lod_redraws,
    settings,
    trust_page,
    with_rivals,
)
from layerstats.measurement.journal import Journal, open_journal
from layerstats.measurement.redraws import LodRedraws
from layerstats.measurement.request import (
    DEFAULT_METRICS,
    check_adapter,
    check_checkpoint,
    check_needs,
    check_workers,
    default_metrics,
    file_identity,
    metric_options,
    question,
)
from layerstats.measurement.tables import LayerResult, MatrixResult, metadata, tabulate
from layerstats.metrics import (
    LayerView,
    MatrixView,
    Metric,
    MetricOptions,
    Values,
    combine,
    resolve,
)
from layerstats.stats import LayerStats

__all__ = ["DEFAULT_METRICS", "Progress", "measure"]

#: Called with the name of the phase, work done and work in all (in arbitrary units).
Progress = Callable[[str, float, float], None]

#: Rows of an embedding that are in memory at a time.
_EMBEDDING_ROWS = 4096
_NORMS = ("frobenius_norm", "mean_abs")


@dataclass(frozen=True)
class _Plan:
    """What is to be done to every layer."""

    checkpoint: Checkpoint
    metrics: tuple[Metric, ...]
    options: MetricOptions
    adapter: Adapter | None
    activation_norms: Mapping[str, NDArray[np.float64]]
    device: torch.device
    trust: bool = False
    redraws: LodRedraws | None = None

    @property
    def block_metrics(self) -> tuple[Metric, ...]:
        return tuple(found for found in self.metrics if found.grain == "block")


def measure(
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    tokens: str | os.PathLike[str] | None = None,
    activations: str | os.PathLike[str] | None = None,
    save_activations: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    m: Sequence[float] = (7.0,),
    lower_bound: str = "reference",
    precision: str = "float64",
    samples: int = 128,
    seq_len: int = 2048,
    sample_seed: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    workers: int | None = None,
    trust: bool = False,
    bootstrap: int = 100,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> LayerStats:
    """Measure statistics of every layer of a checkpoint.

    Parameters
    ----------
    path
        A checkpoint: directory, `.safetensors`, `*.index.json` or `.gguf` file.
    metrics
        Names from `layerstats.metrics.available()`. `lod` needs `tokens` or `activations`,
        `lora_norm` an `adapter`. By default `DEFAULT_METRICS`, and `lod` where there is input for
        it; tokens or activations that no metric takes are refused.
    tokens
        Calibration text (a UTF-8 file), cut into windows of `seq_len` tokens, of which `samples`
        are used.
    activations, save_activations
        Activation norms of an earlier run to use instead of a calibration; where to keep those of
        this run.
    adapter
        A PEFT adapter directory.
    out
        Directory for layers.csv, matrices.csv and meta.json. Without it the result is only
        returned.
    m
        Thresholds M of LOD.
    lower_bound
        "reference" or "intended", see `layerstats.numerics.powerlaw.fit_peak`.
    precision
        Of the spectra: "float64", or "certified", which takes float32 where that changes no alpha
        by more than 1e-4, or "auto", which tries so only where it saves time; with metrics that
        need the spectrum itself, float64 all the same.
    samples, seq_len, sample_seed, dtype, device
        As `layerstats.calibration.calibrate`; `device` is also where the statistics are computed.
    workers
        Matrices measured at the same time, each with one BLAS thread; the number of processors by
        default. At most two layers are in memory whatever the number.
    trust
        Say how far each ranking of layers can be trusted: `lod` gets 95 % bootstrap intervals over
        16 groups of calibration windows (percentiles: fewer different windows raise LOD a little,
        so they may lie above it), `alpha_hill` its range over the bins that could be the fullest
        and their neighbours (with `alpha_mid`, `alpha_ks` beside it), and `LayerStats.verdicts`
        what follows. Seeded by `sample_seed`, 0 if None. Costs about ten counts of LOD, and the
        memory of 16 sets of activation norms.
    bootstrap
        Resamples of calibration windows, with `trust`.
    resume, overwrite
        Go on with an unfinished measurement in `out`, or replace what is there.
    progress
        Called as work is done.

    Returns
    -------
    LayerStats
        A matrix that cannot be measured has NaN and its reason in the column `status`.

    Raises
    ------
    LayerstatsError
        Whatever cannot work: nothing is left half-written.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     blocks = {f"h.{n}.fc.weight": torch.ones(3, 4) for n in range(2)}
    ...     save_file(blocks, f"{folder}/model.safetensors")
    ...     stats = measure(folder, metrics=["frobenius_norm"])
    >>> [round(float(norm), 6) for norm in stats.layer_column("frobenius_norm")]
    [3.464102, 3.464102]
    """
    started = time.monotonic()
    checkpoint = open_checkpoint(path)
    check_checkpoint(checkpoint)
    metrics = default_metrics(tokens, activations, adapter) if metrics is None else metrics
    chosen = tuple(resolve(with_rivals(metrics) if trust else metrics))
    options = metric_options(chosen, m, lower_bound, precision, trust=trust)
    check_needs(
        chosen, adapter, tokens=tokens, activations=activations, save_activations=save_activations
    )
    doubts = settings(bootstrap=bootstrap, seed=sample_seed) if trust else {}
    if trust:
        check_trust(chosen, samples, bootstrap, tokens)
    workers = check_workers(workers)
    where = check_device(device)
    peft = open_adapter(adapter) if adapter is not None else None
    if peft is not None:
        check_adapter(peft, checkpoint)
    asked = question(
        chosen, options, peft, doubts, tokens=file_identity(tokens),
        activations=file_identity(activations), samples=samples, seq_len=seq_len,
        sample_seed=sample_seed, dtype=dtype, device=device,
    )  # fmt: skip
    identity = {
        "headers": checkpoint.index.header_hash,
        "weights": checkpoint.weights_sample_hash,
    }
    journal = open_journal(out, {"checkpoint": identity, **asked}, resume, overwrite)
    with journal:
        seen = activation_norms(
            asked["calibration"], checkpoint, tokens, activations, kept=journal.activations_file,
            groups=doubts.get("groups"), progress=progress,
        )  # fmt: skip
        if seen is not None and save_activations is not None:
            seen.save(Path(save_activations))
        redraws = lod_redraws(seen, options.m, doubts)
        plan = _Plan(
            checkpoint, chosen, options, peft, seen.norms if seen else {}, where, trust, redraws
        )
        results = _run(plan, journal, workers, progress)
        matrices, layers = tabulate(checkpoint.layout, results, chosen, options, trust=trust)
        meta = metadata(
            checkpoint, identity, asked, seen, peft, matrices, time.monotonic() - started
        )
        if trust:
            meta["trust"] = trust_page(doubts, redraws, results, matrices, layers)
        stats = LayerStats(matrices, layers, meta)
        journal.finish(stats)
    return stats


def _run(
    plan: _Plan, journal: Journal, workers: int, progress: Progress | None
) -> dict[int | None, LayerResult]:
    """Measure what the journal lacks: the matrices outside the blocks (None), then every layer."""
    matrices = plan.checkpoint.layout.matrices
    cost: dict[int | None, float] = {}
    for matrix in matrices:
        cost[matrix.layer] = cost.get(matrix.layer, 0.0) + _cost(matrix, plan.metrics)
    total = sum(cost.values())
    done: dict[int | None, LayerResult] = dict(journal.results)
    spent = sum(cost.get(layer, 0.0) for layer in done)

    def report(layer: int | None, result: LayerResult) -> None:
        nonlocal spent
        journal.write(layer, result)
        done[layer] = result
        spent += cost.get(layer, 0.0)
        if progress is not None:
            progress("measure", spent, total)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), ThreadPoolExecutor(workers, "layerstats") as pool:
            for layer, result in _pipeline(plan, pool, done):
                report(layer, result)
    finally:
        torch.set_num_threads(threads)
    return done


def _cost(matrix: Matrix, metrics: Sequence[Metric]) -> float:
    """Estimate the work of a matrix: a spectrum costs m n min(m, n), all else a pass or two."""
    rows, cols = matrix.shape
    spectral = any(
        found.name.startswith(("alpha", "spectral", "stable", "noise")) for found in metrics
    )
    inside = matrix.layer is not None
    return float(rows * cols * (min(rows, cols) if spectral and inside else 100))


def _pipeline(
    plan: _Plan, pool: ThreadPoolExecutor, done: Mapping[int | None, LayerResult]
) -> Iterator[tuple[int | None, LayerResult]]:
    """Yield results in file order; one layer is measured while the next is read, no more."""
    if None not in done:
        outside = [matrix for matrix in plan.checkpoint.layout.matrices if matrix.layer is None]
        futures = {matrix.key: pool.submit(_measure_outside, plan, matrix) for matrix in outside}
        yield None, LayerResult({}, {key: future.result() for key, future in futures.items()})
    wanted = [layer for layer in range(plan.checkpoint.layout.num_layers) if layer not in done]
    reader = LayerReader(plan.checkpoint, wanted, prefetch=False)
    running: deque[_Running] = deque()
    for number in reader.order:
        running.append(_Running.start(plan, reader.read(number), pool))
        if len(running) == 2:
            first = running.popleft()
            yield first.layer, first.wait()
            del first
    while running:
        last = running.popleft()
        yield last.layer, last.wait()


@dataclass(frozen=True)
class _BlockResult:
    """What was measured on a block as a whole, and what of it belongs to which matrix."""

    values: Values
    problems: tuple[str, ...] = ()
    by_matrix: Mapping[str, Values] = field(default_factory=dict)
    redraws: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Running:
    """A layer whose matrices are being measured."""

    layer: int
    by_matrix: dict[str, Future[MatrixResult]]
    by_block: Future[_BlockResult] | None

    @classmethod
    def start(cls, plan: _Plan, layer: Layer, pool: ThreadPoolExecutor) -> _Running:
        # The largest first, so that no worker starts a long one when the others have nothing left
        # to do. A task holds its matrix and not the layer, so that a matrix leaves memory as soon
        # as nothing more is asked of it.
        block = pool.submit(_measure_block, plan, layer) if plan.block_metrics else None
        largest_first = sorted(layer.weights, key=lambda path: -layer.weights[path].numel())
        futures = {
            layer.matrices[path].key: pool.submit(
                _measure_matrix, plan, layer.matrices[path], layer.weights[path]
            )
            for path in largest_first
        }
        return cls(layer.index, futures, block)

    def wait(self) -> LayerResult:
        block = self.by_block.result() if self.by_block else _BlockResult({})
        rows = {key: future.result() for key, future in self.by_matrix.items()}
        for key, values in block.by_matrix.items():
            rows[key] = MatrixResult(rows[key].values | values, rows[key].problems)
        return LayerResult(block.values, rows, block.problems, block.redraws)


def _measure_matrix(plan: _Plan, matrix: Matrix, weight: torch.Tensor) -> MatrixResult:
    view = MatrixView(matrix, weight.to(plan.device), plan.options, plan.adapter)
    result = _apply([found for found in plan.metrics if found.grain == "matrix"], view)
    return (
        MatrixResult(result.values | alpha_range(view, result.values), result.problems)
        if plan.trust
        else result
    )


def _measure_outside(plan: _Plan, matrix: Matrix) -> MatrixResult:
    """Measure a matrix outside the blocks; its norms never hold more than some rows of it."""
    chosen = [found for found in plan.metrics if found.outside]
    if any(found.name not in _NORMS for found in chosen):
        weight = plan.checkpoint.read_matrix(matrix).to(plan.device)
        return _apply(chosen, MatrixView(matrix, weight, plan.options, plan.adapter))
    rows: list[dict[str, Any]] = []
    for piece in plan.checkpoint.read_rows(matrix, _EMBEDDING_ROWS):
        result = _apply(chosen, MatrixView(matrix, piece.to(plan.device), plan.options))
        if result.problems:
            return result
        rows.append({"parameters": piece.numel(), **result.values})
    return MatrixResult(combine(rows, [found.name for found in chosen]))


def _apply(metrics: Sequence[Metric], view: MatrixView) -> MatrixResult:
    """Run matrix metrics; what cannot be measured becomes a reason, not an end of the run."""
    values: Values = {}
    problems: list[str] = []
    for found in metrics:
        try:
            values |= found.function(view)
        except LayerstatsError as error:
            if str(error) not in problems:
                problems.append(str(error))
    return MatrixResult(values, tuple(problems))


def _measure_block(plan: _Plan, layer: Layer) -> _BlockResult:
    values: Values = {}
    problems: list[str] = []
    by_key: dict[str, Values] = {}
    for found in plan.block_metrics:
        view = LayerView(layer, plan.options, plan.activation_norms)
        try:
            block, rows = found.function(view)
        except LayerstatsError as error:
            problems.append(f"{found.name}: {error}")
            continue
        values |= block
        by_key |= {layer.matrices[path].key: row for path, row in rows.items()}
    redrawn: dict[str, list[float]] = {}
    if plan.redraws is not None and not problems:
        redrawn = plan.redraws.of_layer(layer)
        values |= plan.redraws.intervals(redrawn)
    return _BlockResult(values, tuple(problems), by_key, redrawn)
