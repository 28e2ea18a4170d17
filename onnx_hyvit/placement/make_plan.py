"""From a graph, its shapes and a target to a plan: colour the nodes, then read the quantized tensors off."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_graphsurgeon as gs

from ..errors import ConfigError, TargetError
from ..graph.edit import constant_of
from ..graph.io import Model
from ..numerics import QuantSpec
from ..targets import Target
from .colouring import CARRIED, INT8, PAIRED, Colouring, colour_nodes
from .full_mode import refine_full
from .plan import BiasSpec, FullMode, Plan
from .widths import WIDE_BITS, Widths

ASKED = "asked to stay float"


def make_plan(
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    residual: str = "auto",
    float_nodes: Collection[str] | Mapping[str, str] = (),
    int8_nodes: Collection[str] = (),
    full: FullMode | None = None,
    wide_nodes: Mapping[str, str] | None = None,
) -> Plan:
    """Decide which tensors are quantized.

    Args:
        model: Float model after the exact rewrites; not changed.
        shapes: Concrete shape of every tensor; a missing one only makes the decisions more careful.
        target: What the runtime can run.
        weight_bits: Bits of a weight code, 2 to 8; the target may allow fewer.
        activation_bits: Bits of an activation code, 2 to 8, or 16: then of every activation, and no Clip of codes
            takes the place of a Relu, for runtimes have none of 16 bits.
        residual: Residual additions: ``auto`` (the target's rule), ``float`` or ``int8``.
        float_nodes: Names of nodes that stay float whatever the target says, in a mapping each with its reason.
        int8_nodes: Names of additions and other glue that are int8 wherever the target has a kernel for them.
        full: Mode full, and how: also quantize what the target lists for it (attention products, softmax, norms,
            activations). None is mode partial.
        wide_nodes: Names of nodes to give 16-bit activations, each with the reason; those that are not int8 are left
            out, and what moves their codes is wide, too. Nothing changes where all activations have 16 bits.

    Returns:
        The plan; every node is in exactly one of ``int8_nodes``, ``carried_nodes`` and ``float_nodes``.

    Raises:
        TargetError: The target lists nothing for mode full.
        ConfigError: A name in ``float_nodes`` or ``int8_nodes`` is no node of the graph, or is in both.
    """
    _check_names(model.graph, float_nodes, int8_nodes)
    wanted = wide_nodes if wide_nodes and activation_bits < WIDE_BITS else {}
    if full is not None and not target.full:
        raise TargetError(
            f"target {target.name} has no rules for mode full; use mode partial, or give it a [full] table"
        )
    mode = target.residual if residual == "auto" else residual
    reasons = dict(float_nodes) if isinstance(float_nodes, Mapping) else dict.fromkeys(float_nodes, ASKED)
    colours = colour_nodes(model.graph, shapes, target, mode, reasons, frozenset(int8_nodes), full is not None)
    widths = Widths(model.graph, colours, wanted, target.activation_spec(WIDE_BITS), target.activation_spec(8))
    activations, tied = _activations(model.graph, colours, widths, target, activation_bits)
    plan = Plan(
        target=target.name,
        int8_nodes=_named(model.graph, colours, INT8),
        carried_nodes=_named(model.graph, colours, CARRIED),
        float_nodes=dict(colours.reasons),
        activations=activations,
        weights=_weights(colours, target, weight_bits),
        biases={} if target.float_bias else _biases(colours, widths),
        constants=_constants(model.graph, colours, target.activation_spec(max(8, activation_bits))),
        tied=tied,
        absorbed=dict(colours.absorbed),
        paired=_named(model.graph, colours, PAIRED),
        wide_nodes=widths.nodes,
        conversions=widths.conversions,
        fold_clip=target.fold_clip and activation_bits <= 8,
        shield_float=target.shield_float,
        mismatched_pairs=target.mismatched_pairs,
    )
    return plan if full is None else refine_full(model.graph, plan, full, activation_bits)


def _check_names(graph: gs.Graph, float_nodes: Collection[str], int8_nodes: Collection[str]) -> None:
    known = {node.name for node in graph.nodes}
    for name in (*float_nodes, *int8_nodes):
        if name not in known:
            raise ConfigError(f"node {name!r} is not in the graph; see `inspect` for the names")
    both = sorted(set(float_nodes) & set(int8_nodes))
    if both:
        raise ConfigError(f"node {both[0]!r} is asked to be float and int8")


def _named(graph: gs.Graph, colours: Colouring, colour: str) -> tuple[str, ...]:
    return tuple(node.name for node in graph.nodes if colours.of(node) == colour)


def _activations(
    graph: gs.Graph, colours: Colouring, widths: Widths, target: Target, bits: int
) -> tuple[dict[str, QuantSpec], dict[str, str]]:
    """Quantized tensors in graph order, and which share another's scale.

    What a layer reads has ``bits``. Tensors between int8 operators that no layer reads (a convolution's output in front
    of its activation function, a gate) have the 8 bits of the container: their codes are not operands of products of a
    layer, and narrower ones would neither be faster nor smaller. With 16 bits all have them: kernels of such runtimes
    take operands of one type. Operands of an int8 product of attention count as read by a layer.
    """
    names: dict[str, None] = {}
    tied: dict[str, str] = {}
    for node in graph.nodes:
        if not colours.is_int8(node) or node.name in colours.absorbed:
            continue
        inputs = [widths.read_by(node, tensor) for tensor in colours.quantized_inputs(node)]
        names.update(dict.fromkeys(inputs))
        for tensor in node.outputs if colours.of(node) == CARRIED else [colours.unit_output(node)]:
            if tensor.name in colours.float_outputs:
                continue
            names.setdefault(tensor.name)
            if colours.of(node) == CARRIED:
                tied[tensor.name] = tied.get(inputs[0], inputs[0])
    layers = {widths.read_by(unit.node, unit.activation) for unit in colours.weighted.values()}
    read = {tied.get(name, name) for name in layers | _factors(graph, colours, widths)}
    container, narrow, wide = (target.activation_spec(each) for each in (max(8, bits), bits, WIDE_BITS))
    specs = {name: narrow if tied.get(name, name) in read else container for name in names}
    return {name: wide if widths.is_wide(name) else spec for name, spec in specs.items()}, tied


def _factors(graph: gs.Graph, colours: Colouring, widths: Widths) -> set[str]:
    """Operands of the int8 products of two activations."""
    products = [
        node
        for node in graph.nodes
        if node.op == "MatMul" and colours.of(node) == INT8 and node.name not in colours.weighted
    ]
    return {widths.read_by(node, tensor) for node in products for tensor in colours.quantized_inputs(node)}


def _weights(colours: Colouring, target: Target, bits: int) -> dict[str, QuantSpec]:
    """Spec of each weight; one that two nodes read along different axes gets a single scale."""
    specs: dict[str, QuantSpec] = {}
    for unit in colours.weighted.values():
        axis = unit.axis if target.int8[unit.node.op].per_channel else None
        spec = target.weight_spec(bits, axis)
        if specs.setdefault(unit.weight.name, spec) != spec:
            specs[unit.weight.name] = target.weight_spec(bits, None)
    return specs


def _is_static(tensor: gs.Tensor) -> bool:
    return tensor.shape is not None and all(isinstance(dim, int) for dim in tensor.shape)


def _biases(colours: Colouring, widths: Widths) -> dict[str, BiasSpec]:
    """Biases that become int32 codes.

    A runtime turns MatMul and Add into one integer kernel only when shapes are fixed; with free dimensions the bias
    stays float, for its codes would be dequantized in every run.
    """
    biases: dict[str, BiasSpec] = {}
    for name, unit in colours.weighted.items():
        tensor, node = unit.bias, unit.node
        add = colours.bias_adds.get(name)
        if add is not None:
            tensor = next(operand for operand in add.inputs if operand is not unit.node.outputs[0])
            node = add
        if tensor is not None and (add is None or _is_static(unit.activation)):
            read = widths.read_by(unit.node, unit.activation)
            biases[name] = BiasSpec(tensor.name, read, unit.weight.name, node.name)
    return biases


def _constants(graph: gs.Graph, colours: Colouring, spec: QuantSpec) -> dict[str, QuantSpec]:
    return {
        tensor.name: spec
        for node in graph.nodes
        if colours.of(node) == INT8 and node.name not in colours.weighted and node.name not in colours.absorbed
        for tensor in node.inputs
        if constant_of(tensor) is not None
    }
