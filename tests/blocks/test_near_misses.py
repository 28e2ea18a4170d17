"""Near-misses on tiny graphs: the reason and the culprit node; costs counted by hand; regions and shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from onnx_hyvit.blocks import Structure, count_macs, find_structure
from onnx_hyvit.errors import ModelError
from onnx_hyvit.graph import load_model, model_to_proto
from onnx_hyvit.graph.region import extract_region
from onnx_hyvit.runtime import observe_shapes

WEIGHTS: dict[str, tuple[int, ...]] = {
    "patch": (8, 3, 4, 4),
    "mask": (1, 8, 1, 1),
    "square": (8, 8),
    "narrow": (8, 1),
    "gamma": (8,),
}
SHAPES = {"to_tokens": [1, 8, 16], "to_map": [1, 8, 4, 4], "to_mask": [1, 1, 16]}


def _model(body: str, output: str = "float[1,16,8] out", image: str = "float[1,3,16,16] image") -> onnx.ModelProto:
    """A model from node lines; weights and shape constants are added where they are named."""
    text = f'<ir_version: 9, opset_import: ["" : 20]> g ({image}) => ({output}) {{\n{body}\n}}'
    proto = onnx.parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    generator = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        if name in read:
            weight = generator.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    for name, values in SHAPES.items():
        if name in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    return proto


def _structure(proto: onnx.ModelProto) -> tuple[Structure, dict[str, str]]:
    """The structure, and the name of the node that makes each tensor."""
    model = load_model(proto)
    shapes = observe_shapes(model_to_proto(model))
    makers = {tensor.name: node.name for node in model.graph.nodes for tensor in node.outputs}
    return find_structure(model, shapes), makers


TOKENS = """
    map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, patch)
    flat = Reshape (map, to_tokens)
    tokens = Transpose <perm = [0, 2, 1]> (flat)
"""
FEED_FORWARD = """
    n{0} = LayerNormalization (t{0}, gamma)
    h{0} = MatMul (n{0}, square)
    a{0} = Relu (h{0})
    o{0} = MatMul (a{0}, square)
    t{1} = Add (t{0}, o{0})
"""
ATTENTION = """
    n0 = LayerNormalization (t0, gamma)
    q = MatMul (n0, square)
    k = MatMul (n0, square)
    v = MatMul (n0, square)
    kt = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (q, kt)
    p = Softmax <axis = -1> (scores)
    mixed = MatMul (p, v)
    o0 = MatMul (mixed, square)
    t1 = Add (t0, o0)
