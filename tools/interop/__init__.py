"""Run int8 models in runtimes other than onnxruntime's Python package, and compare what they answer."""
