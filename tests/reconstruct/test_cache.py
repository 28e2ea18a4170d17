"""An interrupted run goes on where it stopped and ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnx_hyvit
from onnx_hyvit.config import QuantConfig
from onnx_hyvit.numerics import QParams, QuantSpec
from onnx_hyvit.numerics.ranges import RangeMethod
from onnx_hyvit.recipes import RECIPES, Recipe, Reconstruction
from onnx_hyvit.reconstruct import BlockCache, run_key
from onnx_hyvit.reconstruct.search_ranges import RangeChoice
from onnx_hyvit.reconstruct.sweep import BlockResult

SPEC = QuantSpec(bits=4, signed=True, symmetric=True, axis=0, narrow=True)
RESULT = BlockResult(
    "conv_1",
    "conv",
    0.1,
    1 / 3,
    {"w/x": QParams(np.array([0.1, 0.2], np.float32), np.zeros(2, np.int8), SPEC)},
    {"w/x": np.arange(6, dtype=np.float32).reshape(2, 3)},
    (RangeChoice("t", (-1.0, 2.0), (-0.5, 1.7), 0.2, 0.1, "asymmetric"),),
    {"node": ("gptq", None)},
)


def test_a_block_comes_back_as_it_was(tmp_path: Path):
    cache = BlockCache(tmp_path, run_key("a"))
    assert cache.load(0) is None
    cache.store(0, RESULT)
    found = cache.load(0)
    assert (found.name, found.kind, found.error_after, found.ranges, found.layers) == (
        RESULT.name, RESULT.kind, RESULT.error_after, RESULT.ranges, RESULT.layers,
    )  # fmt: skip
    np.testing.assert_array_equal(found.parameters["w/x"], RESULT.parameters["w/x"])
    np.testing.assert_array_equal(found.qparams["w/x"].scale, RESULT.qparams["w/x"].scale)
    assert found.qparams["w/x"].spec == SPEC
    cache.remove()
    assert cache.load(0) is None


def test_a_broken_file_is_computed_again(tmp_path: Path):
    cache = BlockCache(tmp_path, run_key("a"))
    cache.store(0, RESULT)
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert cache.load(0) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    BlockCache(blocked, run_key("a")).store(0, RESULT)
    assert blocked.read_text() == ""


def test_the_key_depends_on_every_part():
    keys = {run_key("ab", "c"), run_key("a", "bc"), run_key(b"ab", {"c": 1}), run_key(b"ab", {"c": 2})}
    assert len(keys) == 4


def test_an_interrupted_run_ends_with_the_same_bytes(tiny_model, tiny_data, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = QuantConfig(recipe="q-hyvit", bits="w4a8", samples=4, verify=False)

    def run(stop_after: int | None = None):
        done = []

        def progress(count: int, total: int, text: str) -> None:
            if text == "reconstruct":
                done.append(count)
                if count == stop_after:
                    raise KeyboardInterrupt

        result = onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config, progress=progress)
        return result.model.SerializeToString()

    with pytest.raises(KeyboardInterrupt):
        run(stop_after=5)
    kept = sorted(path.name for path in tmp_path.rglob("*.npz"))
    assert kept == [f"block_{index:04d}.npz" for index in range(5)]
    loaded = []
    original = BlockCache.load
    monkeypatch.setattr(BlockCache, "load", lambda self, index: loaded.append(original(self, index)) or loaded[-1])
    resumed = run()
    assert sum(result is not None for result in loaded) == 5
    assert not list(tmp_path.rglob("*.npz"))
    assert resumed == run()


def test_a_recipe_of_the_same_name_does_not_take_the_blocks_of_another(
    tiny_model, tiny_data, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = QuantConfig(recipe="mine", bits="w4a8", samples=4, verify=False)

    def run(ranges: str, stop: bool = False):
        monkeypatch.setitem(RECIPES, "mine", Recipe("mine", "", RangeMethod(ranges), reconstruction=Reconstruction()))

        def progress(count: int, total: int, text: str) -> None:
            if stop and (text, count) == ("reconstruct", 5):
                raise KeyboardInterrupt

        result = onnx_hyvit.quantize(tiny_model, None, calibration=tiny_data, config=config, progress=progress)
        return result.model.SerializeToString()

    wanted = run("minmax")
    with pytest.raises(KeyboardInterrupt):
        run("mse", stop=True)
    assert list(tmp_path.rglob("*.npz"))
    assert run("minmax") == wanted
