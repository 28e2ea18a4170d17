"""Write a plan into a graph: QuantizeLinear/DequantizeLinear pairs, and initializers as codes."""

from .insert import insert_qdq

__all__ = ["insert_qdq"]
