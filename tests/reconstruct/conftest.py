"""What the tests of reconstruction share."""

from __future__ import annotations

import pytest
from reconstruct_cases import DATA, graph, prepared_for


@pytest.fixture(scope="package")
def ready():
    """Rewritten model, plan, scales, source and data, at bits that leave something to improve."""
    return prepared_for("w4a6", graph(), DATA)
