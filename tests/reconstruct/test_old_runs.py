"""Blocks of runs that nobody resumed go after a while, and nothing else does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.reconstruct import BlockCache, remove_old_runs, run_key
from onnx_hyvit.reconstruct.block import BlockResult

RESULT = BlockResult("conv_1", "conv", 0.1, 0.05, {}, {}, (), {})


def aged(path: Path, days: float) -> Path:
    """``path``, last touched some days ago."""
    seconds = time.time() - days * 86400
    os.utime(path, (seconds, seconds), follow_symlinks=False)
    return path


def run_folder(folder: Path, name: str, days: float) -> Path:
    """Folder of a run that was interrupted some days ago."""
    already = set(folder.glob("*"))
    BlockCache(folder, run_key(name)).store(0, RESULT)
    (path,) = set(folder.iterdir()) - already
    return aged(path, days)


def test_only_old_folders_of_runs_are_removed(tmp_path: Path):
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    old, new = run_folder(cache, "old", 31), run_folder(cache, "new", 29)
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("")
    linked, inner = cache / ("a" * 32), old / "link"
    linked.symlink_to(outside, target_is_directory=True)
    inner.symlink_to(outside / "folder", target_is_directory=True)
    (cache / "notes").mkdir()
    (cache / ("b" * 32)).write_text("a file")
    for path in (outside, outside / "folder", linked, old, cache / "notes", cache / ("b" * 32)):
        aged(path, 99)
    remove_old_runs(cache)
    assert not old.exists()
    assert sorted(path.name for path in cache.iterdir()) == sorted(["a" * 32, "b" * 32, "notes", new.name])
    assert sorted(path.name for path in outside.iterdir()) == ["file", "folder"]
    assert BlockCache(cache, run_key("new")).load(0) is not None


def test_a_folder_that_is_not_there_is_no_error_and_a_full_one_takes_several_runs(tmp_path: Path, monkeypatch):
    remove_old_runs(tmp_path / "none")
    (tmp_path / "file").write_text("")
    remove_old_runs(tmp_path / "file")
    for number in range(5):
        run_folder(tmp_path / "cache", str(number), 31)
    monkeypatch.setattr("onnx_hyvit.reconstruct.cache.MOST_ENTRIES", 3)
    remove_old_runs(tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(("cache", "stays"), [(True, False), (False, True)])
def test_a_run_removes_what_old_ones_left(tiny_model, tiny_data, tmp_path: Path, monkeypatch, cache, stays):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old, new = (run_folder(tmp_path / "onnx_hyvit", str(days), days) for days in (31, 1))
    config = QuantConfig(recipe="q-hyvit", samples=2, verify=False, cache=cache)
    onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config)
    assert old.exists() == stays and new.exists()
