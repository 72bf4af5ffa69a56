"""Files: three formats, whole or not at all, the same bytes for the same picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from layerstats import plots
from layerstats.errors import MissingError, UsageError

HEADS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", HEADS)
def test_formats(suffix: str, tmp_path: Path, stats: Any) -> None:
    file = plots.save(plots.lod(stats()), tmp_path / f"lod.{suffix}")
    assert file.read_bytes().startswith(HEADS[suffix])
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", HEADS)
def test_the_same_picture_has_the_same_bytes(suffix: str, tmp_path: Path, stats: Any) -> None:
    one = plots.save(plots.alpha(stats()), tmp_path / f"one.{suffix}")
    other = plots.save(plots.alpha(stats()), tmp_path / f"other.{suffix.upper()}")
    assert one.read_bytes() == other.read_bytes()


def test_png_has_200_dots_an_inch(tmp_path: Path, stats: Any) -> None:
    ax = plots.lod(stats())
    data = plots.save(ax, tmp_path / "lod.png").read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    inches = ax.get_figure(root=True).get_size_inches()
    assert (width, height) == (round(200 * inches[0]), round(200 * inches[1]))


@pytest.mark.parametrize("name", ["lod.bmp", "lod", "lod.png.txt"])
def test_an_unknown_suffix_names_what_is_allowed(name: str, tmp_path: Path, stats: Any) -> None:
    with pytest.raises(UsageError, match=r"use \.png, \.svg or \.pdf"):
        plots.save(plots.lod(stats()), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_named(tmp_path: Path, stats: Any) -> None:
    with pytest.raises(MissingError, match=r"no directory .*nowhere"):
        plots.save(plots.lod(stats()), tmp_path / "nowhere" / "lod.png")


def test_a_directory_is_no_target(tmp_path: Path, stats: Any) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UsageError, match="is a directory"):
        plots.save(plots.lod(stats()), tmp_path / "a.png")


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, stats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lod.png"
    file.write_bytes(b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UsageError, match=r"lod\.png: cannot be written \(No space left"):
        plots.save(plots.lod(stats()), file)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
