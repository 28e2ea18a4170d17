"""Arguments and options that several commands share, each stated once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
QuietFlag = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
VerboseFlag = Annotated[bool, typer.Option("-v", "--verbose", help="Show what is done, and more when something fails.")]

FloatModel = Annotated[str, typer.Argument(metavar="FLOAT", help="Float ONNX model.")]
Int8Model = Annotated[str, typer.Argument(metavar="INT8", help="QDQ model made from it, by any tool.")]
DataOption = Annotated[Path, typer.Option(help="Folder of images, .npz keyed by input name, or .npy.")]
SamplesOption = Annotated[int, typer.Option(help="Samples at most.")]
SampleSeed = Annotated[int, typer.Option(help="Seed of the choice of samples.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of ONNX Runtime, in the timing as well.")]
TimedRuns = Annotated[int, typer.Option(help="Timed runs of each file, taken in turn.")]
JobsOption = Annotated[int, typer.Option(help="Processes that work at the same time; they share --threads.")]
DaskOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Work on this dask cluster instead (tcp://host:8786).")
]

PreprocessOption = Annotated[
    str | None,
    typer.Option(help="For images: a preset (imagenet, timm-mobilevit, unit, signed, ...) or a TOML/JSON file."),
]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out unreadable images, naming each.")]
ReportOption = Annotated[Path | None, typer.Option("--report", help="Also write one self-contained HTML page.")]

__all__ = [
    "DaskOption",
    "DataOption",
    "FloatModel",
    "Int8Model",
    "JobsOption",
    "JsonFlag",
    "PreprocessOption",
    "QuietFlag",
    "ReportOption",
    "SampleSeed",
    "SamplesOption",
    "SkipOption",
    "ThreadsOption",
    "TimedRuns",
    "VerboseFlag",
]
