"""Errors that a user can act on.

Every error is one line: what was found (file, node or tensor), what was expected, and what to do. The command line
prints ``str(error)`` and exits with code 2; it never shows a traceback for these.
"""

from __future__ import annotations

import re

# C0 and C1 controls, line and paragraph separators, and the marks that reverse the direction of text
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""``text`` on one line that cannot control a terminal: names in models and files are not to be trusted.

    Runs of white space become one blank; other control characters are written as ``\x1b`` or ``\u202e``.
    """
    line = " ".join(str(text).split())
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), line)


def one_line(error: BaseException) -> str:
    """What an exception of another library says, on one line of at most 240 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


class HyvitError(Exception):
    """Base of every error that this package raises on purpose; ``str`` of it is one printable line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ModelError(HyvitError):
    """The model file or graph cannot be used: missing, damaged, already quantized, unsupported opset or domain."""


class PassError(HyvitError):
    """A graph rewrite failed; the message names the pass and those that ran before it."""


class CalibrationError(HyvitError):
    """Calibration data cannot be used: wrong name, shape or dtype, NaN or Inf, empty folder, unreadable image."""


class ConfigError(HyvitError):
    """A setting is out of range, unknown, or contradicts another one."""


class TargetError(HyvitError):
    """A target file is malformed, or a model breaks the rules of the target it was made for."""


class ValidationError(HyvitError):
    """The quantized model failed its own check: checker, shape inference, loading, or equality between levels."""


class OutputError(HyvitError):
    """The result cannot be written: folder missing or read-only, disk full."""
