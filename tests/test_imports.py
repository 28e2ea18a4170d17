"""Data flows one way: a part of the package imports what this table allows it, and has a row in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onnx_hyvit"
EVERYWHERE = {"checked", "config", "errors", "inference", "version"}
MAY_IMPORT = {
    "checked": set(),
    "inference": set(),
    "config": set(),
    "errors": set(),
    "version": set(),
    "tasks": set(),
    "graph": set(),
    "numerics": set(),
    "runtime": set(),
    "calibration": set(),
    "labels": set(),
    "scores": set(),
    "worker_log": set(),
    "evaluation": {"calibration", "graph", "labels", "runtime", "scores", "tasks", "worker_log"},
    "passes": {"graph"},
    "blocks": {"graph"},
    "targets": {"graph", "numerics"},
    "recipes": {"numerics"},
    "placement": {"graph", "targets", "numerics"},
    "insert_qdq": {"graph", "numerics", "placement"},
    "backward": {"graph", "runtime"},
    "reconstruct": {
        "backward",
        "blocks",
        "calibration",
        "graph",
        "insert_qdq",
        "numerics",
        "placement",
        "recipes",
        "runtime",
        "tasks",
    },
    "activation_scales": {"calibration", "graph", "numerics", "placement", "recipes", "runtime"},
    "kernel_audit": {"graph", "runtime"},
    "validate": {"graph", "runtime", "kernel_audit"},
    "comparison": {
        "calibration",
        "evaluation",
        "graph",
        "kernel_audit",
        "labels",
        "runtime",
        "scores",
        "tasks",
        "validate",
    },
    "display": set(),
    "display_inspected": {"display"},
    "display_quantized": {"display", "display_inspected"},
    "display_compared": {"display", "display_quantized"},
    "display_deploy": {"display"},
    "interrupts": set(),
    "cli_options": set(),
    "cli_output": {"display", "interrupts", "report", "request"},
    "cli_compare": {
        "cli_options",
        "cli_output",
        "comparison",
        "demo",
        "diagnosis",
        "display",
        "display_compared",
        "display_debug",
        "evidence",
        "report",
        "tasks",
    },
    "cli_deploy": {"cli_options", "cli_output", "display_deploy", "mobile", "target_check"},
    "mobile": {"graph", "runtime"},
    "processor": {"runtime"},
    "target_check": {"graph", "kernel_audit", "processor", "targets", "validate"},
    "diagnosis": {
        "blocks",
        "calibration",
        "comparison",
        "graph",
        "numerics",
        "passes",
        "runtime",
        "scores",
        "validate",
    },
    "evidence": {"calibration", "comparison", "diagnosis", "evaluation", "graph", "labels", "numerics", "runtime"},
    "report": {"graph"},
    "display_debug": {"display"},
    "display_many": {"display"},
    "many": {"api", "calibration", "graph", "processor", "recipes", "request", "runtime", "tasks", "worker_log"},
    "costs": {"graph", "placement"},
    "planning": {"costs", "graph", "placement", "recipes", "targets"},
    "prepared": {"blocks", "graph", "passes", "runtime"},
    "request": {"calibration", "graph", "processor", "recipes", "targets", "tasks"},
    "speed_check": {"runtime"},
    "storage": {"graph", "placement", "targets"},
    "scales": {
        "blocks",
        "activation_scales",
        "calibration",
        "graph",
        "numerics",
        "placement",
        "recipes",
        "reconstruct",
        "runtime",
        "tasks",
    },
    "gelus": {
        "backward",
        "calibration",
        "costs",
        "graph",
        "numerics",
        "passes",
        "planning",
        "precision",
        "reconstruct",
        "runtime",
        "scales",
    },
    "precision": {"backward", "costs", "numerics", "placement", "runtime"},
    "limits": {"calibration", "labels", "runtime"},
    "weight_widths": {"backward", "activation_scales", "graph", "numerics", "placement", "precision", "scales"},
    "mixed_precision": {
        "weight_widths",
        "limits",
        "backward",
        "calibration",
        "costs",
        "graph",
        "insert_qdq",
        "numerics",
        "placement",
        "planning",
        "precision",
        "reconstruct",
        "runtime",
        "scales",
    },
    "keep_fast": {
        "graph",
        "insert_qdq",
        "mixed_precision",
        "numerics",
        "placement",
        "precision",
        "runtime",
        "scales",
        "speed_check",
    },
    "residual_choice": {"costs", "mixed_precision", "planning", "runtime", "scales", "targets"},
    "channel_padding": {
        "costs",
        "graph",
        "mixed_precision",
        "numerics",
        "passes",
        "placement",
        "planning",
        "prepared",
        "runtime",
        "scales",
        "targets",
    },
    "fit_model": {
        "channel_padding",
        "residual_choice",
        "gelus",
        "graph",
        "mixed_precision",
        "passes",
        "placement",
        "planning",
        "precision",
        "prepared",
        "reconstruct",
        "request",
        "runtime",
        "scales",
        "storage",
    },
    "convert": {
        "channel_padding",
        "fit_model",
        "graph",
        "insert_qdq",
        "keep_fast",
        "placement",
        "request",
        "runtime",
        "scales",
        "speed_check",
        "storage",
        "targets",
        "validate",
    },
    "quantize_report": {
        "backward",
        "calibration",
        "convert",
        "fit_model",
        "graph",
        "kernel_audit",
        "mixed_precision",
        "placement",
        "prepared",
        "request",
        "scales",
    },
}
ONLY_IN = {
    "onnxruntime": {"runtime"},
    "PIL": {"calibration", "demo"},
    "rich": {
        "display",
        "display_compared",
        "display_debug",
        "display_deploy",
        "display_inspected",
        "display_quantized",
    },
    "typer": {"cli", "cli_compare", "cli_deploy", "cli_options", "cli_output"},
    "onnx_graphsurgeon": {"graph", "passes", "blocks", "placement", "insert_qdq", "reconstruct", "diagnosis", "costs"}
    | {"precision", "channel_padding"},
    "matplotlib": {"report"},
    "concurrent": {"api", "comparison", "many", "runtime", "tasks"},
    "multiprocessing": {"tasks"},
    "distributed": {"tasks"},
}
FREE = {"api", "cli", "demo", "static", "__init__", "__main__"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str | None, str]]:
    """(part of this package or None, top module outside of it) of each import statement."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level == depth:
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                yield from ((name, "") for name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield None, node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0]) for alias in node.names)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_layout(path: Path) -> None:
    part = _part(path)
    for inner, outer in _imports(path):
        if inner is not None and part not in FREE and inner != part:
            allowed = MAY_IMPORT.get(part)
            assert allowed is not None, f"{part} is missing from the table of this test"
            assert inner in allowed | EVERYWHERE, f"{part} may not import {inner}"
        if outer in ONLY_IN:
            assert part in ONLY_IN[outer], f"{part} may not import {outer}"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_every_permission_is_used(part: str) -> None:
    used = {inner for path in _modules() if _part(path) == part for inner, _ in _imports(path)}
    assert MAY_IMPORT[part] - used == set()


def test_contributing_has_a_row_for_every_part() -> None:
    parts = {path.relative_to(PACKAGE).parts[0] + "/" * (path.parent != PACKAGE) for path in _modules()}
    rows = [
        line.split("|")[1] for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = [name for row in rows for name in re.findall(r"`(.+?)`", row)]
    assert sorted(named) == sorted(parts)


def test_numerics_knows_only_numpy() -> None:
    outside = {
        outer for path in (PACKAGE / "numerics").rglob("*.py") for inner, outer in _imports(path) if inner is None
    }
    third_party = outside & {"onnx", "onnxruntime", "onnx_graphsurgeon", "PIL", "torch"}
    assert not third_party
