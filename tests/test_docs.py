"""Documents name options and files that exist, and docstrings of public names say what is taken and given."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer.main

import onnx_hyvit
from onnx_hyvit.cli import app
from onnx_hyvit.targets import target_names

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from check_docs import missing  # noqa: E402

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


def test_what_the_page_says_of_json_and_quiet_is_true() -> None:
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in COMMANDS.items()
    }
    assert {name for name, known in options.items() if "--json" not in known} == {"report"}
    quiet = {name for name, known in options.items() if "-q" in known}
    assert quiet == {"quantize", "report", "export-mobile", "compare", "debug"}
    sentence = "All but `report` take `--json` for scripts; those that write a file, `compare` and `debug` take `-q`."
    assert sentence in (ROOT / "README.md").read_text()


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


def section(text: str, title: str) -> str:
    """The indented lines below ``title:`` of a docstring in Google form."""
    found = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def parameters(thing: object) -> list[str]:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return []
    return [name for name in inspect.signature(thing).parameters if name != "self"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in onnx_hyvit.__all__ if name != "__version__"])
def test_public_docstrings_state_arguments_and_results(name: str) -> None:
    thing = getattr(onnx_hyvit, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 10
    described = set(re.findall(r"^ +\**([\w, ]+?)(?: \(.*\))?: ", section(text, "Args"), re.MULTILINE))
    named = {word.strip() for words in described for word in words.split(",")}
    assert set(parameters(thing)) <= named, f"{name}: {set(parameters(thing)) - named} is missing below Args"
    if inspect.isfunction(thing) and thing.__annotations__["return"] not in ("None", None):
        assert section(text, "Returns"), f"{name} does not say what it returns"


@pytest.mark.parametrize("name", [name for name in onnx_hyvit.__all__ if name[0].isupper()])
def test_public_methods_have_docstrings(name: str) -> None:
    for member, value in vars(getattr(onnx_hyvit, name)).items():
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod)):
            assert inspect.getdoc(value), f"{name}.{member}"


def test_a_name_without_a_description_in_the_reference_is_found() -> None:
    """`make docs` runs this check on the page that pdoc writes."""
    page = """<section id="told"><div class="attr"></div><div class="docstring"><p>What it is.</p></div></section>
        <section id="untold"><div class="attr"></div></section>"""
    assert missing(page, ["told", "untold", "absent"]) == ["untold", "absent"]
