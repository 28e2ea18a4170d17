"""Markdown tables of what ``measure_recipes.py`` found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from zoo.scoring import wilson

BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
DETAIL = "cifar_mobilevit_xxs"  # the model that the ablation shows by itself, too
STEPS = {
    "1 minmax": "min-max",
    "2 + searched scales": "searched scales",
    "3 + granularity, folded": "granularity, folded between neighbours",
    "3b + folds through moves": "folds behind LayerNorm and of attention's values, with shifts (below 8 bits only)",
    "4 + scheme": "scheme (symmetric tried as well); taken out again",
    "5 - scheme + weight rounding": "weight rounding (GPTQ)",
    "6 + bias correction": "bias correction",
    "7 + ridge": "ridge",
    "8 + scales of weights fitted again": "scales of weights fitted again",
    "9 + mixed precision": "mixed precision (the default recipe)",
}
Cells = list[Mapping[str, Any]]


def recipes_table(results: Mapping[str, Any]) -> str:
    """Mean drop of top-1 and mean agreement over models and seeds, spread over seeds, and what was measured.

    A width at which files were run without fused kernels as well has a second column for that.
    """
    cells_of = _grouped(results["cells"])
    columns = []
    for width in BITS:
        cells = [cell for key, group in cells_of.items() if key[1] == width for cell in group]
        columns += [(width, False)] * bool(cells) + [(width, True)] * any("unfused_top1" in cell for cell in cells)
    heads = [f"{width}{', not fused' * unfused}: drop, agrees" for width, unfused in columns]
    lines = ["| recipe | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for name in dict.fromkeys(key[0] for key in cells_of):
        row = []
        for width, unfused in columns:
            group = cells_of.get((name, width), [])
            row.append(_cell(_unfused(group) if unfused else group))
        lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    return "\n".join([_describe(results), "", *lines])


def ablation_table(results: Mapping[str, Any]) -> str:
    """Drop and agreement of each step, of all models and of ``DETAIL``, and what was measured."""
    cells = results["cells"]
    bits = [width for width in BITS if any(cell["bits"] == width for cell in cells)]
    heads = [f"{width}: drop, agrees | of `{DETAIL}`" for width in bits]
    lines = ["| parts, each with those above | " + " | ".join(heads) + " |", "|---|" + "---:|---:|" * len(bits)]
    for step, words in STEPS.items():
        row = []
        for width in bits:
            chosen = [cell for cell in cells if (cell["recipe"], cell["bits"]) == (step, width)]
            row += [_cell(chosen), _cell([cell for cell in chosen if cell["model"] == DETAIL])]
        lines.append(f"| {words} | " + " | ".join(row) + " |")
    return "\n".join([_describe(results), "", *lines])


def _grouped(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Cells]:
    found: dict[tuple[str, str], Cells] = {}
    for cell in cells:
        found.setdefault((cell["recipe"], cell["bits"]), []).append(cell)
    return found


def _cell(cells: Cells) -> str:
    failed = sorted({cell["model"] for cell in cells if "failed" in cell})
    cells = [cell for cell in cells if "failed" not in cell]
    if not cells:
        return "-"
    drops = np.array([100 * (cell["float_top1"] - cell["top1"]) for cell in cells])
    agreement = 100 * float(np.mean([cell["agreement"] for cell in cells]))
    seeds = sorted({cell["seed"] for cell in cells})
    means = [drops[[cell["seed"] == seed for cell in cells]].mean() for seed in seeds]
    spread = f" ± {np.std(means):.2f}" if len(seeds) > 1 else ""
    note = f" (without {len(failed)}: no usable file)" if failed else ""
    return f"{drops.mean():.2f}{spread}, {agreement:.2f} %{note}"


def _describe(results: Mapping[str, Any]) -> str:
    """One line: what was measured."""
    models = sorted({cell["model"] for cell in results["cells"]})
    draws = Counter((cell["model"], cell["bits"], cell["recipe"]) for cell in results["cells"])
    least, most = min(draws.values()), max(draws.values())
    listed = ", ".join(f"`{name}`" for name in models)
    count = f"{f'{least} to ' * (least < most)}{most} draw{'s' * (most > 1)}"
    return (
        f"Mean over {len(models)} models ({listed}) and {count} of {results['calibration_images']} calibration images; "
        f"{_describe_images(results['cells'])}."
    )


def _describe_images(cells: Cells) -> str:
    """How many test images classified, and how well an agreement is known from so many."""
    widths: dict[tuple[str, int], set[str]] = {}
    for cell in cells:
        if "images" in cell:
            widths.setdefault((cell["recipe"], cell["images"]), set()).add(cell["bits"])
    counts = sorted({images for _, images in widths}, reverse=True)
    parts = []
    for images in counts:
        half = wilson(images * 98 // 100, images)
        names = []
        for name in sorted({recipe for recipe, used in widths if used == images}):
            several = sum(recipe == name for recipe, _ in widths) > 1
            names.append(f"`{name}`" + f" {' '.join(sorted(widths[name, images], key=BITS.index))}" * several)
        whose = "" if len(counts) == 1 else f" for {', '.join(names)}"
        known = 50 * (half.high - half.low)
        parts.append(f"{images} test images{whose} (of one model, an agreement of 98 % is known to ±{known:.2f})")
    return "; ".join(parts)


def _unfused(cells: Cells) -> Cells:
    """The cells as sessions without fused kernels see them; those that were run so."""
    return [
        {**cell, "top1": cell["unfused_top1"], "agreement": cell["unfused_agreement"]}
        for cell in cells
        if "unfused_top1" in cell
    ]
