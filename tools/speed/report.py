"""Table and plot of the bench's results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.readme import replace_between

TITLES = {
    "float": "float",
    "ort_default": "quantize_static (s8s8)",
    "ort_best": "quantize_static (u8s8, per channel)",
    "nncf": "NNCF 3.4.0 transformer",
    "onnxsim_minmax": "onnxsim 0.8.1 minmax",
    "onnxsim_percentile": "onnxsim 0.8.1 percentile, full graph",
    "hyvit_size": "onnx_hyvit size",
    "hyvit_balanced": "onnx_hyvit balanced",
    "hyvit_speed": "onnx_hyvit speed",
}
SHORT = ("ort_default", "ort_best", "nncf", "onnxsim_percentile", "hyvit_balanced", "hyvit_speed")
START, END = "<!-- bench: start -->", "<!-- bench: end -->"


def render(results: Mapping[str, Any]) -> str:
    """All results as Markdown: one table of speed-ups for each batch and number of threads, then the footprint."""
    parts = [f"# Speed\n\n{machine_line(results)}\n"]
    for batch in sorted({row["shape"][0] for row in results["models"]}):
        rows = [row for row in results["models"] if row["shape"][0] == batch]
        for threads in sorted({key for row in rows for key in row["latency"]}):
            parts.append(f"## Batch {batch}, {threads} thread{'s' * (threads != '1')}\n")
            parts.append(speed_table(rows, threads, tuple(TITLES)) + "\n")
        parts.append(f"## Size, load time and memory, batch {batch}\n\n{footprint_table(rows)}\n")
    return "\n".join(parts)


def machine_line(results: Mapping[str, Any]) -> str:
    """Where it was measured, in one sentence."""
    machine, settings = results["machine"], results["settings"]
    vnni = "with VNNI" if machine["vnni"] else "without VNNI"
    return (
        f"{machine['cpu']} {vnni}, ONNX Runtime {machine['onnxruntime']}, target {settings['target']}. "
        "Speed-up over float (above 1 is faster): median of paired runs that take turns, and latency in ms; one "
        "thread in processor time, more in wall time."
    )


def speed_table(rows: list[Mapping[str, Any]], threads: str, forms: tuple[str, ...]) -> str:
    """Speed-up over float, with latencies, of every model in every form that was measured."""
    used = [form for form in forms if any(form in row["latency"].get(threads, {}) for row in rows)]
    head = ["model", "float", *(TITLES[form] for form in used if form != "float")]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for row in rows:
        found = row["latency"].get(threads, {})
        cells = [row["name"], f"{found['float']['ms']:.1f}" if "float" in found else "-"]
        for form in used:
            if form != "float":
                cells.append(_speed(found.get(form)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(entry: Mapping[str, float] | None) -> str:
    return "-" if entry is None else f"{entry['speedup']:.2f} ({entry['ms']:.1f})"


def footprint_table(rows: list[Mapping[str, Any]]) -> str:
    """File size, load time and growth of memory."""
    lines = ["| model | form | MB | load ms | memory MB |", "|---|---|---:|---:|---:|"]
    for row in rows:
        for form, entry in row["footprint"].items():
            cells = f"{entry['bytes'] / 1e6:.2f} | {entry['load_ms']:.0f} | {entry['growth_mb']:.0f}"
            lines.append(f"| {row['name']} | {TITLES[form]} | {cells} |")
    return "\n".join(lines)


def update_readme(results: Mapping[str, Any], path: Path) -> None:
    """Bring the short table in the README up to date: batch 1, one thread.

    Raises:
        DataError: The README has no place for it.
    """
    rows = [row for row in results["models"] if row["shape"][0] == 1]
    table = f"{machine_line(results)} Batch 1, one thread.\n\n{speed_table(rows, '1', SHORT)}"
    replace_between(path, START, END, table)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Bars of the speed-up at batch 1 and one thread, as SVG.

    Raises:
        SystemExit: matplotlib is missing; names the extra that brings it.
    """
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("error: the plot needs matplotlib: pip install 'onnx-hyvit[report]'") from None
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    from matplotlib import pyplot

    rows = [row for row in results["models"] if row["shape"][0] == 1 and "1" in row["latency"]]
    forms = [form for form in TITLES if form != "float" and any(form in row["latency"]["1"] for row in rows)]
    figure, axes = pyplot.subplots(figsize=(1.4 * len(rows) + 3, 4.5), layout="constrained")
    width = 0.85 / max(1, len(forms))
    for place, form in enumerate(forms):
        heights = [row["latency"]["1"].get(form, {}).get("speedup", 0.0) for row in rows]
        axes.bar([at + place * width for at in range(len(rows))], heights, width, label=TITLES[form])
    axes.axhline(1.0, color="black", linewidth=0.8)
    middle = width * (len(forms) - 1) / 2
    axes.set_xticks([at + middle for at in range(len(rows))], [row["name"] for row in rows], rotation=20, ha="right")
    axes.set_ylabel("speed-up over float")
    vnni = "with VNNI" if results["machine"]["vnni"] else "without VNNI"
    axes.set_title(f"{results['machine']['cpu']} {vnni}, one thread, batch 1")
    figure.legend(fontsize="small", ncols=len(forms), loc="outside lower center")  # beside the bars, not on them
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
