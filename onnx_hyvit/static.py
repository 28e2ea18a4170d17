"""``quantize_static``: call sites written for ``onnxruntime.quantization.quantize_static`` keep working.

An argument that is left out takes this package's choice. One that is given is honoured, or refused by name; none is
silently ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from .api import QuantResult, quantize
from .config import QuantConfig
from .errors import ConfigError
from .graph.io import load_model

_RECIPES = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
_QDQ_ALWAYS = {
    "AddQDQPairToWeight": False,
    "DedicatedQDQPair": False,
    "EnableSubgraph": False,
    "ForceQuantizeNoInputCheck": False,
    "MatMulConstBOnly": True,
    "QDQKeepRemovableActivations": False,
    "UseQDQContribOps": False,
    "WeightSymmetric": True,
}


def quantize_static(
    model_input: str | os.PathLike[str] | onnx.ModelProto,
    model_output: str | os.PathLike[str],
    calibration_data_reader: Any = None,
    quant_format: Any = None,
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool | None = None,
    reduce_range: bool = False,
    activation_type: Any = None,
    weight_type: Any = None,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibrate_method: Any = None,
    calibration_providers: Sequence[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
    calibration_cache_path: str | os.PathLike[str] | None = None,
) -> QuantResult:
    """Quantize a model as ``onnxruntime.quantization.quantize_static`` would be asked to.

    Args:
        model_input: Path or ModelProto of the float model.
        model_output: Where to write the result.
        calibration_data_reader: A ``CalibrationDataReader`` (``get_next``), or any data that ``quantize`` accepts.
        quant_format: Only QDQ.
        op_types_to_quantize: Keep every other operator type float.
        per_channel: False asks for one weight scale per tensor; left out or True, one per output channel.
        reduce_range: 7-bit weights, for CPUs without VNNI.
        activation_type: QUInt8 or QInt8; left out, the target's.
        weight_type: Only QInt8.
        nodes_to_quantize: Keep every other node float.
        nodes_to_exclude: Keep these nodes float.
        use_external_data_format: Only False; models above 2 GB get external data by themselves.
        calibrate_method: MinMax, Entropy or Percentile; left out, this package's default recipe.
        calibration_providers: Only the CPU.
        extra_options: ``CalibMovingAverage`` and ``ActivationSymmetric``, and those whose value is what is done anyway.
        calibration_cache_path: Not supported.

    Returns:
        The result, also written to ``model_output``.

    Raises:
        ConfigError: An argument that is not honoured; the message names it.
        HyvitError: As ``quantize``.
    """
    options = dict(extra_options or {})
    _only("quant_format", quant_format, (None, "QDQ"))
    _only("weight_type", weight_type, (None, "QInt8"))
    _only("use_external_data_format", use_external_data_format, (False,))
    _only("calibration_cache_path", calibration_cache_path, (None,))
    if calibration_data_reader is None:
        raise ConfigError("quantize_static: calibration_data_reader is missing; activations cannot be scaled without")
    if calibration_providers is not None and list(calibration_providers) != ["CPUExecutionProvider"]:
        raise ConfigError(f"quantize_static: calibration_providers {list(calibration_providers)!r} is not supported")
    excluded = _excluded_nodes(model_input, op_types_to_quantize, nodes_to_quantize, nodes_to_exclude)
    config = QuantConfig(
        recipe=_recipe(calibrate_method, options),
        bits="w7a8" if reduce_range else "w8a8",
        float_nodes=excluded,
        samples=None,
        activation_type=_activation_type(activation_type),
        activation_symmetric=_take(options, "ActivationSymmetric", None),
        per_channel=per_channel is not False,
    )
    _refuse_unknown(options)
    return quantize(model_input, Path(model_output), calibration=calibration_data_reader, config=config)


def _name(value: Any) -> Any:
    """Enum members are compared by name, so that onnxruntime.quantization need not be imported."""
    return getattr(value, "name", value)


def _only(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if _name(value) not in allowed:
        expected = " or ".join(str(entry) for entry in allowed if entry is not None) or "nothing"
        raise ConfigError(f"quantize_static: {argument}={_name(value)!r} is not supported; expected {expected}")


def _activation_type(value: Any) -> str | None:
    _only("activation_type", value, (None, "QUInt8", "QInt8"))
    return {None: None, "QUInt8": "uint8", "QInt8": "int8"}[_name(value)]


def _recipe(method: Any, options: dict[str, Any]) -> str:
    if _take(options, "CalibMovingAverage", False):
        return "average"
    if method is None:
        return QuantConfig().recipe
    _only("calibrate_method", method, tuple(_RECIPES))
    return _RECIPES[_name(method)]


def _take(options: dict[str, Any], key: str, default: Any) -> Any:
    return options.pop(key, default)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key not in _QDQ_ALWAYS or bool(value) is not _QDQ_ALWAYS[key]:
            raise ConfigError(f"quantize_static: extra_options[{key!r}]={value!r} is not supported; leave it out")


def _excluded_nodes(
    model: Any, op_types: Sequence[str] | None, wanted: Sequence[str] | None, excluded: Sequence[str] | None
) -> tuple[str, ...]:
    nodes = [(node.name, node.op) for node in load_model(model).graph.nodes]
    known = {name for name, _ in nodes}
    for argument, names in (("nodes_to_quantize", wanted), ("nodes_to_exclude", excluded)):
        for name in names or ():
            if name not in known:
                raise ConfigError(f"quantize_static: {argument} names {name!r}, which the model does not have")
    return tuple(
        name
        for name, op in nodes
        if name in (excluded or ()) or (wanted and name not in wanted) or (op_types and op not in op_types)
    )
