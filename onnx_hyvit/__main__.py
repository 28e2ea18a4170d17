"""``python -m onnx_hyvit`` is the same as ``onnx-hyvit``."""

from .cli import main

if __name__ == "__main__":
    main()
