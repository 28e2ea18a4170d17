"""Labels belong to the samples whose paths the file names; a file name alone only while it is unique."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qdq_graphs import parse

import onnx_hyvit
from onnx_hyvit.calibration import Preprocess
from onnx_hyvit.errors import CalibrationError
from onnx_hyvit.graph import model_to_proto
from onnx_hyvit.labels import labels_of, load_labels


def read(folder: Path, text: str):
    (folder / "a.csv").write_text(text)
    return load_labels(folder / "a.csv")


def test_equal_names_in_two_folders_keep_their_labels(tmp_path: Path) -> None:
    labels = read(tmp_path, "file,class\na/0.png,1\n./b//0.png,2\n")
    assert labels_of(["b/0.png", "a/0.png", "b/0.png"], labels) == [2, 1, 2]


@pytest.mark.parametrize("text", ["0.png,1\n1.png,2\n", "/data/0.png,1\n/data/1.png,2\n", "x/0.png,1\ny/1.png,2\n"])
def test_a_unique_file_name_is_enough(tmp_path: Path, text: str) -> None:
    labels = read(tmp_path, text)
    for _ in range(2):  # data are read more than once
        assert labels_of(["a/0.png", "b/1.png"], labels) == [1, 2]
    assert labels_of(["0.png"], read(tmp_path, text)) == [1]


@pytest.mark.parametrize(
    ("text", "samples", "words"),
    [
        ("x/0.png,1\ny/0.png,2\n", ["0.png"], r"lines 1 \('x/0.png'\) and 2 \('y/0.png'\) fit '0.png'"),
        ("0.png,1\n", ["a/0.png", "b/0.png"], r"line 1 \('0.png'\) fits 'a/0.png' and 'b/0.png'"),
        ("a/0.png,1\n", ["b/0.png", "a/0.png"], r"line 1 \('a/0.png'\) fits 'b/0.png' and 'a/0.png'"),
    ],
    ids=["two lines", "two samples", "a line of another sample"],
)
def test_what_is_not_unique_is_named_with_the_remedy(tmp_path: Path, text: str, samples: list[str], words: str) -> None:
    with pytest.raises(CalibrationError, match=rf"a\.csv: {words}; write paths as the samples have them"):
        labels_of(samples, read(tmp_path, text))


def test_two_classes_of_one_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"a\.csv: lines 1 and 3 give '0.png' two classes \(1 and 2\); remove"):
        read(tmp_path, "0.png,1\n1.png,1\n./0.png,2\n")
    assert labels_of(["0.png"], read(tmp_path, "0.png,1\n0.png,1\n")) == [1]


def test_a_sample_without_a_label_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none for sample 'b/1.png' \(1 labels\)"):
        labels_of(["b/1.png"], read(tmp_path, "0.png,1\n"))


def test_compare_counts_images_of_equal_names_by_their_folders(tmp_path: Path) -> None:
    text = "g (float[N,3,8,8] x) => (float[N,3] y) { c = Conv(x, w) p = GlobalAveragePool(c) y = Flatten(p) }"
    brightest = model_to_proto(parse(text, w=np.eye(3, dtype=np.float32)[:, :, None, None]))
    for folder, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / folder / "0.png")
    (tmp_path / "labels.csv").write_text("a/0.png,0\nb/0.png,2\n")
    found = onnx_hyvit.compare(
        brightest, brightest, tmp_path / "images", labels=tmp_path / "labels.csv", preprocess=Preprocess(), runs=1
    )
    assert found["accuracy"]["float_top1"] == 1.0
