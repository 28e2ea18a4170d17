"""Markdown tables of what ``measure_recipes.py`` found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from zoo.scoring import wilson

BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
PEERS = ("ort-minmax", "ort-percentile", "nncf", "onnxsim-minmax", "onnxsim-percentile")  # other tools, 8 bits only
DEFAULT = "q-hyvit"
DETAIL = "cifar_mobilevit_xxs"  # the model that the ablation shows by itself, too
STEPS = {
    "1 minmax": "min-max",
    "2 + searched scales": "searched scales",
    "3 + granularity, folded": "granularity, folded between neighbours",
    "3b + folds through moves": "folds behind LayerNorm and of attention's values, with shifts (below 8 bits only)",
    "3c granularity by measured error": "granularity by the block's measured error; taken out again",
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

    A width at which files were run without fused kernels as well has a second column for that. Other tools come last.
    """
    cells_of, most = _grouped(results["cells"]), _images_of(results["cells"])[0]
    columns = []
    for width in BITS:
        cells = [cell for key, group in cells_of.items() if key[1] == width for cell in group]
        columns += [(width, False)] * bool(cells) + [(width, True)] * any("unfused_top1" in cell for cell in cells)

    def groups_of(name: str) -> Iterator[Cells]:
        """The cells of a recipe, column by column."""
        for width, unfused in columns:
            group = cells_of.get((name, width), [])
            yield _unfused(group) if unfused else group

    heads = [f"{width}{', not fused' * unfused}: drop, agrees" for width, unfused in columns]
    lines = ["| recipe | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for name in sorted(dict.fromkeys(key[0] for key in cells_of), key=PEERS.__contains__):
        row = [_cell(group, most) for group in groups_of(name)]
        lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    known = [_known_drop(group) for group in groups_of(DEFAULT)]
    head = f"standard error of a drop of `{DEFAULT}`, of the test images, at most"
    lines.append(f"| {head} | " + " | ".join(known) + " |")
    return "\n".join([_describe(results), "", *lines])


def ablation_table(results: Mapping[str, Any]) -> str:
    """Drop and agreement of each step, of all models and of ``DETAIL``, and what was measured."""
    cells, most = results["cells"], _images_of(results["cells"])[0]
    bits = [width for width in BITS if any(cell["bits"] == width for cell in cells)]
    heads = [f"{width}: drop, agrees | of `{DETAIL}`" for width in bits]
    lines = ["| parts, each with those above | " + " | ".join(heads) + " |", "|---|" + "---:|---:|" * len(bits)]
    for step, words in STEPS.items():
        row = []
        for width in bits:
            chosen = [cell for cell in cells if (cell["recipe"], cell["bits"]) == (step, width)]
            row += [_cell(chosen, most), _cell([cell for cell in chosen if cell["model"] == DETAIL], most)]
        lines.append(f"| {words} | " + " | ".join(row) + " |")
    return "\n".join([_describe(results), "", *lines])


def _grouped(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Cells]:
    found: dict[tuple[str, str], Cells] = {}
    for cell in cells:
        found.setdefault((cell["recipe"], cell["bits"]), []).append(cell)
    return found


def _cell(cells: Cells, most: int) -> str:
    """Drop and agreement of a group of cells; ``most`` is the number of images that needs no mention."""
    failed = sorted({cell["model"] for cell in cells if "failed" in cell})
    cells = [cell for cell in cells if "failed" not in cell]
    if not cells:
        return "-"
    drops = np.array([100 * (cell["float_top1"] - cell["top1"]) for cell in cells])
    agreement = 100 * float(np.mean([cell["agreement"] for cell in cells]))
    seeds = sorted({cell["seed"] for cell in cells})
    means = [drops[[cell["seed"] == seed for cell in cells]].mean() for seed in seeds]
    spread = f" ± {np.std(means):.2f}" if len(seeds) > 1 else ""
    images = "" if _images_of(cells)[-1] == most else f" [{_images_of(cells)[-1]}]"
    note = f" (without {len(failed)}: no usable file)" if failed else ""
    return f"{drops.mean():.2f}{spread}, {agreement:.2f} %{images}{note}"


def _describe(results: Mapping[str, Any]) -> str:
    """One line: what was measured, and how well an agreement is known from so many images."""
    models = ", ".join(f"`{name}`" for name in sorted({cell["model"] for cell in results["cells"]}))
    most, *fewer = _images_of(results["cells"])
    other = f"; where a number stands in brackets, as many ({_known(fewer)})" if fewer else ""
    draws = _most_draws(results["cells"])
    several = f", {draws} where a spread is given" if draws > 1 else ""
    return (
        f"Mean over the models {models}; one draw of {results['calibration_images']} calibration images{several}; "
        f"{most} test images (of one model, an agreement of 98 % is known to {_known([most])}){other}."
    )


def _most_draws(cells: Cells) -> int:
    return max(Counter((cell["model"], cell["bits"], cell["recipe"]) for cell in cells).values())


def _images_of(cells: Cells) -> list[int]:
    """How many test images were classified, the most first."""
    return sorted({cell["images"] for cell in cells if "images" in cell}, reverse=True)


def _known(counts: Iterable[int]) -> str:
    """Half of the interval around an agreement of 98 % of so many images."""
    intervals = [wilson(images * 98 // 100, images) for images in counts]
    return ", ".join(f"±{50 * (interval.high - interval.low):.2f}" for interval in intervals)


def _known_drop(cells: Cells) -> str:
    """Standard error of the mean drop that comes from which images were classified, in points.

    A drop is the difference of images lost and won, whose variance is their number: at most that of the images whose
    class changed. Models count as independent, draws as the same.
    """
    changed: dict[str, list[float]] = {}
    for cell in cells:
        if "failed" not in cell:
            changed.setdefault(cell["model"], []).append((1 - cell["agreement"]) / cell["images"])
    if not changed:
        return "-"
    return f"{100 * np.sqrt(sum(np.mean(shares) for shares in changed.values())) / len(changed):.2f}"


def _unfused(cells: Cells) -> Cells:
    """The cells as sessions without fused kernels see them; those that were run so."""
    return [
        {**cell, "top1": cell["unfused_top1"], "agreement": cell["unfused_agreement"]}
        for cell in cells
        if "unfused_top1" in cell
    ]
