"""What ``find_structure`` returns: plain frozen records that name nodes and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..graph.recognise import Activation, Attention, Norm

KINDS = ("stem", "conv", "bridge", "transformer", "head")


@dataclass(frozen=True)
class Block:
    """A convex region of the main graph.

    Args:
        name: Unique name such as ``transformer_2``.
        kind: One of ``KINDS``.
        nodes: Names of its nodes, in topological order.
        inputs: Tensors read from outside, initializers and outputs of Constant nodes left out.
        outputs: Tensors made inside that something outside reads, or that are graph outputs.
        params: Number of elements of the initializers read here and by no earlier block.
        macs: Multiply-accumulate operations for the observed shapes (batch included).
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Transition:
    """A chain of nodes in which features change between the spatial and the token domain.

    Args:
        block: Name of the bridge block of the run that is entered or left.
        direction: ``entry``: from the last convolution to the first linear, matmul or 1x1-conv projection;
            ``exit``: from the last linear of the run to the first convolution or pooling after it. For cross
            attention between a map and tokens, the attention itself: an entry when tokens ask.
        nodes: Names of the nodes along the chain, both ends included.
    """

    block: str
    direction: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Unrecognised:
    """A near-miss: why something was not recognised, and the culprit node."""

    reason: str
    node: str


@dataclass(frozen=True)
class Structure:
    """Everything ``find_structure`` finds.

    Args:
        blocks: They partition all nodes of the main graph, in topological order.
        norms: Normalizations.
        activations: Activation functions.
        attentions: Attentions.
        transitions: Ways into and out of the token domain.
        unrecognised: Near-misses.
        shapes: Observed shapes of the inputs and outputs of all blocks.
    """

    blocks: tuple[Block, ...]
    norms: tuple[Norm, ...] = ()
    activations: tuple[Activation, ...] = ()
    attentions: tuple[Attention, ...] = ()
    transitions: tuple[Transition, ...] = ()
    unrecognised: tuple[Unrecognised, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def blocks_of_kind(self, kind: str) -> tuple[Block, ...]:
        """The blocks of one kind, in order."""
        return tuple(block for block in self.blocks if block.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; inputs and outputs of blocks are ``{"name", "shape"}`` (shape None if unknown)."""
        plain = {
            key: [asdict(item) for item in getattr(self, key)]
            for key in ("norms", "activations", "attentions", "transitions", "unrecognised")
        }
        blocks = []
        for block in self.blocks:
            values = {**asdict(block), "nodes": list(block.nodes)}
            for side in ("inputs", "outputs"):
                values[side] = [{"name": name, "shape": self._shape(name)} for name in values[side]]
            blocks.append(values)
        return {"blocks": blocks, **plain}

    def _shape(self, tensor: str) -> list[int] | None:
        return list(self.shapes[tensor]) if tensor in self.shapes else None
