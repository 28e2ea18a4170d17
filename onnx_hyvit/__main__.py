"""``python -m onnx_hyvit`` and the command ``onnx-hyvit``."""

from .interrupts import exit_at_once


def main() -> None:
    """Entry point: loads the command line, which takes a moment, and runs it."""
    exit_at_once()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
