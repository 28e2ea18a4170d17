"""Find attention cores: from the product of query and key to the product with the value.

* softmax: a product of two computed tensors, Softmax (scales, biases, masks, head-mixing 1x1 convolutions or products
  in between), a second product. It is a cross-covariance when the sum of the first product runs over positions.
* separable (MobileViTv2, deformable attention): Softmax of scores, times keys, summed.
* linear (EfficientViT, CoaT): a product of keys and values whose result meets the queries in a second product.
* fused: one operator (``Attention`` of opset 23 and its contrib relatives).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..graph.recognise import Attention
from .domain import CONVS, MATMULS, Domain
from .flow import Flow
from .structure import Unrecognised

FUSED = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention"})
MOVING = frozenset({"Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand"})
LAYOUT = MOVING | {"Slice", "Gather", "Split", "Concat", "Pad", "Tile"}
POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "AveragePool"})
LONGEST_GATE = 16  # nodes from the mean to Softmax: two layers, their norms and activations, layout
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "Neg", "IsNaN", "Dropout", "Not"})
_AROUND = LAYOUT | _ARITHMETIC | {"BatchNormalization"}


@dataclass(frozen=True)
class Core:
    """An attention core by positions in the flow.

    Args:
        kind: ``softmax``, ``separable``, ``relu_linear`` or ``fused``.
        members: Positions of its nodes.
        first: Position of the first product (separable: of Softmax).
        last: Position of the last product (separable: of the sum).
        query: Tensor of queries (separable: the scores).
        key: Tensor of keys.
        value: Tensor of values.
        probabilities: Output of Softmax; None for linear and fused attention.
    """

    kind: str
    members: frozenset[int]
    first: int
    last: int
    query: str
    key: str
    value: str
    probabilities: str | None = None

    def describe(self, flow: Flow) -> Attention:
        """The core as the plain record that the graph layer shares."""
        names = tuple(flow.nodes[position].name for position in sorted(self.members))
        output = flow.outputs(self.last)[0]
        return Attention(self.kind, names, self.query, self.key, self.value, output, self.probabilities)


def find_cores(flow: Flow) -> tuple[list[Core], list[Unrecognised]]:
    """All attention cores in graph order, and what nearly was one."""
    cores = [_fused(flow, position) for position, node in enumerate(flow.nodes) if node.op in FUSED]
    misses: list[tuple[int, Unrecognised]] = []
    for first, last in _softmaxes(flow):
        found = _around_softmax(flow, first, last)
        if isinstance(found, Core):
            cores.append(found)
        elif found is not None:
            misses.append((last, found))
    used = {place for core in cores for place in (core.first, core.last)}
    cores += _linear_cores(flow, used)
    covered = {place for core in cores for place in core.members}
    near = [miss for position, miss in misses if not covered & _reached(flow, position)]
    return sorted(cores, key=lambda core: core.first), near


def _reached(flow: Flow, softmax: int) -> set[int]:
    """Nodes from Softmax to the first product behind it, of keys and values in linear attention."""
    after, passed = _forward_until_product(flow, softmax)
    return passed if after is None else passed | {after}


def is_dynamic_product(flow: Flow, position: int) -> bool:
    """Whether the node multiplies two matrices which both depend on the graph's input."""
    node = flow.nodes[position]
    if node.op not in MATMULS or len(node.inputs) < 2:
        return False
    return all(tensor.name in flow.data for tensor in node.inputs[:2])


def is_linear(flow: Flow, position: int) -> bool:
    """Whether the node is a Conv, or a Gemm, MatMul or Einsum with a fixed matrix."""
    op = flow.nodes[position].op
    return op in CONVS or op == "Gemm" or (op in MATMULS and not is_dynamic_product(flow, position))


def _fused(flow: Flow, position: int) -> Core:
    names = [tensor.name for tensor in flow.nodes[position].inputs] + ["", ""]
    key, value = names[1] or names[0], names[2] or names[0]
    separate = key in flow.data
    query = names[0]
    return Core(
        "fused",
        frozenset({position}),
        position,
        position,
        query,
        key if separate else query,
        value if separate else query,
    )


