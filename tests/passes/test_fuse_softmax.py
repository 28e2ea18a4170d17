from __future__ import annotations

import numpy as np
import pytest
from exactness import apply, ops, parse

from onnx_hyvit.passes import fuse_softmax

W = {"last": np.array([-1], np.int64), "two": np.array([2, 3], np.int64), "first": np.array([1], np.int64)}
HEAD = "agraph (float[N, 2, 3, 4] x) => (float[N, 2, 3, 4] y) {"
LOG = "s = Sub(x, m) e = Exp(s) t = ReduceSum(e, AX) l = Log(t) n = Add(l, m) d = Sub(x, n) y = Exp(d)"

SPELLINGS = {
    "ratio": "m = ReduceMax(x, AX) s = Sub(x, m) e = Exp(s) t = ReduceSum(e, AX) y = Div(e, t)",
    "ratio_unshifted": "e = Exp(x) t = ReduceSum(e, AX) y = Div(e, t)",
    "log_sum_exp": "m = ReduceMax(x, AX) " + LOG,
    "reduce_log_sum_exp": "l = ReduceLogSumExp(x, AX) d = Sub(x, l) y = Exp(d)",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("axes", ["last", "two"])
def test_trailing_axes(spelling: str, axes: str) -> None:
    body = SPELLINGS[spelling].replace("AX", axes)
    model = apply(parse(f"{HEAD} {body} }}", weights=W), fuse_softmax.PASS, batches=(1, 2))
    assert ops(model) == ({"Softmax": 1} if axes == "last" else {"Softmax": 1, "Reshape": 2})


@pytest.mark.parametrize(
    "body",
    [
        SPELLINGS["ratio"].replace("AX", "first"),
        "m = Relu(x) s = Sub(x, m) e = Exp(s) t = ReduceSum(e, last) l = Log(t) n = Add(l, m) d = Sub(x, n) y = Exp(d)",
        "e = Exp(x) t = ReduceSum(e, last) f = Exp(t) y = Div(e, f)",
    ],
)
def test_what_is_no_softmax(body: str) -> None:
    assert ops(apply(parse(f"{HEAD} {body} }}", weights=W), fuse_softmax.PASS))["Softmax"] == 0


def test_tapped_exponentials_are_left_alone() -> None:
    head = "agraph (float[N, 2, 3, 4] x) => (float[N, 2, 3, 4] y, float[N, 2, 3, 4] e) {"
    body = SPELLINGS["ratio_unshifted"].replace("AX", "last")
    assert ops(apply(parse(f"{head} {body} }}", weights=W), fuse_softmax.PASS))["Softmax"] == 0


def test_flattened_form_of_old_opsets() -> None:
    text = f"{HEAD} y = Softmax<axis = 3>(x) }}"
    model = apply(parse(text, 11), fuse_softmax.PASS, batches=(1, 2))
    assert ops(model)["Softmax"] == 1 and ops(model)["Reshape"] == 0


def test_flattening_several_axes_is_not_unwrapped() -> None:
    text = f"{HEAD} f = Flatten<axis = 2>(x) s = Softmax<axis = -1>(f) h = Shape(x) y = Reshape(s, h) }}"
    assert ops(apply(parse(text), fuse_softmax.PASS))["Flatten"] == 1
