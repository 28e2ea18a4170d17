"""Choose what makes the int8 model close to the float one: granularity of activations, then block reconstruction."""

from .cache import BlockCache, default_cache_folder, remove_old_runs, run_key
from .channel_stats import ChannelStats
from .divergence import Divergence
from .engine import Reconstructed, reconstruct
from .gain_sites import GainSite, find_gain_sites
from .gains import apply_gains, choose_gains
from .granularity import Granularity, choose_granularity
from .layers import find_layers, give_biases
from .option_values import Codes
from .search_granularity import Measure

__all__ = [
    "BlockCache",
    "ChannelStats",
    "Codes",
    "Divergence",
    "GainSite",
    "Granularity",
    "Measure",
    "Reconstructed",
    "apply_gains",
    "choose_gains",
    "choose_granularity",
    "default_cache_folder",
    "find_gain_sites",
    "find_layers",
    "give_biases",
    "reconstruct",
    "remove_old_runs",
    "run_key",
]
