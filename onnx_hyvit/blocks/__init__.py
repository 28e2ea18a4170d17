"""Recognisers that read the graph and never edit it."""

from .cost import count_macs
from .find import find_structure
from .structure import KINDS, Block, Structure, Transition, Unrecognised

__all__ = ["KINDS", "Block", "Structure", "Transition", "Unrecognised", "count_macs", "find_structure"]
