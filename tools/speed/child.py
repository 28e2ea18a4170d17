"""Load a model in a process of its own and run it: MODEL BATCH SHAPE... -> load time and peak memory as JSON."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

RUNS = 3
STATUS = Path("/proc/self/status")


def peak_kb() -> int:
    """Peak resident memory; ``ru_maxrss`` would begin with the parent's on Linux."""
    found = re.search(r"VmHWM:\s+(\d+)", STATUS.read_text()) if STATUS.is_file() else None
    return int(found.group(1)) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(path: str, name: str, *shape: str) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    before = peak_kb()
    start = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load = time.perf_counter() - start
    feeds = {name: np.zeros([int(size) for size in shape], np.float32)}
    for _ in range(RUNS):
        session.run(None, feeds)
    after = peak_kb()
    print(json.dumps({"load_ms": round(1e3 * load, 2), "growth_mb": round((after - before) / 1024, 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