def _softmaxes(flow: Flow) -> Iterator[tuple[int, int]]:
    """First and last position of every Softmax: the operator, or ``exp(x)`` by its sum, or less the sum's logarithm."""
    for position, node in enumerate(flow.nodes):
        if node.op == "Softmax":
            yield position, position
        elif node.op == "Exp":
            shares = [place for place in flow.consumers(position) if flow.nodes[place].op in ("Div", "Mul")]
            sums = [place for place in flow.consumers(position) if flow.nodes[place].op == "ReduceSum"]
            for share in shares[:1]:
                if sums and flow.ancestors([share], position) >= {position, sums[0]}:
                    yield position, share
            if not shares or not sums:
                yield from ((minus, position) for minus in _minus_log_sum(flow, position))


def _minus_log_sum(flow: Flow, exponential: int) -> list[int]:
    """Position of the subtraction in ``exp(x - log(sum(exp(x))))``, which Keras writes for softmax over two axes."""
    for minus in flow.producers(exponential):
        offset = flow.made_at.get(flow.inputs(minus)[-1], -1)
        if flow.nodes[minus].op == "Sub" and offset >= 0:
            behind = [flow.nodes[place].op for place in [offset, *flow.producers(offset)]]
            if "Log" in behind:
                return [minus]
    return []


def _around_softmax(flow: Flow, first: int, softmax: int) -> Core | Unrecognised | None:
    before = _backward_to_product(flow, first)
    after, passed = _forward_until_product(flow, softmax)
    node = flow.nodes[softmax]
    probabilities = flow.outputs(softmax)[0]
    if after is None:
        if _weighs_branches(flow, first):
            return None
        return _separable(flow, softmax) or _lonely_softmax(flow, softmax, passed)
    if before is None:
        return Unrecognised(
            "Softmax is followed by a product, but no product of query and key comes before it", node.name
        )
    members = _between(flow, before, after)
    other = [name for name in flow.inputs(after) if flow.made_at.get(name) not in passed and name != probabilities]
    query, key = (tensor.name for tensor in flow.nodes[before].inputs[:2])
    return Core("softmax", members, before, after, query, key, (other or [key])[0], probabilities)


def _weighs_branches(flow: Flow, softmax: int) -> bool:
    """Whether a mean over all positions makes the scores: a choice among branches (SKNet, ResNeSt), no attention."""
    place = softmax
    for _ in range(LONGEST_GATE):
        sources, makers = flow.inputs(place), flow.producers(place)
        if len(sources) != 1 or len(makers) != 1:
            return False
        place = makers[0]
        if flow.nodes[place].op in POOLS:
            return 0 < flow.size(sources[0]) < sum(map(flow.size, flow.inputs(place)))
    return False


def _lonely_softmax(flow: Flow, softmax: int, passed: Iterable[int]) -> Unrecognised | None:
    """No near-miss when the probabilities leave the graph: that is a classifier."""
    outputs = {tensor.name for tensor in flow.graph.outputs}
    reached = {name for position in (softmax, *passed) for name in flow.outputs(position)}
    if reached & outputs or softmax == len(flow.nodes) - 1:
        return None
    return Unrecognised("Softmax is not followed by a matrix product or a weighted sum", flow.nodes[softmax].name)


def _separable(flow: Flow, softmax: int) -> Core | None:
    """``sum(softmax(scores) * keys)`` with one channel of scores: summed over positions, or over sampled points.

    Layout may stand in between: deformable attention has its scores by heads in the last axes, its samples otherwise.
    """
    for product, passed in _products_of(flow, softmax):
        shares = {name for place in passed for name in flow.outputs(place)}
        others = [name for name in flow.inputs(product) if name not in shares]
        sums = [place for place in flow.consumers(product) if flow.nodes[place].op == "ReduceSum"]
        scores, context = flow.outputs(softmax)[0], flow.outputs(product)[0]
        if len(others) != 1 or not sums or flow.size(scores) >= flow.size(context):
            continue
        members = frozenset({*passed, product, sums[0]})
        return Core("separable", members, softmax, sums[0], flow.inputs(softmax)[0], others[0], others[0], scores)
    return None


