"""A profile: measured costs of kernels on one processor, as a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .kernels import ALIASED, RAGGED, Work

_FOLDER = Path(__file__).parent.parent / "data"
_SUFFIX = ".profile.json"
FORMAT = 1
BORROWED = "ort-x86-avx2"  # costs for targets that have no profile of their own
LEAST_US = 0.1
_MACHINE = ("cpu", "vnni", "onnxruntime", "threads")
_TOP = frozenset({"format", "target", "machine", "offset_us", "kernels"})
_LIMIT = 1 << 20  # bytes of a profile file


@dataclass(frozen=True)
class Kernel:
    """What a call of one family of kernels costs: ``fixed + macs * a + read * b + written * c + ...``, see ``Work``.

    Args:
        fixed_us: Microseconds of any call.
        ns_per_mac: Nanoseconds per multiply-accumulate operation.
        ns_per_read: Nanoseconds per element of activations read.
        ns_per_written: Nanoseconds per element written.
        ns_per_weight: Nanoseconds per weight.
        ns_per_gathered: Nanoseconds per element that is gathered.
        median_error: Median relative error of the fit, 0 is exact.
        calls: Measured calls.
    """

    fixed_us: float
    ns_per_mac: float = 0.0
    ns_per_read: float = 0.0
    ns_per_written: float = 0.0
    ns_per_weight: float = 0.0
    ns_per_gathered: float = 0.0
    median_error: float = 0.0
    calls: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a number of at least 0, found {value!r}")

    def us(self, work: Work) -> float:
        """Microseconds of one call."""
        _, *amounts = work.values()
        each = (self.ns_per_mac, self.ns_per_read, self.ns_per_written, self.ns_per_weight, self.ns_per_gathered)
        return self.fixed_us + 1e-3 * sum(ns * amount for ns, amount in zip(each, amounts, strict=True))


@dataclass(frozen=True)
class Profile:
    """Costs of kernels, and where they were measured.

    Args:
        target: Target that the profiled models were made for.
        machine: ``cpu`` (name), ``vnni`` (bool), ``onnxruntime`` (version), ``threads``.
        offset_us: Microseconds to add to every call: the way from node to node, less what the profiler itself adds to a
            kernel's time; usually negative.
        kernels: Family (see ``kernels.kernel_name``) -> cost.
    """

    target: str
    machine: Mapping[str, Any]
    offset_us: float
    kernels: Mapping[str, Kernel]

    def us(self, name: str, work: Work) -> float | None:
        """Microseconds of a call in a session, None when the profile does not know the family.

        Harder cases of a family (``RAGGED``, ``ALIASED``) that were not measured cost what the family does.
        """
        kernel = self.kernels.get(name) or self.kernels.get(name.removesuffix(RAGGED).removesuffix(ALIASED))
        return None if kernel is None else max(LEAST_US, self.offset_us + kernel.us(work))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the form of the file."""
        kernels = {name: _rounded(asdict(kernel)) for name, kernel in sorted(self.kernels.items())}
        return {
            "format": FORMAT,
            "target": self.target,
            "machine": dict(self.machine),
            "offset_us": round(self.offset_us, 3),
            "kernels": kernels,
        }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in values.items()}


def find_profile(name: str | None, path: str | os.PathLike[str] | None = None) -> Profile | None:
    """The profile that ``path`` names, else the one that ships under ``name``, else None.

    Raises:
        ConfigError: The file cannot be read or is no profile.
    """
    if path is not None:
        return load_profile(path)
    return None if name is None else load_profile(_FOLDER / f"{name}{_SUFFIX}")


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: The file is missing, too large, not JSON, or not a profile; names the file and what is wrong.
    """
    try:
        if Path(path).stat().st_size > _LIMIT:
            raise ConfigError(f"{os.fspath(path)}: larger than {_LIMIT} bytes; expected a profile of kernels")
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{os.fspath(path)}: not a JSON file ({error})") from error
    try:
        return _build(values)
    except ConfigError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}; tools/profile_kernels.py writes such files") from error


def _build(values: Any) -> Profile:
    if not isinstance(values, dict) or set(values) != _TOP:
        raise ConfigError(f"not a profile of kernels, expected the keys {', '.join(sorted(_TOP))}")
    if values["format"] != FORMAT:
        raise ConfigError(f"format {values['format']!r} is not supported, expected {FORMAT}")
    machine, kernels, offset = values["machine"], values["kernels"], values["offset_us"]
    if not isinstance(machine, dict) or any(key not in machine for key in _MACHINE):
        raise ConfigError(f"machine must hold {', '.join(_MACHINE)}")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not math.isfinite(offset):
        raise ConfigError(f"offset_us must be a finite number, found {offset!r}")
    if not isinstance(kernels, dict) or not kernels:
        raise ConfigError("kernels must be a table with at least one entry")
    built = {}
    for name, entry in kernels.items():
        try:
            built[name] = Kernel(**entry)
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"kernel {name!r}: {error}") from error
    return Profile(str(values["target"]), machine, float(offset), built)
