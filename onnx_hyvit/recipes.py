"""Recipes: named compositions of ranges, weight scales and corrections.

A recipe says *how* scales are found; *where* Q/DQ pairs go is the target's business (``placement``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError
from .numerics.ranges import RangeMethod


@dataclass(frozen=True)
class Recipe:
    """How scales and zero points are found.

    Args:
        name: Name on the command line.
        summary: One line for ``--help`` and reports.
        ranges: How an activation's range is read off its statistics.
        weights: Scale of a weight channel: ``minmax`` covers every weight, ``mse`` is searched.
        gains: Give activations a scale per channel where an exact rewrite makes that deployable and it pays.
    """

    name: str
    summary: str
    ranges: RangeMethod = field(default_factory=RangeMethod)
    weights: Literal["minmax", "mse"] = "minmax"
    gains: bool = False


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("minmax", "ranges from the smallest and largest value seen"),
        Recipe("average", "ranges from the moving average of each batch's extremes", RangeMethod("average")),
        Recipe("percentile", "ranges that leave out the 0.001 % most extreme values", RangeMethod("percentile")),
        Recipe("entropy", "ranges of least KL divergence between values and codes", RangeMethod("entropy")),
        Recipe("mse", "ranges and weight scales of least squared error", RangeMethod("mse"), "mse"),
        Recipe(
            "gains",
            "as mse, with a scale per channel where that can be folded and pays",
            RangeMethod("mse"),
            "mse",
            True,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: There is none; lists those that exist.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise ConfigError(f"recipe {name!r} is unknown; expected one of {', '.join(RECIPES)}") from None
