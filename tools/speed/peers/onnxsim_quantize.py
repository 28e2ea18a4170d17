"""Quantize with onnxsim, in its own virtual environment: SOURCE.onnx TARGET.onnx CALIBRATION.npz minmax|percentile."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxsim


def main(source: str, target: str, calibration: str, method: str) -> None:
    with np.load(calibration) as arrays:
        name, values = next(iter(arrays.items()))
    model, _ = onnxsim.simplify(onnx.load(source))
    quantized = onnxsim.quantize_static(
        model,
        [{name: values[index : index + 1]} for index in range(len(values))],
        method=method,
        full_graph=method == "percentile",
    )
    onnx.save(quantized, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
