"""A table of small graphs, one or more for each VJP rule, over attributes and shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

INT = np.int64


@dataclass(frozen=True)
class Case:
    """One node: attributes, constant inputs, and how the differentiated inputs are drawn.

    Args:
        op: Operator.
        inputs: Input -> shape (drawn, differentiated) or array (constant); None is an absent input.
        attrs: Attributes.
        outputs: Number of outputs.
        low: Smallest drawn value.
        high: Largest.
        opset: Opset of the model.
        domain: Operator domain.
        linear: Linear, and not covered by the reference evaluator.
    """

    op: str
    inputs: list[tuple[int, ...] | np.ndarray | None]
    attrs: dict[str, object] = field(default_factory=dict)
    outputs: int = 1
    low: float = -2.0
    high: float = 2.0
    opset: int = 20
    domain: str = ""
    linear: bool = False

    def __str__(self) -> str:
        shapes = [f"const{list(i.shape)}" if isinstance(i, np.ndarray) else str(i) for i in self.inputs]
        attrs = ",".join(f"{key}={value}" for key, value in self.attrs.items())
        return f"{self.op}-{'-'.join(shapes)}-{attrs}-v{self.opset}".replace(" ", "")


def _w(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.asarray(values, INT)


CONV = [
    Case("Conv", [(2, 3, 6, 5), _w(4, 3, 3, 3), (4,)], {"pads": [1, 1, 1, 1]}),
    Case("Conv", [(1, 3, 7, 6), _w(4, 3, 3, 2)], {"pads": [1, 0, 0, 1], "strides": [2, 3]}),
    Case("Conv", [(1, 4, 8, 8), _w(6, 2, 3, 3)], {"group": 2, "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    Case("Conv", [(1, 4, 9, 9), _w(4, 1, 5, 5)], {"group": 4, "strides": [2, 2], "pads": [2, 2, 2, 2]}),
    Case("Conv", [(1, 4, 6, 6), _w(8, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1]}),
    Case("Conv", [(2, 3, 4, 4), _w(5, 3, 1, 1)]),
    Case("Conv", [(1, 2, 5, 6), _w(3, 2, 2, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", [(1, 2, 5, 6), _w(3, 2, 2, 4)], {"auto_pad": "SAME_LOWER"}),
    Case("Conv", [(1, 2, 7, 7), _w(3, 2, 3, 3)], {"auto_pad": "VALID", "strides": [3, 3]}),
    Case("Conv", [(1, 2, 3, 3), _w(2, 2, 1, 1)], {"pads": [1, 1, 1, 1]}),
    Case("Conv", [(1, 2, 9), _w(3, 2, 3)], {"strides": [2], "dilations": [2], "pads": [1, 2]}),
    Case("Conv", [(1, 1, 3, 4, 3), _w(2, 1, 2, 2, 2)], {"strides": [1, 2, 1]}),
    Case("ConvTranspose", [(1, 3, 3, 4), _w(3, 2, 3, 3), (2,)], {"strides": [2, 2]}),
    Case("ConvTranspose", [(1, 4, 3, 3), _w(4, 2, 2, 3)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 1]},
         linear=True),
    Case("ConvTranspose", [(1, 2, 3, 3), _w(2, 2, 3, 3)],
         {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    Case("ConvTranspose", [(1, 2, 3, 3), _w(2, 2, 2, 2)], {"strides": [2, 2], "dilations": [2, 2]}),
    Case("ConvTranspose", [(1, 2, 3, 3), _w(2, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", [(1, 2, 3, 3), _w(2, 2, 3, 3)], {"strides": [2, 2], "output_shape": [6, 7]}, linear=True),
]  # fmt: skip

MATMUL = [
    Case("MatMul", [(3, 4), (4, 2)]),
    Case("MatMul", [(2, 3, 4), (4, 2)]),
    Case("MatMul", [(3, 4), (2, 4, 2)]),
    Case("MatMul", [(2, 1, 3, 4), (5, 4, 2)]),
    Case("MatMul", [(4,), (2, 4, 3)]),
    Case("MatMul", [(2, 3, 4), (4,)]),
    Case("MatMul", [(4,), (4,)]),
    Case("Gemm", [(3, 4), (4, 2), (2,)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [(4, 3), (4, 2), (3, 1)], {"transA": 1}),
    Case("Gemm", [(3, 4), (2, 4), (1,)], {"transB": 1, "alpha": 1.5}),
    Case("Gemm", [(4, 3), (2, 4)], {"transA": 1, "transB": 1}),
    Case("Einsum", [(2, 3, 4), (2, 5, 4)], {"equation": "bnd,bmd->bnm"}),
    Case("Einsum", [(2, 3, 4), (4, 5)], {"equation": "bnd,de"}),
    Case("Einsum", [(2, 3, 4, 2), (2, 3, 2, 5)], {"equation": "bhwc, bhck -> bkhw"}),
    Case("Einsum", [(2, 3, 4), (2, 3)], {"equation": "abc,ab->a"}),
]

_BROADCASTS = [[(2, 3, 4), (2, 3, 4)], [(2, 3, 4), (4,)], [(3, 1), (2, 1, 4)], [(2, 3), ()]]
ELEMENTWISE = [
    *(Case(op, list(shapes)) for op in ("Add", "Sub", "Mul", "Max", "Min") for shapes in _BROADCASTS),
    *(Case("Div", list(shapes), low=0.5) for shapes in _BROADCASTS),
    *(Case("Pow", list(shapes), low=0.5) for shapes in _BROADCASTS),
    Case("Pow", [(2, 3), np.float32(2)]),
    Case("Pow", [(2, 3), np.float32(3)]),
    Case("Pow", [(2, 3), np.asarray([0.5], np.float32)], low=0.5),
    Case("Pow", [(2, 3), _i(2)]),
    Case("Sum", [(2, 3), (3,), (2, 1)]),
    Case("Mean", [(2, 3), (3,), (2, 1)]),
    Case("Max", [(2, 3), (3,), (2, 1)]),
    Case("Where", [np.asarray([[True], [False]]), (2, 3), (3,)]),
    Case("Where", [np.asarray([True, False, True]), (1,), (2, 3)]),
    *(Case(op, [(2, 5)]) for op in ("Neg", "Abs", "Exp", "Sin", "Cos")),
    *(Case(op, [(2, 5)], low=0.4) for op in ("Sqrt", "Log", "Reciprocal")),
]

ACTIVATIONS = [
    *(Case(op, [(3, 7)], low=-5.0, high=5.0)
      for op in ("Relu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "Erf", "Gelu",
                 "Softplus", "Softsign", "Mish", "Elu", "Celu", "Selu")),
    Case("LeakyRelu", [(3, 7)], {"alpha": 0.3}),
    Case("HardSigmoid", [(3, 7)], {"alpha": 1 / 6, "beta": 0.5}, low=-5.0, high=5.0),
    Case("Gelu", [(3, 7)], {"approximate": "tanh"}),
    Case("Gelu", [(3, 7)], domain="com.microsoft"),
    Case("FastGelu", [(3, 7)], domain="com.microsoft"),
    Case("QuickGelu", [(3, 7)], domain="com.microsoft"),
    Case("QuickGelu", [(3, 7)], {"alpha": 1.0}, domain="com.microsoft"),
    Case("Elu", [(3, 7)], {"alpha": 0.7}),
    Case("Celu", [(3, 7)], {"alpha": 0.7}),
    Case("PRelu", [(2, 3, 2, 2), (3, 1, 1)]),
    Case("Clip", [(3, 7), np.float32(-0.5), np.float32(1.5)]),
    Case("Clip", [(3, 7), None, np.float32(1.0)]),
    Case("Clip", [(3, 7), np.float32(0.0)]),
    *(Case(op, [(2, 3, 4)], {"axis": axis}) for op in ("Softmax", "LogSoftmax") for axis in (-1, 0, 1)),
]  # fmt: skip

NORMS = [
    Case("LayerNormalization", [(2, 3, 5), (5,), (5,)]),
    Case("LayerNormalization", [(2, 3, 5), (3, 5)], {"axis": 1, "epsilon": 1e-3}),
    Case("InstanceNormalization", [(2, 3, 4, 3), _w(3), _w(3, seed=1)]),
    Case("GroupNormalization", [(2, 6, 3, 2), _w(3), _w(3, seed=1)], {"num_groups": 3}),
    Case("GroupNormalization", [(2, 6, 3, 2), _w(6), _w(6, seed=1)], {"num_groups": 2}, opset=21),
    Case("GroupNormalization", [(2, 6, 3, 2), _w(6), _w(6, seed=1)], {"num_groups": 6}, opset=21),
    Case("BatchNormalization", [(2, 3, 4), _w(3), _w(3, seed=1), _w(3, seed=2), np.abs(_w(3, seed=3)) + 0.1]),
    Case("LpNormalization", [(2, 3, 4)], {"axis": 1}),
    Case("LpNormalization", [(2, 3, 4)], {"axis": -1, "p": 1}),
    Case("RMSNormalization", [(2, 3, 5), (5,)], opset=23),
    Case("MeanVarianceNormalization", [(2, 3, 4, 2)]),
]

_REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare",
           "ReduceLogSumExp")  # fmt: skip
REDUCTIONS = [
    *(Case(op, [(2, 3, 4), _i(-1)]) for op in _REDUCE),
    *(Case(op, [(2, 3, 4), _i(0, 2)], {"keepdims": 0}) for op in _REDUCE),
    *(Case(op, [(2, 3)], {"keepdims": 0}) for op in _REDUCE),
    *(Case(op, [(2, 3, 4)], {"axes": [1]}, opset=13) for op in _REDUCE if op != "ReduceSum"),
    Case("ReduceMean", [(2, 3)], {"noop_with_empty_axes": 1}),
    Case("ReduceProd", [(2, 3), _i(1)], low=0.5),
    Case("ReduceLogSum", [(2, 3), _i(1)], low=0.5),
    Case("CumSum", [(2, 4), np.asarray(1, INT)]),
    Case("CumSum", [(2, 4), np.asarray(0, INT)], {"exclusive": 1, "reverse": 1}),
    Case("GlobalAveragePool", [(2, 3, 4, 3)]),
    Case("GlobalMaxPool", [(2, 3, 4, 3)]),
    Case("AveragePool", [(1, 2, 6, 5)], {"kernel_shape": [3, 2], "strides": [2, 1]}),
    Case("AveragePool", [(1, 2, 6, 5)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", [(1, 2, 6, 5)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", [(1, 2, 6, 6)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", [(1, 2, 7, 6)], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("AveragePool", [(1, 2, 8)], {"kernel_shape": [2], "dilations": [3]}),
    Case("MaxPool", [(1, 2, 6, 5)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [(2, 2, 6, 6)], {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 2]}),
    Case("MaxPool", [(1, 2, 7)], {"kernel_shape": [3], "dilations": [2]}),
]

SHAPES = [
    Case("Reshape", [(2, 6), _i(3, -1)]),
    Case("Flatten", [(2, 3, 4)], {"axis": 2}),
    Case("Squeeze", [(2, 1, 3), _i(1)]),
    Case("Unsqueeze", [(2, 3), _i(0, 3)]),
    Case("Identity", [(2, 3)]),
    Case("Dropout", [(2, 3)]),
    Case("Transpose", [(2, 3, 4)], {"perm": [2, 0, 1]}),
    Case("Transpose", [(2, 3, 4)]),
    Case("Concat", [(2, 3), (2, 1), (2, 2)], {"axis": -1}),
    Case("Concat", [(2, 3), _w(1, 3)], {"axis": 0}),
    Case("Split", [(2, 6), _i(1, 2, 3)], {"axis": 1}, outputs=3),
    Case("Split", [(2, 7)], {"axis": -1, "num_outputs": 3}, outputs=3),
    Case("Slice", [(5, 6), _i(1, 0), _i(4, 5)]),
    Case("Slice", [(5, 6), _i(-2), _i(1000), _i(-1)]),
    Case("Slice", [(5, 7), _i(1), _i(7), _i(1), _i(2)]),
    Case("Slice", [(5, 7), _i(0, 1), _i(5, 7), _i(0, 1), _i(3, 2)]),
    Case("Slice", [(2, 7), _i(-1), _i(-1000), _i(1), _i(-1)]),
    Case("Slice", [(2, 7), _i(5), _i(0), _i(1), _i(-2)]),
    Case("Gather", [(3, 4), np.asarray(1, INT)], {"axis": 1}),
    Case("Gather", [(3, 4), _i(-1)], {"axis": 0}),
    Case("Gather", [(3, 4), _i(2, 0, 2)], {"axis": 0}),
    Case("Gather", [(2, 3, 4), np.asarray([[0, 2], [2, 1]], INT)], {"axis": 1}),
    Case("GatherElements", [(2, 3), np.asarray([[0, 2, 2], [1, 1, 0]], INT)], {"axis": 1}),
    Case("GatherND", [(2, 3), np.asarray([[0, 2], [1, 1], [0, 2]], INT)]),
    Case("ScatterND", [(4, 3), np.asarray([[1], [3]], INT), (2, 3)]),
    Case("ScatterND", [(4, 3), np.asarray([[1], [3]], INT), (2, 3)], {"reduction": "add"}),
    Case("Expand", [(3, 1), _i(2, 3, 4)]),
    Case("Tile", [(2, 3), _i(2, 3)]),
    Case("Pad", [(2, 3), _i(1, 0, 0, 2)]),
    Case("Pad", [(4, 5), _i(-1, 1, 0, -2)], linear=True),
    Case("Pad", [(2, 3), _i(1, 2), np.float32(7), _i(1)]),
    *(Case("Pad", [(3, 4), _i(1, 2, 2, 1)], {"mode": mode}) for mode in ("reflect", "edge")),
    Case("Pad", [(3, 4), _i(1, 2, 2, 1)], {"mode": "wrap"}),
    Case("Cast", [(2, 3)], {"to": 1}),
    *(Case("DepthToSpace", [(1, 8, 2, 3)], {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Case("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 2}),
    Case("Col2Im", [(2, 12, 6), _i(4, 9), _i(2, 3)], {"strides": [2, 3]}, opset=18),
    Case("Col2Im", [(1, 8, 20), _i(5, 6), _i(2, 2)], opset=18),
    Case(
        "Col2Im",
        [(1, 6, 9), _i(5, 6), _i(3, 2)],
        {"strides": [2, 2], "pads": [1, 0, 2, 1], "dilations": [1, 2]},
        opset=18,
    ),
    Case("Col2Im", [(1, 6, 4), _i(6), _i(3)], opset=18),
]

ATTENTION = [
    Case("Attention", [(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 3)], opset=23),
    Case("Attention", [(2, 3, 8), (2, 4, 8), (2, 4, 6)], {"q_num_heads": 2, "kv_num_heads": 2}, opset=23),
    Case("Attention", [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), _w(3, 3)], {"scale": 0.3}, opset=23),
    Case(
        "Attention",
        [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), np.eye(3, dtype=bool)[::-1] | np.eye(3, dtype=bool)],
        opset=23,
    ),
    Case("Attention", [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], {"is_causal": 1}, opset=23),
]

_SCALES = np.asarray([1, 1, 2, 1.5], np.float32)
_DOWN = np.asarray([1, 1, 0.5, 0.6], np.float32)
_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
RESIZE = [
    *(Case("Resize", [(1, 2, 4, 4), None, scales], {"mode": mode, "coordinate_transformation_mode": coordinates},
           linear=coordinates == "align_corners")
      for mode in ("linear", "cubic") for coordinates in _COORDINATES for scales in (_SCALES, _DOWN)),
    *(Case("Resize", [(1, 2, 4, 5), None, _SCALES], {"mode": "nearest", "nearest_mode": nearest})
      for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    Case("Resize", [(1, 2, 4, 4), None, _SCALES],
         {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    Case("Resize", [(1, 2, 4, 4), None, None, _i(1, 2, 7, 3)], {"mode": "linear"}),
    Case("Resize", [(1, 2, 4, 4), None, None, _i(7, 3)], {"mode": "linear", "axes": [2, 3]}),
    Case("Resize", [(1, 1, 5, 5), None, _SCALES], {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}),
    Case("Resize", [(1, 1, 6, 6), None, None, _i(1, 1, 3, 4)], {"mode": "linear", "antialias": 1}),
    Case("Resize", [(1, 1, 8, 6), None, None, _i(1, 1, 3, 4)], {"mode": "cubic", "antialias": 1}),
]  # fmt: skip

CASES = CONV + MATMUL + ELEMENTWISE + ACTIVATIONS + NORMS + REDUCTIONS + SHAPES + ATTENTION + RESIZE
