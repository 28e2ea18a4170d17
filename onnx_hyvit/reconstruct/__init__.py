"""Choose what makes the int8 model close to the float one: channel gains, ranges, weight codes, biases."""

from .gain_sites import GainSite, find_gain_sites
from .gains import apply_gains, choose_gains

__all__ = ["GainSite", "apply_gains", "choose_gains", "find_gain_sites"]
