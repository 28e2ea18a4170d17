"""Train models of the zoo on the CPU, one or several at a time; an interrupted run goes on where it was.

    python tools/train_zoo.py cifar_mobilevit_xxs --cifar DIR --out runs
    python tools/train_zoo.py --all --workers 2 --threads 1 --cifar DIR --fashion DIR --out runs

    python tools/train_zoo.py cifar_mobilevit_xxs --cifar DIR --out runs --export models

Each model has a folder in `--out` with `checkpoint.pt` and `curve.jsonl`. One thread per worker and
several workers train more images a minute than one worker with several threads. With `--export`
nothing is trained: finished models are written as ONNX and entered into the index.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from zoo.datasets import DataError, load_images
from zoo.recipe import RECIPES

FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"one or more of {', '.join(RECIPES)}")
    parser.add_argument("--all", action="store_true", help="train all of them, in that order")
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10 (npz files or an official archive)")
    parser.add_argument("--fashion", type=Path, default=FASHION_DEBIAN, help="folder with Fashion-MNIST IDX files")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="checkpoints, curves and decoded images")
    parser.add_argument("--threads", type=int, default=2, help="threads of each worker (default 2)")
    parser.add_argument("--workers", type=int, default=1, help="models trained at the same time (default 1)")
    parser.add_argument("--export", type=Path, metavar="MODELS", help="write finished models to this folder")
    parser.add_argument("--subset", action="store_true", help="with --export: write the Fashion-MNIST subset, too")
    arguments = parser.parse_args()
    arguments.models = list(RECIPES) if arguments.all else arguments.models
    if unknown := [name for name in arguments.models if name not in RECIPES]:
        parser.error(f"unknown model {unknown[0]}: expected one of {', '.join(RECIPES)}")
    if not arguments.models:
        parser.error("name a model, or give --all")
    if arguments.cifar is None and any(RECIPES[name].dataset == "cifar10" for name in arguments.models):
        parser.error("--cifar DIR is needed for the CIFAR-10 models")
    return arguments


def data_folder(name: str, arguments: argparse.Namespace) -> Path:
    return arguments.cifar if RECIPES[name].dataset == "cifar10" else arguments.fashion


def export(arguments: argparse.Namespace) -> None:
    """Write the finished models, measure them on the test images and update the index."""
    import torch
    from zoo.publish import publish, write_fashion_subset

    torch.set_num_threads(arguments.threads)
    if arguments.subset:
        print(f"wrote {write_fashion_subset(arguments.fashion, arguments.export)}")
    for name in arguments.models:
        test = load_images(RECIPES[name].dataset, data_folder(name, arguments), "test")
        entry = publish(name, arguments.out / name, test, arguments.export)
        print(f"{name}: {entry['file']}, top-1 {100 * entry['accuracy']['top1']:.2f} % through onnxruntime")


def train_here(name: str, arguments: argparse.Namespace) -> None:
    """Train one model in this process."""
    import torch
    from zoo.training import train

    torch.set_num_threads(arguments.threads)
    top1 = train(RECIPES[name], data_folder(name, arguments), arguments.out / name, arguments.out / "cache")
    print(f"{name}: test top-1 {100 * top1:.2f} %", flush=True)


def train_queue(arguments: argparse.Namespace) -> int:
    """Train the models in order, `workers` at a time, each in its own process; returns failed runs."""
    waiting, running, failed = list(arguments.models), {}, 0
    options = ["--fashion", str(arguments.fashion), "--out", str(arguments.out), "--threads", str(arguments.threads)]
    if arguments.cifar is not None:
        options += ["--cifar", str(arguments.cifar)]
    while waiting or running:
        while waiting and len(running) < arguments.workers:
            name = waiting.pop(0)
            running[name] = subprocess.Popen([sys.executable, __file__, name, *options])
        time.sleep(2)
        for name in [n for n, process in running.items() if process.poll() is not None]:
            if running.pop(name).returncode:
                failed += 1
                print(f"{name}: training failed", file=sys.stderr, flush=True)
    return failed


def main() -> int:
    arguments = parse_arguments()
    try:
        if arguments.export is not None:
            export(arguments)
            return 0
        if len(arguments.models) > 1:
            return 1 if train_queue(arguments) else 0
        train_here(arguments.models[0], arguments)
    except DataError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
