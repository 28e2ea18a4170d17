"""Compute regions of pixel-wise operators between two movements of data with the channels last.

Before
    movement -> [B, C, P, N]: 1x1 Conv, activations, Add, Mul, Split, Softmax, ReduceSum, Expand,
                whole-sample normalization (InstanceNormalization of one channel between Reshapes) -> movement
After
    movement -> [B, P, N, C]: MatMul + Add in place of 1x1 Conv, the other operators on the permuted axes;
                ReduceSum(k * s) over one axis is MatMul(s, k), an Expand that broadcasting repeats is dropped
    -> movement
Conditions
    1. the region is closed: every tensor that enters comes from a movement (Reshape, Transpose ...), every one that
       leaves goes to one, none is a graph output; so the Transposes put at its borders merge with movements;
    2. all its tensors have rank 4 with a known number of channels, and it has at least two 1x1 convolutions without
       groups, stride and padding;
    3. constants are scalars or vary along the channels only.
In int8 a 1x1 convolution is computed with the channels last, so between float operators each one costs two Transposes.
This is the separable attention of MobileViTv2, whose unfolding and folding surround the region.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ...graph.edit import add_node, constant_of, dim_of, is_graph_output, new_variable, take_over_output
from ...graph.io import Model
from ...graph.pattern import NearMiss
from ..infrastructure import GraphPass
from .compose_movement import MOVES
from .flip_node import PERM, can_flip, flip, whole_sample_norm

INVERSE = (0, 3, 1, 2)


class _Open(Exception):
    """The region has a border that is no movement; the message says where."""


def apply(model: Model, near_misses: list[NearMiss]) -> int:
    """Flip every closed region; a region is found from each movement that ends in rank 4."""
    graph = model.graph
    count = 0
    seen: set[int] = set()
    for node in list(graph.nodes):
        if node.op not in MOVES or id(node) in seen or len(node.outputs) != 1 or whole_sample_norm(node):
            continue
        if not any(user.op == "Conv" or whole_sample_norm(user) for user in node.outputs[0].outputs):
            continue
        try:
            region = _Region(graph, node.outputs[0])
        except _Open as reason:
            near_misses.append(NearMiss(str(reason), node.name))
            continue
        seen.update(id(tensor.inputs[0]) for tensor in region.entries)
        if sum(member.op == "Conv" for member in region.nodes) >= 2:
            region.rewrite()
            graph.cleanup().toposort()
            count += 1
    return count


class _Region:
    """Tensors to flip, found from one of them by following readers and producers until movements are reached."""

    def __init__(self, graph: gs.Graph, seed: gs.Tensor) -> None:
        self.graph = graph
        self.tensors: dict[int, gs.Tensor] = {}
        self.nodes: list[gs.Node] = []
        self.entries: list[gs.Tensor] = []
        self.exits: list[gs.Tensor] = []
        pending = [seed]
        while pending:
            tensor = pending.pop()
            if id(tensor) in self.tensors:
                continue
            self._check(tensor)
            self.tensors[id(tensor)] = tensor
            pending += self._behind(tensor)
            pending += self._ahead(tensor)

    def _check(self, tensor: gs.Tensor) -> None:
        if tensor.shape is None or len(tensor.shape) != 4 or dim_of(tensor, 1) is None:
            raise _Open(f"tensor {tensor.name!r} is not of rank 4 with known channels")
        if is_graph_output(self.graph, tensor) or not tensor.inputs:
            raise _Open(f"tensor {tensor.name!r} is an input or output of the graph")

    def _behind(self, tensor: gs.Tensor) -> list[gs.Tensor]:
        producer = tensor.inputs[0]
        norm = whole_sample_norm(producer)
        if norm is not None:
            return self._visit(producer, [norm[0].inputs[0]])
        if producer.op in MOVES:
            self.entries.append(tensor)
            return []
        return self._visit(producer)

    def _ahead(self, tensor: gs.Tensor) -> list[gs.Tensor]:
        found: list[gs.Tensor] = []
        leaves = False
        for user in tensor.outputs:
            norm = whole_sample_norm(user)
            if norm is not None:
                found += self._visit(norm[-1], [tensor])
            elif user.op in MOVES:
                leaves = True
            else:
                found += self._visit(user)
        if leaves:
            self.exits.append(tensor)
        return found

    def _visit(self, node: gs.Node, inputs: list[gs.Tensor] | None = None) -> list[gs.Tensor]:
        """Take ``node`` in, and return the activations around it."""
        if any(node is member for member in self.nodes):
            return []
        if inputs is None:
            reason = can_flip(node)
            if reason is not None:
                raise _Open(f"{node.name}: {reason}")
            inputs = [tensor for tensor in node.inputs if not tensor.is_empty() and constant_of(tensor) is None]
        self.nodes.append(node)
        return [*inputs, *node.outputs]

    def rewrite(self) -> None:
        """Flip every tensor and node; Transposes go on the borders."""
        flipped = {
            key: new_variable(
                self.graph, f"{tensor.name}_nhwc", dtype=tensor.dtype, shape=[tensor.shape[axis] for axis in PERM]
            )
            for key, tensor in self.tensors.items()
        }
        leaving = [
            (tensor, [user for user in tensor.outputs if self._is_outside(user)])
            for tensor in self.exits
            if not self._enters(tensor)
        ]
        for tensor in self.entries:
            attrs = {"perm": list(PERM)}
            add_node(self.graph, "Transpose", [tensor], [flipped[id(tensor)]], stem="to_channels_last", attrs=attrs)
        for node in self.nodes:
            flip(self.graph, node, flipped)
        for tensor, users in leaving:
            attrs = {"perm": list(INVERSE)}
            last = add_node(self.graph, "Transpose", [flipped[id(tensor)]], [], stem="to_channels_first", attrs=attrs)
            outside = new_variable(self.graph, f"{tensor.name}_nchw", dtype=tensor.dtype, shape=list(tensor.shape))
            take_over_output(last, outside)
            for user in users:
                user.inputs = [outside if given is tensor else given for given in user.inputs]

    def _enters(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` comes from outside, so that readers outside go on reading it as it is."""
        return any(tensor is other for other in self.entries)

    def _is_outside(self, user: gs.Node) -> bool:
        return user.op in MOVES and whole_sample_norm(user) is None


PASS = GraphPass("channels_last_region", apply)
