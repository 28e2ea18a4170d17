"""The model zoo: architectures, data, training recipe and ONNX export behind `tools/train_zoo.py`.

`zoo.datasets` and `zoo.index` need numpy and Pillow only; the other modules need torch and timm.
"""
