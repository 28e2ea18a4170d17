"""The tables of recipes: what a cell of a table says of the cells that were measured, and runs put together."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import measure_recipes
import recipe_tables


def _cell(seed: int, model: str, recipe: str = "q-hyvit", bits: str = "w8a8", **found: Any) -> dict[str, Any]:
    place = {"seed": seed, "model": model, "sha256": "0", "bits": bits, "recipe": recipe}
    return place | {"images": 1000, "float_top1": 0.8, "top1": 0.79, "agreement": 0.98, "seconds": 1.0} | found


def _row(table: str, recipe: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| `{recipe}` |")]
    return [part.strip() for part in line.strip("|").split("|")][1:]


def test_mean_over_models_and_spread_over_draws() -> None:
    drops = {(0, "a"): 0.79, (0, "b"): 0.77, (1, "a"): 0.78, (1, "b"): 0.74}  # of the draws: 2 and 4 points
    cells = [_cell(seed, model, top1=top1) for (seed, model), top1 in drops.items()]
    table = recipe_tables.recipes_table({"calibration_images": 32, "cells": cells})
    assert _row(table, "q-hyvit") == ["3.00 ± 1.00, 98.00 %"]
    assert "models `a`, `b`; one draw of 32 calibration images, 2 where a spread is given; 1000 test" in table


def test_how_well_the_test_images_tell_a_drop() -> None:
    agreement = {"a": 0.96, "b": 0.91}  # 40 and 90 of 1000 images changed
    cells = [_cell(seed, model, agreement=agreement[model]) for seed in (0, 1) for model in agreement]
    table = recipe_tables.recipes_table({"calibration_images": 32, "cells": cells})
    (line,) = [line for line in table.splitlines() if line.startswith("| standard error")]
    assert line.endswith("| 0.57 |")  # sqrt(40 + 90) of 1000 images, of two models


def test_fewer_images_are_told_in_the_cell() -> None:
    cells = [_cell(0, "a"), _cell(0, "a", "minmax", images=200), _cell(1, "a", "minmax")]
    table = recipe_tables.recipes_table({"calibration_images": 32, "cells": cells})
    assert _row(table, "q-hyvit") == ["1.00, 98.00 %"]
    assert _row(table, "minmax") == ["1.00 ± 0.00, 98.00 % [200]"]
    assert "1000 test images (of one model, an agreement of 98 % is known to ±0.89)" in table
    assert "where a number stands in brackets, as many (±2.12)." in table


def test_files_without_fused_kernels_have_a_column_of_their_own() -> None:
    cells = [
        _cell(0, "a", unfused_top1=0.75, unfused_agreement=0.9),
        _cell(1, "a"),
        _cell(0, "a", "minmax", bits="w4a4"),
    ]
    table = recipe_tables.recipes_table({"calibration_images": 32, "cells": cells})
    assert "| w8a8: drop, agrees | w8a8, not fused: drop, agrees | w4a4: drop, agrees |" in table
    assert _row(table, "q-hyvit") == ["1.00 ± 0.00, 98.00 %", "5.00, 90.00 %", "-"]
    assert _row(table, "minmax") == ["-", "-", "1.00, 98.00 %"]


def test_a_tool_that_wrote_no_usable_file_is_named_so() -> None:
    failed = {"seed": 0, "model": "b", "sha256": "0", "bits": "w8a8", "recipe": "nncf", "failed": "does not load"}
    table = recipe_tables.recipes_table({"calibration_images": 32, "cells": [_cell(0, "a", "nncf"), failed]})
    assert _row(table, "nncf") == ["1.00, 98.00 % (without 1: no usable file)"]


def test_runs_side_by_side_are_put_together(tmp_path: Path) -> None:
    mine = [_cell(0, "a"), _cell(1, "a", images=5000, top1=0.5)]
    other = [_cell(0, "a", unfused_top1=0.7, unfused_agreement=0.9), _cell(1, "a"), _cell(0, "b")]
    paths = tmp_path / "mine.json", tmp_path / "other.json"
    for path, cells in zip(paths, (mine, other), strict=True):
        path.write_text(json.dumps({"calibration_images": 32, "cells": cells}))
    arguments = ["--data", "none", "--render", "--json", str(paths[0]), "--join", str(paths[1])]
    assert measure_recipes.main(arguments) == 0
    assert json.loads(paths[0].read_text())["cells"] == [other[0], mine[1], other[2]]


def test_readme_without_a_place_for_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, readme = tmp_path / "r.json", tmp_path / "README.md"
    results.write_text(json.dumps({"calibration_images": 32, "cells": [_cell(0, "a")]}))
    readme.write_text("no table here\n")
    arguments = ["--data", "none", "--render", "--json", str(results), "--readme", str(readme)]
    assert measure_recipes.main(arguments) == 1
    assert f"{readme}: has no place for the table (<!-- recipes: start -->)" in capsys.readouterr().err
    readme.write_text("<!-- recipes: start -->")
    assert measure_recipes.main(arguments) == 1
    assert f"{readme}: has no place for the table (<!-- recipes: end -->)" in capsys.readouterr().err
    readme.write_text("before\n<!-- recipes: start --><!-- recipes: end -->\nafter\n")
    assert measure_recipes.main(arguments) == 0
    assert "| `q-hyvit` | 1.00, 98.00 % |" in readme.read_text()
