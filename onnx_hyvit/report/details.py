"""What is known of each block: error, what stayed float and why, choices, reconstruction, sensitivity."""

from __future__ import annotations

from typing import Any

from .blocks import BlockFacts
from .charts import kind_class
from .html import Markup, code, element
from .results import Results
from .sections import table
from .values import count, decibel, items, mapping, mappings, number, percent, plain, text

OPEN_BLOCKS = 3
TENSORS_SHOWN = 6
CHOICES_SHOWN = 24
STEPS_SHOWN = 20
_KNOWN = ("name", "kind", "error_before", "error_after", "choices")
_TOLD = ("weighting", "blocks", "divergence_before", "divergence_after", "kept")
_SIDES = {
    "consumer": "absorbed by the layer that reads it",
    "producer": "absorbed by the layer that makes it",
    "both": "divided where it is made, restored by the layers that read it",
}


def block_section(results: Results, blocks: list[BlockFacts]) -> Markup | None:
    """One entry for each block; the worst ones are open (in print all are)."""
    if not blocks:
        return None
    measured = [block for block in blocks if block.sqnr_db is not None]
    worst = {id(block) for block in sorted(measured, key=lambda block: block.sqnr_db or 0.0)[:OPEN_BLOCKS]}
    entries = [_entry(block, place, id(block) in worst) for place, block in enumerate(blocks)]
    return element("section", element("h2", "Block by block"), _reconstruction_note(results), *entries)


def _entry(block: BlockFacts, place: int, opened: bool) -> Markup:
    facts: list[tuple[str, Any]] = [
        ("nodes", f"{block.nodes}; {count(block.params)} parameters, {count(block.macs)} MACs"),
    ]
    if block.int8_kernels is not None:
        facts.append(("heavy kernels", f"{block.int8_kernels} in int8, {block.float_kernels} in float"))
    if block.sqnr_db is not None:
        where = "at its end" if block.at_end else "at its worst tensor; its end has another form in the int8 model"
        facts.append(("error", f"{decibel(block.sqnr_db)} SQNR {where}"))
    facts += _sensitivity(block.sensitivity)
    if block.reasons:
        lines = [element("li", f"{number_} x {reason}") for reason, number_ in block.reasons.most_common()]
        facts.append(("left float", element("ul", *lines)))
    if block.choices:
        lines = [element("li", code(text(choice.get("tensor"))), f": {_choice(choice)}") for choice in block.choices]
        facts.append(("a scale per channel", element("ul", *lines[:CHOICES_SHOWN])))
    facts += _reconstruction(block.reconstruction)
    if block.tensors:
        lines = [
            element("li", code(text(row.get("name"))), f" ({text(row.get('op'))}): {decibel(row.get('sqnr_db'))}")
            for row in block.tensors[:TENSORS_SHOWN]
        ]
        facts.append(("worst tensors", element("ul", *lines)))
    terms = [[element("dt", term), element("dd", value)] for term, value in facts]
    error = "" if block.sqnr_db is None else f", {decibel(block.sqnr_db)}"
    head = element("summary", element("h3", block.name), element("span", f" {block.kind}{error}", class_="muted"))
    return element(
        "details", head, element("dl", *terms), id=f"block-{place}", class_=kind_class(block.kind), open=opened
    )


def _choice(choice: dict[str, Any]) -> str:
    side = _SIDES.get(text(choice.get("side")), text(choice.get("side")))
    fold = text(choice.get("fold"))
    if fold and choice.get("shift") is True:
        fold += ", shifted"
    if fold and choice.get("granularity") == "head":
        fold += ", by head"
    return f"{side} ({fold})" if side and fold else side or fold or "chosen"


