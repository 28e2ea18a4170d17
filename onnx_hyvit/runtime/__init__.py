"""The only user of onnxruntime: sessions, timing, and observing the tensors of a model over data."""

from .collect import Progress, collect
from .memory import live_bytes, samples_that_fit
from .observe import Observed, observe, observe_shapes
from .saturation import sums_saturate
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
    "Observed",
    "OptimizationLevel",
    "Progress",
    "RuntimeFailure",
    "Session",
    "TensorInfo",
    "Timing",
    "benchmark",
    "collect",
    "live_bytes",
    "make_session",
    "observe",
    "observe_shapes",
    "optimized_model",
    "runtime_reason",
    "samples_that_fit",
    "sums_saturate",
]
