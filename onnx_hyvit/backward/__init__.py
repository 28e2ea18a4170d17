"""Gradients as ONNX graphs: a model that runs forward and backward in any runtime, and the Hessian weights from it."""

from .build import BackwardModel, Unsupported, build_backward
from .loss import Head, LossSpec, choose_loss, linear_loss
from .registry import supported_ops

__all__ = [
    "BackwardModel",
    "Head",
    "LossSpec",
    "Unsupported",
    "build_backward",
    "choose_loss",
    "linear_loss",
    "supported_ops",
]
