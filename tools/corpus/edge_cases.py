"""Hand-made graphs, each with one thing that a graph tool easily breaks or overlooks.

All but a few hold the same small classifier in ONNX text form (two convolutions, a pooling and a Gemm), so that the
special thing is the only difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

BODY = """
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (c)
  d = Conv <kernel_shape = [1, 1]> (r, w2)
  s = Add (d, r)
  g = GlobalAveragePool (s)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w3, b3)
"""
CASES: dict[str, tuple[str, Callable[[], onnx.ModelProto]]] = {}


def case(what: str) -> Callable[[Callable[[], onnx.ModelProto]], Callable[[], onnx.ModelProto]]:
    """Registers a builder under its function's name; `what` says what is special."""

    def register(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        CASES[build.__name__] = (what, build)
        return build

    return register


def weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    """Seeded random float32 initializers of deviation 1/sqrt(fan_in)."""
    random = np.random.default_rng(5)
    found = []
    for name, shape in shapes.items():
        value = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1.0)
        found.append(numpy_helper.from_array(value.astype(np.float32), name))
    return found


STANDARD = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 1, 1), "w3": (5, 8), "b3": (5,)}


def model(
    body: str = BODY,
    inputs: str = "float[1,3,16,16] x",
    outputs: str = "float[1,5] y",
    opset: int = 17,
    ir: int = 8,
    shapes: dict[str, tuple[int, ...]] | None = None,
    domains: str = "",
    functions: str = "",
) -> onnx.ModelProto:
    """A model from ONNX text, with random initializers."""
    imports = f'"" : {opset}{domains}'
    head = f"<ir_version: {ir}, opset_import: [{imports}]>"
    made = parser.parse_model(f"{head}\nedge ({inputs}) => ({outputs}) {{{body}}}\n{functions}")
    made.graph.initializer.extend(weights(**(STANDARD if shapes is None else shapes)))
    return made


@case("If with captured outer tensors, a weight and a Conv inside each branch")
def if_subgraph() -> onnx.ModelProto:
    body = BODY.replace(
        "d = Conv <kernel_shape = [1, 1]> (r, w2)",
        """
  m = ReduceMean <keepdims = 0> (r)
  zero = Constant <value = float {0.0}> ()
  positive = Greater (m, zero)
  d = If (positive) <
    then_branch = then_graph () => (float[1,8,16,16] t) { t = Conv <kernel_shape = [1, 1]> (r, w2) },
    else_branch = else_graph () => (float[1,8,16,16] e) { n = Neg (w2) e = Conv <kernel_shape = [1, 1]> (r, n) }
  >""",
    )
    return model(body)


@case("Loop whose body holds a Conv with an outer weight")
def loop_subgraph() -> onnx.ModelProto:
    body = BODY.replace(
        "d = Conv <kernel_shape = [1, 1]> (r, w2)",
        """
  trips = Constant <value = int64 {3}> ()
  go = Constant <value = bool {1}> ()
  d = Loop (trips, go, r) <
    body = loop_body (int64 i, bool again, float[1,8,16,16] state) => (bool again_out, float[1,8,16,16] state_out) {
      again_out = Identity (again)
      state_out = Conv <kernel_shape = [1, 1]> (state, w2)
    }
  >""",
    )
    return model(body)


@case("local function (FunctionProto) used twice, with a Conv inside and an attribute reference")
def local_function() -> onnx.ModelProto:
    function = """
<domain: "local", opset_import: ["" : 17]>
conv_leaky <alpha> (a, weight) => (b) {
  z = Conv <kernel_shape = [1, 1]> (a, weight)
  b = LeakyRelu <alpha: float = @alpha> (z)
}"""
    body = BODY.replace(
        "d = Conv <kernel_shape = [1, 1]> (r, w2)",
        """
  q = local.conv_leaky <alpha = 0.2> (r, w2)
  d = local.conv_leaky <alpha = 0.1> (q, w2)""",
    )
    return model(body, domains=', "local" : 1', functions=function)


