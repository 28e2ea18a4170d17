"""Which results a page is made of, and reading them from the files that ``--json`` makes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .values import mapping, mappings

MAX_BYTES = 64 << 20
_COMMANDS = "onnx-hyvit quantize, compare, debug or demo with --json"


@dataclass
class Results:
    """What the commands reported; an empty dict for a command that did not run."""

    quantize: dict[str, Any] = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)
    debug: dict[str, Any] = field(default_factory=dict)

    @property
    def evidence(self) -> dict[str, Any]:
        """What ``compare --report`` collected."""
        return mapping(self.compare.get("evidence"))

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The blocks of the float model, from whichever result has them."""
        for found in (self.quantize.get("found"), self.evidence.get("found")):
            blocks = mappings(mapping(found).get("blocks"))
            if blocks:
                return blocks
        return []


def sort_results(reports: Iterable[Mapping[str, Any]]) -> Results:
    """Tell the results of the commands apart by their keys.

    Raises:
        ConfigError: One is of no known command.
    """
    results = Results()
    for report in reports:
        if not isinstance(report, dict) or not _place(report, results):
            raise ConfigError(f"the report is not what {_COMMANDS} print")
    return results


def _place(report: dict[str, Any], results: Results) -> bool:
    if "quantize" in report and "compare" in report:
        results.quantize, results.compare = mapping(report["quantize"]), mapping(report["compare"])
    elif "plan" in report and "found" in report:
        results.quantize = report
    elif "latency" in report and "outputs" in report:
        results.compare = report
    elif "everything" in report and "advice" in report:
        results.debug = report
    else:
        return False
    return True


def read_results(paths: Iterable[str | os.PathLike[str]]) -> Results:
    """Read files with the JSON that the commands print.

    Raises:
        ConfigError: A file is missing, too large, not JSON, or of no known command; names it.
    """
    results = Results()
    for path in map(Path, paths):
        report = _read(path)
        if not isinstance(report, dict) or not _place(report, results):
            raise ConfigError(f"{path}: is not what {_COMMANDS} print")
    return results


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; no result is")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); expected what {_COMMANDS} print") from error
