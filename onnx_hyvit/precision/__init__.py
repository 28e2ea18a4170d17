"""Which parts of a plan are worth float or 16 bits: effects of all roundings on the outputs, against their time."""

from .choose import find_front
from .effects import Effects, Rounding, measure_effects
from .front import Budget, Front, Step
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
