"""Damage the structure of a model: what a byte-level fuzzer rarely reaches because the result still parses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INTS = (0, 1, -1, 2, 3, 7, -(2**31), 2**31 - 1, 2**31, 2**62, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("nan"), float("inf"), float("-inf"))
DIMS = (0, 1, 2, 3, 5, -1, 2**20, 2**40, 2**62)
NAMES = ("", "\n", "\x1b[31mred\x1b[0m", "a" * 3000, "[bold]x[/]", "\u202ename", "../../x", "%s%n", "\x00")
UNARY = (
    "Abs Erf Exp Flatten GlobalAveragePool HardSigmoid HardSwish Identity Log Neg NonZero Relu Shape Sigmoid Softmax "
    "Sqrt Squeeze Tanh Transpose Cast Size Reciprocal"
).split()
BINARY = "Add Div MatMul Mul Pow Sub Reshape Expand Tile Gather Conv Concat Max ReduceMean Equal Mod GatherND".split()
OTHERS = (
    "AveragePool BatchNormalization Clip Constant ConstantOfShape ConvTranspose CumSum Einsum Gelu Gemm "
    "InstanceNormalization LayerNormalization LeakyRelu MaxPool Pad Range ReduceL2 ReduceSum Resize ScatterND Slice "
    "Split TopK Unsqueeze Where QuantizeLinear DequantizeLinear"
).split()
OPS = (*UNARY, *BINARY, *OTHERS)


def damage_model(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three structural edits of a serialized model; half of the models get only such as pass ONNX's checker."""
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    edits = MILD if rng.random() < 0.5 else EDITS
    for _ in range(int(rng.integers(1, 4))):
        _pick(edits, rng)(proto, rng)
    return proto.SerializeToString()


def _pick(items: Sequence[Any], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]


def _tensors(proto: onnx.ModelProto) -> list[str]:
    graph = proto.graph
    return [
        *(value.name for value in graph.input),
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in node.output),
    ]


