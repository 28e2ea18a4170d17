"""The command line: arguments -> config -> api; prints, and turns our errors into one line and exit code 2."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from . import cli_deploy, display, display_compared, display_many, display_quantized, interrupts
from .cli_options import (
    DataOption,
    FloatModel,
    Int8Model,
    JsonFlag,
    PreprocessOption,
    QuietFlag,
    ReportOption,
    SampleSeed,
    SamplesOption,
    SkipOption,
    ThreadsOption,
    TimedRuns,
    VerboseFlag,
)
from .cli_output import errors, fail, fail_for, progress, show
from .config import QuantConfig, load_config
from .errors import ConfigError
from .recipes import RECIPES
from .version import __version__

app = typer.Typer(
    name="onnx-hyvit",
    help="Quantize hybrid CNN+transformer ONNX models to int8 that is accurate and faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Float ONNX model.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"onnx-hyvit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Quantize hybrid CNN+transformer ONNX models to int8 that is accurate and faster."""


@app.command()
def quantize(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Float ONNX models.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write the int8 model; a folder for several models.")
    ],
    calib: Annotated[
        Path, typer.Option(help="Folder of images, .npz keyed by input name, or .npy for a one-input model.")
    ],
    recipe: Annotated[str | None, typer.Option(help=f"One of {', '.join(RECIPES)}.")] = None,
    bits: Annotated[str | None, typer.Option(help="w<weights>a<activations>: w8a8, w6a6, w8a16...; or auto.")] = None,
    target: Annotated[str | None, typer.Option(help="Name (ort-x86, ort-arm, ...) or file; auto: this CPU.")] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration samples to use.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per calibration run.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Memory for activations in calibration: 512M, 2G.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime.")] = None,
    mode: Annotated[str | None, typer.Option(help="partial, or full: softmax, norms and activations, too.")] = None,
    residual: Annotated[str | None, typer.Option(help="Residual additions: auto, float or int8.")] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Check the result at every optimisation level.")
    ] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="Keep finished blocks, to go on after an interruption.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="balanced, speed or size: what stays float where int8 is slower.")
    ] = None,
    gelu: Annotated[
        str | None,
        typer.Option(help="auto, exact or sigmoid: where GELU becomes x sigmoid(c x), which is faster in int8."),
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(help="Errors in reconstruction: mse, fisher or auto (tries both); default: the recipe's."),
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="Profile of kernels (tools/profile_kernels.py).")] = None,
    verify_speed: Annotated[
        bool | None, typer.Option("--verify-speed", help="Time int8 against float here; go back where it is slower.")
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(help="Largest divergence from float (KL, nats), or with --labels loss of top-1, as in 0.5%."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Labels of --calib for a --max-drop in percent: .npy, .txt or .csv.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes that work at the same time; they share --threads.")] = 1,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Work on this dask cluster instead (tcp://host:8786).")
    ] = None,
    pack_int4: Annotated[
        bool | None, typer.Option("--pack-int4", help="Store weights of 4 bits or fewer as INT4, two in a byte.")
    ] = None,
    preprocess: PreprocessOption = None,
    skip_unreadable: SkipOption = False,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options given here win.")] = None,
    report: ReportOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Quantize each MODEL to int8 with the images or arrays of --calib, and write it to --output."""
    given = {
        "recipe": recipe,
        "bits": bits,
        "target": target,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
        "max_memory": max_memory,
        "threads": threads,
        "mode": mode,
        "residual": residual,
        "verify": verify,
        "cache": cache,
        "objective": objective,
        "gelu": gelu,
        "weighting": weighting,
        "profile": None if profile is None else str(profile),
        "verify_speed": verify_speed,
        "max_drop": max_drop,
        "pack_int4": pack_int4,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    with errors(verbose), progress(quiet or as_json) as update:
        settings = load_config(config, overrides) if config else QuantConfig(**overrides)  # type: ignore[arg-type]
        from . import api, many, tasks

        several = len(models) > 1 or output.is_dir()
        _check_report(report, models[0], output)
        if report is not None and several:
            raise ConfigError(f"--report {report}: is about one model; use --json and `onnx-hyvit report` for several")
        with tasks.dask_executor(dask) if dask else nullcontext() as executor:
            how: dict[str, Any] = {
                "calibration": calib,
                "config": settings,
                "preprocess": preprocess,
                "skip_unreadable": skip_unreadable,
                "labels": labels,
                "jobs": jobs,
                "executor": executor,
                "progress": update,
            }
            if several:
                results = many.quantize_many(models, output, **how)
            else:
                result = api.quantize(models[0], output, **how)
                found = {**result.report, "output": str(result.path)}
                _write_report(report, found)
    if several:
        show([result.to_dict() for result in results], display_many.quantized, as_json, quiet)
        fail_for([(result.error, 1 if result.internal else 2) for result in results if result.error is not None])
    else:
        show(found, display_quantized.quantized, as_json, quiet)


@app.command()
def inspect(model: ModelArgument, as_json: JsonFlag = False, verbose: VerboseFlag = False) -> None:
    """Show the blocks, bridges, norms, activations and attentions of MODEL, and what was not recognised."""
    with errors(verbose):
        from . import api

        report = api.inspect(model)
    show(report, display_quantized.inspected, as_json, False)


@app.command()
def compare(
    float_model: FloatModel,
    int8_model: Int8Model,
    data: DataOption,
    labels: Annotated[
        Path | None, typer.Option(help="Labels: .npy, .txt (one a line) or .csv (file,label); class numbers.")
    ] = None,
    samples: SamplesOption = 256,
    seed: SampleSeed = 0,
    threads: ThreadsOption = 1,
    runs: TimedRuns = 30,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 when fewer samples (0 to 1) keep their class.")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 when INT8 is not this many times faster.")
    ] = None,
    preprocess: PreprocessOption = None,
    skip_unreadable: SkipOption = False,
    report: ReportOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Compare FLOAT and INT8: accuracy, agreement, error along the graph, size, latency, kernels."""
    with errors(verbose), progress(quiet or as_json) as update:
        _check_report(report, float_model, int8_model, draws=True)
        if report is None:
            from .comparison import compare as run_compare
        else:
            from .evidence import compare_for_report as run_compare
        result = run_compare(
            float_model,
            int8_model,
            data,
            labels=labels,
            samples=samples,
            seed=seed,
            threads=threads,
            runs=runs,
            preprocess=preprocess,
            skip_unreadable=skip_unreadable,
            progress=update,
        )
        _write_report(report, result)
    show(result, display_compared.compared, as_json, quiet)
    for what, found, least in (
        ("top-1 agreement", result["top1_agreement"], min_agreement),
        ("speed-up", result["latency"]["speedup"], min_speedup),
    ):
        if least is not None and (found is None or found < least):
            fail(f"{what} is {'unknown' if found is None else f'{found:.4g}'}, expected at least {least:g}", 1)


