"""What the command line shows a person of what ``quantize`` did (rich)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from .display import console, escape
from .display_inspected import structure

BLOCKS_SHOWN = 8
REASONS_SHOWN = 12


def quantized(report: dict[str, Any]) -> None:
    """What ``quantize`` found and did."""
    out = console()
    structure(out, report["found"])
    out.print("[bold]Quantized[/]")
    _settings(out, report)
    _placed(out, report["plan"])
    _speed(out, report["speed"])
    _gelus(out, report["gelus"])
    _channel_padding(out, report["channel_padding"])
    _granularity(out, report["granularity"])
    _residual(out, report["residual"])
    _precision(out, report["precision"])
    _reconstruction(out, report["reconstruction"])
    if report["loss"] and (report["precision"] or report["reconstruction"]):
        out.print(f"  what counts at the outputs: {escape(report['loss'])}")
    kernels(out, report["audit"])
    for finding in report["findings"]:
        out.print(f"  [yellow]note[/] {escape(finding)}")
    _sizes(out, report["size"], report["seconds"])
    if report.get("output"):
        out.print(f"[bold green]Written[/] {escape(report['output'])}")


def _settings(out: Console, report: dict[str, Any]) -> None:
    config = report["config"]
    out.print(
        f"  recipe {config['recipe']}, {config['bits']}, mode {config['mode']}, target {escape(config['target'])}"
        f"{' (for this processor)' if report['chosen_target'] else ''}, "
        f"{report['calibration']['samples']} calibration samples"
    )


def _placed(out: Console, plan: dict[str, Any]) -> None:
    """What is int8, and what stayed float and why."""
    paired = set(plan["paired_nodes"])
    kept = [(name, reason) for name, reason in plan["float_nodes"].items() if name not in paired]
    out.print(f"  {plan['int8_nodes']} nodes in int8, {plan['carried_nodes']} carried in int8, {len(kept)} left float")
    if wide := plan["wide_nodes"]:
        out.print(
            f"  {len(wide)} of them with 16-bit activations, {plan['converted_tensors']} tensors converted between "
            "these and 8 bits"
        )
    if paired:
        out.print(f"  {len(paired)} nodes quantized on both sides and computed in float between")
    for text, count in Counter(plan["emulated"].values()).items():
        out.print(f"  {count} softmax outputs with {escape(text)} in float: no kernel accelerates them")
    if written := plan["written_as_convolutions"]:
        out.print(f"  {len(written)} int8 linear layers written as 1x1 convolutions: their kernels are faster")
    _reasons(out, list(plan["wide_nodes"].items()), "16-bit")
    _reasons(out, kept, "float")


def _sizes(out: Console, size: dict[str, Any], seconds: float) -> None:
    ratio = size["float_bytes"] / max(1, size["int8_bytes"])
    out.print(
        f"  size {size_text(size['float_bytes'])} -> {size_text(size['int8_bytes'])} ({ratio:.1f}x smaller), "
        f"{seconds:.1f} s"
    )
    if size.get("int4_weights"):
        out.print(f"  {size['int4_weights']} weights as INT4, which saves {size_text(size['int4_saved_bytes'])}")


def _speed(out: Console, speed: dict[str, Any]) -> None:
    """What the cost model decided, when there is one."""
    profile, check = speed["profile"], speed["check"]
    if check is not None:
        out.print(f"  [bold]timed here[/]: {_verdict(check)}")
    if profile is None:
        if speed["objective"] == "speed":
            out.print(f"  [yellow]note[/] {escape(speed['note'])}; measure one with tools/profile_kernels.py")
        return
    where = f"{profile['cpu']}{' (borrowed for this target)' if profile['borrowed'] else ''}"
    regions, predicted = len(speed["float_regions"]), speed["predicted_us"]
    out.print(
        f"  objective {speed['objective']}: {regions} regions stay float, on {escape(str(where))} about "
        f"{predicted['chosen'] / 1e3:.2f} ms for what could be int8 (all int8 {predicted['int8'] / 1e3:.2f}, "
        f"all float {predicted['float'] / 1e3:.2f})"
    )


def _gelus(out: Console, found: dict[str, Any] | None) -> None:
    """What stands in place of GELUs."""
    if found is None:
        return
    replaced = sum(entry["replaced"] for entry in found["nodes"])
    if replaced:
        out.print(
            f"  {replaced} of {len(found['nodes'])} GELUs between int8 layers became x sigmoid(c x) in int8: about "
            f"{found['saved_us'] / 1e3:.2f} ms less, for a divergence of {found['divergence']:.2g} by themselves"
        )


def _channel_padding(out: Console, found: dict[str, Any] | None) -> None:
    """How many convolutions have more channels than the float file gives them."""
    if found is not None and found["regions"]:
        out.print(
            f"  {found['convolutions']} convolutions have channels added, in whole blocks of their int8 kernels: about "
            f"{found['saved_us'] / 1e3:.2f} ms less"
        )


def _granularity(out: Console, found: dict[str, Any] | None) -> None:
    """Activations with a scale per channel, and what takes it."""
    if found is None or not found["sites"]:
        return
    chosen = found["per_channel"]
    takers = _counted(
        choice["fold"] + " with shift" * choice["shift"] + " by head" * (choice["granularity"] == "head")
        for choice in chosen
    )
    what = "channel or head" if any(choice["granularity"] == "head" for choice in chosen) else "channel"
    cost = f", at the cost of {found['added_nodes']} nodes in float" if found["added_nodes"] else ""
    out.print(
        f"  {len(chosen)} of {found['sites']} activations have a scale per {what}, folded exactly"
        f"{f' ({takers})' if chosen else ''}{cost}"
    )


def _residual(out: Console, found: dict[str, Any] | None) -> None:
    """What was weighed of the residual stream, where int8 would save time."""
    if found is None or found["predicted_divergence"]["int8"] is None:
        return
    times, errors = found["predicted_us"], found["predicted_divergence"]
    out.print(
        f"  residual stream of transformers in {found['chosen']}: int8 saves about "
        f"{100 * (1 - times['int8'] / times['float']):.1f} % of the time, for a predicted divergence of "
        f"{errors['int8']:.2g} instead of {errors['float']:.2g}{' (borrowed costs)' * found['borrowed']}"
    )


def _precision(out: Console, found: dict[str, Any] | None) -> None:
    """What went back to float, or got 16-bit activations, for accuracy."""
    if found is None:
        return
    steps, start = found["steps"], found["predicted_divergence"]
    if steps:
        became = {name: step["to"] for step in steps for name in step["nodes"]}  # the last step says what
        floats, wide = (sum(to == kind for to in became.values()) for kind in ("float", "16 bits"))
        nodes = [f"{count} node{'s' * (count > 1)}" for count in (floats, wide)]
        texts = (f"{nodes[0]} taken back to float", f"{nodes[1]} raised to 16-bit activations")
        done = " and ".join(text for text, count in zip(texts, (floats, wide), strict=True) if count)
        paid = sum(max(0.0, step["cost_us"]) for step in steps) / max(found["predicted_int8_us"], 1e-9)
        whose = ", costs of another processor" if found["borrowed"] else ""
        out.print(
            f"  {done} for accuracy: predicted divergence {start:.2g} -> "
            f"{steps[-1]['divergence']:.2g} for {100 * paid:.1f} % of the time{whose}"
        )
    if widths := found.get("widths"):
        narrow = [entry for entry in widths["weights"] if entry["bits"] == 4]
        out.print(
            f"  {len(narrow)} of {len(widths['weights'])} weights have 4 bits, which saves "
            f"{size_text(widths['saved_bytes'])} packed as INT4 (the report says which and why)"
        )
    if "reached" in found:
        out.print(f"  {_limit(found)}")


def _limit(found: dict[str, Any]) -> str:
    """What was asked for with ``max_drop`` and what was reached, with markup."""
    asked, reached, top1 = found["max_drop"], found["reached"], found.get("top1")
    if top1 is None:
        style = "green" if reached <= asked else "bold red"
        return f"[{style}]divergence {reached:.3g}, asked for at most {asked:.3g}[/]"
    style = "green" if reached <= float(asked.removesuffix("%")) / 100 else "bold red"
    return (
        f"[{style}]top-1 {top1['float']:.1%} -> {top1['int8']:.1%} on {top1['samples']} labelled samples, loss "
        f"{reached:.1%}, asked for at most {asked}[/] (one sample is {top1['one_sample']:.1%}, the standard error "
        f"{top1['standard_error']:.1%})"
    )


def _reconstruction(out: Console, found: dict[str, Any] | None) -> None:
    """Error of each block before and after, the largest first."""
    if found is None:
        return
    used = "" if found["kept"] else " [yellow](worse: not used)[/]"
    if found["kept"] and found["divergence_after"] > found["divergence_before"]:
        used = " (used: chance explains the rise)"
    out.print(
        f"  reconstructed {len(found['blocks'])} blocks ({escape(found['weighting'])}): divergence at the outputs "
        f"{found['divergence_before']:.2g} -> {found['divergence_after']:.2g}{used}"
    )
    if compared := found.get("compared"):
        where = "samples held out" if compared["held_out"] else "samples, too few to hold some out"
        each = ", ".join(f"{name} {value:.3g}" for name, value in compared["divergence"].items())
        out.print(f"  weightings compared by the divergence on {compared['samples']} {where}: {each}")
    table = Table(title="Blocks with the largest error left", title_justify="left")
    table.add_column("block", overflow="fold")
    for column in ("kind", "before", "after", "ranges moved", "layers rounded by"):
        table.add_column(column, justify="right" if column in ("before", "after", "ranges moved") else "left")
    for block in sorted(found["blocks"], key=lambda entry: -entry["error_after"])[:BLOCKS_SHOWN]:
        moved = sum(choice["before"] != choice["after"] for choice in block["choices"])
        how = _counted(layer["rounding"] + (" + ridge" if layer["ridge"] else "") for layer in block["layers"])
        table.add_row(
            escape(block["name"]),
            block["kind"],
            f"{block['error_before']:.2g}",
            f"{block['error_after']:.2g}",
            f"{moved} of {len(block['choices'])}",
            escape(how),
        )
    out.print(table)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items())) or "-"


def _verdict(check: dict[str, Any]) -> str:
    """What ``--verify-speed`` found, in one line."""
    before, now = check["speedup_before"]["median"], check["speedup"]["median"]
    kept = sum(entry["kept"] for entry in check["blocks"])
    return {
        "faster": f"{now:.2f}x the speed of the float file",
        "even": f"no difference from the float file beyond noise ({check['speedup']['low']:.2f}x to "
        f"{check['speedup']['high']:.2f}x)",
        "blocks": f"int8 was slower ({before:.2f}x); {kept} blocks went back to float: {now:.2f}x",
        "float": f"int8 was slower ({before:.2f}x) and blocks did not help; the result is float, rewritten: {now:.2f}x",
        "slower": f"nothing found is as fast as the float file; the fastest is written: {now:.2f}x",
    }[str(check["verdict"])]


def _reasons(out: Console, nodes: list[tuple[str, str]], what: str) -> None:
    """Why nodes are what they are, the commonest reasons first."""
    reasons = Counter(reason for _, reason in nodes)
    for reason, count in reasons.most_common(REASONS_SHOWN):
        out.print(f"    {count:4d} {what}: {escape(reason)}")


def kernels(out: Console, audit: dict[str, Any]) -> None:
    """The kernels that will run, and the faults among them."""
    counts = audit["counts"]
    out.print(
        f"  kernels that ONNX Runtime will run: {counts.get('int8', 0)} int8, {counts.get('float', 0)} float "
        "(Conv, Gemm, MatMul)"
    )
    for key, text in (
        ("dequantized_weights", "weights dequantized at run time"),
        ("bad_kernels", "kernels known to be slow or wrong"),
        ("orphan_pairs", "Q/DQ pairs without an int8 kernel between them"),
    ):
        if audit.get(key):
            out.print(f"  [yellow]{len(audit[key])} {text}[/]")


def size_text(count: int) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
