"""What the command line shows a person of a model's structure (rich)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .display import KIND_STYLES, console, escape


def inspected(report: dict[str, Any]) -> None:
    """The structure of a model."""
    out = console()
    structure(out, report)
    table = Table(title="Blocks", title_justify="left")
    for column, justify in (
        ("#", "right"),
        ("kind", "left"),
        ("nodes", "right"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("entry", "left"),
        ("exit", "left"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for index, block in enumerate(report["blocks"]):
        kind = block["kind"]
        table.add_row(
            str(index),
            f"[{KIND_STYLES.get(kind, 'white')}]{kind}[/]",
            str(len(block["nodes"])),
            _count(block.get("params")),
            _count(block.get("macs")),
            _edges(block["inputs"]),
            _edges(block["outputs"]),
        )
    out.print(table)
    if report["unrecognised"]:
        out.print("[bold]Not recognised[/]")
        for entry in report["unrecognised"]:
            out.print(f"  {escape(entry['node'] or '-')}: {escape(entry['reason'])}")


def structure(out: Console, report: dict[str, Any]) -> None:
    """The model, its free sizes, blocks, norms, activations and attentions, a line each."""
    out.print(f"[bold]{escape(str(report['model']))}[/]")
    out.print(f"  opset {report['opset']}, made by {escape(report['producer'] or 'an unnamed exporter')}")
    for name, axes in report["dynamic_axes"].items():
        free = ", ".join(f"axis {axis} ({label})" for axis, label in axes.items())
        out.print(f"  input {escape(name)} is free in {escape(free)}")
    kinds: dict[str, int] = {}
    for block in report["blocks"]:
        kinds[block["kind"]] = kinds.get(block["kind"], 0) + 1
    out.print("  blocks: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    for key in ("norms", "activations", "attentions"):
        out.print(f"  {key}: {escape(_tally(report[key]))}")


def _tally(entries: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry["kind"]] = counts.get(entry["kind"], 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items()) or "none"


def _edges(edges: list[dict[str, Any]]) -> str:
    return "\n".join(f"{escape(edge['name'])} {'x'.join(map(str, edge['shape'] or ()))}" for edge in edges)


def _count(value: int | None) -> str:
    if value is None:
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return str(value)
