"""Recognisers of norms, activations and attentions: they read the graph, never edit it."""

from .results import Activation, Attention, Norm

__all__ = ["Activation", "Attention", "Norm"]
