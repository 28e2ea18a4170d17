"""What can go wrong with a runtime of others."""

from __future__ import annotations


class MissingRuntimeError(Exception):
    """A program or package is not installed; the message is the line that installs it."""


class FailedRuntimeError(Exception):
    """The runtime refused the model or stopped; the message is its own."""
