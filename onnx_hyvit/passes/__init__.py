"""Exact graph rewrites, one per file, and the order in which they run."""

from . import (
    canonicalise_silu,
    eliminate_noops,
    fold_batchnorm,
    fold_channel_scale,
    fold_constants,
    fuse_gelu,
    fuse_hard_swish,
    fuse_layer_norm,
    fuse_softmax,
    lower_matmul_to_gemm,
    simplify_shape_arithmetic,
    sink_reshapes,
)
from .infrastructure import GraphPass, PassResult, run_passes

CANONICAL: tuple[GraphPass, ...] = (
    fold_constants.PASS,
    eliminate_noops.PASS,
    simplify_shape_arithmetic.PASS,
    eliminate_noops.PASS,
    fold_batchnorm.PASS,
    fuse_layer_norm.PASS,
    fuse_softmax.PASS,
    fuse_gelu.PASS,
    fuse_hard_swish.PASS,
    canonicalise_silu.PASS,
    fold_channel_scale.PASS,
    simplify_shape_arithmetic.PASS,
    eliminate_noops.PASS,
)
LOWERING: tuple[GraphPass, ...] = (
    lower_matmul_to_gemm.PASS,
    eliminate_noops.PASS,
    sink_reshapes.PASS,
    simplify_shape_arithmetic.PASS,
    eliminate_noops.PASS,
)

__all__ = ["CANONICAL", "LOWERING", "GraphPass", "PassResult", "run_passes"]
