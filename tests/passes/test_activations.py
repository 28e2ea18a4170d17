from __future__ import annotations

import math

import numpy as np
import pytest
from exactness import apply, count_of, ops, parse

from onnx_hyvit.graph import load_model
from onnx_hyvit.graph.recognise import find_activations
from onnx_hyvit.passes import canonicalise_silu, fuse_gelu, fuse_hard_swish


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


W = {
    "root2": scalar(math.sqrt(2)),
    "inv_root2": scalar(1 / math.sqrt(2)),
    "half": scalar(0.5),
    "one": scalar(1),
    "two": scalar(2),
    "three": scalar(3),
    "six": scalar(6),
    "sixth": scalar(1 / 6),
    "zero": scalar(0),
    "five": scalar(5),
    "k": scalar(0.044715),
    "c": scalar(math.sqrt(2 / math.pi)),
    "q": scalar(1.702),
    "near": scalar(1.45),
    "small": scalar(0.1),
}
HEAD = "agraph (float[2, 3, 16] x) => (float[2, 3, 16] y) {"

GELU = {
    "torch": "a = Div(x, root2) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)",
    "scaled_first": "a = Mul(inv_root2, x) e = Erf(a) s = Add(one, e) h = Mul(half, x) y = Mul(s, h)",
    "gate_halved": "a = Div(x, root2) e = Erf(a) s = Add(e, one) h = Mul(s, half) y = Mul(x, h)",
    "divided_by_two": "a = Div(x, root2) e = Erf(a) s = Add(e, one) m = Mul(s, x) y = Div(m, two)",
    "half_inside": "a = Div(x, root2) e = Erf(a) h = Mul(e, half) s = Add(h, half) y = Mul(x, s)",
    "constant_node": "r = Constant<value_float = 1.4142135>() a = Div(x, r) e = Erf(a) s = Add(e, one) m = Mul(x, s) "
    "y = Mul(m, half)",
}
TANH = {
    "pow": "p = Pow(x, three) k1 = Mul(p, k) i = Add(x, k1) j = Mul(i, c) t = Tanh(j) s = Add(t, one) m = Mul(x, s) "
    "y = Mul(m, half)",
    "products": "p2 = Mul(x, x) p = Mul(p2, x) k1 = Mul(k, p) i = Add(k1, x) j = Mul(c, i) t = Tanh(j) s = Add(one, t) "
    "h = Mul(half, x) y = Mul(h, s)",
    "factored": "p = Mul(x, x) k1 = Mul(p, k) i = Add(k1, one) xc = Mul(x, c) j = Mul(xc, i) t = Tanh(j) "
    "s = Add(t, one) h = Mul(x, half) y = Mul(h, s)",
}
HARD_SWISH = {
    "hard_sigmoid": "g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, g)",
    "clip": "a = Add(x, three) g = Clip(a, zero, six) m = Mul(x, g) y = Div(m, six)",
    "clip_swapped": "a = Add(three, x) g = Clip(a, zero, six) h = Mul(g, sixth) y = Mul(h, x)",
    "min_max": "a = Add(x, three) l = Max(a, zero) g = Min(l, six) h = Div(g, six) y = Mul(x, h)",
    "min_relu": "a = Add(x, three) l = Relu(a) g = Min(six, l) m = Mul(g, x) y = Mul(m, sixth)",
}


@pytest.mark.parametrize("spelling", GELU)
def test_erf_gelu(spelling: str) -> None:
    model = apply(parse(f"{HEAD} {GELU[spelling]} }}", weights=W), fuse_gelu.PASS)
    assert ops(model) == {"Gelu": 1}
    assert model.graph.nodes[0].attrs["approximate"] == "none"


@pytest.mark.parametrize("spelling", TANH)
def test_tanh_gelu(spelling: str) -> None:
    model = apply(parse(f"{HEAD} {TANH[spelling]} }}", weights=W), fuse_gelu.PASS)
    assert ops(model) == {"Gelu": 1}
    assert model.graph.nodes[0].attrs["approximate"] == "tanh"


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        (GELU["torch"].replace("root2", "near"), 20),
        (GELU["torch"].replace("m = Mul(x, s)", "m = Mul(a, s)"), 20),
        (GELU["torch"], 17),
        ("s = Mul(x, q) g = Sigmoid(s) y = Mul(x, g)", 20),
    ],
)
def test_what_is_no_gelu(body: str, opset: int) -> None:
    assert count_of(parse(f"{HEAD} {body} }}", opset, W), fuse_gelu.PASS, opset) == 0


