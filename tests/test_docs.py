"""What the documents say exists: commands, options, scripts, links, ops and jobs; and every command
is in the README."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer.main
from typer.testing import CliRunner

from cli import STEPS, app
from datasets.errors import PolicyError
from pipeline.jobfile import read_job_file
from pipeline.ops import OPS
from pipeline.policy import FILL_MODES, PRESETS, Fill, parse_policy
from pipeline.status import MEANINGS
from pipeline.steps import command_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def options_of(command: click.Command) -> set[str]:
    return {"--help"}.union(*(p.opts + p.secondary_opts for p in command.params))


def blocks_in(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.S | re.M)


def commands_in(document: Path) -> list[list[str]]:
    """The words of every line that starts with `pipeline` in a code block or between backticks."""
    blocks = "\n".join(blocks_in(document, r"\w*"))
    lines = re.findall(r"^pipeline .*$", blocks, re.M)
    lines += re.findall(r"`(pipeline [^`]+)`", document.read_text())
    return [shlex.split(line, comments=True) for line in lines]


@each_document
def test_every_command_line_in_a_document_is_understood(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved.yaml").write_text("transform: {__class_fullname__: Blur}")
    for _, name, *words in commands_in(document):
        if name in ("--help", "--version"):
            continue
        assert name in COMMANDS, f"{document.name}: pipeline {name}"
        if words:  # else the text is about the command
            COMMANDS[name].make_context(name, words)  # refuses what it cannot parse, runs nothing


@each_document
def test_every_option_between_backticks_exists(document: Path) -> None:
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", document.read_text()))
    known = set().union(*(options_of(command) for command in COMMANDS.values()))
    assert named <= known


def test_every_command_is_in_the_readme() -> None:
    assert {words[1] for words in commands_in(ROOT / "README.md")} >= {*COMMANDS, "--version"}


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


def test_the_table_of_ops_is_what_policies_take() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    told = {(name.strip("`"), option): (span, default) for name, option, span, default in rows}
    known = {(op.name, f.name): f.default for op in OPS.values() for f in fields(op)}
    assert {key for key in known if key[1] != "p"} == {
        key for key in told if key[0] not in ("each op", "fill")
    }
    for (name, option), default in known.items():
        span, shown = told["each op" if option == "p" else name, option]
        assert float(shown) == default, (name, option)
        low, high = span.split(" to ")
        for value in (low, high):
            parse_policy(f"{name}({option}={value})")
        for value in (float(low) - 1, float(high) + 1):
            with pytest.raises(PolicyError, match=option):
                parse_policy(f"{name}({option}={value})")
    assert told["fill", "mode"] == (", ".join(f"`{mode}`" for mode in FILL_MODES), "`reflect`")
    assert (Fill().mode, str(Fill().value)) == ("reflect", told["fill", "value"][1])
    for preset in PRESETS:
        assert f"`{preset}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("document", "text"),
    [(path, text) for path in DOCUMENTS for text in blocks_in(path, "yaml")],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_every_job_in_a_document_is_one(document: Path, text: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    commands = {step.__name__: command_of(step) for step in STEPS}
    assert read_job_file(path, [], commands, {"PHOTOS": "photos"}, "2026-01-01").steps


@pytest.mark.parametrize("path", [ROOT / "Makefile", *DOCUMENTS], ids=lambda path: path.name)
def test_every_script_that_is_named_exists(path: Path) -> None:
    scripts = re.findall(r"\bpython ([\w./]+)", path.read_text())
    for script in scripts:
        assert (ROOT / script).is_file()
    if path.name in ("Makefile", "benchmarks.md"):
        assert len(scripts) > 5


def test_every_benchmark_is_run_by_make_or_said_to_run_separately() -> None:
    documented = set(
        re.findall(r"python (benchmarks/\w+\.py)", (ROOT / "docs" / "benchmarks.md").read_text())
    )
    made = set(re.findall(r"python (benchmarks/\w+\.py)", (ROOT / "Makefile").read_text()))
    assert documented - made == {"benchmarks/chaos.py"}
    assert made <= documented


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md"])
def test_the_exit_codes_are_those_of_status(name: str) -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| ", (ROOT / name).read_text(), re.M)
    told = {int(code) for row in rows for code in row.split(",")}
    assert told == {code for code in MEANINGS if code != 137}  # whoever kills knows


def anchors_of(document: Path) -> set[str]:
    """The links to its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        assert not anchor or anchor in anchors_of(found), target
