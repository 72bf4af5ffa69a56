"""Bases for GaLore: the range finder, cold and from the last basis, beside the full SVD.

On gradients of the real checkpoint, and on one large matrix with a spectrum like theirs.
`python -m benchmarks projection`
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.clock import Row, interleaved, single_thread
from layerstats.demo_data import calibration_text, demo_checkpoint
from layerstats.train.subspace import project, top_subspace, top_subspace_svd

RANKS = (32, 128)
LAYERS = (0, 14, 29)
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
BATCH, SEQ_LEN = 8, 128
LARGE = (2048, 5632)
OVERLAP = 0.3
PROMISED = 0.99


@dataclass(frozen=True)
class Case:
    """A gradient and the basis of an earlier one."""

    gradient: torch.Tensor
    start: torch.Tensor


def main() -> list[Row]:
    with single_thread():
        now, earlier = gradients((0, 5000))
        shapes = {tuple(one.shape) for one in now}
        name = f"{len(now)} gradients of SmolLM2-135M, {min(shapes)} to {max(shapes)}"
        rows = []
        for rank in RANKS:
            cases = [
                Case(gradient, top_subspace_svd(old, rank))
                for gradient, old in zip(now, earlier, strict=True)
            ]
            rows += _compare(name, cases, rank)
        large = like(now[-1], LARGE)
        for rank in RANKS:
            case = Case(large, _beside(top_subspace_svd(large, rank)))
            rows += _compare(f"{LARGE[0]} x {LARGE[1]}, spectrum of a real gradient", [case], rank)
        return rows


def gradients(offsets: Sequence[int]) -> list[list[torch.Tensor]]:
    """Gradients of some block matrices for the batches that start at these tokens of the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo_checkpoint()
    text = calibration_text().read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(path)(text, add_special_tokens=False, verbose=False)
    tokens = torch.tensor(ids["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    named = dict(model.named_parameters())
    wanted = [f"model.layers.{layer}.{part}.weight" for layer in LAYERS for part in MATRICES]
    for name, parameter in named.items():
        parameter.requires_grad_(name in wanted)
    found = []
    for offset in offsets:
        batch = tokens[offset : offset + BATCH * SEQ_LEN].view(BATCH, SEQ_LEN)
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        found.append([named[name].grad.clone() for name in wanted])
    return found


def like(gradient: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return a matrix of this shape: random directions, the gradient's spectrum stretched."""
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(gradient).clamp(min=1e-12).log().numpy()
    side = min(shape)
    stretched = np.interp(np.linspace(0, 1, side), np.linspace(0, 1, len(values)), values)
    left, right = (
        torch.linalg.qr(torch.randn(length, side, generator=generator)).Q for length in shape
    )
    return (left * torch.from_numpy(stretched).exp().float()) @ right.mT


def _beside(basis: torch.Tensor) -> torch.Tensor:
    """Return a basis that overlaps with this one as those of two real batches do."""
    generator = torch.Generator().manual_seed(1)
    other = torch.linalg.qr(torch.randn(basis.shape, generator=generator)).Q
    return torch.linalg.qr(OVERLAP**0.5 * basis + (1 - OVERLAP) ** 0.5 * other).Q


def _compare(name: str, cases: list[Case], rank: int) -> list[Row]:
    def find(warm: bool) -> list[torch.Tensor]:
        return [
            top_subspace(
                case.gradient,
                rank,
                start=case.start if warm else None,
                generator=torch.Generator().manual_seed(0),
            )
            for case in cases
        ]

    seconds, bases = interleaved(
        {
            "svd": lambda: [top_subspace_svd(case.gradient, rank) for case in cases],
            "cold": functools.partial(find, False),
            "warm": functools.partial(find, True),
        }
    )
    energy = {
        kind: [
            float(project(case.gradient, basis).square().sum())
            for case, basis in zip(cases, found, strict=True)
        ]
        for kind, found in bases.items()
    }
    overlap = np.mean(
        [
            float((case.start.mT @ basis).square().sum()) / rank
            for case, basis in zip(cases, bases["svd"], strict=True)
        ]
    )
    rows = []
    for kind in ("cold", "warm"):
        least = min(mine / best for mine, best in zip(energy[kind], energy["svd"], strict=True))
        note = f"{seconds['svd']:.2f} s against {seconds[kind]:.3f} s"
        if kind == "warm":
            note += f"; the old basis overlaps by {overlap:.0%}"
        what = f"{name}, rank {rank}: {kind} range finder"
        rows += [
            Row(
                f"{what} against full SVD", f"{seconds['svd'] / seconds[kind]:.1f}x", "", None, note
            ),
            Row(
                f"{what}: least energy captured over the SVD's",
                f"{least:.4f}",
                f"≥ {PROMISED}",
                least >= PROMISED,
            ),
        ]
    return rows
