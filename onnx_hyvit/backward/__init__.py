"""Gradients as ONNX graphs: a model that runs forward and backward in any runtime, and the Hessian weights from it."""

from .build import BackwardModel, Unsupported, build_backward
from .fisher import FisherWeights, fisher_weights, regularize
from .loss import Head, LossSpec, linear_loss
from .output_losses import check_losses, choose_loss
from .probes import forward_probe_weights
from .registry import supported_ops

__all__ = [
    "BackwardModel",
    "FisherWeights",
    "Head",
    "LossSpec",
    "Unsupported",
    "build_backward",
    "check_losses",
    "choose_loss",
    "fisher_weights",
    "forward_probe_weights",
    "linear_loss",
    "regularize",
    "supported_ops",
]