def _sensitivity(entry: dict[str, Any]) -> list[tuple[str, Any]]:
    if not entry:
        return []
    without, alone = mapping(entry.get("without")), mapping(entry.get("alone"))
    gain, loss = number(entry.get("gain")), number(alone.get("loss"))
    agreement, agreement_alone = (number(side.get("top1_agreement")) for side in (without, alone))
    lines = []
    if gain is not None:
        more = "" if agreement is None else f" (agreement {percent(agreement, 1)})"
        change = f"{100 * gain:.1f} % of the loss is gone" if gain >= 0 else f"the loss is {-100 * gain:.1f} % larger"
        lines.append(element("li", f"float, all else int8: {change}{more}"))
    if loss is not None:
        more = "" if agreement_alone is None else f" (agreement {percent(agreement_alone, 1)})"
        lines.append(element("li", f"int8, all else float: loss {loss:.3g}{more}"))
    return [("sensitivity", element("ul", *lines))] if lines else []


def _reconstruction(entry: dict[str, Any]) -> list[tuple[str, Any]]:
    if not entry:
        return []
    facts: list[tuple[str, Any]] = []
    before, after = number(entry.get("error_before")), number(entry.get("error_after"))
    if before is not None and after is not None:
        change = f", {100 * (before - after) / before:.0f} % less" if before > 0 else ""
        facts.append(("reconstruction", f"error {before:.4g} before, {after:.4g} after{change}"))
    choices = mappings(entry.get("choices"))[:CHOICES_SHOWN]
    if choices:
        rows = [
            [code(text(choice.get("tensor"), "?"))]
            + [text(choice.get(key), "-") for key in ("granularity", "scheme", "fold")]
            + [plain({key: value for key, value in choice.items() if key not in _CHOICE_KEYS}) or "-"]
            for choice in choices
        ]
        facts.append(("choices", table(("tensor", "granularity", "scheme", "fold", "more"), rows, numeric=())))
    extra = {key: value for key, value in entry.items() if key not in _KNOWN}
    if extra:
        facts.append(("more", plain(extra)))
    return facts


_CHOICE_KEYS = ("tensor", "granularity", "scheme", "fold")


def _reconstruction_note(results: Results) -> Markup | None:
    """What the whole reconstruction did, and blocks that it names differently."""
    found = mapping(results.quantize.get("reconstruction"))
    if not found:
        return None
    known = {text(block.get("name")) for block in results.blocks}
    others = [entry for entry in mappings(found.get("blocks")) if text(entry.get("name")) not in known]
    lines = [f"Reconstruction, errors weighted by {text(found.get('weighting'), 'an unnamed method')}."]
    before, after = number(found.get("divergence_before")), number(found.get("divergence_after"))
    if before is not None and after is not None:
        lines.append(f"Divergence at the outputs {plain(before)} before, {plain(after)} after.")
    if found.get("kept") is False:
        lines.append("Not used: it took the outputs further from the float ones.")
    lines += [f"{key}: {plain(value)}." for key, value in found.items() if key not in _TOLD and value is not None]
    rows = [
        [
            code(text(entry.get("name"), "?")),
            text(entry.get("kind"), "-"),
            plain(number(entry.get("error_before"))),
            plain(number(entry.get("error_after"))),
        ]
        for entry in others
    ]
    return element(
        "div",
        element("p", " ".join(lines), class_="muted"),
        table(("block", "kind", "before", "after"), rows, numeric=(2, 3)) if rows else None,
    )


