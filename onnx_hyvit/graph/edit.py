"""Small, safe edits of a ``gs.Graph``: the verbs that every pass is written in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

_THROUGH = ("Identity",)


def constant_of(tensor: gs.Tensor | None) -> np.ndarray | None:
    """Value of ``tensor`` when it is fixed: an initializer, a Constant node, or either seen through Identity.

    Args:
        tensor: Any tensor of the graph, or None.

    Returns:
        The array, or None when the value depends on an input.
    """
    while tensor is not None:
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        if len(tensor.inputs) != 1:
            return None
        node = tensor.inputs[0]
        if node.op == "Constant" and not node.domain:
            return _constant_attribute(node)
        if node.op not in _THROUGH:
            return None
        tensor = node.inputs[0]
    return None


def _constant_attribute(node: gs.Node) -> np.ndarray | None:
    for key, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if key in node.attrs:
            return np.asarray(node.attrs[key], dtype)
    for key in ("value_int", "value_ints"):
        if key in node.attrs:
            return np.asarray(node.attrs[key], np.int64)
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return np.asarray(value.values)
    return None if value is None else np.asarray(value)


def scalar_of(tensor: gs.Tensor | None) -> float | None:
    """Value of ``tensor`` as a Python float when it is a fixed array of one element, else None."""
    value = constant_of(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def is_graph_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is one of the graph's outputs (identity, not name)."""
    return any(output is tensor for output in graph.outputs)


def unique_name(graph: gs.Graph, stem: str) -> str:
    """A tensor and node name that starts with ``stem`` and that nothing in the graph has yet.

    Names in subgraphs count too, since ONNX forbids shadowing. The used names are collected once and remembered on
    the graph object, so repeated calls are cheap.
    """
    used = graph.__dict__.get("_hyvit_used_names")
    if used is None:
        used = set(_all_names(graph))
        graph._hyvit_used_names = used
    name, count = stem, 0
    while name in used:
        count += 1
        name = f"{stem}_{count}"
    used.add(name)
    return name


def _all_names(graph: gs.Graph) -> Iterator[str]:
    for tensor in [*graph.inputs, *graph.outputs]:
        yield tensor.name
    for node in graph.nodes:
        yield node.name
        for tensor in [*node.inputs, *node.outputs]:
            yield tensor.name
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _all_names(value)


def new_constant(graph: gs.Graph, stem: str, values: np.ndarray) -> gs.Constant:
    """An initializer with a fresh name; ``values`` keeps its dtype."""
    return gs.Constant(unique_name(graph, stem), np.asarray(values, order="C"))


def new_variable(
    graph: gs.Graph, stem: str, dtype: np.dtype | type | None = None, shape: Sequence[int | str] | None = None
) -> gs.Variable:
    """A variable tensor with a fresh name."""
    return gs.Variable(unique_name(graph, stem), dtype=dtype, shape=shape)


def add_node(
    graph: gs.Graph,
    op: str,
    inputs: Sequence[gs.Tensor],
    outputs: Sequence[gs.Tensor] | None = None,
    *,
    stem: str | None = None,
    attrs: Mapping[str, object] | None = None,
    domain: str | None = None,
) -> gs.Node:
    """Append a node to the graph (order is restored by ``graph.toposort()``).

    Args:
        graph: Graph to edit.
        op: ONNX operator.
        inputs: Input tensors.
        outputs: Output tensors; one fresh variable, typed like the first input, when None.
        stem: Start of the node's and of a fresh output's name; the operator when None.
        attrs: Attributes.
        domain: Operator domain; None is the default ONNX domain.

    Returns:
        The new node.
    """
    stem = stem or op
    if outputs is None:
        outputs = [new_variable(graph, f"{stem}_out", dtype=inputs[0].dtype if inputs else None)]
    node = gs.Node(
        op=op,
        name=unique_name(graph, stem),
        attrs=dict(attrs or {}),
        inputs=list(inputs),
        outputs=list(outputs),
        domain=domain,
    )
    graph.nodes.append(node)
    return node


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor, keep: Iterable[gs.Node] = ()) -> None:
    """Make every consumer of ``old`` read ``new`` instead, but those in ``keep``.

    ``old`` must not be a graph output: names of outputs belong to the user, so a rewrite that replaces the producer
    of an output must let its new node write the old tensor (see ``take_over_output``).
    """
    kept = {id(node) for node in keep}
    for node in list(old.outputs):
        if id(node) in kept:
            continue
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new


