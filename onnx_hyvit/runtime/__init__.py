"""The only user of onnxruntime: sessions, timing, and observing the tensors of a model over data."""

from .collect import Progress, collect
from .node_times import NodeTime, profile_nodes
from .observe import Observed, observe, observe_shapes
from .saturation import sums_saturate
from .session import (
    ModelSource,
    OptimizationLevel,
    RuntimeFailure,
    Session,
    TensorInfo,
    make_session,
    optimized_model,
    runtime_reason,
)
from .timing import Ratio, Timing, benchmark, paired_ratio, summarise, take_turns

__all__ = [
    "ModelSource",
    "NodeTime",
    "Observed",
    "OptimizationLevel",
    "Progress",
    "Ratio",
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
    "paired_ratio",
    "profile_nodes",
    "runtime_reason",
    "summarise",
    "sums_saturate",
    "take_turns",
]
