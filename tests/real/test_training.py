"""Layer sampling on the real checkpoint: what is scheduled moves, nothing else, state is flat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerstats.train import TrainConfig, train
from tests.train.tiny import Watch, log, moved_layers, weights_of

pytestmark = pytest.mark.real


@pytest.mark.parametrize("method", ["lisa", "owlore"])
def test_only_the_scheduled_layers_of_smollm2_move(
    smollm2: Path,
    moby_dick: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    scores = tmp_path / "scores.txt"
    scores.write_text("".join(f"{40 - layer}\n" for layer in range(30)))
    text = tmp_path / "text.txt"
    text.write_text(moby_dick.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    watch = Watch(monkeypatch)
    result = train(
        TrainConfig(
            model=str(smollm2),
            data=str(text),
            out=str(tmp_path / "run"),
            method=method,
            stats=str(scores) if method == "owlore" else None,
            rank=16 if method == "owlore" else None,
            always_active=() if method == "owlore" else None,
            steps=4,
            interval_steps=2,
            seq_len=24,
            batch_size=1,
            lr=1e-4,
            warmup_steps=0,
            weight_decay=0.1,
            device="cpu",
        )
    )
    tied = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    constant = tied if method == "lisa" else set()
    entries = log(tmp_path / "run")
    assert len({tuple(entry["active_layers"]) for entry in entries}) == 2
    for number, entry in enumerate(entries):
        moved = moved_layers(watch.weights[number], watch.weights[number + 1])
        assert moved == {str(layer) for layer in entry["active_layers"]} | constant
    assert len(set(watch.state)) == 1
    assert result.engagement.verdicts == ()
    found = weights_of(result.out / "model")
    assert all(torch.isfinite(one).all() for one in found.values())
