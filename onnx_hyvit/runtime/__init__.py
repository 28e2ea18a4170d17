"""The only user of onnxruntime: sessions, timing, and observing the tensors of a model over data."""

from .collect import Progress, collect
from .node_times import NodeTime, profile_nodes
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
    "NodeTime",
    "Observed",
    "OptimizationLevel",
    "Progress",
    "RuntimeFailure",
    "Session",
    "TensorInfo",
    "Timing",
    "benchmark",
    "collect",
    "make_session",
    "observe",
    "observe_shapes",
    "optimized_model",
    "profile_nodes",
    "runtime_reason",
    "sums_saturate",
]