@app.command()
def debug(
    float_model: FloatModel,
    int8_model: Int8Model,
    data: DataOption,
    samples: SamplesOption = 64,
    seed: SampleSeed = 0,
    threads: ThreadsOption = 1,
    preprocess: PreprocessOption = None,
    skip_unreadable: SkipOption = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Tell where INT8 loses accuracy, block by block and tensor by tensor, and what to do about it."""
    with errors(verbose), progress(quiet or as_json) as update:
        from .diagnosis import debug as run_debug

        result = run_debug(
            float_model,
            int8_model,
            data,
            samples=samples,
            seed=seed,
            threads=threads,
            preprocess=preprocess,
            skip_unreadable=skip_unreadable,
            progress=update,
        )
    from .display_debug import debugged

    show(result, debugged, as_json, quiet)


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to keep the int8 model in.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder with the demo's model and images.")] = None,
    report: ReportOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Quantize a shipped model with shipped images, compare it with the float model, and show the result."""
    with errors(verbose), progress(as_json) as update:
        from .demo import run_demo

        _check_report(report, draws=True)
        result = run_demo(
            output, models, progress=update, evidence=report is not None, say=None if as_json else display.say
        )
        _write_report(report, result)
    show(result, display_compared.demonstrated, as_json, False)


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json", help="What quantize, compare, debug or demo print with --json."),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the page; default: first RESULT with .html.")
    ] = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Write one HTML page about one or more RESULTs of the same model."""
    with errors(verbose):
        from .report import read_results, write_report

        destination = output or results[0].with_suffix(".html")
        _check_report(destination, *results)
        write_report(destination, read_results(results))
    if not quiet:
        display.say(f"Written {destination}")


def _check_report(path: Path | None, *inputs: str | Path, draws: bool = False) -> None:
    """Refuse a page that cannot be written, before the work that it is about."""
    if path is None:
        return
    from .errors import OutputError
    from .report import require_matplotlib
    from .request import check_output

    for other in inputs:
        if path.absolute() == Path(other).absolute():
            raise OutputError(f"{path}: is another file of this command; choose another name for the report")
        check_output(path, other)
    check_output(path)
    if draws:
        require_matplotlib()


def _write_report(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        from .report import write_report

        write_report(path, [result])


cli_deploy.add_commands(app)


def main() -> None:
    """Run the command that the arguments name."""
    with interrupts.unwinding():
        app()


__all__ = ["app", "main"]
