"""Builders of the committed corpus of tiny ONNX graphs, one module per framework."""
