"""Recognisers of norms, activations and attentions: they read the graph, never edit it."""

from .activations import find_activations
from .attentions import find_attentions
from .norms import (
    find_batch_norms,
    find_group_norms,
    find_instance_norms,
    find_l2_norms,
    find_layer_norms,
    find_layer_norms_2d,
    find_norms,
    find_rms_norms,
)
from .results import Activation, Attention, Norm

__all__ = [
    "Activation",
    "Attention",
    "Norm",
    "find_activations",
    "find_attentions",
    "find_batch_norms",
    "find_group_norms",
    "find_instance_norms",
    "find_l2_norms",
    "find_layer_norms",
    "find_layer_norms_2d",
    "find_norms",
    "find_rms_norms",
]
