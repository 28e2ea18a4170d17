"""What processor this is: a result in milliseconds means nothing without it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """Name of the processor as the operating system gives it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether the processor lists instructions for int8 dot products (VNNI, AMX or ARM's asimddp)."""
    flags = set(re.findall(r"\S+", _cpuinfo()))
    return bool(flags & {"avx512_vnni", "avx512vnni", "avx_vnni", "amx_int8", "asimddp"})


def _cpuinfo() -> str:
    return CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