"""


def test_attention_block_is_a_bridge_and_a_transformer() -> None:
    body = TOKENS + "t0 = Identity (tokens)" + ATTENTION + FEED_FORWARD.format(1, 2) + "out = Identity (t2)"
    structure, makers = _structure(_model(body))
    assert [block.kind for block in structure.blocks] == ["bridge", "transformer", "head"]
    bridge, transformer, _ = structure.blocks
    for tensor in ("map", "tokens", "n0", "q", "k", "v"):
        assert makers[tensor] in bridge.nodes
    for tensor in ("scores", "p", "t1", "h1", "t2"):
        assert makers[tensor] in transformer.nodes
    assert set(bridge.outputs) == {"t0", "q", "k", "v"}
    assert bridge.params == 8 * 3 * 16 + 8 + 8 * 8
    assert bridge.macs == 16 * 8 * 3 * 16 + 3 * 16 * 8 * 8
    assert structure.unrecognised == ()


def test_softmax_gate_is_named() -> None:
    body = """
        map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, patch)
        gate = Softmax <axis = 1> (map)
        gated = Mul (map, gate)
        out = Relu (gated)
    """
    structure, makers = _structure(_model(body, "float[1,8,4,4] out"))
    (miss,) = structure.unrecognised
    assert miss.node == makers["gate"]
    assert "not followed by a matrix product" in miss.reason
    assert structure.attentions == ()


def test_classifier_softmax_is_no_near_miss() -> None:
    body = """
        map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, patch)
        pooled = GlobalAveragePool (map)
        vector = Flatten (pooled)
        scores = Gemm (vector, square)
        out = Softmax <axis = -1> (scores)
    """
    structure, _ = _structure(_model(body, "float[1,8] out"))
    assert structure.unrecognised == ()
    assert [block.kind for block in structure.blocks] == ["stem", "head"]


def test_global_context_lacks_the_product_of_query_and_key() -> None:
    body = """
        map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, patch)
        logits = Conv (map, mask)
        row = Reshape (logits, to_mask)
        p = Softmax <axis = -1> (row)
        flat = Reshape (map, to_tokens)
        keys = Transpose <perm = [0, 2, 1]> (flat)
        context = MatMul (p, keys)
        out = Relu (context)
    """
    structure, makers = _structure(_model(body, "float[1,1,8] out"))
    (miss,) = structure.unrecognised
    assert miss.node == makers["p"]
    assert "no product of query and key" in miss.reason


@pytest.mark.parametrize("between", ["", "Transpose"])
def test_softmax_over_the_keys_of_linear_attention_is_no_near_miss(between: str) -> None:
    """CoaT: ``q (softmax(k)^T v)``, with and without a node between Softmax and the product."""
    turned = "kt = Transpose <perm = [0, 2, 1]> (p)" if between else ""
    scores = "k" if between else "kf"
    body = f"""{TOKENS}
        q = MatMul (tokens, square)
        k = MatMul (q, square)
        v = MatMul (k, square)
        kf = Transpose <perm = [0, 2, 1]> (k)
        p = Softmax <axis = {1 if between else 2}> ({scores})
        {turned}
        context = MatMul ({"kt" if between else "p"}, v)
        mixed = MatMul (q, context)
        out = Add (mixed, tokens)
    """
    structure, makers = _structure(_model(body))
    (attention,) = structure.attentions
    assert {makers["context"], makers["mixed"]} <= set(attention.nodes)
    assert structure.unrecognised == ()


@pytest.mark.parametrize(("summed", "found"), [(True, 1), (False, 0)])
def test_layout_may_stand_between_scores_and_samples(summed: bool, found: int) -> None:
    """Deformable attention: scores and samples meet after a transposition; a product that nobody sums is a gate."""
    body = f"""{TOKENS}
        k = MatMul (tokens, square)
        kt = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (tokens, narrow)
        p = Softmax <axis = 1> (s)
        pt = Transpose <perm = [0, 2, 1]> (p)
        weighted = Mul (kt, pt)
        last = Constant <value_ints = [2]> ()
        context = {"ReduceSum (weighted, last)" if summed else "Relu (weighted)"}
        back = Transpose <perm = [0, 2, 1]> (context)
        out = Add (back, tokens)
    """
    structure, makers = _structure(_model(body))
    assert len(structure.attentions) == found
    for attention in structure.attentions:
        assert (attention.kind, attention.query, attention.key) == ("separable", "s", "kt")
        assert attention.nodes == tuple(makers[name] for name in ("p", "pt", "weighted", "context"))
    assert [miss.node for miss in structure.unrecognised if "Softmax" in miss.reason] == [makers["p"]] * (1 - found)


def test_tokens_without_attention_are_named() -> None:
    body = TOKENS + "t0 = Identity (tokens)" + FEED_FORWARD.format(0, 1) + FEED_FORWARD.format(1, 2)
    structure, makers = _structure(_model(body + "out = Identity (t2)"))
    assert structure.blocks_of_kind("bridge") == ()
    assert ("token region without attention", makers["h0"]) in [(m.reason, m.node) for m in structure.unrecognised]


def test_scrambling_reshape_is_named() -> None:
    body = """
        map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, patch)
        wide = Concat <axis = 1> (map, map, map)
        t0 = Reshape (wide, uneven)
    """
    proto = _model(body + FEED_FORWARD.format(0, 1) + "out = Identity (t1)", "float[16,3,8] out")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([16, 3, 8], np.int64), "uneven"))
    structure, makers = _structure(proto)
    misses = [miss for miss in structure.unrecognised if "channel axis" in miss.reason]
    assert [miss.node for miss in misses] == [makers["t0"]]


def test_unused_nodes_and_a_constant_result_are_still_partitioned() -> None:
    body = "a = Relu (image)\nunused = Transpose (a)\nout = Constant <value_floats = [1.0, 2.0]> ()"
    proto = _model(body, "float[2] out")
    structure, _ = _structure(proto)
    assert sum(len(block.nodes) for block in structure.blocks) == 3


@pytest.mark.parametrize(
    ("node", "shapes", "expected"),
    [
        ("o = Conv <group = 2> (x, w)", {"x": (1, 8, 5, 5), "w": (6, 4, 3, 3), "o": (1, 6, 3, 3)}, 6 * 9 * 4 * 9),
        ("o = MatMul (x, w)", {"x": (2, 7, 8), "w": (8, 5), "o": (2, 7, 5)}, 2 * 7 * 8 * 5),
        ("o = Gemm <transA = 1> (x, w)", {"x": (8, 2), "w": (8, 5), "o": (2, 5)}, 2 * 8 * 5),
        (
            'o = Einsum <equation = "bhqd,bhkd->bhqk"> (x, w)',
            {"x": (1, 2, 7, 4), "w": (1, 2, 9, 4), "o": (1, 2, 7, 9)},
            2 * 7 * 9 * 4,
        ),
        ("o = Add (x, w)", {"x": (4,), "w": (4,), "o": (4,)}, 0),
    ],
)
def test_macs_by_hand(node: str, shapes: dict[str, tuple[int, ...]], expected: int) -> None:
    text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[N] x, float[M] w) => (float[K] o) {{ {node} }}'
    (parsed,) = gs.import_onnx(onnx.parser.parse_model(text)).nodes
    assert count_macs(parsed, shapes) == expected


def test_free_dimensions_of_an_image_are_chosen() -> None:
    proto = _model("out = Conv <strides = [4, 4]> (image, patch)", "float[N,8,h,w] out", "float[N,3,H,W] image")
    assert observe_shapes(proto)["out"] == (1, 8, 56, 56)


def test_free_width_beside_a_text_height() -> None:
    proto = _model("out = Conv <strides = [4, 4]> (image, patch)", "float[N,8,12,w] out", "float[N,3,48,W] image")
    assert observe_shapes(proto)["image"] == (1, 3, 48, 320)


def test_a_model_that_cannot_run_names_the_node() -> None:
    proto = _model("flat = Reshape (image, to_tokens)\nout = Relu (flat)", "float[1,8,16] out")
    proto.graph.node[0].name = "the_reshape"
    with pytest.raises(ModelError, match="the_reshape") as caught:
        observe_shapes(proto)
    assert "\n" not in str(caught.value)


def test_region_of_an_unknown_tensor_is_refused() -> None:
    proto = _model("a = Relu (image)\nout = Relu (a)", "float[1,3,16,16] out")
    with pytest.raises(ModelError, match="nowhere"):
        extract_region(proto, ["image"], ["nowhere"])


def test_region_that_needs_another_input_is_refused() -> None:
    proto = onnx.shape_inference.infer_shapes(_model("a = Relu (image)\nout = Relu (a)", "float[1,3,16,16] out"))
    with pytest.raises(ModelError, match="image"):
        extract_region(proto, [], ["out"])


@pytest.mark.parametrize(("pooled", "found"), [(True, 0), (False, 1)])
def test_a_choice_among_branches_is_no_attention(pooled: bool, found: int) -> None:
    """SKNet, ResNeSt: softmax of what a mean over positions says, times the branches, summed."""
    body = f"""
        a = Conv <strides = [4, 4]> (image, patch)
        last = Constant <value_ints = [2, 3]> ()
        m = {"ReduceMean (a, last)" if pooled else "Relu (a)"}
        s = Conv (m, mask)
        p = Softmax <axis = 1> (s)
        weighted = Mul (a, p)
        branches = Constant <value_ints = [1]> ()
        context = ReduceSum <keepdims = 0> (weighted, branches)
        out = Relu (context)
    """
    structure, _ = _structure(_model(body, "float[1,4,4] out"))
    assert len(structure.attentions) == found
    assert not [miss for miss in structure.unrecognised if "Softmax" in miss.reason]
