"""What the command line shows a person about a comparison of a float and an int8 model (rich)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .display import console, escape
from .display_quantized import kernels, quantized, size_text

TENSORS_SHOWN = 8


def compared(report: dict[str, Any]) -> None:
    """The comparison of a float and an int8 model, verdict first."""
    out = console()
    latency, size = report["latency"], report["size"]
    out.print(
        f"[bold]{escape(report['float'])}[/] against [bold]{escape(report['int8'])}[/], {report['samples']} samples"
    )
    if report["top1_agreement"] is not None:
        out.print(f"  top-1 agreement  {100 * report['top1_agreement']:.2f} %")
    accuracy = report.get("accuracy")
    if accuracy:
        for key, name in (("top1", "top-1"), ("top5", "top-5")):
            if accuracy.get(f"float_{key}") is not None:
                before, after = 100 * accuracy[f"float_{key}"], 100 * accuracy[f"int8_{key}"]
                out.print(f"  {name} accuracy   {before:.2f} % -> {after:.2f} %")
    speed = latency["speedup"]
    verdict = f"[{'green' if speed >= 1 else 'red'}]{speed:.2f}x[/]"
    how = f"{latency['threads']} thread{'s' * (latency['threads'] > 1)}, median of {latency['runs']}"
    out.print(f"  latency          {latency['float_ms']:.2f} ms -> {latency['int8_ms']:.2f} ms ({verdict}, {how})")
    before_after = f"{size_text(size['float_bytes'])} -> {size_text(size['int8_bytes'])}"
    out.print(f"  size             {before_after} ({size['ratio']:.1f}x smaller)")
    for name, output in report["outputs"].items():
        out.print(f"  output {escape(name)}: SQNR {output['sqnr_db']:.1f} dB, cosine {output['cosine']:.5f}")
    kernels(out, report["audit"])
    fused = report["fused"]
    if report["fused_matches_unfused"]:
        out.print("  fused and unfused sessions agree")
    else:
        out.print(f"  [bold red]the fused session disagrees with the Q/DQ graph[/]: {escape(str(fused['culprit']))}")
    if report["saturation"]:
        out.print(f"  [bold yellow]saturation[/] {escape(report['saturation'])}")
    _worst(out, report["tensors"])


def _worst(out: Console, tensors: list[dict[str, Any]]) -> None:
    if not tensors:
        return
    table = Table(title="Where error is largest", title_justify="left")
    table.add_column("tensor", overflow="fold")
    table.add_column("made by")
    table.add_column("SQNR dB", justify="right")
    for entry in tensors[:TENSORS_SHOWN]:
        table.add_row(escape(entry["name"]), escape(entry["op"]), f"{entry['sqnr_db']:.1f}")
    out.print(table)


def demonstrated(report: dict[str, Any]) -> None:
    """The demo: what was quantized, and the comparison."""
    quantized(report["quantize"])
    compared(report["compare"])