def take_over_output(node: gs.Node, tensor: gs.Tensor, index: int = 0) -> None:
    """Let ``node`` produce ``tensor`` as its output ``index``; the former producer loses it.

    This keeps the tensor's name and all its consumers, graph outputs included, and leaves the former producer
    without that output, to be dropped by ``graph.cleanup()``.
    """
    for producer in list(tensor.inputs):
        if len(producer.outputs) == 1:
            producer.outputs = []
        else:  # the other outputs keep their positions
            producer.outputs = [gs.Variable.empty() if other is tensor else other for other in producer.outputs]
    if index < len(node.outputs):
        node.outputs[index] = tensor
    else:
        node.outputs.append(tensor)


def producer_of(tensor: gs.Tensor | None) -> gs.Node | None:
    """The node that writes ``tensor``; None for inputs, initializers and absent (empty-name) tensors."""
    return tensor.inputs[0] if tensor is not None and tensor.inputs else None


def only_consumer_of(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The single node that reads ``tensor``; None when several do, none does, or it is a graph output."""
    if is_graph_output(graph, tensor) or len(tensor.outputs) != 1:
        return None
    return tensor.outputs[0]


def has_subgraph(node: gs.Node) -> bool:
    """Whether the node carries a body (If, Loop, Scan ...): such nodes are left alone by every pass."""
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())


def names_used_by_subgraphs(graph: gs.Graph) -> set[str]:
    """Names of outer tensors that bodies of If/Loop/Scan read: their producers may not be renamed or removed."""
    names: set[str] = set()
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names.update(_all_names(value))
    return names


def bypass(graph: gs.Graph, node: gs.Node, index: int = 0) -> bool:
    """Remove a node whose first output always equals its input ``index``; names of graph outputs are kept.

    Args:
        graph: Graph to edit.
        node: The node to drop; it loses its inputs and outputs, and ``graph.cleanup()`` removes it later.
        index: Which input its first output equals.

    Returns:
        False, with nothing changed, when the output is a graph output and the input may not be renamed to it (it is a
        graph input, another output, or an initializer).
    """
    source, output = node.inputs[index], node.outputs[0]
    if source is output or (source.dtype != output.dtype and None not in (source.dtype, output.dtype)):
        return False
    if not is_graph_output(graph, output):
        replace_uses(graph, output, source)
        node.outputs.clear()
        node.inputs.clear()
        return True
    producer = producer_of(source)
    if producer is None or is_graph_output(graph, source) or producer not in graph.nodes:
        return False
    if any(user not in graph.nodes for user in source.outputs):
        return False  # a body reads it under its name
    position = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
    replace_uses(graph, source, output, keep=[node])
    node.outputs.clear()
    node.inputs.clear()
    producer.outputs[position] = output
    return True


def static_shape(tensor: gs.Tensor | None) -> tuple[int, ...] | None:
    """Shape of ``tensor`` when every dimension is a known number, else None."""
    if tensor is None or tensor.shape is None:
        return None
    dims = tuple(tensor.shape)
    return dims if all(isinstance(dim, int) and dim >= 0 for dim in dims) else None


def same_shape(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Whether two shapes are known and equal: free dimensions by name, but those that shape inference made up."""
    if a.shape is None or b.shape is None or list(a.shape) != list(b.shape):
        return False
    return all(dim not in (None, "") and not str(dim).startswith("unk__") for dim in a.shape)


def rank_of(tensor: gs.Tensor | None) -> int | None:
    """Number of dimensions of ``tensor`` when known, else None."""
    return None if tensor is None or tensor.shape is None else len(tensor.shape)


def dim_of(tensor: gs.Tensor | None, axis: int) -> int | None:
    """Size of one axis of ``tensor`` when it is a known number, else None."""
    rank = rank_of(tensor)
    if tensor is None or rank is None or not -rank <= axis < rank:
        return None
    dim = tensor.shape[axis]
    return dim if isinstance(dim, int) and dim >= 0 else None


def ints_of(node: gs.Node, attribute: str, index: int | None = None) -> tuple[int, ...] | None:
    """Integers that newer opsets pass as input ``index`` and older ones as an attribute (axes, pads, starts ...).

    Args:
        node: The node.
        attribute: Name of the attribute form.
        index: Position of the input form.

    Returns:
        The numbers; None when they are absent or not fixed (tell the two apart with ``has_input``).
    """
    if index is not None and has_input(node, index):
        value = constant_of(node.inputs[index])
        return None if value is None else tuple(int(v) for v in value.reshape(-1))
    given = node.attrs.get(attribute)
    if given is None:
        return None
    return tuple(int(v) for v in given) if isinstance(given, (list, tuple, np.ndarray)) else (int(given),)


def has_input(node: gs.Node, index: int) -> bool:
    """Whether the node's input ``index`` is present and not the empty name."""
    return index < len(node.inputs) and not node.inputs[index].is_empty()
