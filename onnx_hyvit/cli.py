"""The command line: arguments -> config -> api; prints, and turns our errors into one line and exit code 2."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import display
from .config import QuantConfig, load_config
from .errors import HyvitError
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

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
QuietFlag = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
VerboseFlag = Annotated[bool, typer.Option("-v", "--verbose", help="Show what each pass does.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Float ONNX model.")]
PreprocessOption = Annotated[
    str | None,
    typer.Option(help="For images: a preset (imagenet, timm-mobilevit, unit, signed, ...) or a TOML/JSON file."),
]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out unreadable images, naming each.")]


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
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the int8 model.")],
    calib: Annotated[
        Path, typer.Option(help="Folder of images, .npz keyed by input name, or .npy for a one-input model.")
    ],
    recipe: Annotated[str | None, typer.Option(help=f"One of {', '.join(RECIPES)}.")] = None,
    bits: Annotated[str | None, typer.Option(help="w<weights>a<activations>, for example w8a8 or w6a6.")] = None,
    target: Annotated[str | None, typer.Option(help="Target name (ort-x86, ort-arm, generic, ...) or file.")] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration samples to use.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per calibration run.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of ONNX Runtime.")] = None,
    residual: Annotated[str | None, typer.Option(help="Residual additions: auto, float or int8.")] = None,
    verify: Annotated[
        bool | None, typer.Option("--verify/--no-verify", help="Check the result at every optimisation level.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="balanced, speed or size: what stays float where int8 is slower.")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="Profile of kernels (tools/profile_kernels.py).")] = None,
    verify_speed: Annotated[
        bool | None, typer.Option("--verify-speed", help="Time int8 against float here; go back where it is slower.")
    ] = None,
    preprocess: PreprocessOption = None,
    skip_unreadable: SkipOption = False,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options given here win.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Quantize MODEL to int8 with the images or arrays of --calib, and write it to --output."""
    given = {
        "recipe": recipe,
        "bits": bits,
        "target": target,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
        "threads": threads,
        "residual": residual,
        "verify": verify,
        "objective": objective,
        "profile": None if profile is None else str(profile),
        "verify_speed": verify_speed,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    with _errors(verbose), _progress(quiet or as_json) as progress:
        settings = load_config(config, overrides) if config else QuantConfig(**overrides)  # type: ignore[arg-type]
        from . import api

        result = api.quantize(
            model,
            output,
            calibration=calib,
            config=settings,
            preprocess=preprocess,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
    _show({**result.report, "output": str(result.path)}, display.quantized, as_json, quiet)


@app.command()
def inspect(model: ModelArgument, as_json: JsonFlag = False, verbose: VerboseFlag = False) -> None:
    """Show the blocks, bridges, norms, activations and attentions of MODEL, and what was not recognised."""
    with _errors(verbose):
        from . import api

        report = api.inspect(model)
    _show(report, display.inspected, as_json, False)


@app.command()
def compare(
    float_model: Annotated[str, typer.Argument(metavar="FLOAT", help="Float ONNX model.")],
    int8_model: Annotated[str, typer.Argument(metavar="INT8", help="Quantized ONNX model.")],
    data: Annotated[Path, typer.Option(help="Folder of images, .npz or .npy to compare on.")],
    labels: Annotated[
        Path | None, typer.Option(help="Labels: .npy, .txt (one a line) or .csv (file,label); class numbers.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples to compare on at most.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the choice of samples.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads in the timing and elsewhere.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs of each model, taken in turn.")] = 30,
    preprocess: PreprocessOption = None,
    skip_unreadable: SkipOption = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Compare FLOAT and INT8: accuracy, agreement, error along the graph, size, latency, kernels."""
    with _errors(verbose), _progress(quiet or as_json) as progress:
        from .comparison import compare as run_compare

        report = run_compare(
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
            progress=progress,
        )
    _show(report, display.compared, as_json, quiet)


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to keep the int8 model in.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder with the demo's model and images.")] = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Quantize a shipped model with shipped images, compare it with the float model, and show the result."""
    with _errors(verbose), _progress(as_json) as progress:
        from .demo import run_demo

        report = run_demo(output, models, progress=progress, say=None if as_json else display.say)
    _show(report, display.demonstrated, as_json, False)


def _show(report: dict[str, Any], render: Callable[[dict[str, Any]], None], as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, indent=2, default=str, allow_nan=False))
    elif not quiet:
        render(report)


@contextmanager
def _errors(verbose: bool) -> Iterator[None]:
    """Print our errors as one line and exit with 2; Ctrl-C exits with 130; anything else is a bug, and exits with 1."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    try:
        yield
    except HyvitError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    except MemoryError:
        _fail("out of memory; use fewer --samples or a smaller --batch-size", 2)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except Exception as error:
        if verbose:
            raise
        _fail(f"internal error ({type(error).__name__}: {error}); run again with -v and report it, please", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    if silent:
        yield None
    else:
        with display.progress() as update:
            yield update


def main() -> None:
    """Entry point of the ``onnx-hyvit`` command."""
    app()


__all__ = ["app", "main"]
