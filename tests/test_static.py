"""Call sites written for onnxruntime.quantization.quantize_static keep working, or are told what is not honoured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType

from onnx_hyvit import ConfigError, quantize_static


class Reader(CalibrationDataReader):
    """A reader as users write them: it can be read once."""

    def __init__(self, path: Path, count: int = 6) -> None:
        with np.load(path) as data:
            self.name, values = next(iter(data.items()))
        self.rows = iter(values[:count])

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {self.name: row[None]}


@pytest.fixture(scope="module")
def a_conv(tiny_model: Path) -> str:
    """Name of the last convolution of the tiny model."""
    return [node.name for node in onnx.load(tiny_model).graph.node if node.op_type == "Conv"][-1]


def test_a_usual_call(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "int8.onnx"
    result = quantize_static(
        str(tiny_model),
        str(output),
        Reader(tiny_data),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    assert output.is_file()
    assert result.report["calibration"]["samples"] == 6
    assert result.report["config"]["recipe"] == "minmax"


def test_positional_arguments_and_defaults(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    quantize_static(tiny_model, tmp_path / "out.onnx", Reader(tiny_data, 2))
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


def test_types_granularity_and_range_are_honoured(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    result = quantize_static(
        tiny_model,
        tmp_path / "out.onnx",
        Reader(tiny_data, 2),
        per_channel=False,
        reduce_range=True,
        activation_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    proto = result.model
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.int8
            assert (constants[node.input[2]] == 0).all()
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            codes = constants[node.input[0]]
            if codes.dtype == np.int8:
                assert constants[node.input[1]].size == 1
                assert np.abs(codes.astype(int)).max() <= 64


def test_excluded_nodes_stay_float(tiny_model: Path, tiny_data: Path, tmp_path: Path, a_conv: str) -> None:
    result = quantize_static(tiny_model, tmp_path / "a.onnx", Reader(tiny_data, 2), nodes_to_exclude=[a_conv])
    assert a_conv in result.report["plan"]["float_nodes"]
    only = quantize_static(tiny_model, tmp_path / "b.onnx", Reader(tiny_data, 2), op_types_to_quantize=["Conv"])
    heavy = {"QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "QLinearAdd", "QLinearSigmoid"}
    assert not heavy & set(only.report["audit"]["operators"])
    assert only.report["audit"]["operators"]["QLinearConv"] > 5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"quant_format": QuantFormat.QOperator}, "quant_format"),
        ({"weight_type": QuantType.QUInt8}, "weight_type"),
        ({"activation_type": QuantType.QInt16}, "activation_type"),
        ({"calibrate_method": CalibrationMethod.Distribution}, "Distribution"),
        ({"use_external_data_format": True}, "use_external_data_format"),
        ({"calibration_providers": ["CUDAExecutionProvider"]}, "calibration_providers"),
        ({"calibration_cache_path": "cache.json"}, "calibration_cache_path"),
        ({"nodes_to_exclude": ["no such node"]}, "no such node"),
        ({"extra_options": {"SmoothQuant": True}}, "SmoothQuant"),
        ({"extra_options": {"AddQDQPairToWeight": True}}, "AddQDQPairToWeight"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, arguments: dict, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        quantize_static(tiny_model, tmp_path / "out.onnx", Reader(tiny_data, 1), **arguments)
    assert not (tmp_path / "out.onnx").exists()


def test_a_missing_reader_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration_data_reader"):
        quantize_static(tiny_model, tmp_path / "out.onnx")
