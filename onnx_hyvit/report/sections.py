"""The parts of the page that look at the whole model: verdict, numbers, charts, strip, errors, images, settings."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from .blocks import KINDS, BlockFacts
from .charts import bar, before_after, kind_class, shares
from .histogram import histogram_svg
from .html import Markup, code, element, join
from .results import Results
from .values import count, decibel, items, mapping, mappings, number, percent, plain, size, text
from .verdict import Verdict, interval

WORST_TENSORS = 10
MAX_PICTURES = 12
BEST_DB = 50.0  # a full bar of error
_LEVELS = {"good": "good", "fair": "fair", "bad": "not good enough", "unknown": "not measured"}
_SETTINGS = ("recipe", "bits", "mode", "target", "samples", "seed", "residual", "opset")


def verdict_section(results: Results, verdict: Verdict) -> Markup:
    """Verdict, the main numbers, and what to do."""
    name = text(mapping(results.quantize.get("found")).get("model") or results.compare.get("float"), "model")
    steps = [element("li", step.text, code(step.command) if step.command else None) for step in verdict.steps]
    return element(
        "header",
        element("p", "Quantization report", class_="muted"),
        element("h1", name.replace("\\", "/").rsplit("/", 1)[-1]),
        element("p", element("b", _LEVELS[verdict.level]), ": ", verdict.text, class_=f"verdict {verdict.level}"),
        element("div", *_cards(results), class_="cards"),
        [element("h2", "What to do next"), element("ol", *steps, class_="steps")] if steps else None,
    )


def _card(title: str, value: str, note: str) -> Markup:
    return element(
        "div",
        element("span", title, class_="muted"),
        element("b", value),
        element("span", note, class_="muted"),
        class_="card",
    )


def _cards(results: Results) -> list[Markup]:
    compare, cards = results.compare, []
    samples, agreement = number(compare.get("samples")), number(compare.get("top1_agreement"))
    accuracy = mapping(compare.get("accuracy"))
    before, after = number(accuracy.get("float_top1")), number(accuracy.get("int8_top1"))
    if before is not None and after is not None:
        cards.append(_card("top-1 accuracy", percent(after), f"float {percent(before)}"))
    if agreement is not None:
        low, high = interval(agreement, samples) if samples else (agreement, agreement)
        note = f"of {samples:.0f}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %" if samples else ""
        cards.append(_card("same answer as float", percent(agreement), note))
    for name, output in list(mapping(compare.get("outputs")).items())[:2]:
        cards.append(_card("error at the output", decibel(mapping(output).get("sqnr_db")), f"SQNR of {name}"))
    latency = mapping(compare.get("latency"))
    speed = number(latency.get("speedup"))
    if speed is not None:
        times = [number(latency.get(key)) or 0.0 for key in ("float_ms", "int8_ms")]
        cards.append(_card("speed-up", f"{speed:.2f}x", f"{times[0]:.2f} to {times[1]:.2f} ms"))
    sizes = _sizes(results)
    if sizes is not None and sizes[1]:
        cards.append(_card("smaller", f"{sizes[0] / sizes[1]:.1f}x", f"{size(sizes[0])} to {size(sizes[1])}"))
    counts = mapping(mapping(results.quantize.get("audit") or compare.get("audit")).get("counts"))
    if number(counts.get("int8")) is not None:
        note = f"{plain(counts.get('float'))} in float"
        cards.append(_card("kernels in int8", plain(counts.get("int8")), note))
    return cards


def _sizes(results: Results) -> tuple[float, float] | None:
    found = mapping(results.compare.get("size") or results.quantize.get("size"))
    before, after = number(found.get("float_bytes")), number(found.get("int8_bytes"))
    return None if before is None or after is None else (before, after)


def before_after_section(results: Results) -> Markup | None:
    """Bars of accuracy, latency and size."""
    rows = []
    accuracy = mapping(results.compare.get("accuracy"))
    for key, title in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
        before, after = number(accuracy.get(f"float_{key}")), number(accuracy.get(f"int8_{key}"))
        if before is not None and after is not None:
            rows.append((title, before, percent(before), after, percent(after)))
    latency = mapping(results.compare.get("latency"))
    before, after = number(latency.get("float_ms")), number(latency.get("int8_ms"))
    if before is not None and after is not None:
        threads = number(latency.get("threads")) or 1
        title = f"latency, {threads:.0f} thread{'s' * (threads > 1)}, median of {plain(latency.get('runs'))} runs"
        rows.append((title, before, f"{before:.2f} ms", after, f"{after:.2f} ms"))
    sizes = _sizes(results)
    if sizes is not None:
        rows.append(("size of the file", sizes[0], size(sizes[0]), sizes[1], size(sizes[1])))
    return element("section", element("h2", "Before and after"), before_after(rows)) if rows else None


def strip_section(blocks: list[BlockFacts]) -> Markup | None:
    """The model as a strip of blocks."""
    if not blocks:
        return None
    bridges = sum(block.kind == "bridge" for block in blocks)
    present = [kind for kind in KINDS if any(block.kind == kind for block in blocks)]
    legend = [
        element(
            "span",
            element("svg", element("rect", class_=kind_class(kind), width=10, height=10), viewBox="0 0 10 10"),
            kind,
        )
        for kind in present
    ]
    return element(
        "section",
        element("h2", "The model"),
        element(
            "p",
            f"{len(blocks)} blocks, {bridges} of them bridges: there convolution features enter attention.",
            class_="muted",
        ),
        element("div", *legend, class_="legend"),
        _share("Share of the parameters", [(block, block.params) for block in blocks]),
        _share("Share of the multiply-accumulates", [(block, block.macs) for block in blocks]),
        element("ol", *[element("li", _chip(block, place)) for place, block in enumerate(blocks)], class_="strip"),
    )


def _share(title: str, parts: list[tuple[BlockFacts, float | None]]) -> Markup | None:
    rows = [(block.name, block.kind, value or 0.0) for block, value in parts]
    return shares(title, rows) if any(value for _, _, value in rows) else None


def _chip(block: BlockFacts, place: int) -> Markup:
    mark = "\u21c4 " if block.kind == "bridge" else ""
    lines = [f"{count(block.params)} params", f"{count(block.macs)} MACs"]
    if block.int8_kernels is not None:
        lines.append(f"{block.int8_kernels} int8, {block.float_kernels} float")
    if block.sqnr_db is not None:
        lines.append(decibel(block.sqnr_db))
    shown: list[Any] = [element("b", mark + block.name)]
    for line in lines:
        shown += [line, element("br")]
    return element("a", *shown[:-1], href=f"#block-{place}", class_=kind_class(block.kind))


def error_section(results: Results, blocks: list[BlockFacts]) -> Markup | None:
    """Error of each block along the model, and the worst tensors."""
    rows = [
        element(
            "tr",
            _cell("block", element("a", block.name, href=f"#block-{place}")),
            _cell(
                "", bar(max(block.sqnr_db, 0.0) / BEST_DB, f"fill-{level_of(block.sqnr_db)}", decibel(block.sqnr_db))
            ),
            _cell("SQNR", decibel(block.sqnr_db) + ("" if block.at_end else " *"), "n"),
        )
        for place, block in enumerate(blocks)
        if block.sqnr_db is not None
    ]
    tensors = [row for row in mappings(results.compare.get("tensors")) if number(row.get("sqnr_db")) is not None]
    if not rows and not tensors:
        return None
    worst = [
        [code(text(row.get("name"))), text(row.get("op")), text(row.get("block"), "-"), decibel(row.get("sqnr_db"))]
        for row in tensors[:WORST_TENSORS]
    ]
    return element(
        "section",
        element("h2", "Where the error is"),
        element(
            "p",
            "Signal over error (SQNR) at the end of each block, all blocks before it quantized too. Longer is better; "
            "30 dB is about 3 % error. A star marks the worst tensor of a block whose end has another form in the int8 "
            "model.",
            class_="muted",
        ),
        element("table", element("tbody", *rows), class_="errors") if rows else None,
        [element("h3", "Worst tensors"), table(("tensor", "made by", "block", "SQNR"), worst)] if worst else None,
    )


def level_of(sqnr_db: float) -> str:
    """good, fair or bad."""
    return "good" if sqnr_db >= 25 else "fair" if sqnr_db >= 12 else "bad"


def _cell(label: str, content: Any, css: str = "") -> Markup:
    return element("td", content, class_=css or None, data_label=label or None)


def table(titles: tuple[str, ...], rows: list[list[Any]], numeric: tuple[int, ...] = (-1,)) -> Markup:
    """A table that becomes a list of cards on a phone; ``numeric`` columns are aligned right."""
    right = {place % len(titles) for place in numeric}
    head = [element("th", title, class_="n" if place in right else None) for place, title in enumerate(titles)]
    body = [
        element("tr", *[_cell(titles[place], value, "n" if place in right else "") for place, value in enumerate(row)])
        for row in rows
    ]
    return element(
        "div",
        element("table", element("thead", element("tr", *head)), element("tbody", *body), class_="stack"),
        class_="scroll",
    )


def histogram_section(results: Results) -> Markup | None:
    """Values of the worst tensors and the range of their codes."""
    figures = []
    for place, entry in enumerate(mappings(results.evidence.get("histograms"))):
        drawing = histogram_svg(entry, place)
        if drawing is None:
            continue
        ends = [number(value) or 0.0 for value in items(entry.get("range"))]
        caption = (
            f"in {text(entry.get('block'), 'the model')}: codes from {ends[0]:.3g} to {ends[1]:.3g}, "
            f"{percent(entry.get('clipped'), 3)} of the values outside, {decibel(entry.get('sqnr_db'))}"
        )
        figures.append(element("figure", element("figcaption", code(text(entry.get("tensor"))), " ", caption), drawing))
    if not figures:
        return None
    note = (
        "Values in the float model (counts on a logarithmic scale). Dashed lines are the ends of the codes; what lies "
        "outside is red and is clipped."
    )
    return element(
        "section",
        element("h2", "Ranges of the worst tensors"),
        element("p", note, class_="muted"),
        element("div", *figures, class_="plots"),
    )


def picture_section(results: Results) -> Markup | None:
    """Samples for which the two models disagree."""
    total = number(results.evidence.get("disagreements"))
    figures = [
        figure
        for entry in mappings(results.evidence.get("pictures"))[:MAX_PICTURES]
        if (figure := _picture(entry)) is not None
    ]
    if not figures:
        return None
    shown = f"{len(figures)} of {total:.0f} samples" if total is not None else f"{len(figures)} samples"
    note = f"{shown} with another answer than the float model, those first where the float model was surest."
    return element(
        "section",
        element("h2", "Where the models disagree"),
        element("p", note, class_="muted"),
        element("div", *figures, class_="pictures"),
    )


def _picture(entry: dict[str, Any]) -> Markup | None:
    data = text(entry.get("png"))
    try:
        if not base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n"):
            return None
    except (binascii.Error, ValueError):
        return None
    sample = text(entry.get("sample"), "?")
    lines = [f"float: {text(entry.get('float'), '-')}", f"int8: {text(entry.get('int8'), '-')}"]
    if entry.get("label") is not None:
        lines.append(f"label: {text(entry.get('label'), '-')}")
    caption: list[Any] = [code(sample)]
    for line in lines:
        caption += [element("br"), line]
    picture = element("img", src=f"data:image/png;base64,{data}", alt=f"sample {sample}")
    return element("figure", picture, element("figcaption", *caption))


def settings_section(results: Results) -> Markup | None:
    """Settings, calibration and findings."""
    config, calibration = mapping(results.quantize.get("config")), mapping(results.quantize.get("calibration"))
    rows = [[key, plain(config[key])] for key in _SETTINGS if key in config]
    if items(config.get("float_nodes")):
        rows.append(["float_nodes", plain(config["float_nodes"])])
    for key, title in (("samples", "calibration samples"), ("fingerprint", "fingerprint of the data")):
        if key in calibration:
            rows.append([title, plain(calibration[key])])
    passes = mapping(results.quantize.get("passes"))
    if passes:
        rows.append(["rewrites", ", ".join(f"{name} {plain(number_)}" for name, number_ in passes.items())])
    notes = [text(note) for key in ("findings",) for note in items(results.quantize.get(key))]
    notes += [text(note) for note in items(calibration.get("warnings"))]
    if not rows and not notes:
        return None
    return element(
        "section",
        element("h2", "Settings"),
        element("dl", *[[element("dt", key), element("dd", code(value))] for key, value in rows]) if rows else None,
        [element("h3", "Notes"), element("ul", *[element("li", note) for note in notes if note])] if notes else None,
    )


def footer(results: Results) -> Markup:
    """Which version made it, and from which results."""
    version = text(results.quantize.get("onnx_hyvit"))
    names = [name for name in ("quantize", "compare", "debug") if getattr(results, name)]
    return element("footer", join(f"Made by onnx_hyvit {version}".strip(), f" from: {', '.join(names)}."))
