"""Install the wheel and the sdist in dist/ into empty environments, one for each Python found, and quantize with them.

    python tools/check_dist.py [--pythons 3.10 3.11 3.12 3.13] [--dry-run-extras] [--json FILE]

Looks for ``pythonX.Y`` on the PATH, among pyenv's versions and, where uv is installed, among those that uv has or can
download; a version that is not there is reported as such. Each environment gets the wheel with its dependencies, the
first one also the sdist and the extra [report] afterwards. Exits with 1 when something fails.
"""

from __future__ import annotations

import argparse
import configparser
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
MODEL = ROOT / "tests" / "corpus" / "repvgg.torchscript-17.onnx"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
NEEDED = ("onnx_hyvit/py.typed", "onnx_hyvit/targets/ort-x86.toml", "licenses/LICENSE", "entry_points.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=list(VERSIONS))
    parser.add_argument("--dry-run-extras", action="store_true", help="also resolve every extra of setup.cfg")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wheel, sdist = newest("*.whl"), newest("*.tar.gz")
    report: dict[str, object] = {"wheel": wheel.name, "sdist": sdist.name, "missing_in_wheel": missing(wheel)}
    results = {}
    for version in options.pythons:
        python = find_python(version)
        results[version] = check(python, wheel, sdist if not results else None) if python else "not found"
        print(f"Python {version}: {results[version]}", flush=True)
    report["pythons"] = results
    if options.dry_run_extras:
        report["extras"] = {extra: resolve(wheel, extra) for extra in extras()}
        print(report["extras"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    bad = [value for value in (*results.values(), *dict(report.get("extras", {})).values()) if "failed" in str(value)]
    sys.exit(bool(bad or report["missing_in_wheel"]))


def newest(pattern: str) -> Path:
    found = sorted(DIST.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"{DIST}/{pattern}: nothing there; run `make dist`")
    return found[-1]


def missing(wheel: Path) -> list[str]:
    """What the wheel should hold and does not."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    targets = [f"onnx_hyvit/targets/{path.name}" for path in (ROOT / "onnx_hyvit" / "targets").glob("*.toml")]
    return [name for name in (*NEEDED, *targets) if not any(entry.endswith(name) for entry in names)]


def find_python(version: str) -> str | None:
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = next(filter(lambda name: is_python(name, version), (f"python{version}", *map(str, pyenv))), None)
    return found or uv_python(version)


def is_python(name: str, version: str) -> bool:
    command = [name, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def uv_python(version: str) -> str | None:
    """The interpreter that uv has or downloads; None without uv, or where the download fails."""
    uv = shutil.which("uv")
    if uv is None or subprocess.run([uv, "python", "install", version], capture_output=True, timeout=600).returncode:
        return None
    done = subprocess.run([uv, "python", "find", "--no-project", version], capture_output=True, text=True)
    return done.stdout.strip() if is_python(done.stdout.strip() or "-", version) else None


def check(python: str, wheel: Path, sdist: Path | None) -> str:
    """Install, run, and say how it went."""
    with tempfile.TemporaryDirectory(prefix="check_dist_") as scratch:
        folder = Path(scratch)
        subprocess.run([python, "-m", "venv", str(folder / "env")], check=True)
        for archive in filter(None, (wheel, sdist)):
            again = ["--force-reinstall", "--no-deps"] if archive is sdist else []
            failed = install(folder, *again, str(archive)) or use(folder)
            if failed:
                return f"failed with {archive.name}: {failed}"
        failed = install(folder, f"{wheel}[report]") or draw(folder) if sdist else None
        if failed:
            return f"failed with [report]: {failed}"
    return "wheel, sdist and [report] work" if sdist else "wheel works"


def install(folder: Path, *arguments: str) -> str | None:
    pip = [str(folder / "env" / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    return run([*pip, *arguments], folder)


def use(folder: Path) -> str | None:
    """Run the installed program on a small model; what went wrong, or None."""
    program = str(folder / "env" / "bin" / "onnx-hyvit")
    np.savez(folder / "calib.npz", input=np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32))
    output = folder / "int8.onnx"
    quantize = [program, "quantize", str(MODEL), "-o", str(output), "--calib", str(folder / "calib.npz"), "-q"]
    failed = run([program, "--version"], folder) or run(quantize, folder)
    if failed or not output.is_file():
        return failed or "no output"
    demo = subprocess.run([program, "demo"], cwd=folder, capture_output=True, text=True)
    clear = demo.returncode == 2 and "checkout" in demo.stderr and len(demo.stderr.strip().splitlines()) == 1
    return None if clear else f"the demo outside of a checkout: {demo.stderr.strip()}"


def draw(folder: Path) -> str | None:
    """Write a report page, which needs the extra."""
    compare = [str(folder / "env" / "bin" / "onnx-hyvit"), "compare", str(MODEL), str(folder / "int8.onnx")]
    options = ["--data", str(folder / "calib.npz"), "--runs", "2", "-q", "--report", str(folder / "page.html")]
    failed = run([*compare, *options], folder)
    return failed or (None if (folder / "page.html").is_file() else "no page")


def run(command: list[str], folder: Path) -> str | None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def extras() -> list[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return list(config["options.extras_require"])


def resolve(wheel: Path, extra: str) -> str:
    """Whether pip finds versions for the extra; nothing is installed."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        f"{wheel}[{extra}]",
    ]
    failed = run(command, ROOT)
    return f"failed: {failed}" if failed else "installable"


if __name__ == "__main__":
    main()
