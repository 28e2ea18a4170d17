"""The target of the processor that this runs on."""

from __future__ import annotations

import os
import platform

from .config import AUTO_TARGET
from .runtime import sums_saturate

_ARM = frozenset({"aarch64", "arm64"})


def find_target(target: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """``target``, or the name of the one for this processor where it is ``auto``."""
    return target_here() if target == AUTO_TARGET else target


def target_here() -> str:
    """``ort-arm``, or ``ort-x86``; ``ort-x86-avx2`` where sums of a default session saturate (x86 without VNNI)."""
    if platform.machine().lower() in _ARM:
        return "ort-arm"
    return "ort-x86-avx2" if sums_saturate() else "ort-x86"
