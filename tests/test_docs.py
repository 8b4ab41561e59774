"""Every command and option that the documents name exists, and every command is in the README."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer.main
from typer.testing import CliRunner

from cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options_of(command: click.Command) -> set[str]:
    return {"--help"}.union(*(p.opts + p.secondary_opts for p in command.params))


def commands_in(document: Path) -> list[list[str]]:
    """The words of every line that starts with `pipeline` in a code block or between backticks."""
    text = document.read_text()
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M))
    lines = re.findall(r"^pipeline .*$", blocks, re.M) + re.findall(r"`(pipeline [^`]+)`", text)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_line_in_a_document_is_understood(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved.yaml").write_text("transform: {__class_fullname__: Blur}")
    for _, name, *words in commands_in(document):
        if name == "--help":
            continue
        assert name in COMMANDS, f"{document.name}: pipeline {name}"
        if words:  # else the text is about the command
            COMMANDS[name].make_context(name, words)  # refuses what it cannot parse, runs nothing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_between_backticks_exists(document: Path) -> None:
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", document.read_text()))
    known = set().union(*(options_of(command) for command in COMMANDS.values()))
    assert named <= known


def test_every_command_is_in_the_readme() -> None:
    assert {words[1] for words in commands_in(ROOT / "README.md")} >= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"{name} {parameter.name}"
        # A default has a place of its own, and "Of the first of two." leaves one guessing.
        assert not text.startswith(("Default:", "Of ")), f"{name} {parameter.name}: {text}"


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"augmentation-pipeline {version('augmentation-pipeline')}\n"


@pytest.mark.parametrize("name", ["Makefile", "README.md"])
def test_every_script_that_is_named_exists(name: str) -> None:
    paths = re.findall(r"python ([\w./]+)", (ROOT / name).read_text())
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).is_file()


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists()
