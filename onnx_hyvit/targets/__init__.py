"""Targets: what a runtime can run in int8, as data. One TOML file each, with its sources in comments."""

from .check import Breach, check_target
from .loader import load_target, target_names
from .target import OpRule, Target

__all__ = ["Breach", "OpRule", "Target", "check_target", "load_target", "target_names"]
