"""Which corpus graphs the quick tests use: one for each architecture, exporters in turn; the rest are slow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "corpus"


def _representatives() -> frozenset[str]:
    files: dict[str, list[str]] = {}
    for entry in json.loads((CORPUS / "index.json").read_text())["models"]:
        files.setdefault(entry["architecture"], []).append(entry["file"])
    return frozenset(sorted(files[name])[turn % len(files[name])] for turn, name in enumerate(sorted(files)))


REPRESENTATIVES = _representatives()


def quick_or_slow(files: Iterable[str]) -> list:
    """Parameters for ``pytest.mark.parametrize``: files that stand for no architecture are marked slow."""
    return [file if file in REPRESENTATIVES else pytest.param(file, marks=pytest.mark.slow) for file in files]
