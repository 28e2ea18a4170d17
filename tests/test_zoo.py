"""The shipped models and images, and the readers and measures behind them; none of it needs torch."""

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
sys.path.insert(0, str(ROOT / "tools"))

import evaluate  # noqa: E402
from zoo import datasets, index, preprocess_file, results, scoring  # noqa: E402

import onnx_hyvit  # noqa: E402

ENTRIES = index.read_index(MODELS)
MODEL_NAMES = sorted(ENTRIES)
FASHION = "fashion_mobilevit_xxs"


# --- the shipped files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_file_matches_the_index(name: str) -> None:
    entry = ENTRIES[name]
    path = MODELS / entry["file"]
    assert path.stat().st_size == entry["bytes"]
    assert index.sha256(path) == entry["sha256"]
    model = onnx.load(path)
    assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [entry["opset"]]
    assert _signature(model.graph.input[0]) == (entry["input"]["name"], entry["input"]["shape"])
    assert _signature(model.graph.output[0]) == (entry["output"]["name"], entry["output"]["shape"])
    assert index.describe(model) == {"parameters": entry["parameters"], "macs": entry["macs"]}


def _signature(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    return value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_model_runs_with_any_batch(name: str) -> None:
    entry = ENTRIES[name]
    session = scoring.open_session(MODELS / entry["file"], threads=1)
    x = np.random.default_rng(0).standard_normal((3, *entry["input"]["shape"][1:])).astype(np.float32)
    together = session.run(None, {"input": x})[0]
    alone = session.run(None, {"input": x[1:2]})[0]
    assert together.shape == (3, len(entry["classes"]))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_preprocessing_file_matches_the_index(name: str) -> None:
    presets = pytest.importorskip("onnx_hyvit.calibration.presets")
    loaded = presets.load_preprocess(MODELS / f"{name}.toml")
    told = ENTRIES[name]["preprocessing"]
    assert list(loaded.size) == told["size"]
    assert list(loaded.mean) == told["mean"]
    assert list(loaded.std) == told["std"]
    assert (loaded.resize, loaded.crop, loaded.channel_order) == ("bilinear", "none", "RGB")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_files_hold_no_notes_of_the_exporter(name: str) -> None:
    model = onnx.load(MODELS / ENTRIES[name]["file"], load_external_data=False)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


BRIDGES = {"mobilevit": 3, "mobilevitv2": 3, "edgenext": 3, "efficientformer": 1, "efficientformerv2": 2, "mobile": 16}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_bridges_of_every_hybrid_are_found(name: str) -> None:
    family = name.split("_")[1]
    found = onnx_hyvit.inspect(MODELS / ENTRIES[name]["file"])
    kinds = [block["kind"] for block in found["blocks"]]
    assert kinds[-1] == "head" and "transformer" in kinds
    if family in BRIDGES:  # the controls are transformers all through
        assert kinds[0] == "stem" and kinds.count("bridge") == BRIDGES[family]


def test_models_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.iterdir() if path.is_file()) < 80e6


def test_readme_table_matches_the_index() -> None:
    page = (MODELS / "README.md").read_text(encoding="utf-8")
    table = page.partition(index.TABLE_START)[2].partition(index.TABLE_END)[0].strip()
    assert table == index.render_table(list(ENTRIES.values()))


@pytest.mark.parametrize("readme", [MODELS / "README.md", MODELS.parent / "README.md"], ids=["models", "project"])
def test_readme_results_match_the_file(readme: Path) -> None:
    page = readme.read_text(encoding="utf-8")
    table = page.partition(results.RESULTS_START)[2].partition(results.RESULTS_END)[0].strip()
    numbers = json.loads((MODELS / "results.json").read_text(encoding="utf-8"))
    assert table == results.show_results(numbers)
    assert {row["name"] for row in numbers["models"]} <= set(ENTRIES)


def test_results_without_a_place_in_the_readme_are_an_error(tmp_path: Path) -> None:
    numbers = json.loads((MODELS / "results.json").read_text(encoding="utf-8"))
    (tmp_path / "README.md").write_text("no table here\n")
    with pytest.raises(datasets.DataError, match=r"README\.md: has no place for the table \(<!-- results: start -->\)"):
        results.write_results(tmp_path / "results.json", numbers)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == numbers


