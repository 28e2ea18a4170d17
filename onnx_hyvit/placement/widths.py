"""Which nodes work on 16-bit codes, and where a conversion stands between them and nodes with narrower ones.

Kernels take operands of one type, so a *wide* node reads and writes 16-bit codes only, and any other node none. Where
one reads what the other makes, the codes are converted: quantized once more, from what they stand for, for all readers
of that width together. What a float node makes is quantized for each width from the float value itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from ..numerics import QuantSpec
from .colouring import CARRIED, FLOAT, Colouring
from .plan import Conversion

WIDE_BITS = 16
MOVES_WIDE = "it moves 16-bit codes"


def converted_name(tensor: str, spec: QuantSpec) -> str:
    """Name of the activation that has the values of ``tensor`` in codes of another width."""
    return f"{tensor}_as_{spec.dtype}"


class Widths:
    """The width of every node of a graph, and the activation that each reads in place of a tensor.

    Args:
        graph: The graph.
        colours: The colours of its nodes.
        wanted: Names of int8 and paired nodes that are to be wide, each with the reason; all others are left out.
        wide: Spec of 16-bit activations.
        narrow: Spec of the others; only its container counts here.
    """

    def __init__(
        self, graph: gs.Graph, colours: Colouring, wanted: Mapping[str, str], wide: QuantSpec, narrow: QuantSpec
    ) -> None:
        self._colours, self._taken = colours, graph.tensors()
        self.nodes: dict[str, str] = {}  # wide ones, in graph order, with the reason
        self.conversions: dict[str, Conversion] = {}
        self._wide_tensors: set[str] = set()
        for node in graph.nodes:
            if reason := self._reason(node, wanted):
                self.nodes[node.name] = reason
        for node in graph.nodes:
            if not colours.is_int8(node) or node.name in colours.absorbed:
                continue
            for tensor in colours.quantized_inputs(node):
                self._read(node, tensor, wide, narrow)
            self._wide_tensors.update(tensor.name for tensor in node.outputs if node.name in self.nodes)
            if node.name in self.nodes:
                self._wide_tensors.add(colours.unit_output(node).name)
        self._reads = {(node, each.tensor): name for name, each in self.conversions.items() for node in each.readers}

    def read_by(self, node: gs.Node, tensor: gs.Tensor) -> str:
        """Name of the activation that ``node`` reads in place of ``tensor``."""
        return self._reads.get((node.name, tensor.name), tensor.name)

    def is_wide(self, activation: str) -> bool:
        """Whether an activation, a converted one too, has 16-bit codes."""
        return activation in self._wide_tensors

    def _reason(self, node: gs.Node, wanted: Mapping[str, str]) -> str | None:
        """Why ``node`` is wide, given the nodes before it; None where it is not."""
        colours = self._colours
        colour = colours.of(node)
        if colour == FLOAT:
            return None
        if colour == CARRIED:
            return MOVES_WIDE if self._carries_wide(node, wanted) else None
        return wanted.get(colours.absorbed.get(node.name, node.name))

    def _carries_wide(self, node: gs.Node, wanted: Mapping[str, str]) -> bool:
        """Whether a carried node moves 16-bit codes: its maker's, or those that all its readers want of a float one."""
        source = self._colours.quantized_inputs(node)[0]
        if self._colours.made_in_int8(source):
            return source.inputs[0].name in self.nodes
        readers = self._readers_behind(node)
        return bool(readers) and all(reader.name in wanted for reader in readers)

    def _readers_behind(self, node: gs.Node) -> list[gs.Node]:
        """Nodes that read the codes which ``node`` moves, directly or through other carried nodes."""
        found, stack = [], list(node.outputs)
        while stack:
            tensor = stack.pop()
            for user in tensor.outputs:
                if self._colours.of(user) == CARRIED:
                    stack.extend(user.outputs)
                elif self._colours.reads_codes(user, tensor):
                    found.append(user)
        return found

    def _read(self, node: gs.Node, tensor: gs.Tensor, wide: QuantSpec, narrow: QuantSpec) -> None:
        """Note how ``node`` reads ``tensor``: as it is, or converted."""
        wants = node.name in self.nodes
        if self._is_wide_at_first(tensor):
            self._wide_tensors.add(tensor.name)
        if wants == (tensor.name in self._wide_tensors):
            return
        name = converted_name(tensor.name, wide if wants else narrow)
        while name in self._taken:
            name += "_"
        known = self.conversions.get(name, Conversion(tensor.name, ()))
        readers = tuple(dict.fromkeys((*known.readers, node.name)))
        self.conversions[name] = Conversion(tensor.name, readers)
        if wants:
            self._wide_tensors.add(name)

    def _is_wide_at_first(self, tensor: gs.Tensor) -> bool:
        """Whether the pair of ``tensor`` itself is wide: as its maker is, or as all want it who read a float value."""
        if self._colours.made_in_int8(tensor):
            return tensor.inputs[0].name in self.nodes
        readers = [user for user in tensor.outputs if self._colours.reads_codes(user, tensor)]
        return all(user.name in self.nodes for user in readers)