@case("two image inputs of different size")
def two_inputs() -> onnx.ModelProto:
    body = BODY.replace(
        "d = Conv <kernel_shape = [1, 1]> (r, w2)",
        """
  k = Conv <kernel_shape = [2, 2], strides = [2, 2]> (x2, w4)
  d = Conv <kernel_shape = [1, 1]> (k, w2)""",
    )
    inputs = "float[1,3,16,16] x, float[1,3,32,32] x2"
    return model(body, inputs=inputs, shapes={**STANDARD, "w4": (8, 3, 2, 2)})


@case("one initializer used by two convolutions, another by a convolution (reshaped) and by a Gemm")
def shared_weights() -> onnx.ModelProto:
    body = BODY.replace(
        "d = Conv <kernel_shape = [1, 1]> (r, w2)",
        """
  d1 = Conv <kernel_shape = [1, 1]> (r, w2)
  d2 = Relu (d1)
  d3 = Conv <kernel_shape = [1, 1]> (d2, w2)
  shape4 = Constant <value = int64[4] {8, 8, 1, 1}> ()
  m4 = Reshape (m, shape4)
  d = Conv <kernel_shape = [1, 1]> (d3, m4)""",
    ).replace("f = Flatten (g)", "h = Flatten (g)\n  f = Gemm (h, m)")
    return model(body, shapes={**STANDARD, "m": (8, 8)})


@case("initializers in a file of their own (external_data.onnx.data)")
def external_data() -> onnx.ModelProto:
    return model()


@case("float16 initializers behind Cast nodes, float32 arithmetic")
def fp16_initializers() -> onnx.ModelProto:
    body = "\n".join(f"  {name} = Cast <to = 1> ({name}_half)" for name in STANDARD) + BODY
    made = model(body, shapes={f"{name}_half": shape for name, shape in STANDARD.items()})
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return made


@case("float16 throughout, input and output too")
def fp16_model() -> onnx.ModelProto:
    made = model(inputs="float16[1,3,16,16] x", outputs="float16[1,5] y")
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return made


@case("a graph output that nodes inside also consume")
def output_consumed_inside() -> onnx.ModelProto:
    return model(outputs="float[1,5] y, float[1,8,16,16] r")


@case("initializers that are graph inputs too (IR version 3 style)")
def initializers_as_inputs() -> onnx.ModelProto:
    made = model(opset=8, ir=3)
    for tensor in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return made


@case("an operator of an unknown domain: loads in onnx, not in ONNX Runtime")
def custom_domain() -> onnx.ModelProto:
    body = BODY.replace("r = Relu (c)", "r = example.vision.Sharpen <strength = 0.5> (c)")
    return model(body, domains=', "example.vision" : 1')


@case("already quantized: QuantizeLinear and DequantizeLinear around Conv and Gemm")
def already_quantized() -> onnx.ModelProto:
    body = """
  xq = QuantizeLinear (x, sx, zx)
  xd = DequantizeLinear (xq, sx, zx)
  wd = DequantizeLinear <axis = 0> (wq, sw, zw)
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (xd, wd)
  cq = QuantizeLinear (c, sc, zx)
  cd = DequantizeLinear (cq, sc, zx)
  g = GlobalAveragePool (cd)
  f = Flatten (g)
  y = Gemm <transB = 1> (f, w3, b3)
"""
    made = model(body, shapes={"w3": (5, 8), "b3": (5,)})
    random = np.random.default_rng(6)
    values = {
        "sx": np.float32(0.03),
        "zx": np.uint8(128),
        "sc": np.float32(0.05),
        "wq": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "sw": random.uniform(0.001, 0.004, 8).astype(np.float32),
        "zw": np.zeros(8, np.int8),
    }
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    return made


