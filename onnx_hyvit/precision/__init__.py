"""Which parts of a plan are worth being float: effects of all roundings on the outputs, against their time."""

from .choose import Budget, Front, Step, find_front
from .effects import Effects, Rounding, measure_effects
from .widths import NARROW_BITS, Width, choose_widths

__all__ = [
    "NARROW_BITS",
    "Budget",
    "Effects",
    "Front",
    "Rounding",
    "Step",
    "Width",
    "choose_widths",
    "find_front",
    "measure_effects",
]
