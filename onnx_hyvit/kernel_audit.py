"""What ONNX Runtime really runs: read its optimised graph and sort the heavy kernels into int8 and float."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from .graph.float_types import FloatTypes, find_float_types
from .graph.io import read_proto
from .graph.lookup import Lookup
from .runtime import optimized_model

INT8_KERNELS = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "QLinearConvTranspose",
    }
)
FLOAT_KERNELS = frozenset(
    {
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "ConvTranspose",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "TransposeMatMul",
        "Attention",
        "MultiHeadAttention",
    }
)
BAD_KERNELS = {
    "QLinearSoftmax": "5-9x slower than float, and wrong on an axis of length 1",
    "QLinearAveragePool": "about 30x slower than float",
    "DynamicQuantizeMatMul": "measures ranges at run time: not what was calibrated",
}
POOLED_CODES = "int8 with channels first: 10x to 75x slower than float; behind an int8 convolution it is NhwcMaxPool"
FAULTS = ("float_int8_weights", "dequantized_weights", "bad_kernels", "orphan_pairs")
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "MaxPool", "Clip"})
_CODE_KERNELS = frozenset({"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "NhwcMaxPool"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FUSED_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|_gemm|/\w+Fusion/*|_output_\d+)$")


@dataclass(frozen=True)
class Kernel:
    """One node of the optimised graph.

    Args:
        node: Name of the node in the model that was audited, where it can be told; else of the optimised one.
        op: Operator that runs.
        weighted: Whether it has a constant weight (an attention product has none).
        detail: Why it is listed, where the list alone does not say it.
    """

    node: str
    op: str
    weighted: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Audit:
    """The heavy kernels of an optimised graph.

    Args:
        int8: Convolutions and matrix products on int8 kernels.
        float: Those on float kernels; ``weighted`` tells layers from attention products.
        float_int8_weights: Layers whose weights are stored as int8 codes, yet that run on float kernels.
        dequantized_weights: Initializers that are dequantized in every run, with their reader.
        bad_kernels: Int8 kernels that are slow or wrong.
        orphan_pairs: Q directly followed by DQ: costs time and accuracy, and no int8 kernel lies between.
        float_by_type: Layers in float because their codes are INT4 or have 16 bits, for which the CPU has no kernels.
            Nobody stores these by accident, so such layers, what they read and the pairs around them are no faults.
        counts: Lengths of these lists, and ``float_weighted``.
        operators: How often each operator occurs in the optimised graph.
    """

    int8: tuple[Kernel, ...]
    float: tuple[Kernel, ...]
    float_int8_weights: tuple[Kernel, ...]
    dequantized_weights: tuple[Kernel, ...]
    bad_kernels: tuple[Kernel, ...]
    orphan_pairs: tuple[Kernel, ...]
    float_by_type: tuple[Kernel, ...]
    counts: dict[str, int]
    operators: dict[str, int]

    @property
    def clean(self) -> bool:
        """Whether no int8 weight is wasted on a float kernel, and no bad kernel and no orphan pair is there."""
        return not any(getattr(self, key) for key in FAULTS)

    def to_dict(self) -> dict[str, Any]:
        """Plain values (JSON)."""
        return {
            "int8": [kernel.node for kernel in self.int8],
            "float": [kernel.node for kernel in self.float],
            **{key: [dataclasses.asdict(kernel) for kernel in getattr(self, key)] for key in FAULTS},
            "float_by_type": [kernel.node for kernel in self.float_by_type],
            "counts": dict(self.counts),
            "operators": dict(self.operators),
        }


def audit(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    threads: int = 1,
    config: Mapping[str, str] | None = None,
) -> Audit:
    """Audit the graph that ONNX Runtime makes of a model at its highest optimisation level.

    Args:
        model: Path, bytes or ModelProto of any model that ONNX Runtime can load; usually an int8 QDQ model.
        threads: Threads of the session that optimises it.
        config: Session config entries, such as those of a target.

    Returns:
        The kernels that run, in int8 and in float, and those that waste int8 weights.

    Raises:
        ModelError: The model cannot be read, or not be loaded (``RuntimeFailure``).
    """
    proto = model if isinstance(model, onnx.ModelProto) else read_proto(model)[0]
    optimized = optimized_model(proto, threads=threads, config=config)
    graph = optimized.graph
    names = {output: node.name for node in proto.graph.node for output in node.output}
    names |= {node.name: node.name for node in proto.graph.node}
    constants = _constants(graph)
    groups: dict[str, list[Kernel]] = {"int8": [], "float": []}
    bad: list[Kernel] = []
    view = Lookup(graph)
    for node in graph.node:
        kernel = Kernel(original_name(node.name, names), node.op_type, _has_weight(node, constants))
        if node.op_type in INT8_KERNELS:
            groups["int8"].append(kernel)
        elif node.op_type in FLOAT_KERNELS:
            groups["float"].append(kernel)
        if node.op_type in BAD_KERNELS:
            bad.append(dataclasses.replace(kernel, detail=BAD_KERNELS[node.op_type]))
        elif node.op_type == "MaxPool" and _reads_codes(node, view):
            bad.append(dataclasses.replace(kernel, detail=POOLED_CODES))
    excused, stored = find_float_types(proto.graph), _float_int8_weights(groups["float"], proto.graph)
    lists = {
        **groups,
        "float_int8_weights": [kernel for kernel in stored if kernel.node not in excused.layers],
        "dequantized_weights": _dequantized_weights(view, graph, names, excused),
        "bad_kernels": bad,
        "orphan_pairs": _orphan_pairs(view, graph, names, excused),
        "float_by_type": [kernel for kernel in stored if kernel.node in excused.layers],
    }
    counts = {key: len(value) for key, value in lists.items()}
    counts["float_weighted"] = sum(kernel.weighted for kernel in lists["float"])
    operators = dict(sorted(Counter(node.op_type for node in graph.node).items()))
    return Audit(**{key: tuple(value) for key, value in lists.items()}, counts=counts, operators=operators)


def original_name(name: str, names: Mapping[str, str]) -> str:
    """Name of the node that an optimised node came from: its own without what fusions put around it.

    Args:
        name: Name of the optimised node; some fusions derive it from the name of an output tensor.
        names: Node names, and names of output tensors, of the model -> name of the node.
    """
    stripped = name if name in names else name.removeprefix("fused ")
    while stripped and stripped not in names:
        shorter = _FUSED_SUFFIX.sub("", stripped)
        if shorter == stripped:
            return name
        stripped = shorter
    return names.get(stripped, name)


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Initializers, and what DQ, Reshape and Transpose nodes make of them."""
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Transpose", "Reshape", "ReorderInput") and node.input[0] in found:
            found.update(node.output)
    return found


