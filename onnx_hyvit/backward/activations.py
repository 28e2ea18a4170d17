"""VJP rules of the activation functions; ``y`` is reused wherever the derivative can be written in it."""

from __future__ import annotations

import math

from .elementwise import unary
from .registry import ForwardNode, Gradients, vjp
from .tape import Tape


@unary("Relu")
def relu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G where x > 0."""
    return tape.op("Where", tape.op("Greater", y, 0.0), g, 0.0)


@unary("LeakyRelu")
def leaky_relu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """g, or alpha g where x < 0."""
    alpha = float(node.attrs.get("alpha", 0.01))
    return tape.op("Where", tape.op("Less", x, 0.0), tape.op("Mul", g, alpha), g)


@unary("ThresholdedRelu")
def thresholded_relu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G where x > alpha."""
    return tape.op("Where", tape.op("Greater", x, float(node.attrs.get("alpha", 1.0))), g, 0.0)


@vjp("PRelu")
def prelu(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """G or slope g; the slope gets g min(x, 0)."""
    (g,) = grads
    assert g is not None
    x, slope = node.inputs
    gx = tape.op("Where", tape.op("Less", x, 0.0), tape.op("Mul", g, slope), g) if node.need(0) else None
    gs = None
    if node.need(1):
        gs = tape.op("Mul", g, tape.op("Min", x, 0.0))
        gs = tape.unbroadcast(gs, tape.shape(x), tape.shape(slope))
    return [gx, gs]


@unary("Clip")
def clip(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G where x lies within the bounds."""
    for index, outside in ((1, "Less"), (2, "Greater")):
        if node.input(index):
            g = tape.op("Where", tape.op(outside, x, node.input(index)), 0.0, g)
    return g


@unary("HardSigmoid")
def hard_sigmoid(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """Alpha g where 0 < y < 1."""
    inside = tape.op("And", tape.op("Greater", y, 0.0), tape.op("Less", y, 1.0))
    return tape.op("Where", inside, tape.op("Mul", g, float(node.attrs.get("alpha", 0.2))), 0.0)


@unary("HardSwish")
def hard_swish(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """0 below -3, g above 3, g (x/3 + 1/2) between."""
    inner = tape.op("Mul", g, tape.op("Add", tape.op("Div", x, 3.0), 0.5))
    upper = tape.op("Where", tape.op("Less", x, 3.0), inner, g)
    return tape.op("Where", tape.op("Greater", x, -3.0), upper, 0.0)


@unary("Sigmoid")
def sigmoid(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G y (1 - y)."""
    return tape.op("Mul", g, tape.op("Sub", y, tape.op("Mul", y, y)))


@unary("Tanh")
def tanh(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G (1 - y^2)."""
    return tape.op("Sub", g, tape.op("Mul", g, tape.op("Mul", y, y)))


@unary("Erf")
def erf(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G 2/sqrt(pi) exp(-x^2)."""
    bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", x, x)))
    return tape.op("Mul", g, tape.op("Mul", bell, 2.0 / math.sqrt(math.pi)))


@unary("Gelu")
def gelu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """``y = x Phi(x)``: g (Phi + x phi), with the Gaussian or its tanh approximation."""
    return _gelu_tanh(tape, g, x) if node.attrs.get("approximate", "none") == "tanh" else _gelu_erf(tape, g, x)


@unary("FastGelu")
def fast_gelu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """The tanh approximation, as the contrib operator without its bias."""
    return _gelu_tanh(tape, g, tape.op("Add", x, node.input(1)) if node.input(1) else x)


def _gelu_erf(tape: Tape, g: str, x: str) -> str:
    half = tape.op("Mul", tape.op("Add", tape.op("Erf", tape.op("Mul", x, math.sqrt(0.5))), 1.0), 0.5)
    bell = tape.op("Exp", tape.op("Mul", tape.op("Mul", x, x), -0.5))
    density = tape.op("Mul", bell, 1.0 / math.sqrt(2.0 * math.pi))
    return tape.op("Mul", g, tape.op("Add", half, tape.op("Mul", x, density)))


def _gelu_tanh(tape: Tape, g: str, x: str) -> str:
    """Y = x (1 + t) / 2, t = tanh(c (x + a x^3)): y' = (1 + t) / 2 + x (1 - t^2) c (1 + 3 a x^2) / 2."""
    c, a = math.sqrt(2.0 / math.pi), 0.044715
    square = tape.op("Mul", x, x)
    t = tape.op("Tanh", tape.op("Mul", x, tape.op("Add", tape.op("Mul", square, c * a), c)))
    slope = tape.op("Add", tape.op("Mul", square, 3.0 * c * a), c)
    tail = tape.op("Mul", tape.op("Mul", x, slope), tape.op("Sub", 1.0, tape.op("Mul", t, t)))
    return tape.op("Mul", g, tape.op("Mul", tape.op("Add", tape.op("Add", t, tail), 1.0), 0.5))


@unary("QuickGelu", "Swish")
def swish(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """``y = x s``, s = sigmoid(alpha x): g (s + alpha y (1 - s))."""
    alpha = float(node.attrs.get("alpha", 1.702 if node.op == "QuickGelu" else 1.0))
    s = tape.op("Sigmoid", tape.op("Mul", x, alpha))
    slope = tape.op("Mul", tape.op("Mul", y, alpha), tape.op("Sub", 1.0, s))
    return tape.op("Mul", g, tape.op("Add", s, slope))


@unary("Softplus")
def softplus(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G sigmoid(x)."""
    return tape.op("Mul", g, tape.op("Sigmoid", x))


@unary("Softsign")
def softsign(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G / (1 + |x|)^2."""
    base = tape.op("Add", tape.op("Abs", x), 1.0)
    return tape.op("Div", g, tape.op("Mul", base, base))


@unary("Mish")
def mish(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """``y = x t``, t = tanh(softplus(x)): g (t + x (1 - t^2) sigmoid(x))."""
    t = tape.op("Tanh", tape.op("Softplus", x))
    tail = tape.op("Mul", tape.op("Mul", x, tape.op("Sigmoid", x)), tape.op("Sub", 1.0, tape.op("Mul", t, t)))
    return tape.op("Mul", g, tape.op("Add", t, tail))


@unary("Elu")
def elu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G where x > 0, else g (y + alpha)."""
    below = tape.op("Mul", g, tape.op("Add", y, float(node.attrs.get("alpha", 1.0))))
    return tape.op("Where", tape.op("Greater", x, 0.0), g, below)


@unary("Celu")
def celu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """G where x > 0, else g exp(x / alpha)."""
    alpha = float(node.attrs.get("alpha", 1.0))
    below = tape.op("Mul", g, tape.op("Exp", tape.op("Div", tape.op("Min", x, 0.0), alpha)))
    return tape.op("Where", tape.op("Greater", x, 0.0), g, below)


@unary("Selu")
def selu(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """Gamma g where x > 0, else g (y + gamma alpha)."""
    alpha = float(node.attrs.get("alpha", 1.67326319217681884765625))
    gamma = float(node.attrs.get("gamma", 1.05070102214813232421875))
    below = tape.op("Mul", g, tape.op("Add", y, gamma * alpha))
    return tape.op("Where", tape.op("Greater", x, 0.0), tape.op("Mul", g, gamma), below)


@unary("Softmax")
def softmax(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """``y (g - sum(g y))`` along the axis."""
    axis = int(node.attrs.get("axis", -1)) % len(tape.shape(x))
    weighted = tape.op("Mul", g, y)
    return tape.op("Sub", weighted, tape.op("Mul", y, tape.reduce("ReduceSum", weighted, [axis])))


@unary("LogSoftmax")
def log_softmax(tape: Tape, g: str, x: str, y: str, node: ForwardNode) -> str:
    """``g - exp(y) sum(g)`` along the axis."""
    axis = int(node.attrs.get("axis", -1)) % len(tape.shape(x))
    return tape.op("Sub", g, tape.op("Mul", tape.op("Exp", y), tape.reduce("ReduceSum", g, [axis])))
