"""Commands for a finished model: export it for devices, check it against a target, audit its kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import display_deploy
from .cli_options import JsonFlag, QuietFlag, ThreadsOption, TimedRuns, VerboseFlag
from .cli_output import errors, show
from .config import AUTO_TARGET

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="ONNX model, int8 or float.")]


def add_commands(app: typer.Typer) -> None:
    """Add ``export-mobile``, ``check`` and ``audit`` to ``app``."""

    @app.command("export-mobile")
    def export_mobile(
        model: ModelArgument,
        output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the files; made when missing.")],
        platform: Annotated[str, typer.Option(help="What will run it: arm (also for the web) or amd64.")] = "arm",
        fixed_shape: Annotated[
            list[str] | None, typer.Option(help="Whole shape of an input, as in input=1,3,256,256; repeat for more.")
        ] = None,
        dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave free dimensions free (else batch 1).")] = False,
        threads: ThreadsOption = 1,
        runs: TimedRuns = 30,
        as_json: JsonFlag = False,
        quiet: QuietFlag = False,
        verbose: VerboseFlag = False,
    ) -> None:
        """Write MODEL as .ort files for ONNX Runtime on phones, verify and time them, list what a build needs."""
        with errors(verbose):
            from .mobile import MobileConfig
            from .mobile import export_mobile as run_export
            from .mobile.config import parse_fixed_shape

            shapes = dict(map(parse_fixed_shape, fixed_shape or ()))
            batch = None if dynamic else 1
            config = MobileConfig(platform=platform, fixed_shapes=shapes, batch=batch, threads=threads, runs=runs)
            report = run_export(model, output, config)
        show({**report, "output": str(output)}, display_deploy.exported, as_json, quiet)

    @app.command()
    def check(
        model: ModelArgument,
        target: Annotated[
            str, typer.Option(help="Target name (ort-x86, ort-arm, qnn, ...) or file; auto: for this processor.")
        ] = AUTO_TARGET,
        as_json: JsonFlag = False,
        verbose: VerboseFlag = False,
    ) -> None:
        """Tell what a target would refuse or run badly in a quantized MODEL and what to do; exit code 1 if anything."""
        with errors(verbose):
            from .target_check import check as run_check

            report = run_check(model, target)
        show(report, display_deploy.checked, as_json, False)
        raise typer.Exit(1 if report["problems"] else 0)

    @app.command()
    def audit(
        model: ModelArgument,
        target: Annotated[
            str | None, typer.Option(help="Optimise as for the processor of this target; else as for this one.")
        ] = None,
        threads: Annotated[int, typer.Option(help="Threads of the session that optimises it.")] = 1,
        as_json: JsonFlag = False,
        verbose: VerboseFlag = False,
    ) -> None:
        """Tell which kernels ONNX Runtime really runs for MODEL; exit code 1 if one wastes its int8 weights."""
        with errors(verbose):
            from .target_check import audit_for

            found = audit_for(model, target, threads=threads)
        report = {"model": model, **found.to_dict(), "clean": found.clean}
        show(report, display_deploy.audited, as_json, False)
        raise typer.Exit(0 if found.clean else 1)


__all__ = ["add_commands"]
