"""Other runtimes answer as onnxruntime does. Marked ``interop``: `make interop` installs them and runs these tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from interop.errors import MissingRuntimeError  # noqa: E402
from interop.models import Case, prepare  # noqa: E402
from interop.runtimes import RUNTIMES, Outcome, Runtime, run_python  # noqa: E402

CLOSE = 0.05  # of the usual lead of the best class: one code rounded the other way may decide between two
CASES = [(runtime, form) for runtime in RUNTIMES for form in runtime.formats]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prepare(tmp_path_factory.mktemp("interop"), tuple({runtime.target for runtime in RUNTIMES}), samples=16)


@pytest.fixture(scope="module")
def truths() -> dict[str, Outcome]:
    return {}


@pytest.mark.interop
@pytest.mark.parametrize(("runtime", "form"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_runtime_gives_the_answers_of_onnxruntime(
    case: Case, truths: dict[str, Outcome], runtime: Runtime, form: str
) -> None:
    if runtime.target not in truths:
        truths[runtime.target] = run_python(case.files[runtime.target, "onnx"], case.images, exact_sums=True)
    try:
        found = runtime.run(case.files[runtime.target, form], case.images[: runtime.samples])
    except MissingRuntimeError as error:
        pytest.fail(str(error))
    expected = truths[runtime.target].outputs[: runtime.samples]
    assert found.outputs.shape == expected.shape and np.isfinite(found.outputs).all()
    same = found.outputs.argmax(1) == expected.argmax(1)
    ranked = np.sort(expected, axis=1)
    lead = ranked[:, -1] - ranked[:, -2]
    clear = lead > CLOSE * np.median(lead)
    assert clear.mean() > 0.95
    assert same[clear].mean() >= runtime.agreement and same.mean() >= runtime.agreement - 0.02


def test_a_missing_runtime_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("interop.runtimes.PACKAGES", tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    image = np.zeros((1, 3, 64, 64), np.float32)
    for name, line in (("onnxruntime-node", "npm install"), ("OpenVINO", "pip install openvino")):
        runtime = next(runtime for runtime in RUNTIMES if runtime.name == name)
        with pytest.raises(MissingRuntimeError, match=line):
            runtime.run(tmp_path / "model.onnx", image)


def test_the_recorded_outcome_covers_every_runtime_and_format() -> None:
    results = json.loads((ROOT / "tools" / "results" / "interop.json").read_text())
    recorded = {(row["runtime"], row["target"], row["format"]): row for row in results["rows"]}
    for runtime, form in CASES:
        assert recorded[runtime.name, runtime.target, form]["same_top1"] >= runtime.agreement