def test_tapped_gelu_is_left_alone() -> None:
    head = "agraph (float[2, 3, 16] x) => (float[2, 3, 16] y, float[2, 3, 16] e) {"
    assert count_of(parse(f"{head} {GELU['torch']} }}", weights=W), fuse_gelu.PASS) == 0


@pytest.mark.parametrize("spelling", HARD_SWISH)
def test_hard_swish(spelling: str) -> None:
    model = apply(parse(f"{HEAD} {HARD_SWISH[spelling]} }}", weights=W), fuse_hard_swish.PASS)
    assert ops(model) == {"HardSwish": 1}


def test_hard_sigmoid_of_a_gate() -> None:
    body = "a = Add(x, three) g = Clip(a, zero, six) h = Div(g, six) r = Relu(x) y = Mul(r, h)"
    model = apply(parse(f"{HEAD} {body} }}", weights=W), fuse_hard_swish.PASS)
    assert ops(model) == {"HardSigmoid": 1, "Relu": 1, "Mul": 1}


@pytest.mark.parametrize(
    "body",
    [
        "g = HardSigmoid(x) y = Mul(x, g)",
        "a = Add(x, three) g = Clip(a, zero, five) m = Mul(x, g) y = Div(m, six)",
        "a = Add(x, two) g = Clip(a, zero, six) m = Mul(x, g) y = Div(m, six)",
    ],
)
def test_what_is_no_hard_swish(body: str) -> None:
    assert count_of(parse(f"{HEAD} {body} }}", weights=W), fuse_hard_swish.PASS) == 0


def test_silu_spelled_by_exp() -> None:
    body = "n = Neg(x) e = Exp(n) d = Add(one, e) y = Div(x, d)"
    model = apply(parse(f"{HEAD} {body} }}", weights=W), canonicalise_silu.PASS)
    assert ops(model) == {"Sigmoid": 1, "Mul": 1}


KINDS = {
    "y = Relu(x)": "relu",
    "y = Clip(x, zero, six)": "relu6",
    "y = Clip(x, zero)": "relu",
    "g = Sigmoid(x) y = Mul(g, x)": "silu",
    "s = Mul(x, q) g = Sigmoid(s) y = Mul(x, g)": "gelu_quick",
    "p = Softplus(x) t = Tanh(p) y = Mul(x, t)": "mish",
    "e = Exp(x) p = Add(e, one) l = Log(p) t = Tanh(l) y = Mul(t, x)": "mish",
    "y = LeakyRelu<alpha = 0.2>(x)": "leaky_relu",
    "a = Mul(x, small) y = Max(x, a)": "leaky_relu",
    "m = ReduceMean<keepdims = 1>(x) n = Sigmoid(m) a = Mul(x, m) b = Mul(x, n) y = Max(a, b)": "dynamic_relu",
    GELU["torch"]: "gelu",
    TANH["pow"]: "gelu_tanh",
    HARD_SWISH["clip"]: "hard_swish",
}


@pytest.mark.parametrize("body", KINDS)
def test_recognised_kind(body: str) -> None:
    model = load_model(parse(f"{HEAD} {body} }}", weights=W))
    kinds = [activation.kind for activation in find_activations(model.graph)]
    assert KINDS[body] in kinds
    assert len(kinds) == (2 if KINDS[body] == "dynamic_relu" else 1)
    final = next(a for a in find_activations(model.graph) if a.kind == KINDS[body])
    assert final.output == "y"


def test_clip_limits_are_reported() -> None:
    (activation,) = find_activations(load_model(parse(f"{HEAD} y = Clip(x, small, five) }}", weights=W)).graph)
    assert activation.kind == "clip"
    assert dict(activation.parameters) == pytest.approx({"min": 0.1, "max": 5.0})


@pytest.mark.parametrize(
    ("ends", "kind", "limits"),
    [("small", "clip", {"min": 0.1}), (", five", "clip", {"max": 5.0}), ("zero", "relu", {"min": 0.0})],
)
def test_a_limit_that_a_clip_lacks_is_left_out(ends: str, kind: str, limits: dict[str, float]) -> None:
    """JSON has no infinity."""
    (activation,) = find_activations(load_model(parse(f"{HEAD} y = Clip(x, {ends}) }}", weights=W)).graph)
    assert activation.kind == kind and dict(activation.parameters) == pytest.approx(limits)
