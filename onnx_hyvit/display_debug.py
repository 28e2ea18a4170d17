"""What ``debug`` shows a person: the advice first, then the blocks and tensors behind it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .display import KIND_STYLES, console, escape

BLOCKS_SHOWN = 10
TENSORS_SHOWN = 8
NODES_SHOWN = 4


def debugged(report: dict[str, Any]) -> None:
    """Where the int8 model loses accuracy, and what to do."""
    out = console()
    everything = report["everything"]
    out.print(
        f"[bold]{escape(report['int8'])}[/] against [bold]{escape(report['float'])}[/], {report['samples']} samples"
    )
    agreement = everything["top1_agreement"]
    shown = "" if agreement is None else f", top-1 agreement {100 * agreement:.1f} %"
    out.print(f"  {_measure(report)} {everything['loss']:.4g}{shown}, output SQNR {_db(everything['sqnr_db'])} dB")
    weights = report["weights"]
    if weights["float_found"] < weights["quantized"]:
        missing = weights["quantized"] - weights["float_found"]
        out.print(f"  {missing} of {weights['quantized']} weights have no float original and stay quantized below")
    _advice(out, report["advice"])
    _blocks(out, report)
    _tensors(out, report["tensors"])


def _measure(report: dict[str, Any]) -> str:
    return "KL divergence (nats)" if report["measure"] == "kl" else "squared error over power"


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 200 else "exact"


def _advice(out: Console, advice: list[dict[str, Any]]) -> None:
    out.print("[bold]What to do[/]")
    if not advice:
        out.print("  no single remedy takes away a part of the loss that is worth its cost; reconstruct or train again")
    for line in advice:
        out.print(f"  - {escape(line['text'])}")
        nodes = line["float_nodes"]
        if nodes:
            more = f", and {len(nodes) - NODES_SHOWN} more (--json)" if len(nodes) > NODES_SHOWN else ""
            out.print(f"      [dim]{escape(', '.join(nodes[:NODES_SHOWN]))}{more}[/]")


def _blocks(out: Console, report: dict[str, Any]) -> None:
    table = Table(title="Blocks: all int8 but this one, and only this one int8", title_justify="left")
    table.add_column("block")
    table.add_column("gain when float", justify="right")
    table.add_column("agreement", justify="right")
    table.add_column("loss alone", justify="right")
    table.add_column("agreement alone", justify="right")
    for row in report["blocks"][:BLOCKS_SHOWN]:
        table.add_row(
            f"[{KIND_STYLES.get(row['kind'], 'white')}]{escape(row['name'])}[/]",
            f"{100 * row['gain']:.1f} %",
            _percent(row["without"]["top1_agreement"]),
            f"{row['alone']['loss']:.4g}",
            _percent(row["alone"]["top1_agreement"]),
        )
    out.print(table)
    for row in report["together"][1:]:
        out.print(
            f"  float together: {escape(', '.join(row['blocks']))}: loss {row['loss']:.4g}"
            f", agreement {_percent(row['top1_agreement'])}"
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _tensors(out: Console, tensors: list[dict[str, Any]]) -> None:
    table = Table(title="Tensors where error enters (SQNR in dB)", title_justify="left")
    table.add_column("tensor", overflow="fold")
    table.add_column("made by", overflow="fold")
    table.add_column("entering", justify="right")
    table.add_column("by weights", justify="right")
    table.add_column("in the model", justify="right")
    table.add_column("why", overflow="fold")
    for row in tensors[:TENSORS_SHOWN]:
        causes = ", ".join(cause["kind"].replace("_", " ") for cause in row["causes"])
        table.add_row(
            escape(row["name"]),
            f"{escape(row['op'])} in {escape(row['block'])}",
            _db(row["entering_db"]),
            _db(row["by_weights_db"]),
            _db(row["sqnr_db"]),
            causes,
        )
    out.print(table)
