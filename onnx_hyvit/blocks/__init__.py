"""Recognisers that read the graph and never edit it: blocks, bridges, attentions.

How a model is divided, by structure only (no model or node names):

1. *Flow.* Nodes that depend on an input's values, in a depth-first order; constants and shape arithmetic follow their
   first user. Every tensor's shape is a product of factors, each marked as channels or not (``domain``).
2. *Attentions.* Two products of computed matrices around a softmax (in any spelling), two in a row without one (linear
   attention), softmax scores times keys, summed (MobileViTv2, deformable), or one fused operator.
3. *Atoms.* The flow is cut at every tensor through which all paths go. A piece that wraps attention with a residual
   connection of its own in a further shortcut (MobileViT, SVTR, EdgeNeXt) is cut again inside.
4. *Runs.* From the first to the last attention between which no strided convolution, pooling or Resize changes the
   number of positions, plus the feed-forward part behind the last.
5. *Bridge.* One for each run: the last convolution(s) before it (a residual unit whole; a 1x1 convolution with the
   spatial one that feeds it), reshapes, transposes and norms, and the first linear operators on every path into the
   first attention. Where two streams run side by side (Mobile-Former), each cross attention between a map and tokens
   is a bridge: two for each Mobile-Former block.
6. *The rest.* Each attention with what follows it up to the next is a transformer block. Before and between runs, the
   stem goes to the first down-sampled map, conv blocks are residual units and serial chains cut at narrow tensors.
   The head is what follows the last operator on a map: pooling, classifier, CTC head.

Bridges: MobileViT v1/v2 3, EfficientFormer 1, EfficientFormerV2 2, EdgeNeXt 3, EfficientViT and TinyViT one for each
stage with attention, LeViT 1, FastViT-SA12 1, SVTR of PP-OCR 1, DeiT and Swin 1 (patch embedding), Mobile-Former one
for each cross attention; MobileNet, ResNet, ConvNeXt, PoolFormer, FastViT-T 0.
"""

from .cost import count_macs
from .find import find_structure
from .structure import KINDS, Block, Structure, Transition, Unrecognised

__all__ = ["KINDS", "Block", "Structure", "Transition", "Unrecognised", "count_macs", "find_structure"]
