"""What the command line shows a person about several models: a line each."""

from __future__ import annotations

from typing import Any

from .display import say


def quantized(results: list[dict[str, Any]]) -> None:
    """What became of each model; those that failed are told on standard error, too."""
    for result in results:
        say(_line(result))
    failed = sum("error" in result for result in results)
    say(f"{len(results) - failed} of {len(results)} models quantized")


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['model']}: failed"
    plan, size, found = result["plan"], result["size"], result["reconstruction"]
    parts = [
        f"{plan['int8_nodes']} nodes in int8{_wide(plan)}, {len(plan['float_nodes'])} left float",
        f"{size['float_bytes'] / 1e6:.1f} -> {size['int8_bytes'] / 1e6:.1f} MB",
    ]
    if found is not None:
        parts.append(f"divergence {found['divergence_after' if found['kept'] else 'divergence_before']:.2g}")
    parts += [f"{len(result['findings'])} findings"] * bool(result["findings"])
    return f"{result['model']}: {', '.join(parts)}, {result['seconds']:.1f} s; written {result['output']}"


def _wide(plan: dict[str, Any]) -> str:
    return f" ({len(plan['wide_nodes'])} with 16-bit activations)" if plan["wide_nodes"] else ""


__all__ = ["quantized"]
