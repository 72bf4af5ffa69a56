"""The range finder on gradients of the real checkpoint, beside the full SVD."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerstats.train.subspace import top_subspace, top_subspace_svd
from tests.oracles.galore import captured_energy

pytestmark = pytest.mark.real

NAMES = [
    f"model.layers.{layer}.{part}.weight"
    for layer, part in [
        (0, "mlp.down_proj"),
        (0, "self_attn.q_proj"),
        (14, "mlp.gate_proj"),
        (14, "self_attn.k_proj"),
        (29, "mlp.down_proj"),
        (29, "self_attn.o_proj"),
    ]
]
TOKENS = 128


@pytest.fixture(scope="module")
def gradients(smollm2: Path, moby_dick: Path) -> list[dict[str, torch.Tensor]]:
    """Of two batches."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = moby_dick.read_text(encoding="utf-8")[:5000]
    ids = AutoTokenizer.from_pretrained(smollm2)(text, add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(name in NAMES)
    found = []
    for batch in torch.tensor(ids[: 2 * TOKENS]).view(2, 1, TOKENS):
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        found.append({name: named[name].grad.clone() for name in NAMES})
    return found


@pytest.mark.parametrize("rank", [32, 128])
@pytest.mark.parametrize("name", NAMES)
def test_range_finder_captures_what_the_svd_does(
    gradients: list[dict[str, torch.Tensor]], name: str, rank: int
) -> None:
    gradient = gradients[1][name]
    best = captured_energy(gradient, top_subspace_svd(gradient, rank))
    assert 0.5 < best <= 1 + 1e-6
    old = top_subspace_svd(gradients[0][name], rank)
    # The earlier batch's basis alone would not do.
    assert captured_energy(gradient, old) < 0.99 * best
    for start in (None, old):
        draw = torch.Generator().manual_seed(0)
        found = top_subspace(gradient, rank, start=start, generator=draw)
        assert captured_energy(gradient, found) >= 0.99 * best
