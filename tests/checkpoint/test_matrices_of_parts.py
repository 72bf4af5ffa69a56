"""Which weights a low-rank method takes: those of attention, MLP and experts, and no router."""

from __future__ import annotations

import pytest

from layerstats.checkpoint.parts import find_parts


@pytest.mark.parametrize("router", ["mlp.gate", "mlp.shared_expert_gate", "mlp.router"])
def test_no_router(router: str) -> None:
    shapes = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,)}
    for layer in range(2):
        start = f"model.layers.{layer}."
        shapes |= {f"{start}self_attn.{one}_proj.weight": (8, 8) for one in "qkvo"}
        shapes[f"{start}{router}.weight"] = (4, 8)
        for expert in range(4):
            for name in ("gate_proj", "up_proj"):
                shapes[f"{start}mlp.experts.{expert}.{name}.weight"] = (16, 8)
            shapes[f"{start}mlp.experts.{expert}.down_proj.weight"] = (8, 16)
        shapes[f"{start}input_layernorm.weight"] = (8,)
    parts = find_parts(shapes)
    taken = {name for name in parts.matrices if ".1." in name[:16]}
    assert f"model.layers.1.{router}.weight" not in taken
    assert len(taken) == 4 + 4 * 3
    assert parts.matrices <= {name for names in parts.layers for name in names}
