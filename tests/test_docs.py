"""Commands in the documents name options that exist, and files that are linked are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from onnx_hyvit.cli import app
from onnx_hyvit.targets import target_names

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "SECURITY.md", "tools/docs/troubleshooting.md", "tools/examples/README.md"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def commands(text: str) -> list[list[str]]:
    """Command lines of ``onnx-hyvit`` in code blocks and in the examples of CI."""
    text = text.replace("\\\n", " ")
    lines = [line.strip().removeprefix("- run: ").removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("onnx-hyvit ")]


@pytest.mark.parametrize("document", [*DOCUMENTS, "tools/examples/gate.yml"])
def test_commands_name_options_that_exist(document: str) -> None:
    found = commands((ROOT / document).read_text())
    assert found or document in ("SECURITY.md", "tools/examples/README.md")
    for _, name, *words in found:
        known = {
            option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("-"):
                assert word in known, f"{document}: {name} has no {word}"
            if word == "--target":
                assert following in target_names()


def test_every_option_in_the_prose_exists() -> None:
    text = (ROOT / "tools/docs/troubleshooting.md").read_text()
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    known |= {"--no-verify"}
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert len(named) > 10
    assert named <= known


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / link).exists(), f"{document}: {link}"
