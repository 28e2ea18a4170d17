"""Every public name is in the API reference, with its docstring.

    python tools/check_docs.py build/docs/onnx_hyvit.html

Exits with 1, and names them, when some are missing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import onnx_hyvit


def main() -> None:
    page = Path(sys.argv[1])
    names = [name for name in onnx_hyvit.__all__ if name != "__version__"]
    bad = missing(page.read_text(encoding="utf-8"), names)
    if bad:
        sys.exit(f"{page}: without a description: {', '.join(bad)}")
    print(f"{page}: {len(names)} public names")


def missing(page: str, names: list[str]) -> list[str]:
    """Names that have no section with a docstring in a page of pdoc."""
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    return [name for name in names if not re.search(r'<div class="docstring">\s*<', sections.get(name, ""))]


if __name__ == "__main__":
    main()
