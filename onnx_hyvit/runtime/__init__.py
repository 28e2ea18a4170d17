"""The only user of onnxruntime: sessions, timing, and observing the tensors of a model over data."""

from .at_once import Share, run_at_once, share_threads
from .collect import Progress, collect
from .memory import live_bytes, samples_that_fit
from .node_times import NodeTime, profile_nodes
from .observe import Observed, observe, observe_shapes
from .ort_format import INT8_OPTION, REPLAY_OPTION, Conversion, convert_to_ort, parse_operators
from .saturation import sums_saturate
from .session import (
    ORT_VERSION,
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
    "INT8_OPTION",
    "ORT_VERSION",
    "REPLAY_OPTION",
    "Conversion",
    "ModelSource",
    "NodeTime",
    "Observed",
    "OptimizationLevel",
    "Progress",
    "Ratio",
    "RuntimeFailure",
    "Session",
    "Share",
    "TensorInfo",
    "Timing",
    "benchmark",
    "collect",
    "convert_to_ort",
    "live_bytes",
    "make_session",
    "observe",
    "observe_shapes",
    "optimized_model",
    "paired_ratio",
    "parse_operators",
    "profile_nodes",
    "run_at_once",
    "runtime_reason",
    "samples_that_fit",
    "share_threads",
    "summarise",
    "sums_saturate",
    "take_turns",
]
