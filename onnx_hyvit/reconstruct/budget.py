"""How many samples the searches of a block may use: few where its maps are large or its candidates many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from ..blocks import Block
from ..graph import Model
from ..placement import Plan
from ..recipes import Reconstruction

SEARCH_ELEMENTS = 1 << 26  # of all tensors of a block, times its ranges, times samples
LEAST_SAMPLES = 16
RERANK_ELEMENTS = 1 << 33  # of all tensors of a block and behind it, times its ranges, times candidates, times samples
LEAST_RERANKED = 8  # with fewer samples, the block's error alone decides


def samples_in(shapes: Mapping[str, tuple[int, ...]], inputs: Iterable[str]) -> int:
    """Samples that tensors of these shapes hold, by the model's inputs: some may have one row for all of them."""
    return max((shapes[name][0] for name in inputs if shapes.get(name)), default=1)


class SearchCost:
    """Elements and ranges of the blocks of a plan."""

    def __init__(
        self, model: Model, plan: Plan, blocks: Sequence[Block], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Count them.

        Args:
            model: Float model that the plan was made for.
            plan: Where pairs go.
            blocks: They partition the graph in topological order.
            shapes: Concrete shape of every tensor.
        """
        made = {node.name: [tensor.name for tensor in node.outputs] for node in model.graph.nodes}
        rows = samples_in(shapes, (tensor.name for tensor in model.graph.inputs))
        names = [[name for node in block.nodes for name in made.get(node, ())] for block in blocks]
        self._elements = [sum(math.prod(shapes.get(name, ())) for name in block) // rows for block in names]
        own = Counter(plan.values_of(name) for name in plan.activations if name not in plan.tied)
        self._ranges = [sum(own[name] for name in block) for block in names]

    def searched(self, most: int) -> list[int]:
        """Samples that the error of each block is measured on, at most ``most``.

        Every position of a map is an example of what a range does, so a large map needs few samples.
        """
        return [
            min(most, max(LEAST_SAMPLES, SEARCH_ELEMENTS // max(1, elements * ranges)))
            for elements, ranges in zip(self._elements, self._ranges, strict=True)
        ]

    def reranked(self, settings: Reconstruction) -> list[int]:
        """Samples that the best candidates of each block are judged on at the outputs; 0 where it costs a lot."""
        behind = list(accumulate(reversed(self._elements)))[::-1]
        samples = []
        for elements, ranges in zip(behind, self._ranges, strict=True):
            affordable = RERANK_ELEMENTS // max(1, elements * ranges * settings.rerank)
            samples.append(min(settings.search_samples, affordable) if affordable >= LEAST_RERANKED else 0)
        return samples
