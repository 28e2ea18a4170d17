"""Run one command line in a forked child with limits on time, memory and what it may write, and judge how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

CHECK_FAILED = 70
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")


@dataclass
class Outcome:
    """How a case ended.

    Args:
        verdict: ``success`` (a valid result), ``error`` (our one line, exit code 2), ``crash`` or ``hang``.
        detail: Last line of standard error, or the signal.
        outside: What it tried to write, delete or connect to outside its folder.
        left: Files that a failed run left behind.
        control: Whether it printed control characters.
    """

    verdict: str
    detail: str = ""
    outside: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    control: bool = False


def start(arguments: list[str], folder: Path, memory: int) -> int:
    """Fork a child that runs ``onnx-hyvit`` with ``arguments``; everything it may write lies in ``folder``.

    Returns:
        The child's process id.
    """
    for name in ("tmp", "home"):
        (folder / name).mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 71
    try:
        _confine(folder, memory)
        code = _run(arguments, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _confine(folder: Path, memory: int) -> None:
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    report = os.open(folder / "outside", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.environ.update(TMPDIR=str(folder / "tmp"), HOME=str(folder / "home"), NO_COLOR="1")
    import tempfile

    tempfile.tempdir = None
    os.chdir(folder / "out")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allowed = tuple(str(folder / name) for name in ("out", "tmp", "home"))

    def hook(event: str, args: tuple) -> None:
        found = _forbidden(event, args, allowed)
        if found:
            os.write(report, f"{event} {found}\n".encode(errors="replace"))

    sys.addaudithook(hook)


def _forbidden(event: str, args: tuple, allowed: tuple[str, ...]) -> str | None:
    if event in NETWORK or event in PROCESSES:
        return repr(args)[:200]
    if event == "open":
        path, mode, flags = args
        writes = any(letter in (mode or "") for letter in "wax+") or (mode is None and (flags or 0) & WRITES)
        return _outside(path, allowed) if writes else None
    if event in CHANGES:
        return next(filter(None, (_outside(path, allowed) for path in args[:2])), None)
    return None


def _outside(path: object, allowed: tuple[str, ...]) -> str | None:
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None  # an open file, or a mode
    full = os.path.realpath(os.fsdecode(path))
    inside = full == "/dev/null" or any(full == top or full.startswith(top + os.sep) for top in allowed)
    return None if inside else full


def _run(arguments: list[str], folder: Path) -> int:
    from onnx_hyvit.cli import app

    try:
        app(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    if code == 0 and (folder / "out" / "int8.onnx").exists():
        try:
            _check(folder / "out" / "int8.onnx")
        except Exception as error:
            print(f"invalid result: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            return CHECK_FAILED
    return code


def _check(path: Path) -> None:
    """The result loads: by ONNX's full check, and by ONNX Runtime."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def finish(pid: int, status: int, folder: Path) -> Outcome:
    """Judge a child that ended by itself with the wait status ``status``."""
    stderr = (folder / "stderr").read_text(errors="replace")
    stdout = (folder / "stdout").read_text(errors="replace")
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    written = sorted(path.name for path in (folder / "out").iterdir())
    outcome = Outcome("crash", last)
    if os.WIFSIGNALED(status):
        outcome.detail = f"signal {signal.Signals(os.WTERMSIG(status)).name}; {last}"
    elif os.WEXITSTATUS(status) == 0:
        outcome.verdict = "success"
        outcome.left = [name for name in written if name != "int8.onnx"]
    elif os.WEXITSTATUS(status) == 2 and last.startswith("error: ") and "Traceback" not in stderr:
        outcome.verdict = "error"
        outcome.left = written
    outcome.left += sorted(path.name for path in (folder / "tmp").iterdir()) if outcome.verdict != "crash" else []
    outcome.outside = (folder / "outside").read_text(errors="replace").splitlines()[:5]
    outcome.control = bool(CONTROL.search(stdout) or CONTROL.search(stderr))
    return outcome


def stop(pid: int) -> Outcome:
    """Kill a child that has run too long."""
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return Outcome("hang", "over the time limit")


def wait_any(pids: set[int], deadline: float) -> tuple[int, int] | None:
    """The next of ``pids`` to end and its status, or None at ``deadline`` (of ``time.monotonic``)."""
    while time.monotonic() < deadline:
        for pid in pids:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return found, status
        time.sleep(0.004)
    return None
