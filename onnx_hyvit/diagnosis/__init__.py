"""Where an int8 model loses accuracy: sensitivity of blocks, tensors where error enters, causes and remedies."""

from .run import debug

__all__ = ["debug"]
