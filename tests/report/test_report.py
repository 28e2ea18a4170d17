"""The page: complete, well formed, the same for the same input, safe with hostile names, tolerant of odd results."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import assert_one_line_error, run_cli

import onnx_hyvit
from onnx_hyvit import ConfigError, QuantConfig
from onnx_hyvit.calibration import inputs_of, load_preprocess, open_source, thumbnail
from onnx_hyvit.graph.io import read_proto
from onnx_hyvit.report import read_results, render_report, sort_results
from onnx_hyvit.report.blocks import gather_blocks
from onnx_hyvit.report.html import element, escape
from onnx_hyvit.report.verdict import find_verdict, interval

VOID = {"meta", "img", "br", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&\u202e\x00--></style><img src=http://evil.example/x.png onerror=alert(2)>"
RECONSTRUCTION = {
    "weighting": "fisher",
    "seconds": 2.5,
    "divergence_before": 0.004,
    "divergence_after": 0.005,
    "kept": False,
    "blocks": [
        {
            "name": "bridge_1",
            "kind": "bridge",
            "error_before": 0.5,
            "error_after": 0.25,
            "choices": [
                {"tensor": "some_tensor", "granularity": "channel", "scheme": "asymmetric", "fold": None, "n": 3}
            ],
        },
        {"name": "not_in_the_model"},
    ],
}


class Page(HTMLParser):
    """Elements and text of a page; every tag must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> without a start"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        self.text.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def results(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Real results of the tiny model at 4 bits, as JSON would give them back."""
    output = tmp_path_factory.mktemp("int8") / "int8.onnx"
    config = QuantConfig(samples=4, bits="w4a4", verify=False)
    quantized = onnx_hyvit.quantize(tiny_model, output, calibration=tiny_data, config=config).report
    labels = np.arange(24) % 10
    compared = onnx_hyvit.compare_for_report(tiny_model, output, tiny_data, labels=labels, samples=16, runs=2)
    return json.loads(json.dumps({"quantize": {**quantized, "output": str(output)}, "compare": compared}))


def test_every_part_is_there(results: dict[str, dict[str, Any]]) -> None:
    page = Page(render_report(results))
    wanted = ("What to do next", "Before and after", "The model", "Where the error is", "Ranges of the worst tensors")
    for heading in (*wanted, "Where the models disagree", "Block by block", "Settings"):
        assert heading in page.headings
    blocks = results["quantize"]["found"]["blocks"]
    assert len(page.tags("details")) == len(blocks)
    targets = {attributes.get("id") for _, attributes in page.elements}
    links = [attributes["href"] for attributes in page.tags("a")]
    assert links and all(link and link[0] == "#" and link[1:] in targets for link in links)
    bridges = [link for link in page.tags("a") if link.get("class") == "kind-bridge"]
    assert len(bridges) == 3
    assert 1 <= len(page.tags("img")) <= 12
    assert len([drawing for drawing in page.tags("svg") if drawing.get("class") == "plot"]) == 6


def test_what_went_back_to_float_is_listed_with_its_price(results: dict[str, dict[str, Any]]) -> None:
    changed = copy.deepcopy(results)
    steps = [
        {"nodes": ["conv_a", HOSTILE], "cost_us": 2.5, "divergence": 0.5},
        {"nodes": ["add_b"], "cost_us": -1.0, "divergence": 0.4},
    ]
    found = {"predicted_divergence": 1.0, "predicted_int8_us": 100.0, "steps": steps, "max_drop": 0.3, "reached": 0.25}
    changed["quantize"]["precision"] = found
    page = Page(render_report(changed))
    assert "Taken back to float for accuracy" in page.headings
    shown = " ".join(page.text)
    for words in ("50.0 %", "10.0 %", "2.50 %", "Asked for at most 0.3, reached 0.25"):
        assert words in shown
    assert not page.tags("script")
    changed["quantize"]["precision"] = {**found, "steps": []}
    assert "Nothing had to be. Asked for at most 0.3, reached 0.25." in Page(render_report(changed)).text
    changed["quantize"]["precision"] = {"predicted_divergence": 1.0, "predicted_int8_us": 100.0, "steps": []}
    assert "Taken back to float for accuracy" not in Page(render_report(changed)).headings


