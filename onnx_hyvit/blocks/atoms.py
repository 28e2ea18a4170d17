"""Atoms: the smallest pieces between two cuts of the data flow, in order, of which blocks are put together.

The main graph is cut at every tensor through which all paths go. A piece with attention inside is cut again, with its
entry as a shortcut that passes by, when the attention in it has a residual connection of its own (MobileViT, EdgeNeXt
and SVTR wrap whole transformers in a shortcut). Any other piece that stays large (skip connections of a decoder) is
treated in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from .attention import LAYOUT, Core, crosses, is_linear
from .domain import CONVS, GLOBAL_POOLS, POOLS, UNKNOWN, Domain
from .flow import Flow, Span

LARGE = 60
NORMS = frozenset({"LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"})
NORMS |= {"RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"}
_SHORTCUT = (LAYOUT - {"Slice", "Gather", "Split", "Concat"}) | NORMS | {"Add", "Mul", "Sub", "Div"}
_JOINS = frozenset({"Add", "Sum"})


@dataclass(frozen=True)
class Atom:
    """A span of data nodes and what it does.

    Args:
        span: The nodes and the tensors handed over.
        parent: Index of the outermost piece it was cut from.
        cores: Attention cores inside.
        residual: Whether its last node adds the entry, carried by a shortcut, to the result of the rest.
        convs: Positions of convolutions over more than one position.
        linears: Positions of Conv, MatMul and Gemm with weights.
        positions_in: Number of positions at the entry, 0 when unknown.
        positions_out: Number of positions at the exit, 0 when unknown.
        kind_out: Kind of domain at the exit.
        resamples: Whether a strided convolution, a pooling or a Resize in it changes the number of positions.
    """

    span: Span
    parent: int
    cores: tuple[Core, ...]
    residual: bool
    convs: tuple[int, ...]
    linears: tuple[int, ...]
    positions_in: int
    positions_out: int
    kind_out: str
    resamples: bool

    @property
    def positions(self) -> range:
        """Positions of its nodes."""
        return range(self.span.lo, self.span.hi)


def find_atoms(flow: Flow, cores: list[Core], domains: dict[str, Domain]) -> list[Atom]:
    """The atoms of a graph, in topological order; together they hold every data node once."""
    spans: list[tuple[Span, int]] = []
    for parent, span in enumerate(flow.split(0, len(flow.nodes), None, frozenset())):
        spans += [(piece, parent) for piece in _refine(flow, span, cores, domains)]
    return [_describe(flow, span, parent, cores, domains) for span, parent in spans]


def _inside(span: Span, cores: list[Core]) -> list[Core]:
    return [core for core in cores if span.lo <= core.first and core.last < span.hi]


def _refine(flow: Flow, span: Span, cores: list[Core], domains: dict[str, Domain]) -> list[Span]:
    inside = _inside(span, cores)
    large = span.hi - span.lo > LARGE
    if span.entry is None or not (inside or large) or any(crosses(flow, core, domains) for core in inside):
        return [span]
    passing = span.passing | {span.entry} | _long_lived(flow, span, inside)
    nested = flow.split(span.lo, span.hi, span.entry, passing)
    if len(nested) < 2:
        return [span]
    nested[-1] = Span(nested[-1].lo, nested[-1].hi, nested[-1].entry, span.exit, nested[-1].passing)
    parts = [_refine(flow, piece, cores, domains) for piece in nested]
    if inside:
        attending = [index for index, piece in enumerate(nested) if _inside(piece, inside)]
        wanted = any(len(parts[index]) > 1 or is_residual(flow, nested[index]) for index in attending)
    else:
        wanted = len(nested) > 3
    return [part for refined in parts for part in refined] if wanted else [span]


def _long_lived(flow: Flow, span: Span, cores: list[Core]) -> set[str]:
    """Tensors that stay alive over two whole attentions or more (the global queries of GCViT)."""
    found: set[str] = set()
    if len(cores) < 2:
        return found
    for position in range(span.lo, span.hi):
        for name in flow.outputs(position):
            last = flow.read_at.get(name, [position])[-1]
            if sum(position < core.first and core.last < last for core in cores) > 1:
                found.add(name)
    return found


def is_residual(flow: Flow, span: Span) -> bool:
    """Whether a path of layout, norm and scaling nodes leads from the entry to an addition that ends the span."""
    if span.entry is None or span.hi - span.lo < 2:
        return False
    last = span.hi - 1
    while last > span.lo and flow.nodes[last].op not in _JOINS and flow.nodes[last].op in _SHORTCUT | {"Relu", "Clip"}:
        producers = flow.producers(last)
        if len(producers) != 1:
            break
        last = producers[0]
    if flow.nodes[last].op not in _JOINS or last < span.lo or len(flow.inputs(last)) < 2:
        return False
    pending, seen = list(flow.inputs(last)), set()
    size = flow.size(span.entry)
    while pending:
        name = pending.pop()
        if name == span.entry:
            return True
        made = flow.made_at.get(name, -1)
        if name in seen or made < span.lo or flow.size(name) != size:
            continue
        seen.add(name)
        if flow.nodes[made].op in _SHORTCUT and len(flow.inputs(made)) == 1:
            pending.extend(flow.inputs(made))
    return False


def _describe(flow: Flow, span: Span, parent: int, cores: list[Core], domains: dict[str, Domain]) -> Atom:
    convs, linears, resampling = [], [], False
    for position in range(span.lo, span.hi):
        node = flow.nodes[position]
        outputs = flow.outputs(position)
        if node.op in CONVS:
            linears.append(position)
            if outputs and domains[outputs[0]].kind != "vector":
                convs.append(position)
            resampling |= max(node.attrs.get("strides", [1])) > 1
        elif is_linear(flow, position):
            linears.append(position)
        resampling |= node.op in POOLS | GLOBAL_POOLS | {"Resize", "Upsample"}
    before, after = domain_at(span.entry, domains), domain_at(span.exit, domains)
    changes = bool(before.positions and after.positions and before.positions != after.positions)
    return Atom(
        span,
        parent,
        tuple(_inside(span, cores)),
        is_residual(flow, span),
        tuple(convs),
        tuple(linears),
        before.positions,
        after.positions,
        after.kind,
        resampling and changes,
    )


def domain_at(tensor: str | None, domains: dict[str, Domain]) -> Domain:
    """Domain of ``tensor``; unknown when there is none."""
    return domains.get(tensor or "", UNKNOWN)
