"""Choose what makes the int8 model close to the float one; so far the granularity of activations."""

from .gain_sites import GainSite, find_gain_sites
from .gains import ChannelStats, apply_gains, choose_gains
from .granularity import Granularity, choose_granularity

__all__ = [
    "ChannelStats",
    "GainSite",
    "Granularity",
    "apply_gains",
    "choose_gains",
    "choose_granularity",
    "find_gain_sites",
]
