"""Activation functions in the spellings that exporters write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import onnx_graphsurgeon as gs

from ..edit import constant_of, scalar_of
from ..pattern import Const, Match, NearMiss, OneOf, Op, Pattern, Var, match_at
from .results import Activation

TIGHT = 1e-4


def _x() -> Var:
    return Var("x", lambda tensor: constant_of(tensor) is None)


def _number(value: float, rtol: float = TIGHT) -> Const:
    return Const(value=value, rtol=rtol)


def _scaled(pattern: Pattern, factor: float) -> OneOf:
    return OneOf(Op("Mul", pattern, _number(factor)), Op("Div", pattern, _number(1.0 / factor)))


def _product(x: Pattern, gate: Pattern, factor: float) -> tuple[Op, ...]:
    """``x * gate * factor`` in every order of evaluation."""
    return (
        Op("Mul", Op("Mul", x, gate), _number(factor)),
        Op("Div", Op("Mul", x, gate), _number(1.0 / factor)),
        Op("Mul", _scaled(x, factor), gate),
        Op("Mul", x, _scaled(gate, factor)),
    )


def _gelu_erf() -> tuple[Op, ...]:
    x = _x()
    erf = Op("Erf", _scaled(x, 1.0 / math.sqrt(2.0)))
    half = Op("Add", _scaled(erf, 0.5), _number(0.5))
    return (*_product(x, Op("Add", erf, _number(1.0)), 0.5), Op("Mul", x, half))


def _gelu_tanh() -> tuple[Op, ...]:
    x = _x()
    square = OneOf(Op("Mul", x, x), Op("Pow", x, _number(2.0)))
    cube = OneOf(Op("Pow", x, _number(3.0)), Op("Mul", x, square))
    odd = Op("Add", x, OneOf(Op("Mul", cube, _number(0.044715)), Op("Mul", x, Op("Mul", square, _number(0.044715)))))
    even = Op("Mul", x, Op("Add", Op("Mul", square, _number(0.044715)), _number(1.0)))
    factor = math.sqrt(2.0 / math.pi)
    inner = OneOf(
        Op("Mul", OneOf(odd, even), _number(factor)),
        Op("Mul", Op("Mul", x, _number(factor)), Op("Add", Op("Mul", square, _number(0.044715)), _number(1.0))),
    )
    tanh = Op("Tanh", inner)
    half = Op("Add", _scaled(tanh, 0.5), _number(0.5))
    return (*_product(x, Op("Add", tanh, _number(1.0)), 0.5), Op("Mul", x, half))


def _gelu_quick() -> tuple[Op, ...]:
    x = _x()
    return (Op("Mul", x, Op("Sigmoid", Op("Mul", x, _number(1.702)))),)


def _silu() -> tuple[Op, ...]:
    x = _x()
    return (
        Op("Mul", x, Op("Sigmoid", x)),
        Op("Div", x, Op("Add", Op("Exp", Op("Neg", x)), _number(1.0))),
        Op("Swish", x, attrs=lambda attrs: math.isclose(float(attrs.get("alpha", 1.0)), 1.0, rel_tol=TIGHT)),  # type: ignore[arg-type]
    )


def clip_pattern(inner: Pattern, low: float, high: float) -> OneOf:
    """``inner`` limited to [low, high]: Clip with inputs or attributes, Min(Max(.)), Min(Relu(.))."""

    def limits(attrs: Mapping[str, object]) -> bool:
        return attrs.get("min") == low and attrs.get("max") == high

    ends = (_number(low), _number(high))
    options: list[Pattern] = [
        Op("Clip", inner, *ends),
        Op("Clip", inner, attrs=limits),
        Op("Min", Op("Max", inner, ends[0]), ends[1]),
        Op("Max", Op("Min", inner, ends[1]), ends[0]),
        Op("Clip", Op("Relu", inner), *ends),
    ]
    if low == 0.0:
        options.append(Op("Min", Op("Relu", inner), ends[1]))
    return OneOf(*options)


def _is_sixth(attrs: Mapping[str, object]) -> bool:
    alpha, beta = float(attrs.get("alpha", 0.2)), float(attrs.get("beta", 0.5))  # type: ignore[arg-type]
    return math.isclose(alpha, 1 / 6, rel_tol=TIGHT) and math.isclose(beta, 0.5, rel_tol=TIGHT)


def _relu6_of_shifted(x: Pattern) -> OneOf:
    return clip_pattern(Op("Add", x, _number(3.0)), 0.0, 6.0)


def _hard_sigmoid() -> tuple[Op, ...]:
    relu6 = _relu6_of_shifted(_x())
    return Op("Mul", relu6, _number(1 / 6)), Op("Div", relu6, _number(6.0))


def _hard_swish() -> tuple[Op, ...]:
    x = _x()
    op = Op("Mul", x, Op("HardSigmoid", x, attrs=_is_sixth))
    return (op, *_product(x, _relu6_of_shifted(x), 1 / 6))


def _mish() -> tuple[Op, ...]:
    x = _x()
    return (Op("Mul", x, Op("Tanh", OneOf(Op("Softplus", x), *_softplus_of(x)))),)


def _softplus_of(x: Pattern) -> tuple[Op, ...]:
    return (Op("Log", Op("Add", Op("Exp", x), _number(1.0))),)


def _relu6() -> tuple[Op, ...]:
    return tuple(option for option in clip_pattern(_x(), 0.0, 6.0).options if isinstance(option, Op))


def _dynamic_relu() -> tuple[Op, ...]:
    x = _x()

    def line(index: int) -> OneOf:
        slope = Var(f"slope{index}", lambda tensor: constant_of(tensor) is None)
        product = Op("Mul", x, slope)
        return OneOf(Op("Add", product, Var(f"offset{index}")), product)

    return (Op("Max", line(0), line(1)),)


def _leaky() -> tuple[Op, ...]:
    x = _x()
    return (
        Op("Max", x, Op("Mul", x, Const("alpha", check=lambda a: a.size == 1 and 0 < float(a.reshape(-1)[0]) < 1))),
    )


# Larger forms first: a node that ends one is not looked at again.
SPELLED: dict[str, tuple[Op, ...]] = {
    "gelu": _gelu_erf(),
    "gelu_tanh": _gelu_tanh(),
    "gelu_quick": _gelu_quick(),
    "hard_swish": _hard_swish(),
    "mish": _mish(),
    "silu": _silu(),
    "hard_sigmoid": _hard_sigmoid(),
    "softplus": _softplus_of(_x()),
    "relu6": _relu6(),
    "dynamic_relu": _dynamic_relu(),
    "leaky_relu": _leaky(),
}
SINGLE = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HardSigmoid": "hard_sigmoid",
    "HardSwish": "hard_swish",
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "Elu": "elu",
    "Selu": "selu",
    "Celu": "celu",
    "Softplus": "softplus",
    "Mish": "mish",
    "Clip": "clip",
    "Swish": "silu",
}


def iter_activations(
    graph: gs.Graph, kinds: Sequence[str], near_misses: list[NearMiss] | None = None, closed: bool = True
) -> Iterator[tuple[str, Match]]:
    """Spelled-out activations of the given kinds, in reverse graph order, each node in at most one of them.

    Args:
        graph: Graph to search.
        kinds: Keys of ``SPELLED``, tried in this order.
        near_misses: Filled with failures three levels deep.
        closed: Require that nobody outside reads inner tensors.

    Yields:
        The kind and the match, whose tensor ``x`` goes in.
    """
    taken: set[int] = set()
    candidates = [(kind, pattern) for kind in kinds for pattern in SPELLED[kind]]
    for node in reversed(list(graph.nodes)):
        if id(node) in taken or not node.outputs:
            continue
        deepest: NearMiss | None = None
        for kind, pattern in candidates:
            if node.op not in pattern.op.split("|"):
                continue
            found = match_at(graph, pattern, node, closed=closed)
            if isinstance(found, Match):
                taken.update(id(member) for member in found.nodes)
                yield kind, found
                break
            if deepest is None or found.depth > deepest.depth:
                deepest = found
        else:
            if near_misses is not None and deepest is not None and deepest.depth >= 3:
                near_misses.append(deepest)


def find_activations(graph: gs.Graph, near_misses: list[NearMiss] | None = None) -> list[Activation]:
    """Every activation function of the graph, in graph order.

    Args:
        graph: Graph to search.
        near_misses: Filled with what nearly matched.

    Returns:
        One ``Activation`` each; a gate (Sigmoid of a squeeze-and-excite, Sigmoid of SiLU) is part of the larger form
        only when that form is closed.
    """
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    found: list[tuple[int, Activation]] = []
    taken: set[int] = set()
    for kind, match in iter_activations(graph, tuple(SPELLED), near_misses):
        if kind == "silu" and len(match.nodes) == 1:
            continue
        taken.update(id(node) for node in match.nodes)
        nodes = sorted(match.nodes, key=lambda node: position[id(node)])
        parameters = (("alpha", float(match.value("alpha").reshape(-1)[0])),) if "alpha" in match.tensors else ()
        names = tuple(node.name for node in nodes)
        activation = Activation(kind, names, match.tensor("x").name, match.output.name, parameters)
        found.append((position[id(match.root)], activation))
    for node in graph.nodes:
        if id(node) not in taken and (activation := _single(node)) is not None:  # type: ignore[assignment]
            found.append((position[id(node)], activation))
    return [activation for _, activation in sorted(found, key=lambda pair: pair[0])]


def _single(node: gs.Node) -> Activation | None:
    if not node.inputs or not node.outputs or constant_of(node.inputs[0]) is not None:
        return None
    if node.op == "Gelu" and node.domain in (None, "", "ai.onnx"):
        kind = "gelu_tanh" if node.attrs.get("approximate", "none") == "tanh" else "gelu"
    elif node.op in SINGLE and node.domain in (None, "", "ai.onnx"):
        kind = SINGLE[node.op]
    else:
        return None
    parameters = tuple((key, float(node.attrs[key])) for key in ("alpha", "beta", "gamma") if key in node.attrs)
    if kind == "clip":
        ends = _clip_ends(node)
        kind = "relu" if ends == (0.0, math.inf) else "relu6" if ends == (0.0, 6.0) else "clip"
        parameters = tuple((key, end) for key, end in zip(("min", "max"), ends, strict=True) if math.isfinite(end))
    return Activation(kind, (node.name,), node.inputs[0].name, node.outputs[0].name, parameters)


def _clip_ends(node: gs.Node) -> tuple[float, float]:
    ends: list[float] = []
    for index, key, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        given = scalar_of(node.inputs[index]) if index < len(node.inputs) and node.inputs[index].name else None
        ends.append(float(node.attrs.get(key, default)) if given is None else given)
    return ends[0], ends[1]
