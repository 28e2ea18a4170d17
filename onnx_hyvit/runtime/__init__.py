"""The only user of onnxruntime: sessions, timing, and observing the tensors of a model over data."""

from .collect import Progress, collect
from .session import (
    OptimizationLevel,
    RuntimeFailure,
    Session,
    TensorInfo,
    make_session,
    optimized_model,
    runtime_reason,
)
from .timing import Timing, benchmark

__all__ = [
    "OptimizationLevel",
    "Progress",
    "RuntimeFailure",
    "Session",
    "TensorInfo",
    "Timing",
    "benchmark",
    "collect",
    "make_session",
    "optimized_model",
    "runtime_reason",
]
