"""Commands that tell what a quantized model is worth: compare, debug, the demo, and a page about results."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from . import display, display_compared
from .cli_options import (
    DaskOption,
    DataOption,
    FloatModel,
    Int8Model,
    JobsOption,
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
from .cli_output import check_page, errors, fail, progress, show, write_page


def add_commands(app: typer.Typer) -> None:
    """Add ``compare``, ``debug``, ``demo`` and ``report`` to ``app``."""

    @app.command()
    def compare(
        float_model: FloatModel,
        int8_model: Int8Model,
        data: DataOption,
        labels: Annotated[
            Path | None, typer.Option(help="Labels: .npy, .txt (one a line) or .csv (path,label); class numbers.")
        ] = None,
        samples: SamplesOption = 256,
        seed: SampleSeed = 0,
        threads: ThreadsOption = 1,
        runs: TimedRuns = 30,
        jobs: JobsOption = 1,
        dask: DaskOption = None,
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
            check_page(report, float_model, int8_model, draws=True)
            from . import tasks

            if report is None:
                from .comparison import compare as run_compare
            else:
                from .evidence import compare_for_report as run_compare
            with tasks.dask_executor(dask) if dask else nullcontext() as executor:
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
                    jobs=jobs,
                    executor=executor,
                    progress=update,
                )
            write_page(report, result)
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

            check_page(report, draws=True)
            result = run_demo(
                output, models, progress=update, evidence=report is not None, say=None if as_json else display.say
            )
            write_page(report, result)
        show(result, display_compared.demonstrated, as_json, False)

    @app.command()
    def report(
        results: Annotated[
            list[Path],
            typer.Argument(metavar="RESULT.json", help="What quantize, compare, debug or demo print with --json."),
        ],
        output: Annotated[
            Path | None,
            typer.Option("-o", "--output", help="Where to write the page; default: first RESULT with .html."),
        ] = None,
        quiet: QuietFlag = False,
        verbose: VerboseFlag = False,
    ) -> None:
        """Write one HTML page about one or more RESULTs of the same model."""
        with errors(verbose):
            from .report import read_results, write_report

            destination = output or results[0].with_suffix(".html")
            check_page(destination, *results)
            write_report(destination, read_results(results))
        if not quiet:
            display.say(f"Written {destination}")


__all__ = ["add_commands"]
