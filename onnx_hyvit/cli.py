"""The command line: arguments -> config -> api; prints, and turns our errors into one line and exit code 2."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from . import cli_compare, cli_deploy, display_inspected, display_many, display_quantized, interrupts
from .cli_options import (
    DaskOption,
    JobsOption,
    JsonFlag,
    PreprocessOption,
    QuietFlag,
    ReportOption,
    SkipOption,
    VerboseFlag,
)
from .cli_output import check_page, errors, fail_for, progress, show, write_page
from .config import LOSSES, QuantConfig, load_config
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
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help=f"What the outputs are: {', '.join(LOSSES)}; or OUTPUT=KIND, with commas between."
        ),
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
    jobs: JobsOption = 1,
    dask: DaskOption = None,
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
        "loss": loss,
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
        check_page(report, models[0], output)
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
                write_page(report, found)
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
    show(report, display_inspected.inspected, as_json, False)


cli_compare.add_commands(app)
cli_deploy.add_commands(app)


def main() -> None:
    """Run the command that the arguments name."""
    with interrupts.unwinding():
        app()


__all__ = ["app", "main"]
