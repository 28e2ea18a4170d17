"""Choose what makes the int8 model close to the float one: granularity of activations, then block reconstruction."""

from .engine import Reconstructed, reconstruct
from .gain_sites import GainSite, find_gain_sites
from .gains import ChannelStats, apply_gains, choose_gains
from .granularity import Granularity, choose_granularity
from .layers import find_layers, give_biases, write_parameters

__all__ = [
    "ChannelStats",
    "GainSite",
    "Granularity",
    "Reconstructed",
    "apply_gains",
    "choose_gains",
    "choose_granularity",
    "find_gain_sites",
    "find_layers",
    "give_biases",
    "reconstruct",
    "write_parameters",
]