def test_fashion_subset_has_its_arrays() -> None:
    with np.load(MODELS / datasets.FASHION_SUBSET, allow_pickle=False) as npz:
        assert {key: (npz[key].dtype.name, npz[key].shape) for key in sorted(npz.files)} == {
            "calib_images": ("uint8", (256, 28, 28)),
            "calib_labels": ("uint8", (256,)),
            "test_images": ("uint8", (2000, 28, 28)),
            "test_labels": ("uint8", (2000,)),
        }


@pytest.mark.skipif(FASHION not in ENTRIES, reason="the Fashion-MNIST model is not in the index")
def test_fashion_model_keeps_its_accuracy_on_the_subset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, report = str(MODELS / f"{FASHION}.onnx"), tmp_path / "report.json"
    options = ["--data", str(MODELS), "--limit", "1000", "--against", model, "--json", str(report)]
    assert evaluate.main([model, *options]) == 0
    result = json.loads(report.read_text(encoding="utf-8"))
    assert result["top1"]["low"] <= ENTRIES[FASHION]["accuracy"]["top1"] <= result["top1"]["high"]
    assert result["agreement"]["value"] == 1
    assert result["top1_difference"]["value"] == 0
    assert "top-1: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(FASHION not in ENTRIES, reason="the Fashion-MNIST model is not in the index")
def test_both_quantizers_keep_the_fashion_model(tmp_path: Path) -> None:
    pytest.importorskip("onnx_hyvit.api")
    for file in (MODELS / f"{FASHION}.onnx", MODELS / datasets.FASHION_SUBSET):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index.write_index(tmp_path, {FASHION: ENTRIES[FASHION]}, [FASHION])
    report = tmp_path / "results.json"
    options = ["--data", str(tmp_path), "--models", str(tmp_path), "--limit", "300", "--threads", "1"]
    assert evaluate.main(["--all", *options, "--json", str(report)]) == 0
    (row,) = json.loads(report.read_text(encoding="utf-8"))["models"]
    for kind in ("quantize_static", "onnx_hyvit"):
        assert row[kind]["agreement"]["high"] > 0.9
        assert row[kind]["bytes"] < row["float"]["bytes"] / 2


# --- the tools behind them ------------------------------------------------------------------------


def test_evaluate_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path / "unheard_of.onnx"), "--data", str(MODELS)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_evaluate_takes_one_model_or_all() -> None:
    for options in (["--data", "x"], ["m.onnx", "--all", "--data", "x"], ["m.onnx", "--data", "x", "--limit", "0"]):
        with pytest.raises(SystemExit):
            evaluate.main(options)


def test_results_table_has_a_row_per_model() -> None:
    form = {"top1": {"value": 0.9}, "agreement": {"value": 0.98}, "milliseconds": 1.5}
    table = results.render_results({"models": [{"name": "m", **dict.fromkeys(results.TITLES, form)}]})
    assert table.splitlines()[2] == "| `m` | 90.00 % | 1.50 | 90.00 % | 98.00 % | 1.50 | 90.00 % | 98.00 % | 1.50 |"


def test_results_say_where_they_were_taken_and_their_means() -> None:
    def form(lost: float, agrees: float, ms: float) -> dict[str, object]:
        return {"top1_difference": {"value": -lost}, "agreement": {"value": agrees}, "milliseconds": ms}

    ours = [form(0.001, 0.99, 1.0), form(-0.001, 0.98, 2.0)]
    rows = [
        {"dataset": "cifar10", "float": form(0, 1, 2.0), "onnx_hyvit": one, "quantize_static": form(0.01, 0.9, 4.0)}
        for one in ours
    ]
    machine = {"cpu": "C", "vnni": False, "onnxruntime": "9"}
    text = results.describe_results({"machine": machine, "threads": 1, "calibration_images": 64, "models": rows})
    assert "C without VNNI" in text and "Over the 2 CIFAR-10 models" in text
    assert "onnx_hyvit: mean drop 0.00 points (largest 0.10), 98.50 % keep their class, 1.50x" in text
    assert "quantize_static: mean drop 1.00 points (largest 1.00), 90.00 % keep their class, 0.50x" in text
    rows[0]["dataset"] = rows[1]["dataset"] = "other"
    assert "Over" not in results.describe_results(
        {"machine": machine, "threads": 1, "calibration_images": 64, "models": rows}
    )


