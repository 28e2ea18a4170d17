"""Insert the Q/DQ pairs of a plan into a copy of the graph.

Names: the pair of tensor ``t`` is ``t_QuantizeLinear`` and ``t_DequantizeLinear``. When an int8 node makes ``t``, the
name ``t`` moves to the pair's output, so that every reader (graph outputs and bodies of If and Loop too) sees the
quantized value under the old name, and the node itself writes ``t_QuantizeLinear_Input``. When a float node makes
``t``, it keeps its name and int8 nodes read ``t_DequantizeLinear_Output``. Converted codes have a name in the plan,
which is that of the tensor that their readers read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..errors import CalibrationError, ModelError
from ..graph.edit import add_node, new_variable, replace_uses, scalar_of
from ..graph.io import Model, Origin
from ..numerics import QParams, quantize
from ..placement import Plan
from .conversions import insert_conversions
from .fold_scale import find_products, fold_scales, product_scales
from .initializers import insert_biases, insert_constants, insert_weights
from .linear_to_convolution import linear_to_convolution
from .log_softmax import emulate_log_codes, functions_of, with_functions
from .pair import Limits, add_params, write_pair
from .resize_to_gather import resize_to_gather

MIN_OPSET = 13
FUSED_BETWEEN_PAIRS = frozenset({"Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "Softmax", "AveragePool"}) | frozenset(
    {"GlobalAveragePool", "MatMul"}
)
_Q_MOVES_PAST = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten"})


def insert_qdq(
    model: Model, plan: Plan, qparams: Mapping[str, QParams], parameters: Mapping[str, np.ndarray] | None = None
) -> Model:
    """A quantized copy of ``model``.

    Args:
        model: Float model that ``plan`` was made for; not changed.
        plan: Where Q/DQ pairs go.
        qparams: Scale and zero point of every activation in ``plan.activations`` that is not tied to another. Weights
            may be given too; else they are quantized from their extremes.
        parameters: Values that take the place of weights and biases of int8 nodes, by initializer name, of the same
            shape; float nodes keep what they have.

    Returns:
        A new model: activations behind Q/DQ pairs, weights int8 and biases int32 behind DQ, everything else as it was.

    Raises:
        CalibrationError: An activation of the plan has no scale; names it.
        ModelError: The opset is below 13, which has no scales per channel.
    """
    if model.opset < MIN_OPSET:
        raise ModelError(f"{model.path}: opset {model.opset} has no scales per channel; raise it to 17")
    graph = model.graph.copy()
    nodes = {node.name: node for node in graph.nodes}
    _write_parameters(nodes, plan, parameters or {})
    shared = insert_conversions(graph, plan, {name: _params_of(name, plan, qparams) for name in plan.conversions})
    plan, qparams = linear_to_convolution(graph, plan, qparams)
    plan = resize_to_gather(graph, plan)
    tensors = graph.tensors()
    scales = {name: _params_of(name, plan, qparams) for name in plan.activations}
    products = find_products(graph, plan, scales) if plan.mismatched_pairs else {}
    scales = product_scales(graph, products, plan, scales)
    weight_scales = insert_weights(graph, nodes, tensors, plan, qparams, scales)
    insert_biases(graph, nodes, tensors, plan, scales, weight_scales)
    insert_constants(graph, nodes, tensors, plan)
    docs = dict(model.origin.node_docs)
    producers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    for name, params in scales.items():
        if name in plan.conversions:
            continue
        if name in plan.log_codes:
            emulate_log_codes(graph, producers[name], plan.log_codes[name], _largest(params))
            continue
        tensor, source = tensors[name], plan.source_of(name)
        limits = _fold_clip(graph, plan, tensor, params)
        if source not in shared:
            shared[source] = add_params(graph, source, params)
        limits = None if name in plan.tied else limits
        _insert_pair(graph, plan, tensor, shared[source], params, limits, docs)
    fold_scales(graph, products)
    graph.cleanup().toposort()
    used = {functions_of(codes) for codes in plan.log_codes.values()}
    skeleton = with_functions(model.origin.skeleton, used, model.opset) if used else model.origin.skeleton
    return Model(graph, model.opset, Origin(skeleton, docs, model.origin.path))


def _params_of(name: str, plan: Plan, qparams: Mapping[str, QParams]) -> QParams:
    source = plan.source_of(name)
    if source not in qparams:
        raise CalibrationError(f"tensor {source!r} is quantized by the plan but has no scale; calibrate it")
    return qparams[source]


def _largest(params: QParams) -> float:
    """The largest value that uniform codes stand for."""
    return float((params.spec.qmax - int(params.zero_point)) * params.scale)


def _write_parameters(nodes: Mapping[str, gs.Node], plan: Plan, values: Mapping[str, np.ndarray]) -> None:
    """Put new values into the constant inputs of int8 nodes."""
    for name in plan.int8_nodes:
        for tensor in nodes[name].inputs:
            if tensor.name in values and isinstance(tensor, gs.Constant):
                tensor.values = np.ascontiguousarray(values[tensor.name], np.float32).reshape(tensor.values.shape)


def _fold_clip(graph: gs.Graph, plan: Plan, tensor: gs.Tensor, params: QParams) -> Limits | None:
    """Remove the Relu or Clip that an int8 node absorbed in front of ``tensor``; returns the codes that stay allowed.

    ``Q`` is monotone, so ``Q(clip(x, low, high)) = clip(Q(x), Q(low), Q(high))`` exactly.
    """
    spec = params.spec
    low, high = spec.qmin, spec.qmax
    node = tensor.inputs[0] if tensor.inputs else None
    folds = plan.fold_clip and spec.bits <= 8  # no runtime clips 16-bit codes
    if folds and node is not None and node.name in plan.absorbed and node.op in ("Relu", "Clip"):
        bottom = 0.0 if node.op == "Relu" else _limit(node, 1)
        top = None if node.op == "Relu" else _limit(node, 2)
        low = low if bottom is None else int(quantize(np.float32(bottom), params))
        high = high if top is None else int(quantize(np.float32(top), params))
        producer = node.inputs[0].inputs[0]
        node.inputs.clear()
        node.outputs.clear()
        producer.outputs[0] = tensor
        graph.nodes.remove(node)
    if spec.is_full_container and (low, high) == (spec.qmin, spec.qmax):
        return None
    return low, high


def _limit(node: gs.Node, index: int) -> float | None:
    present = len(node.inputs) > index and node.inputs[index].name
    return scalar_of(node.inputs[index]) if present else None


def _insert_pair(
    graph: gs.Graph,
    plan: Plan,
    tensor: gs.Tensor,
    params: tuple[gs.Constant, gs.Constant],
    qparams: QParams,
    limits: Limits | None,
    docs: dict[str, onnx.NodeProto],
) -> None:
    """Put Q, Clip of the codes when ``limits`` ask for it, and DQ on ``tensor``."""
    on_codes = plan.on_codes
    stem, shape = tensor.name, tensor.shape
    made_in_int8 = bool(tensor.inputs) and tensor.inputs[0].name in on_codes
    if made_in_int8:
        producer = tensor.inputs[0]
        source = new_variable(graph, f"{stem}_QuantizeLinear_Input", np.float32, shape)
        producer.outputs[next(i for i, output in enumerate(producer.outputs) if output is tensor)] = source
        if stem in docs:
            docs[source.name] = docs[stem]
        result = tensor
    else:
        source = tensor
        result = new_variable(graph, f"{stem}_DequantizeLinear_Output", np.float32, shape)
        replace_uses(graph, tensor, result, keep=[node for node in tensor.outputs if node.name not in on_codes])
    float_made = not made_in_int8 or producer.name in plan.paired
    per_channel = qparams.spec.axis is not None
    shielded = plan.shield_float and float_made and (_would_be_fused(source) or _would_be_pooled_as_codes(source))
    if shielded or (per_channel and _has_kernel(source)):
        behind = new_variable(graph, f"{stem}_Shield_Output", np.float32, shape)
        add_node(graph, "Sum", [source], [behind], stem=f"{stem}_Shield")
        source = behind
    write_pair(graph, stem, source, result, params, qparams, limits)


def _has_kernel(tensor: gs.Tensor) -> bool:
    """Whether the node that writes ``tensor`` has an int8 kernel, which a Q per channel right behind would break."""
    return bool(tensor.inputs) and tensor.inputs[0].op in FUSED_BETWEEN_PAIRS | {"Conv", "ConvTranspose", "Gemm"}


def _would_be_fused(tensor: gs.Tensor) -> bool:
    """Whether a runtime would make an int8 kernel of the float node that writes ``tensor``, once Q reads it.

    That happens to an operator with an int8 kernel between DQs and Q, whatever the plan says, and to a convolution or
    Gemm behind a DQ, whose float weights are then quantized with one scale.
    """
    node = tensor.inputs[0] if tensor.inputs else None
    while node is not None and node.op in ("Relu", "Clip") and node.inputs[0].inputs:
        node = node.inputs[0].inputs[0]
    if node is None or len(node.outputs) != 1:
        return False
    dequantized = [bool(operand.inputs) and operand.inputs[0].op == "DequantizeLinear" for operand in node.inputs]
    if node.op in ("Conv", "ConvTranspose", "Gemm"):
        return dequantized[0] and not dequantized[1]
    return node.op in FUSED_BETWEEN_PAIRS and all(dequantized)


def _would_be_pooled_as_codes(tensor: gs.Tensor) -> bool:
    """Whether a runtime would move the Q behind ``tensor`` in front of a float MaxPool.

    ONNX Runtime (1.32) does, past movement as well; the int8 kernel for channels first that it then runs takes 20 ns
    for each value, 50 times what the float one does. Behind an int8 convolution there is a fast one, for channels last.
    """
    node = tensor.inputs[0] if tensor.inputs else None
    while node is not None and node.op in _Q_MOVES_PAST:
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    return node is not None and node.op == "MaxPool"
