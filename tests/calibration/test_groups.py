"""Norms by group of windows are those of its windows alone; those of all windows stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from layerstats.calibration import ActivationNorms, calibrate, run
from layerstats.calibration.run import contiguous_groups
from layerstats.calibration.walk import Refused
from layerstats.checkpoint.reader import open_checkpoint
from layerstats.errors import CheckpointError, UsageError
from tests.calibration.conftest import SAMPLES, Family
from tests.calibration.test_full_model import assert_same, measured
from tests.oracles.calibration import full_model_sums

# Sums are added up in another order than the model run on some windows adds them.
EXACT = 1e-12


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mixtral", "gpt_oss", "llama4"])
@pytest.mark.parametrize("groups", [2, 3])
def test_each_group_is_the_whole_model_on_its_windows(
    name: str, groups: int, family: Family, text: Path, ids: torch.Tensor
) -> None:
    found = measured(family(name), text, groups=groups)
    assert found.groups == groups
    assert found.group_norms.keys() == found.norms.keys()
    number = [window * groups // SAMPLES for window in range(SAMPLES)]
    for group in range(groups):
        windows = ids[[i for i, mine in enumerate(number) if mine == group]]
        sums, _, _ = full_model_sums(family(name), windows, dtype=torch.float32)
        for key, norms in found.group_norms.items():
            expected = sums.get(key, np.zeros(norms.shape[1]))
            np.testing.assert_allclose(norms[group] ** 2, expected, rtol=EXACT, err_msg=key)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_totals_are_the_same_bits_whatever_the_groups(
    name: str, family: Family, text: Path
) -> None:
    plain = measured(family(name), text)
    assert plain.group_norms == {}
    assert "groups" not in plain.info
    for groups in (1, 3, SAMPLES, 99):
        found = measured(family(name), text, groups=groups)
        assert_same(found, plain)
        assert found.groups == min(groups, SAMPLES)
        for key, norms in found.group_norms.items():
            total = (norms**2).sum(axis=0)
            np.testing.assert_allclose(total, plain.norms[key] ** 2, rtol=EXACT, err_msg=key)


def test_lockstep_keeps_the_same_groups(
    family: Family, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measured(family("llama"), text, groups=3)

    def refuse(*args: object, **kwargs: object) -> None:
        raise Refused("for the test")

    monkeypatch.setattr(run, "replay", refuse)
    # With the small budget windows are taken one by one, and belong to their groups all the same.
    for budget in (2_000_000_000, 1):
        found = measured(family("llama"), text, groups=3, hidden_budget_bytes=budget)
        assert found.info["walk"] == "lockstep"
        for key, norms in expected.group_norms.items():
            np.testing.assert_allclose(found.group_norms[key], norms, rtol=EXACT)


def test_an_idle_expert_has_zeros_in_every_group(family: Family, text: Path) -> None:
    checkpoint = open_checkpoint(family("mixtral"))
    found = calibrate(checkpoint, text, samples=2, seq_len=1, groups=2)
    idle = [key for key, count in found.tokens.items() if count == 0]
    assert idle
    for key in idle:
        np.testing.assert_array_equal(found.group_norms[key], np.zeros((2, len(found.norms[key]))))


def test_groups_are_neighbours_of_equal_size() -> None:
    for windows in range(1, 20):
        for groups in range(2, 25):
            found = contiguous_groups(windows, groups)
            if windows == 1:
                assert found is None
                continue
            assert found == sorted(found)
            sizes = np.bincount(found)
            assert len(sizes) == min(groups, windows)
            assert sizes.max() - sizes.min() <= 1


def test_no_groups_at_all_is_refused(family: Family, text: Path) -> None:
    with pytest.raises(UsageError, match="groups is 0"):
        measured(family("llama"), text, groups=0)


def test_saved_and_loaded_and_without_groups_as_before(
    family: Family, text: Path, tmp_path: Path
) -> None:
    found = measured(family("llama"), text, groups=SAMPLES)
    path = found.save(tmp_path / "norms.safetensors")
    again = ActivationNorms.load(path, checkpoint=open_checkpoint(family("llama")))
    assert_same(found, again)
    assert again.info == found.info
    assert again.group_norms.keys() == found.group_norms.keys()
    for key, norms in found.group_norms.items():
        np.testing.assert_array_equal(again.group_norms[key], norms)
    plain = measured(family("llama"), text).save(tmp_path / "plain.safetensors")
    assert set(load_file(plain)) == set(found.norms)


def test_groups_that_do_not_fit_are_refused(family: Family, text: Path, tmp_path: Path) -> None:
    found = measured(family("llama"), text, groups=2)
    path = found.save(tmp_path / "norms.safetensors")
    with safe_open(path, framework="numpy") as stream:
        metadata = stream.metadata()
    tensors = load_file(path)
    key = next(name for name in tensors if name.startswith("groups:"))
    for bad in (tensors[key][:1], tensors[key][:, :3], tensors[key].astype(np.float32), None):
        changed = tensors | {key: bad} if bad is not None else dict(tensors)
        if bad is None:
            del changed[key]
        save_file(changed, tmp_path / "bad.safetensors", metadata=metadata)
        with pytest.raises(CheckpointError, match="norms by group do not fit"):
            ActivationNorms.load(tmp_path / "bad.safetensors")