@case("no node that could be quantized")
def nothing_to_quantize() -> onnx.ModelProto:
    body = """
  h = HardSigmoid (x)
  t = Transpose <perm = [0, 2, 3, 1]> (h)
  y = ReduceMax <axes = [1, 2], keepdims = 0> (t)
"""
    return model(body, outputs="float[1,3] y", shapes={})


@case("optional inputs given as empty strings (Clip without minimum, Resize without roi and scales)")
def empty_optional_inputs() -> onnx.ModelProto:
    body = BODY.replace(
        "r = Relu (c)",
        """
  top = Constant <value = float {1.5}> ()
  r0 = Clip (c, , top)
  size = Constant <value = int64[4] {1, 8, 8, 8}> ()
  r = Resize <mode = "linear"> (r0, , , size)""",
    )
    made = model(body)
    return made


@case("opset 9 with Upsample, the operator that Resize replaced")
def upsample_opset_9() -> onnx.ModelProto:
    body = BODY.replace(
        "r = Relu (c)",
        """
  r0 = Relu (c)
  up = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
  r = Upsample <mode = "nearest"> (r0, up)""",
    )
    return model(body, opset=9, ir=4)


@case("opset 11 with Resize (roi given) and Pad with its pads as an input")
def resize_opset_11() -> onnx.ModelProto:
    body = BODY.replace(
        "r = Relu (c)",
        """
  r0 = Relu (c)
  roi = Constant <value = float[8] {0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0}> ()
  up = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
  r1 = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (r0, roi, up)
  pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
  r = Pad (r1, pads)""",
    )
    return model(body, opset=11, ir=6)


@case("metadata_props and doc_strings on model, graph, nodes, values and initializers")
def metadata_everywhere() -> onnx.ModelProto:
    made = model(ir=10, opset=20)
    made.producer_name, made.producer_version, made.model_version = "edge", "1.2", 7
    made.domain, made.doc_string, made.graph.doc_string = "org.example", "the model", "the graph"
    helper.set_model_props(made, {"classes": "a,b,c,d,e", "author": "nobody"})
    carriers: list[Any] = [*made.graph.node, *made.graph.initializer, *made.graph.input, *made.graph.output]
    for carrier in [made.graph, *carriers]:
        carrier.metadata_props.add(key="note", value=f"about {carrier.name or 'it'}")
    for carrier in carriers:
        carrier.doc_string = f"documentation of {carrier.name or 'it'}"
    return made


@case("no node has a name")
def nameless_nodes() -> onnx.ModelProto:
    made = model()
    for node in made.graph.node:
        node.name = ""
    return made


@case("two nodes have the same name: passes the checker, ONNX Runtime refuses it")
def duplicate_node_names() -> onnx.ModelProto:
    made = model()
    for node in made.graph.node[:2]:
        node.name = "node"
    return made


@case("an initializer and nodes that nothing uses")
def dead_ends() -> onnx.ModelProto:
    return model(
        BODY + "  u = Sigmoid (c)\n  v = Conv <kernel_shape = [1, 1]> (u, w4)\n",
        shapes={**STANDARD, "w4": (2, 8, 1, 1), "unused": (4, 4)},
    )


@case("weights as Constant nodes, one of them through Identity, and none as initializer")
def constant_nodes() -> onnx.ModelProto:
    made = model(shapes={})
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in weights(**STANDARD)]
    nodes[0].output[0] = "w1_constant"
    nodes.insert(1, helper.make_node("Identity", ["w1_constant"], ["w1"]))
    body = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*nodes, *body])
    return made


@case("open batch, height and width without names, and a scalar-shaped second output")
def anonymous_dynamic_axes() -> onnx.ModelProto:
    made = model(
        BODY + "  loss = ReduceMean <keepdims = 0> (y)\n", inputs="float[N,3,H,W] x", outputs="float[N,5] y, float loss"
    )
    for value in (made.graph.input[0], made.graph.output[0]):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.Clear()
    return made
