"""Memory of a measurement: norms of a synthetic 2.5 GB bf16 checkpoint, 30 layers, 3 shards.

Prints the peak of anonymous memory and of file-backed pages over the start, in layers. `python -m
benchmarks streaming`
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.clock import Row

LAYERS, WIDTH, INNER, SHARDS = 30, 2304, 2880, 3
LIMIT = 2.5


def main() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        # A process of its own: memory that making the files has freed would hide what measuring
        # takes.
        command = [sys.executable, "-m", "benchmarks.streaming", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    page = json.loads(done.stdout)
    note = f"{page['checkpoint']} in {page['seconds']:.1f} s"
    return [
        Row(
            f"memory of a measurement, {kind} pages over the start, in layers",
            f"{page[kind]:.2f}",
            f"≤ {LIMIT}",
            page[kind] <= LIMIT,
            note,
        )
        for kind in ("anonymous", "file-backed")
    ]


def watch_measurement(folder: str) -> None:
    """Measure norms of a checkpoint and print the memory it took beyond that of the libraries."""
    from layerstats import measure, open_checkpoint

    checkpoint = open_checkpoint(folder)
    size = sum(entry.nbytes for entry in checkpoint.index.entries.values())
    layer = checkpoint.largest_layer_bytes
    # Libraries come into memory with a model of one small matrix, so that the start holds no
    # weights.
    with tempfile.TemporaryDirectory() as small:
        blocks = {f"h.{n}.fc.weight": torch.ones(8, 8) for n in range(2)}
        save_file(blocks, Path(small) / "model.safetensors")
        measure(small, metrics=["frobenius_norm"])
    with Watch() as watch:
        stats = measure(folder, metrics=["frobenius_norm", "mean_abs"])
    assert stats.num_layers == LAYERS
    print(
        json.dumps(
            {
                "checkpoint": f"{size / 1e9:.2f} GB, {LAYERS} layers of {layer / 1e6:.1f} MB",
                "seconds": watch.seconds,
                "anonymous": (watch.peak["RssAnon"] + watch.peak["RssShmem"]) / layer,
                "file-backed": watch.peak["RssFile"] / layer,
            }
        )
    )


def make_checkpoint(folder: Path) -> None:
    """Write random layers; every shard holds whole and halved ones."""
    draw = torch.Generator().manual_seed(0)
    shapes = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"}
    shapes |= {
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    names = [f"model.layers.{layer}.{name}.weight" for layer in range(LAYERS) for name in shapes]
    weight_map = {}
    for shard in range(SHARDS):
        part = names[
            shard * len(names) // SHARDS + shard : (shard + 1) * len(names) // SHARDS + shard + 1
        ]
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        tensors = {}
        for name in part:
            shape = shapes[name.split(".", 3)[3].removesuffix(".weight")]
            tensors[name] = torch.randn(shape, generator=draw).to(torch.bfloat16)
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


class Watch:
    """Follow the memory of this process, every two milliseconds, from `with` on."""

    def __enter__(self) -> Watch:
        self._start = _resident()
        self.peak = dict.fromkeys(self._start, 0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def _follow(self) -> None:
        while not self._stopped.wait(0.002):
            for kind, amount in _resident().items():
                self.peak[kind] = max(self.peak[kind], amount - self._start[kind])

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._began


def _resident() -> dict[str, int]:
    """Bytes of anonymous memory and of file-backed pages of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (
        line.split(":") for line in lines if line.startswith(("RssAnon", "RssShmem", "RssFile"))
    )
    return {name: int(text.split()[0]) * 1024 for name, text in pairs}


if __name__ == "__main__":
    watch_measurement(sys.argv[1])
