"""Emulate logarithmic codes of softmax outputs: float functions that travel inside the model.

Before
    Softmax(x) -> readers
After, codes of what the softmax gives
    Softmax(x) -> LogQuantize -> readers
After, codes of an integer softmax
    LogIntSoftmax(x) -> readers
Conditions
    The softmax runs along its last axis.
Both are functions of the domain ``onnx_hyvit``, written out in standard operators; every runtime inlines them.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs

from ..graph.edit import add_node, new_constant, new_variable
from ..numerics.log_codes import LogCodes

DOMAIN = "onnx_hyvit"
QUANTIZE, SOFTMAX = "LogQuantize", "LogIntSoftmax"
_TINY = float(np.finfo(np.float32).tiny)
_BODIES = {
    QUANTIZE: f"""{QUANTIZE} (x, scale, last, per_octave) => (y) {{
        tiny = Constant <value_float: float = {_TINY!r}> ()
        two = Constant <value_float: float = 2.0> ()
        zero = Constant <value_float: float = 0.0> ()
        relative = Div (x, scale)
        ratio = Max (relative, tiny)
        log = Log (ratio)
        octave = Log (two)
        octaves = Div (log, octave)
        falling = Neg (octaves)
        position = Mul (falling, per_octave)
        nearest = Round (position)
        code = Max (nearest, zero)
        exponent = Div (code, per_octave)
        negative = Neg (exponent)
        power = Pow (two, negative)
        value = Mul (scale, power)
        small = LessOrEqual (relative, tiny)
        below = Greater (code, last)
        gone = Or (small, below)
        y = Where (gone, zero, value)
    }}""",
    # exp(z) = 2^-q exp(r) with r in (-ln 2, 0]. A ratio v is whole; its nearest power of two counts from 1.5 up, so the
    # code is floor(log2(4/3 v)), where 1/4 more keeps the border cases clear of rounding.
    SOFTMAX: f"""{SOFTMAX} (x, a, b, c, last) => (y) {{
        one = Constant <value_ints: ints = [1]> ()
        end = Constant <value_ints: ints = [-1]> ()
        two = Constant <value_float: float = 2.0> ()
        zero = Constant <value_float: float = 0.0> ()
        tiny = Constant <value_float: float = {_TINY!r}> ()
        quarter = Constant <value_float: float = 0.25> ()
        thirds = Constant <value_float: float = {4 / 3!r}> ()
        octave = Log (two)
        most, where = TopK <axis: int = -1> (x, one)
        z = Sub (x, most)
        depth = Div (z, octave)
        up = Neg (depth)
        q = Floor (up)
        back = Mul (q, octave)
        r = Add (z, back)
        squared = Mul (a, r)
        slope = Add (squared, b)
        tilted = Mul (slope, r)
        part = Add (tilted, c)
        down = Neg (q)
        shift = Pow (two, down)
        shifted = Mul (part, shift)
        exp = Max (shifted, tiny)
        sum = ReduceSum <keepdims: int = 1> (exp, end)
        quotient = Div (sum, exp)
        ratio = Round (quotient)
        clear = Add (ratio, quarter)
        wide = Mul (clear, thirds)
        log = Log (wide)
        octaves = Div (log, octave)
        code = Floor (octaves)
        negative = Neg (code)
        power = Pow (two, negative)
        beyond = Greater (code, last)
        y = Where (beyond, zero, power)
    }}""",
}


def emulate_log_codes(graph: gs.Graph, softmax: gs.Node, codes: LogCodes, scale: float) -> None:
    """Put ``codes`` on the output of ``softmax``, which is edited in place.

    Args:
        graph: Graph to edit.
        softmax: A Softmax along the last axis; its readers see the value of the codes under the old name.
        codes: Which codes.
        scale: The value of code 0; 1 where the softmax is an integer one.
    """
    output = softmax.outputs[0]
    last = _number(graph, f"{output.name}_last_code", codes.last)
    if codes.exp is not None:
        terms = [
            _number(graph, f"{output.name}_exp_{name}", value) for name, value in zip("abc", codes.exp, strict=True)
        ]
        softmax.op, softmax.domain = SOFTMAX, DOMAIN
        softmax.attrs.clear()
        softmax.inputs = [softmax.inputs[0], *terms, last]
        return
    exact = new_variable(graph, f"{output.name}_exact", np.float32, output.shape)
    softmax.outputs = [exact]
    step = _number(graph, f"{output.name}_per_octave", codes.per_octave)
    inputs = [exact, _number(graph, f"{output.name}_largest", scale), last, step]
    add_node(graph, QUANTIZE, inputs, [output], stem=f"{output.name}_{QUANTIZE}", domain=DOMAIN)


def with_functions(skeleton: onnx.ModelProto, used: set[str], opset: int) -> onnx.ModelProto:
    """A copy of ``skeleton`` that carries the functions in ``used``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    for name in sorted(used):
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        copy.functions.append(onnx.parser.parse_function(header + _BODIES[name]))
    copy.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return copy


def functions_of(codes: LogCodes) -> str:
    """Name of the function that ``codes`` need."""
    return SOFTMAX if codes.exp is not None else QUANTIZE


def _number(graph: gs.Graph, stem: str, value: float) -> gs.Constant:
    return new_constant(graph, stem, np.array(value, np.float32))
