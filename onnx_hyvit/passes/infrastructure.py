"""What a pass is, and how a sequence of passes is run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import HyvitError, PassError
from ..graph.io import Model
from ..graph.pattern import NearMiss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GraphPass:
    """An exact rewrite.

    Args:
        name: Name for reports and error messages, the module's name.
        apply: Edits the model in place and returns the number of rewrites; appends to the list what nearly matched.
    """

    name: str
    apply: Callable[[Model, list[NearMiss]], int]


@dataclass(frozen=True)
class PassResult:
    """What one pass did: its name, the number of rewrites, and what nearly matched."""

    name: str
    count: int
    near_misses: tuple[NearMiss, ...] = ()


def run_passes(model: Model, passes: Sequence[GraphPass]) -> list[PassResult]:
    """Run ``passes`` in order on ``model``, which is edited in place; the graph is cleaned and sorted after each.

    Args:
        model: Model to rewrite.
        passes: Passes, in order.

    Returns:
        One result per pass.

    Raises:
        PassError: A pass failed; the message names it and those that ran before.
    """
    results: list[PassResult] = []
    for graph_pass in passes:
        near_misses: list[NearMiss] = []
        try:
            count = graph_pass.apply(model, near_misses)
            if count:
                model.graph.cleanup().toposort()
        except HyvitError:
            raise
        except Exception as error:
            before = ", ".join(result.name for result in results) or "none"
            raise PassError(
                f"{model.path}: pass {graph_pass.name} failed ({type(error).__name__}: {error}); "
                f"passes before it: {before}. Please report it with the model's structure"
            ) from error
        results.append(PassResult(graph_pass.name, count, tuple(near_misses)))
        logger.info("pass %s: %d rewrites", graph_pass.name, count)
    return results