def _attribute(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = [node for node in proto.graph.node if node.attribute]
    if not nodes:
        return
    node = _pick(nodes, rng)
    attribute = _pick(node.attribute, rng)
    kind = onnx.AttributeProto
    if rng.random() < 0.15:
        node.attribute.remove(attribute)
    elif attribute.type == kind.INT:
        attribute.i = _pick(INTS, rng)
    elif attribute.type == kind.FLOAT:
        attribute.f = _pick(FLOATS, rng)
    elif attribute.type == kind.INTS:
        values = [*attribute.ints]
        choice = rng.integers(3)
        if choice == 0 and values:
            values[int(rng.integers(len(values)))] = _pick(INTS, rng)
        elif choice == 1:
            values = values[:-1]
        else:
            values.append(_pick(INTS, rng))
        attribute.ints[:] = values
    elif attribute.type == kind.STRING:
        attribute.s = _pick((b"", b"SAME_UPPER", b"reflect", b"\xff\xfe", b"bij,bjk->bik", b"cubic"), rng)
    else:
        attribute.type = int(rng.integers(0, 12))


def _input_of_node(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = [node for node in proto.graph.node if node.input]
    if not nodes:
        return
    node = _pick(nodes, rng)
    at = int(rng.integers(len(node.input)))
    choice = rng.random()
    if choice < 0.6:
        node.input[at] = _pick(_tensors(proto), rng)  # often of a later node: a cycle
    elif choice < 0.75:
        del node.input[at]
    elif choice < 0.9:
        node.input.append(_pick(_tensors(proto), rng))
    else:
        node.input[at] = _pick(NAMES, rng)


def _rewire(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another tensor that exists before the node, or none."""
    at = int(rng.integers(len(proto.graph.node)))
    node = proto.graph.node[at]
    earlier = [name for other in proto.graph.node[:at] for name in other.output if name]
    sources = [*earlier[-12:], *earlier, *(value.name for value in proto.graph.input)]
    if node.input and sources:
        node.input[int(rng.integers(len(node.input)))] = _pick(sources, rng) if rng.random() < 0.9 else ""


def _same_arity(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another operator that takes as many inputs, without attributes."""
    node = _pick(proto.graph.node, rng)
    node.op_type = _pick(UNARY if len(node.input) < 2 else BINARY, rng)
    node.domain = ""
    del node.attribute[:]
    del node.input[2:]
    del node.output[1:]


def _more_outputs(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An inner tensor becomes an output too."""
    name = _pick([name for node in proto.graph.node for name in node.output], rng)
    proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _values(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    if proto.graph.initializer:
        _set_values(_pick(proto.graph.initializer, rng), rng)


def _free_dimension(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A dimension of an input becomes free, or another number; what is known of inner shapes is forgotten."""
    shaped = [value for value in proto.graph.input if value.type.tensor_type.shape.dim]
    if not shaped:
        return
    dim = _pick(_pick(shaped, rng).type.tensor_type.shape.dim, rng)
    dim.Clear()
    if rng.random() < 0.5:
        dim.dim_param = _pick(("batch", "h", "", "N"), rng)
    else:
        dim.dim_value = _pick((1, 2, 3, 32, 33, 96, 224), rng)
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")


def _output_of_node(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _pick(proto.graph.node, rng)
    choice = rng.random()
    if choice < 0.4 and node.output:
        node.output[int(rng.integers(len(node.output)))] = _pick([*_tensors(proto), *NAMES], rng)
    elif choice < 0.7:
        node.output.append(f"extra_{int(rng.integers(100))}")
    else:
        proto.graph.output.add().name = _pick(_tensors(proto), rng)


def _operator(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _pick(proto.graph.node, rng)
    choice = rng.random()
    if choice < 0.7:
        node.op_type = _pick(OPS, rng)
    elif choice < 0.8:
        node.domain = _pick(("ai.onnx", "com.microsoft", "ai.onnx.ml", "x" * 100, "\n"), rng)
    elif choice < 0.9:
        proto.graph.node.remove(node)
    else:
        proto.graph.node.add().CopyFrom(node)


def _weight(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    if not proto.graph.initializer:
        return
    tensor = _pick(proto.graph.initializer, rng)
    choice = int(rng.integers(6))
    if choice == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(DIMS, rng)
    elif choice == 1:
        tensor.data_type = int(rng.integers(0, 26))
    elif choice == 2:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
    elif choice == 3:
        _set_values(tensor, rng)
    elif choice == 4:
        tensor.name = _pick([*_tensors(proto), *NAMES], rng)
    else:
        _reshape(tensor, rng)


def _set_values(tensor: TensorProto, rng: np.random.Generator) -> None:
    """Some or all values become extreme, the form stays right."""
    try:
        values = numpy_helper.to_array(tensor).copy()
    except Exception:  # damaged before
        return
    if not values.size or values.dtype.kind not in "fiu":
        return
    new = _pick(FLOATS if values.dtype.kind == "f" else [value for value in INTS if abs(value) < 2**31], rng)
    where = slice(None) if rng.random() < 0.4 else int(rng.integers(values.size))
    with np.errstate(all="ignore"):
        values.reshape(-1)[where] = np.asarray(new).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _reshape(tensor: TensorProto, rng: np.random.Generator) -> None:
    dims = [*tensor.dims]
    choice = rng.integers(3)
    if choice == 0:
        dims.reverse()
    elif choice == 1:
        dims.append(1)
    else:
        dims = [int(np.prod(dims, dtype=np.int64))]
    tensor.dims[:] = dims


def _interface(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    value = _pick(values, rng)
    kind = value.type.tensor_type
    choice = int(rng.integers(5))
    if choice == 0:
        kind.elem_type = int(rng.integers(0, 26))
    elif choice == 1 and kind.shape.dim:
        dim = _pick(kind.shape.dim, rng)
        dim.Clear()
        if rng.random() < 0.5:
            dim.dim_value = _pick(DIMS, rng)
        else:
            dim.dim_param = _pick(NAMES, rng)
    elif choice == 2:
        kind.shape.dim.add().dim_value = _pick(DIMS, rng)
    elif choice == 3:
        value.name = _pick([*_tensors(proto), *NAMES], rng)
    else:
        value.type.Clear()


def _name(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Rename a node, or a tensor everywhere."""
    new = _pick(NAMES, rng)
    if rng.random() < 0.5:
        _pick(proto.graph.node, rng).name = new
        return
    old = _pick(_tensors(proto), rng)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer, *proto.graph.value_info):
        if value.name == old:
            value.name = new
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _header(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    choice = int(rng.integers(5))
    if choice == 0 and proto.opset_import:
        _pick(proto.opset_import, rng).version = int(rng.integers(-1, 40))
    elif choice == 1:
        proto.ir_version = int(rng.integers(0, 20))
    elif choice == 2:
        proto.opset_import.add().domain = _pick(NAMES, rng)
    elif choice == 3:
        proto.producer_name = _pick(NAMES, rng)
    else:
        proto.graph.doc_string = _pick(NAMES, rng)


def _subgraph(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An If in front of a node, with branches nested some levels deep."""
    node = _pick([node for node in proto.graph.node if node.input], rng)
    source = node.input[0]
    made = helper.make_node("Identity", [source], ["fuzz_0"])
    depth = int(_pick((1, 2, 3, 25), rng))
    for level in range(1, depth + 1):
        nested = helper.make_graph([made], "then", [], [helper.make_empty_tensor_value_info(made.output[0])])
        other = helper.make_node("Identity", [source], [f"fuzz_else_{level}"])
        flat = helper.make_graph([other], "else", [], [helper.make_empty_tensor_value_info(other.output[0])])
        made = helper.make_node("If", ["fuzz_condition"], [f"fuzz_{level}"], then_branch=nested, else_branch=flat)
    if not any(tensor.name == "fuzz_condition" for tensor in proto.graph.initializer):
        proto.graph.initializer.append(helper.make_tensor("fuzz_condition", TensorProto.BOOL, [], [True]))
    at = [*proto.graph.node].index(node)
    node.input[0] = made.output[0]
    proto.graph.node.insert(at, made)


def _external(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    if not proto.graph.initializer:
        return
    tensor = _pick(proto.graph.initializer, rng)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    location = _pick(("../../etc/passwd", "/etc/passwd", "model.onnx", "", ".", "a\x00b", "missing.bin", "\n"), rng)
    for key, value in (("location", location), ("offset", str(_pick(INTS, rng))), ("length", str(_pick(INTS, rng)))):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


EDITS: tuple[Callable[[onnx.ModelProto, np.random.Generator], None], ...] = (
    *[_attribute] * 3,
    *[_input_of_node] * 3,
    *[_weight] * 3,
    *[_operator] * 2,
    *[_interface] * 2,
    _output_of_node,
    _name,
    _header,
    _subgraph,
    _external,
)
MILD: tuple[Callable[[onnx.ModelProto, np.random.Generator], None], ...] = (
    *[_rewire] * 2,
    _same_arity,
    _more_outputs,
    *[_values] * 2,
    _free_dimension,
    _name,
    _attribute,
    _subgraph,
)
