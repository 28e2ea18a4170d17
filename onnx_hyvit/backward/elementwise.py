"""VJP rules of element-wise arithmetic, with the sums that undo broadcasting."""

from __future__ import annotations

from collections.abc import Callable

from .registry import ForwardNode, Gradients, vjp
from .tape import Tape

Derivative = Callable[[Tape, str, str, str, ForwardNode], str]


def _restore(tape: Tape, node: ForwardNode, gradient: str | None, index: int) -> str | None:
    """Bring a gradient of the output's shape to the shape of input ``index``."""
    if gradient is None:
        return None
    return tape.unbroadcast(gradient, tape.shape(node.outputs[0]), tape.shape(node.inputs[index]))


@vjp("Add", "Sum")
def add(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Each addend gets the gradient."""
    return [_restore(tape, node, grads[0], i) if node.need(i) else None for i in range(len(node.inputs))]


@vjp("Mean")
def mean(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Each of n inputs gets the gradient / n."""
    assert grads[0] is not None
    share = tape.op("Div", grads[0], float(len(node.inputs)))
    return [_restore(tape, node, share, i) if node.need(i) else None for i in range(len(node.inputs))]


@vjp("Sub")
def sub(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``a - b``: g and -g."""
    (g,) = grads
    assert g is not None
    ga = _restore(tape, node, g, 0) if node.need(0) else None
    gb = _restore(tape, node, g, 1) if node.need(1) else None
    return [ga, tape.op("Neg", gb) if gb is not None else None]


@vjp("Mul")
def mul(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``a b``: g b and g a."""
    (g,) = grads
    a, b = node.inputs
    assert g is not None
    return [
        _restore(tape, node, tape.op("Mul", g, b), 0) if node.need(0) else None,
        _restore(tape, node, tape.op("Mul", g, a), 1) if node.need(1) else None,
    ]


@vjp("Div")
def div(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``a / b``: g / b and -g y / b."""
    (g,) = grads
    assert g is not None
    ga = tape.op("Div", g, node.inputs[1])
    gb = tape.op("Neg", tape.op("Mul", ga, node.outputs[0])) if node.need(1) else None
    return [_restore(tape, node, ga, 0) if node.need(0) else None, _restore(tape, node, gb, 1)]


@vjp("Pow")
def power(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """``x^e``: g e x^(e-1) and g y ln x."""
    (g,) = grads
    assert g is not None
    x, exponent = node.inputs
    y = node.outputs[0]
    gx = ge = None
    if node.need(0):
        fixed = tape.value(exponent)
        if fixed is not None and fixed.size == 1 and float(fixed.reshape(-1)[0]) == 2.0:
            slope = tape.op("Mul", x, 2.0)
        else:
            exponent = tape.cast(exponent, tape.dtype(x))
            slope = tape.op("Mul", exponent, tape.op("Pow", x, tape.op("Sub", exponent, 1.0)))
        gx = _restore(tape, node, tape.op("Mul", g, slope), 0)
    if node.need(1):
        ge = _restore(tape, node, tape.op("Mul", g, tape.op("Mul", y, tape.op("Log", x))), 1)
    return [gx, ge]


@vjp("Max", "Min")
def extremum(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The gradient goes to the inputs that equal the result (all of them on a tie)."""
    (g,) = grads
    assert g is not None
    found: list[str | None] = []
    for index, name in enumerate(node.inputs):
        if not node.need(index):
            found.append(None)
            continue
        chosen = tape.op("Equal", name, node.outputs[0])
        found.append(_restore(tape, node, tape.op("Where", chosen, g, 0.0), index))
    return found


@vjp("Where")
def where(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The gradient goes to the branch that was taken."""
    (g,) = grads
    assert g is not None
    condition = node.inputs[0]
    return [
        None,
        _restore(tape, node, tape.op("Where", condition, g, 0.0), 1) if node.need(1) else None,
        _restore(tape, node, tape.op("Where", condition, 0.0, g), 2) if node.need(2) else None,
    ]


def unary(*ops: str) -> Callable[[Derivative], Derivative]:
    """Register ``derivative(tape, g, x, y, node) -> grad_x`` for operators with one input that matters."""

    def register(derivative: Derivative) -> Derivative:
        @vjp(*ops)
        def rule(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
            assert grads[0] is not None
            return [derivative(tape, grads[0], node.inputs[0], node.outputs[0], node)]

        return derivative

    return register


@unary("Neg")
def neg(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """-g."""
    return tape.op("Neg", g)


@unary("Abs")
def absolute(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G sign(x)."""
    return tape.op("Mul", g, tape.op("Sign", x))


@unary("Sqrt")
def sqrt(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G / (2 y)."""
    return tape.op("Div", g, tape.op("Mul", y, 2.0))


@unary("Exp")
def exp(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G y."""
    return tape.op("Mul", g, y)


@unary("Log")
def log(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G / x."""
    return tape.op("Div", g, x)


@unary("Reciprocal")
def reciprocal(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """-g y^2."""
    return tape.op("Neg", tape.op("Mul", g, tape.op("Mul", y, y)))


@unary("Sin")
def sin(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G cos x."""
    return tape.op("Mul", g, tape.op("Cos", x))


@unary("Cos")
def cos(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """-g sin x."""
    return tape.op("Neg", tape.op("Mul", g, tape.op("Sin", x)))
