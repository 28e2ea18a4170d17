"""What the command line shows a person about exported, checked and audited models (rich)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .display import console, escape

FAULTS = {
    "float_int8_weights": "float layers although their weights are int8",
    "dequantized_weights": "weights dequantized in every run",
    "bad_kernels": "int8 kernels known to be slow or wrong",
    "orphan_pairs": "Q/DQ pairs without an int8 kernel between them",
}
SHOWN = 20


def exported(report: dict[str, Any]) -> None:
    """The files of ``export-mobile``: what they cost, what they need, where they pay."""
    out = console()
    names = {"onnx": report["files"]["fixed_shape"], "Fixed": report["files"]["Fixed"]}
    table = _table(
        f"{report['model']} for {report['platform']}", ["file", ">size", ">load", ">run", "equals the .onnx"]
    )
    for key, form in report["forms"].items():
        table.add_row(
            escape(names.get(key) or report["files"]["Runtime"] + key.removeprefix("Runtime")),
            f"{form['bytes'] / 1e6:.2f} MB",
            f"{form['load_ms']:.1f} ms",
            f"{form['run_ms']:.2f} ms",
            "-" if form["identical"] is None else "bit for bit",
        )
    out.print(table)
    for entry in report["inputs"]:
        if entry["was"]:
            before, after = ("x".join(map(str, entry[key])) for key in ("was", "shape"))
            out.print(f"  input {escape(entry['name'])}: {escape(before)} -> {escape(after)}")
    _operators(out, report)
    table = _table("Accelerators, by operators alone", ["accelerator", ">partitions", ">nodes taken", "worth a try"])
    for name, found in report["partitions"].items():
        nodes = f"{found['supported_nodes']} of {found['nodes']}"
        table.add_row(name, str(found["partitions"]), nodes, found["verdict"])
    out.print(table)
    for key, value in report["session_options"].get("Runtime", {}).items():
        if key not in report["session_options"]["Fixed"]:
            out.print(f'  the Runtime style needs the session option [bold]{escape(key)}[/] = "{escape(value)}"')
    for note in report["notes"]:
        out.print(f"  [yellow]note[/] {escape(note)}")
    out.print(f"[bold green]Written[/] {len(report['files'])} files to {escape(report['output'])}")


def _operators(out: Console, report: dict[str, Any]) -> None:
    for style, domains in report["operators"].items():
        for domain, operators in domains.items():
            listed = [f"{name} ({', '.join(kinds)})" if kinds else name for name, kinds in operators.items()]
            out.print(f"  {style} needs {domain}: {escape(', '.join(listed))}")
    if report["contrib_operators"]:
        out.print("  com.microsoft is there: a minimal build must keep the contrib operators")


def checked(report: dict[str, Any]) -> None:
    """What ``check`` found."""
    out = console()
    problems = report["problems"]
    if not problems:
        out.print(f"[bold]{escape(report['model'])}[/] keeps the rules of [bold]{escape(report['target'])}[/]")
        return
    what = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    out.print(f"[bold]{escape(report['model'])}[/]: [red]{what}[/] for [bold]{escape(report['target'])}[/]")
    nodes: dict[str, list[str]] = {}
    for entry in problems:
        nodes.setdefault(entry["problem"], []).append(entry["node"])
    more = {problem: f" and {len(names) - 1} more" if len(names) > 1 else "" for problem, names in nodes.items()}
    _list(out, [f"{names[0]}{more[problem]}: {problem}" for problem, names in nodes.items()])
    out.print("[bold]What to do[/]")
    for advice in dict.fromkeys(entry["advice"] for entry in problems):
        out.print(f"  - {escape(advice)}")


def audited(report: dict[str, Any]) -> None:
    """The kernels of a model and their faults."""
    out = console()
    counts = report["counts"]
    out.print(f"[bold]{escape(report['model'])}[/]")
    products = counts["float"] - counts["float_weighted"]
    out.print(
        f"  {counts['int8']} int8 kernels; {counts['float_weighted']} float layers; "
        f"{products} float products of activations"
    )
    if by_type := len(report["float_by_type"]):
        out.print(f"  {by_type} of the float layers have INT4 or 16-bit codes, for which there are no int8 kernels")
    for key, text in FAULTS.items():
        if report[key]:
            out.print(f"  [red]{len(report[key])} {text}[/]")
            _list(out, [f"{entry['node']} ({entry['op']}) {entry['detail']}".strip() for entry in report[key]])
    if report["clean"]:
        out.print("  [green]clean[/]: no int8 weight is wasted, no bad kernel, no orphan pair")


def _list(out: Console, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        out.print(f"    {escape(line)}")
    if len(lines) > SHOWN:
        out.print(f"    and {len(lines) - SHOWN} more (--json lists all)")


def _table(title: str, columns: Sequence[str]) -> Table:
    """A table; ``>`` in front of a column aligns it to the right."""
    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column[0] == ">" else "left", overflow="fold")
    return table