def test_gelus_are_listed_with_what_they_save_and_do(results: dict[str, dict[str, Any]]) -> None:
    changed = copy.deepcopy(results)
    entry = {"node": HOSTILE, "factor": 1.7, "saved_us": 12.5, "divergence": 0.0002, "replaced": True}
    found = {"rounding_divergence": 0.004, "divergence": 0.0003, "saved_us": 12.5, "nodes": [entry]}
    changed["quantize"]["gelus"] = found
    page = Page(render_report(changed))
    assert "GELU in int8" in page.headings and not page.tags("script")
    shown = " ".join(page.text)
    assert all(words in shown for words in ("replaced", "12.5", "5.0 %"))
    changed["quantize"]["gelus"] = None
    assert "GELU in int8" not in Page(render_report(changed)).headings


def test_nothing_is_loaded_from_outside_and_no_script_runs(results: dict[str, dict[str, Any]]) -> None:
    text = render_report(results)
    page = Page(text)
    assert not page.tags("script") and not page.tags("link") and not page.tags("iframe")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), value
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = next(meta["content"] for meta in page.tags("meta") if meta.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'")


def test_identifiers_are_unique(results: dict[str, dict[str, Any]]) -> None:
    identifiers = [attributes["id"] for _, attributes in Page(render_report(results)).elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_same_result_gives_the_same_bytes(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """In another process too, whose hashes have another seed, and whatever its matplotlibrc says."""
    (tmp_path / "result.json").write_text(json.dumps(results))
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 20\nsvg.fonttype: path\n")
    done = run_cli("report", "result.json", "-o", "page.html", cwd=tmp_path, PYTHONPATH=_package_folder())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_bytes() == render_report(results).encode()


def _package_folder() -> str:
    return str(Path(onnx_hyvit.__file__).parent.parent)


def _poisoned(value: Any) -> Any:
    """Every string that comes from a model or a file replaced by a hostile one; keys and node names too."""
    if isinstance(value, dict):
        return {key: item if key == "png" else _poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poisoned(item) for item in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_hostile_names_stay_text(results: dict[str, dict[str, Any]]) -> None:
    clean, poisoned = Page(render_report(results)), copy.deepcopy(results)
    poisoned = _poisoned(poisoned)
    plan = poisoned["quantize"]["plan"]
    plan["float_nodes"] = {f"{name}{HOSTILE}": reason for name, reason in plan["float_nodes"].items()}
    poisoned["quantize"]["reconstruction"] = _poisoned(RECONSTRUCTION)
    poisoned["compare"]["outputs"] = {HOSTILE: next(iter(poisoned["compare"]["outputs"].values()))}
    text = render_report(poisoned)
    page = Page(text)
    assert not page.tags("script")
    assert "evil.example" in "".join(page.text), "the names are shown, as text"
    for tag, attributes in page.elements:
        assert "onerror" not in attributes, tag
        assert not (attributes.get("src") or "").startswith("http")
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements}
    assert "\u202e" not in text and "\x00" not in text


def test_pictures_that_are_no_png_are_left_out(results: dict[str, dict[str, Any]]) -> None:
    odd = copy.deepcopy(results)
    svg = base64.b64encode(b"<svg onload=alert(1)>").decode()
    odd["compare"]["evidence"]["pictures"] = [{"sample": "a", "png": bad} for bad in (svg, '"><script>', None, 3)]
    assert not Page(render_report(odd)).tags("img")


def test_a_quantize_result_alone_asks_for_a_comparison(results: dict[str, dict[str, Any]]) -> None:
    page = Page(render_report(results["quantize"]))
    text = "".join(page.text)
    assert "onnx-hyvit compare" in text and "not yet measured" in text
    assert "Where the error is" not in page.headings


def test_a_compare_result_without_evidence(results: dict[str, dict[str, Any]]) -> None:
    bare = {key: value for key, value in results["compare"].items() if key != "evidence"}
    page = Page(render_report(bare))
    assert "Where the error is" in page.headings
    assert "The model" not in page.headings


def test_reconstruction_is_shown(results: dict[str, dict[str, Any]]) -> None:
    quantized = {**results["quantize"], "reconstruction": RECONSTRUCTION}
    text = "".join(Page(render_report(quantized)).text)
    assert "0.004 before, 0.005 after. Not used" in text
    for words in ("weighted by fisher", "seconds: 2.5", "50 % less", "some_tensor", "asymmetric", "not_in_the_model"):
        assert words in text


def _mutations(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a result, three levels deep, the first entry of each list."""
    found = [path] if path else []
    if len(path) < 4:
        if isinstance(value, dict):
            for key in list(value)[:12]:
                found += _mutations(value[key], (*path, key))
        elif isinstance(value, list) and value:
            found += _mutations(value[0], (*path, 0))
    return found


def test_missing_and_odd_values_leave_a_page(results: dict[str, dict[str, Any]]) -> None:
    """Every value of the results, one at a time, replaced by something of another type."""
    light = copy.deepcopy(results)
    light["quantize"]["reconstruction"] = RECONSTRUCTION
    light["compare"]["tensors"] = light["compare"]["tensors"][:20]
    light["compare"]["evidence"]["pictures"] = light["compare"]["evidence"]["pictures"][:1]
    light["compare"]["evidence"]["histograms"] = light["compare"]["evidence"]["histograms"][:1]
    kept = light["compare"]["evidence"].pop("histograms")
    for number, path in enumerate(_mutations(light)[1:]):
        odd = copy.deepcopy(light)
        place = odd
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = (None, 10**400, [1, "x", None], {"a": {"b": []}}, "text", True)[number % 6]
        Page(render_report(odd))
    light["compare"]["evidence"]["histograms"] = [{**kept[0], "counts": "x"}, {**kept[0], "range": [None, 1]}, {}]
    assert "Ranges of the worst tensors" not in Page(render_report(light)).headings


def test_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="not what"):
        render_report({"anything": 1})


def test_blocks_know_their_kernels_errors_and_choices(results: dict[str, dict[str, Any]]) -> None:
    blocks = gather_blocks(sort_results([results]))
    counts = results["quantize"]["audit"]["counts"]
    assert sum(block.int8_kernels or 0 for block in blocks) == counts["int8"]
    assert sum(block.float_kernels or 0 for block in blocks) == counts["float"]
    assert sum(len(block.choices) for block in blocks) == len(results["quantize"]["granularity"]["per_channel"])
    measured = sum(len(block.tensors) for block in blocks)
    assert measured == sum(row["block"] is not None for row in results["compare"]["tensors"]) > 50
    assert sum(block.at_end for block in blocks) > len(blocks) / 2


def test_folds_on_both_sides_are_told(results: dict[str, dict[str, Any]]) -> None:
    changed = copy.deepcopy(results)
    changed["quantize"]["granularity"]["per_channel"][0] |= {"side": "both", "fold": "attention", "shift": True}
    assert "restored by the layers that read it (attention, shifted)" in " ".join(Page(render_report(changed)).text)


def test_the_int8_kernels_of_a_block_are_told_from_names_alone(results: dict[str, dict[str, Any]]) -> None:
    """Without the evidence of ``compare``, kernels are sorted by the beginning of their names: nearly all are found."""
    blocks = gather_blocks(sort_results([results["quantize"]]))
    assert sum(block.int8_kernels or 0 for block in blocks) >= 0.9 * results["quantize"]["audit"]["counts"]["int8"]


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "good", "Ship it"),
        ({"top1_agreement": 0.98}, "fair", "onnx-hyvit debug"),
        ({"accuracy": {"float_top1": 0.9, "int8_top1": 0.7}}, "bad", "onnx-hyvit debug"),
        ({"accuracy": {"float_top1": 0.9, "int8_top1": 0.91}}, "good", "Ship it"),
        ({"latency": {"speedup": 0.8}}, "fair", "Time it on the processor"),
        ({"fused_matches_unfused": False, "fused": {"culprit": "node x"}}, "bad", "Do not ship"),
        ({"saturation": "no VNNI here"}, "good", "no VNNI here"),
        ({"samples": 20}, "good", "20 samples only"),
    ],
)
def test_verdicts(changes: dict[str, Any], level: str, words: str) -> None:
    compared = {
        "float": "a.onnx",
        "int8": "b c.onnx",
        "samples": 1000,
        "top1_agreement": 0.995,
        "accuracy": {"float_top1": 0.9, "int8_top1": 0.899},
        "latency": {"speedup": 1.5},
        "outputs": {},
        "fused_matches_unfused": True,
    }
    if "top1_agreement" in changes:
        compared["accuracy"] = None
    verdict = find_verdict(sort_results([{**compared, **changes}]))
    assert verdict.level == level
    shown = " ".join(f"{step.text} {step.command}" for step in verdict.steps)
    assert words in shown
    if "debug" in words:
        assert "'b c.onnx'" in shown, "a name with a space can be pasted"


def test_interval_of_wilson() -> None:
    low, high = interval(0.9, 100)  # the textbook value
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)
    assert interval(1.0, 50)[1] == 1.0


def test_elements_escape_text_and_attributes() -> None:
    assert element("p", "<b>", class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;</p>'
    assert element("p", element("b", "&")) == "<p><b>&amp;</b></p>"
    assert escape("a\x00\ud800b") == "a\ufffd\ufffdb"


class TestThumbnail:
    """Pictures of what the model was fed."""

    def test_preprocessing_is_undone(self, tiny_model: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        proto, _ = read_proto(tiny_model)
        source = open_source(tmp_path, inputs_of(proto), preprocess=load_preprocess("imagenet"))
        _, feeds = next(iter(source))
        (values,) = feeds.values()
        expected = load_preprocess("imagenet").resolve(source.inputs[0])._pixels(Image.fromarray(pixels))
        (tmp_path / "out.png").write_bytes(thumbnail(values[0], source) or b"")
        np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "out.png"), np.float32), expected, atol=1)

    def test_other_arrays_are_stretched_and_made_small(self, tmp_path: Path) -> None:
        values = np.linspace(-3, 5, 1 * 48 * 320, dtype=np.float32).reshape(1, 48, 320)
        (tmp_path / "out.png").write_bytes(thumbnail(values) or b"")
        image = np.asarray(Image.open(tmp_path / "out.png"))
        assert image.shape == (29, 192)
        assert image.min() < 10 and image.max() > 245

    @pytest.mark.parametrize("shape", [(5,), (7, 8, 9), (3, 0, 4)])
    def test_what_is_no_image(self, shape: tuple[int, ...]) -> None:
        assert thumbnail(np.zeros(shape, np.float32)) is None
        assert thumbnail(np.full((3, 4, 4), np.nan)) is None


class TestCommand:
    """``--report`` and ``report``."""

    def test_quantize_writes_a_page_without_matplotlib(self, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
        options = ("--calib", tiny_data, "--samples", 2, "--no-verify", "--report", "page.html", "-q")
        (tmp_path / "page.html").write_text("of an earlier run")
        done = run_without_matplotlib(tmp_path, "quantize", tiny_model, "-o", "int8.onnx", *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert "The model" in Page((tmp_path / "page.html").read_text()).headings

    def test_compare_without_matplotlib_names_the_extra(
        self, tmp_path: Path, tiny_model: Path, tiny_data: Path
    ) -> None:
        options = ("--data", tiny_data, "--report", "page.html")
        done = run_without_matplotlib(tmp_path, "compare", tiny_model, tiny_model, *options)
        assert_one_line_error(done, "onnx-hyvit[report]")
        assert list(tmp_path.iterdir()) == []

    def test_compare_and_report_give_the_same_page(
        self, results: dict[str, dict[str, Any]], tiny_model: Path, tiny_data: Path, tmp_path: Path
    ) -> None:
        int8, page = results["quantize"]["output"], tmp_path / "page.html"
        arguments = ("--data", tiny_data, "--samples", 4, "--runs", 2, "--report", page, "--json")
        done = run_cli("compare", tiny_model, int8, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        (tmp_path / "result.json").write_text(done.stdout)
        again = run_cli("report", tmp_path / "result.json")
        assert again.returncode == 0, again.stderr
        assert "result.html" in again.stdout
        assert (tmp_path / "result.html").read_bytes() == page.read_bytes()
        Page(page.read_text())

    def test_bad_input(self, tmp_path: Path, tiny_model: Path) -> None:
        files = {"text.json": "no json", "list.json": "[1]", "other.json": '{"a": 1}', "deep.json": "[" * 100_000}
        for name, content in files.items():
            (tmp_path / name).write_text(content)
            with pytest.raises(ConfigError, match=name):
                read_results([tmp_path / name])
        assert_one_line_error(run_cli("report", tmp_path / "none.json"), "none.json", "no such file")
        assert_one_line_error(run_cli("report", tmp_path / "other.json", "-o", tmp_path / "other.json"), "other.json")
        done = run_cli("compare", tiny_model, tiny_model, "--data", tmp_path, "--report", tmp_path / "a" / "b.html")
        assert_one_line_error(done, "does not exist")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def run_without_matplotlib(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that cannot import matplotlib."""
    script = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from onnx_hyvit.cli import main\n"
        f"sys.argv = {['onnx-hyvit', *map(str, arguments)]!r}\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": _package_folder()}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )
