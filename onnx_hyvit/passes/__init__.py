"""Exact graph rewrites, one per file, and the order in which they run."""

from . import (
    canonicalise_silu,
    decompose_group_norm,
    drop_broadcast_expand,
    eliminate_noops,
    fold_batchnorm,
    fold_channel_scale,
    fold_constants,
    fold_scale_through_layout,
    fuse_gelu,
    fuse_hard_swish,
    fuse_layer_norm,
    fuse_softmax,
    lower_einsum,
    lower_matmul_to_gemm,
    lower_spatial_mean,
    resize_all_axes,
    simplify_shape_arithmetic,
    sink_reshapes,
)
from .infrastructure import GraphPass, PassResult, run_passes
from .layout import join_rows, merge_equal_nodes

# Constants and shapes first, since every later condition asks for them; then the norms and activations while their
# spelling is intact; then folds into weights, which need the fused forms as neighbours; then what became neutral.
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
    decompose_group_norm.PASS,
    lower_einsum.PASS,
    fold_channel_scale.PASS,
    fold_scale_through_layout.PASS,
    simplify_shape_arithmetic.PASS,
    eliminate_noops.PASS,
)
# After the blocks are found: forms that ONNX Runtime fuses, whatever they look like.
LOWERING: tuple[GraphPass, ...] = (
    lower_matmul_to_gemm.PASS,
    eliminate_noops.PASS,
    sink_reshapes.PASS,
    eliminate_noops.PASS,
    join_rows.PASS,
    sink_reshapes.PASS,
    merge_equal_nodes.PASS,
    simplify_shape_arithmetic.PASS,
    eliminate_noops.PASS,
    resize_all_axes.PASS,
    lower_spatial_mean.PASS,
    drop_broadcast_expand.PASS,
    merge_equal_nodes.PASS,
)

__all__ = ["CANONICAL", "LOWERING", "GraphPass", "PassResult", "run_passes"]