def precision_section(results: Results) -> Markup | None:
    """What went back to float or to 16 bits for accuracy, with what each step was predicted to save and to cost."""
    found = mapping(results.quantize.get("precision"))
    steps, start = mappings(found.get("steps")), number(found.get("predicted_divergence"))
    whole = number(found.get("predicted_int8_us"))
    asked, top1 = found.get("max_drop") is not None, mapping(found.get("top1"))
    if not (steps or asked) or not start or not whole:
        return None
    wide = any(text(step.get("to")) == "16 bits" for step in steps)
    rows, before = [], start
    for place, step in enumerate(steps):
        after, cost = number(step.get("divergence")), number(step.get("cost_us"))
        saved = None if after is None else (before - after) / start
        before = before if after is None else after
        nodes = [text(name) for name in items(step.get("nodes"))]
        if place < STEPS_SHOWN:
            paid = percent(None if cost is None else cost / whole, 2)
            rows.append([code(", ".join(nodes)), text(step.get("to"), "float"), percent(saved, 1), paid])
    more = f" The first {STEPS_SHOWN} of {len(steps)} steps are shown." if len(steps) > STEPS_SHOWN else ""
    lines = [f"Predicted divergence {start:.3g} before, {before:.3g} after.{more}"] if steps else ["Nothing had to be."]
    if found.get("borrowed"):
        lines.append("The target has no measured costs: those of another processor decided, with care.")
    if asked:
        lines.append(f"Asked for at most {plain(found.get('max_drop'))}, reached {_reached(found, top1)}.")
    return element(
        "section",
        element("h2", "Taken back to float or to 16 bits for accuracy" if wide else "Taken back to float for accuracy"),
        element("p", " ".join(lines), class_="muted"),
        table(("nodes", "became", "divergence taken away", "time paid"), rows, numeric=(2, 3)) if rows else None,
    )


def gelu_section(results: Results) -> Markup | None:
    """GELUs that were weighed, with what their int8 form saves and does to the outputs."""
    found = mapping(results.quantize.get("gelus"))
    entries, whole = mappings(found.get("nodes")), number(found.get("rounding_divergence"))
    if not entries or not whole:
        return None
    shown = sorted(entries, key=lambda entry: (not entry.get("replaced"), -(number(entry.get("saved_us")) or 0.0)))
    rows = [
        [
            code(text(entry.get("node"))),
            "replaced" if entry.get("replaced") else "exact",
            plain(number(entry.get("factor"))),
            plain(number(entry.get("saved_us"))),
            percent((number(entry.get("divergence")) or 0.0) / whole, 1),
        ]
        for entry in shown[:STEPS_SHOWN]
    ]
    more = f" The first {STEPS_SHOWN} of {len(entries)} are shown." if len(entries) > STEPS_SHOWN else ""
    line = (
        f"x sigmoid(c x) has int8 kernels, GELU has none. All that were replaced have a divergence of "
        f"{plain(number(found.get('divergence')))}, rounding alone {plain(whole)} before reconstruction.{more}"
    )
    heads = ("node", "now", "c", "µs saved", "of rounding")
    return element(
        "section",
        element("h2", "GELU in int8"),
        element("p", line, class_="muted"),
        table(heads, rows, numeric=(2, 3, 4)),
    )


def _reached(found: dict[str, Any], top1: dict[str, Any]) -> str:
    if not top1:
        return plain(found.get("reached"))
    lost, one = percent(number(found.get("reached")), 1), percent(number(top1.get("one_sample")), 1)
    return f"a loss of {lost} on {plain(top1.get('samples'))} labelled samples, of which each counts {one}"


def advice_section(results: Results) -> Markup | None:
    """What ``debug`` found: advice, and tensors where error enters."""
    advice = mappings(results.debug.get("advice"))
    tensors = mappings(results.debug.get("tensors"))[:12]
    if not advice and not tensors:
        return None
    lines = [element("li", text(line.get("text"))) for line in advice if text(line.get("text"))]
    rows = [
        [
            code(text(row.get("name"))),
            f"{text(row.get('op'))} in {text(row.get('block'), '?')}",
            decibel(row.get("entering_db")),
            decibel(row.get("sqnr_db")),
            "; ".join(text(cause.get("text")) for cause in mappings(row.get("causes"))) or "-",
        ]
        for row in tensors
    ]
    return element(
        "section",
        element("h2", "Remedies"),
        element("ol", *lines) if lines else None,
        [
            element("h3", "Where error enters"),
            table(("tensor", "made by", "entering", "in the model", "why"), rows, numeric=(2, 3)),
        ]
        if rows
        else None,
    )
