"""Quantize with NNCF, in its own virtual environment: SOURCE.onnx TARGET.onnx CALIBRATION.npz."""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx


def main(source: str, target: str, calibration: str) -> None:
    with np.load(calibration) as arrays:
        name, values = next(iter(arrays.items()))
    feeds = [{name: values[index : index + 1]} for index in range(len(values))]
    model = nncf.quantize(
        onnx.load(source),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
    )
    onnx.save(model, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