def test_wilson_against_a_published_interval() -> None:
    share = scoring.wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)
    assert scoring.wilson(0, 20).low == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="cases"):
        scoring.wilson(3, 2)


def test_paired_difference_counts_images() -> None:
    right, other = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool)
    share = scoring.paired_difference(right, other)
    assert share.value == pytest.approx(0.25)
    assert share.high - share.value == pytest.approx(scoring.Z95 * math.sqrt(11 / 16) / 2)


def test_macs_of_a_tiny_graph() -> None:
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        tiny (float[N, 4, 8, 8] x) => (float[N, 5] y)
        <float[6, 2, 3, 3] w, float[6, 5] v, float[5] b> {
            c = Conv<group = 2, pads = [1, 1, 1, 1]>(x, w)
            p = GlobalAveragePool(c)
            f = Flatten(p)
            y = Gemm(f, v, b)
        }"""
    )
    for name, shape in (("w", (6, 2, 3, 3)), ("v", (6, 5)), ("b", (5,))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    assert index.describe(model) == {"parameters": 108 + 30 + 5, "macs": 6 * 8 * 8 * 2 * 9 + 30}


def test_index_is_written_in_order_with_its_table(tmp_path: Path) -> None:
    accuracy = {"top1": 0.5, "low": 0.4, "high": 0.6, "images": 100}
    numbers = {"parameters": 10, "macs": 20, "bytes": 30, "dataset": "cifar10", "accuracy": accuracy}
    (tmp_path / "README.md").write_text(f"before\n{index.TABLE_START}\nold\n{index.TABLE_END}\nafter\n")
    entries = {name: {"name": name, **numbers} for name in ("b", "a")}
    index.write_index(tmp_path, entries, ["a", "b"])
    assert list(index.read_index(tmp_path)) == ["a", "b"]
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "| `a` | cifar10 |" in page
    assert "old" not in page


def test_entry_is_found_by_the_beginning_of_the_file_name() -> None:
    entries = {"cifar_mobilevit": {"name": "short"}, "cifar_mobilevit_xxs": {"name": "long"}}
    assert index.find_entry(entries, Path("cifar_mobilevit_xxs_int8.onnx"))["name"] == "long"
    assert index.find_entry(entries, Path("other.onnx"), "cifar_mobilevit")["name"] == "short"
    with pytest.raises(datasets.DataError, match="--entry"):
        index.find_entry(entries, Path("other.onnx"))


# --- reading images -------------------------------------------------------------------------------


@pytest.fixture
def planes() -> np.ndarray:
    """Two random images as the official batches hold them, uint8 [2, 3072] in CHW order."""
    return np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)


def _expected(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _python_batch(planes: np.ndarray) -> bytes:
    return pickle.dumps({b"data": planes, b"labels": [3, 7], b"filenames": [b"a", b"b"]}, protocol=2)


def test_official_binary_batch(tmp_path: Path, planes: np.ndarray) -> None:
    rows = np.concatenate([np.array([[3], [7]], np.uint8), planes], axis=1)
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    images = datasets.load_images("cifar10", tmp_path, "test")
    np.testing.assert_array_equal(images.pixels, _expected(planes))
    assert images.labels.tolist() == [3, 7]


@pytest.mark.parametrize("packed", [False, True])
def test_official_python_batches(tmp_path: Path, planes: np.ndarray, packed: bool) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in datasets.CIFAR_TRAIN_BATCHES:
        (folder / name).write_bytes(_python_batch(planes))
    data = tmp_path
    if packed:
        data = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(data, "w:gz") as tar:
            tar.add(folder, folder.name)
    images = datasets.load_images("cifar10", data, "train")
    np.testing.assert_array_equal(images.pixels, np.tile(_expected(planes), (5, 1, 1, 1)))
    assert images.labels.tolist() == [3, 7] * 5


def test_jpeg_pack(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    files = []
    for grey in (40, 200):
        stream = io.BytesIO()
        image_module.new("RGB", (32, 32), (grey, grey, grey)).save(stream, "JPEG")
        files.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", jpeg=jpeg, offsets=offsets, labels=np.array([0, 9], np.uint8))
    images = datasets.load_images("cifar10", tmp_path, "test")
    assert images.pixels.shape == (2, 32, 32, 3)
    assert images.pixels.mean((1, 2, 3)) == pytest.approx([40, 200], abs=1)
    assert images.labels.tolist() == [0, 9]


def test_pickle_that_calls_a_function_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("called",)

    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Trap(), b"labels": []}, protocol=2))
    with pytest.raises(datasets.DataError, match=r"refused to load .*print"):
        datasets.load_images("cifar10", tmp_path, "test")


@pytest.mark.parametrize("content", [b"", b"\x80", b"x" * 100])
def test_broken_batches_are_told(tmp_path: Path, content: bytes) -> None:
    for name in ("test_batch", "test_batch.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(datasets.DataError, match=name):
            datasets.load_images("cifar10", tmp_path, "test")
        path.unlink()


@pytest.mark.parametrize(("dataset", "split"), [("cifar10", "test"), ("fashion_mnist", "test"), ("svhn", "test")])
def test_empty_folder_is_told(tmp_path: Path, dataset: str, split: str) -> None:
    with pytest.raises(datasets.DataError):
        datasets.load_images(dataset, tmp_path, split)


def test_fashion_idx_files(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    header = bytes((0, 0, 8, 3)) + np.array(grey.shape, ">i4").tobytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + grey.tobytes()))
    labels = bytes((0, 0, 8, 1)) + np.array([3], ">i4").tobytes() + bytes((1, 2, 3))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    images = datasets.load_images("fashion_mnist", tmp_path, "test")
    np.testing.assert_array_equal(images.pixels, np.repeat(grey[..., None], 3, axis=3))
    assert images.labels.tolist() == [1, 2, 3]


def test_split_is_disjoint_and_repeatable() -> None:
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    images = datasets.Images(pixels, np.arange(20))
    train, validation = datasets.split_train_validation(images, 5, seed=1)
    again, _ = datasets.split_train_validation(images, 5, seed=1)
    assert sorted([*train.labels, *validation.labels]) == list(range(20))
    assert train.labels.tolist() == again.labels.tolist() != list(range(15))


def test_to_input_scales_and_orders_channels() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels[..., 2] = 255
    x = datasets.to_input(pixels, 4, (0.5, 0.0, 0.5), (0.5, 1.0, 0.25))
    assert x.shape == (1, 3, 4, 4)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, :, 0, 0], [-1, 0, 2])


# --- preprocessing files --------------------------------------------------------------------------


def test_preprocessing_from_timm(tmp_path: Path) -> None:
    config = {"input_size": (3, 256, 256), "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0,) * 3}
    keys = preprocess_file.from_timm({**config, "std": (1,) * 3, "crop_mode": "center"})
    assert (keys["size"], keys["resize_size"], keys["crop"]) == ([256, 256], 284, "center")
    preprocess_file.write_preprocess_file(tmp_path / "a.toml", keys, "made by a test")
    tomllib = pytest.importorskip("tomllib")
    assert tomllib.loads((tmp_path / "a.toml").read_text()) == keys


def test_preprocessing_from_transformers() -> None:
    mobilevit = {
        "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_flip_channel_order": True,
    }
    keys = preprocess_file.from_transformers(mobilevit)
    assert (keys["size"], keys["resize_size"], keys["crop"]) == ([256, 256], 288, "center")
    assert (keys["channel_order"], keys["resize"], keys["mean"]) == ("BGR", "bilinear", [0.0] * 3)
    swin = {"size": {"height": 224, "width": 224}, "resample": 3, "do_normalize": True}
    keys = preprocess_file.from_transformers({**swin, "image_mean": [0.5] * 3, "image_std": [0.2] * 3})
    assert (keys["size"], keys["crop"], keys["std"]) == ([224, 224], "none", [0.2] * 3)
    assert "resize_size" not in keys


def test_unknown_preprocessing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colour"):
        preprocess_file.write_preprocess_file(tmp_path / "a.toml", {"colour": "RGB"}, "")
