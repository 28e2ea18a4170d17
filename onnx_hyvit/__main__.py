"""``python -m onnx_hyvit`` and the command ``onnx-hyvit``."""

import os

from .interrupts import exit_at_once

# Matrices here are small: a second thread of numpy's BLAS costs more than it brings, waits busily, and changes the last
# bits of sums, so that another number of cores would give another file. It must be set before numpy is loaded.
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def main() -> None:
    """Entry point: loads the command line, which takes a moment, and runs it."""
    exit_at_once()
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
