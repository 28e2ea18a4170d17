"""Operators that compute every element of their output from the elements at the same place of their inputs."""

from __future__ import annotations

UNARY = frozenset(
    {"Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Erf"}
    | {"Exp", "Abs", "Neg", "Sqrt", "Softplus", "Softsign", "Mish", "ThresholdedRelu", "Identity"}
)
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
