"""A small slice of ``make fuzz`` with a fixed seed: every damaged file ends in a valid result or in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent.parent / "tools" / "fuzz.py"


def test_damaged_files_end_in_a_result_or_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(FUZZ), "--seed", "11", "--count", "5", "--json", str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    report = json.loads((tmp_path / "fuzz.json").read_text())
    assert report["failures"] == [], done.stderr
    assert done.returncode == 0
    total = report["total"]
    assert total["cases"] == 50
    assert total["success"] >= 5 and total["error"] >= 20, "the slice should reach both ends"
    assert (
        total["crash"] == total["hang"] == total["outside"] == total["left_behind"] == total["control_characters"] == 0
    )