def _reads_codes(node: onnx.NodeProto, view: Lookup) -> bool:
    """Whether what ``node`` reads was made as codes, moved or not."""
    maker = view.makers.get(node.input[0])
    while maker is not None and maker.op_type in _MOVES:
        maker = view.makers.get(maker.input[0])
    return maker is not None and (maker.op_type == "QuantizeLinear" or maker.op_type in _CODE_KERNELS)


def _has_weight(node: onnx.NodeProto, constants: set[str]) -> bool:
    position = 3 if node.op_type in ("QLinearConv", "QGemm", "QLinearMatMul") else 1
    return len(node.input) > position and node.input[position] in constants


def _float_int8_weights(kernels: list[Kernel], graph: onnx.GraphProto) -> list[Kernel]:
    """The float kernels whose layer in the model that was audited has a weight of integer codes."""
    codes = {tensor.name for tensor in graph.initializer}
    stored = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in codes
    }
    layers = {
        node.name: stored[name]
        for node in graph.node
        if node.op_type in _LAYERS
        for name in node.input[:2]
        if name in stored
    }
    return [
        dataclasses.replace(kernel, detail=f"reads {layers[kernel.node]}")
        for kernel in kernels
        if kernel.node in layers
    ]


def _dequantized_weights(
    view: Lookup, graph: onnx.GraphProto, names: Mapping[str, str], excused: FloatTypes
) -> list[Kernel]:
    found = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in view.constants:
            continue
        users = view.readers.get(node.output[0], [])
        if node.input[0] in excused.tensors or any(original_name(u.name, names) in excused.layers for u in users):
            continue
        if users or node.output[0] in view.outputs:
            reader = users[0].op_type if users else "graph output"
            detail = f"{node.input[0]}, read by {reader}"
            found.append(Kernel(original_name(node.name, names), node.op_type, True, detail))
    return found


def _orphan_pairs(view: Lookup, graph: onnx.GraphProto, names: Mapping[str, str], excused: FloatTypes) -> list[Kernel]:
    found = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] in view.outputs:
            continue
        users = view.readers.get(node.output[0], [])
        while len(users) == 1 and users[0].op_type == "Clip":
            users = view.readers.get(users[0].output[0], [])
        if all(user.op_type == "DequantizeLinear" for user in users):
            name = original_name(node.name, names)
            ours = name in names  # else the layout pass of the runtime put it there: exact, and not ours to remove
            if ours and name not in excused.pairs:
                found.append(Kernel(name, node.op_type, detail=f"tensor {node.input[0]}"))
    return found