def _products_of(flow: Flow, softmax: int) -> Iterator[tuple[int, list[int]]]:
    """Elementwise products of what Softmax gives with other computed values, and the nodes from Softmax to each."""
    pending = [[softmax]]
    while pending:
        path = pending.pop(0)
        for place in flow.consumers(path[-1]):
            op = flow.nodes[place].op
            if op == "Mul" and len(flow.inputs(place)) == 2:
                yield place, path
            elif op in MOVING:
                pending.append([*path, place])


def _linear_cores(flow: Flow, used: set[int]) -> list[Core]:
    cores: list[Core] = []
    for first in range(len(flow.nodes)):
        if first in used or not is_dynamic_product(flow, first):
            continue
        last, _ = _forward_until_product(flow, first, through_weights=False)
        if last is None or last in used:
            continue
        members = _between(flow, first, last)
        other = [name for name in flow.inputs(last) if flow.made_at.get(name) not in members]
        names = flow.inputs(first)
        cores.append(Core("relu_linear", members, first, last, (other or names)[0], names[0], names[-1]))
        used |= {first, last}
    return cores


def _around(flow: Flow, position: int, through_weights: bool = True) -> bool:
    """Whether the node may stand between Softmax and a product."""
    node = flow.nodes[position]
    if node.op == "Conv":
        return through_weights and set(node.attrs.get("kernel_shape", [1])) == {1}
    if node.op in MATMULS:
        return through_weights and not is_dynamic_product(flow, position) and len(flow.inputs(position)) == 1
    return node.op in _AROUND


def _backward_to_product(flow: Flow, softmax: int) -> int | None:
    """The nearest product of two computed matrices that the scores come from."""
    pending, seen = flow.producers(softmax), set()
    while pending:
        position = max(pending)
        pending.remove(position)
        if position in seen:
            continue
        seen.add(position)
        if is_dynamic_product(flow, position) or _has_learned_query(flow, position):
            return position
        if _around(flow, position):
            pending.extend(flow.producers(position))
    return None


def _has_learned_query(flow: Flow, position: int) -> bool:
    """A product of fixed queries, one set per head, with computed keys (the first tokens of Mobile-Former)."""
    node = flow.nodes[position]
    fixed = [tensor.name for tensor in node.inputs[:2] if tensor.name not in flow.data]
    return node.op in MATMULS and any(len(flow.shapes.get(name, ())) > 2 for name in fixed)


def _forward_until_product(flow: Flow, start: int, through_weights: bool = True) -> tuple[int | None, set[int]]:
    """The nearest product of two computed matrices that reads what ``start`` made, and the nodes passed."""
    pending, passed = flow.consumers(start), {start}
    while pending:
        position = min(pending)
        pending.remove(position)
        if position in passed:
            continue
        if is_dynamic_product(flow, position):
            return position, passed
        if _around(flow, position, through_weights):
            passed.add(position)
            pending.extend(flow.consumers(position))
    return None, passed


def origin(flow: Flow, tensor: str) -> str:
    """The stream tensor behind a query or key: back through every node with a single computed input."""
    while tensor in flow.made_at:
        node = flow.nodes[flow.made_at[tensor]]
        inputs = flow.inputs(flow.made_at[tensor])
        if node.op in ("Conv", "ConvTranspose") or len(inputs) != 1:
            return tensor
        tensor = inputs[0]
    return tensor


def crosses(flow: Flow, core: Core, domains: dict[str, Domain]) -> bool:
    """Whether queries come from tokens (or are fixed) and keys from a spatial map, or the other way round."""
    sides = [origin(flow, core.query), origin(flow, core.key)]
    spatial = [domains[name].kind == "spatial" if name in domains else False for name in sides]
    return core.kind in ("softmax", "fused") and spatial[0] != spatial[1] and sides[0] != sides[1]


def _between(flow: Flow, first: int, last: int) -> frozenset[int]:
    """Nodes on the paths from ``first`` to ``last``."""
    members = {first}
    for position in range(first + 1, last + 1):
        if any(producer in members for producer in flow.producers(position)):
            members.add(position)
    return frozenset(members & flow.ancestors([last], first))
