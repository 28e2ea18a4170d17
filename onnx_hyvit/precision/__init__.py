"""Which parts of a plan are worth being float: effects of all roundings on the outputs, against their time."""

from .choose import Budget, Front, Step, find_front
from .effects import Effects, Rounding, measure_effects

__all__ = ["Budget", "Effects", "Front", "Rounding", "Step", "find_front", "measure_effects"]
