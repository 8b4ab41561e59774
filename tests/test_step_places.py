"""What a job knows of inputs, outputs and another job of its name before its first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli import STEPS
from pipeline.jobfile import read_job_file
from pipeline.step_places import missing_inputs
from pipeline.steps import command_of
from tests.running import run
from tests.test_service import SHORT, augment, records, write_job

ROOT = Path(__file__).parents[1]


def test_an_input_that_no_step_will_write_ends_the_job_before_its_first_step(
    tmp_path: Path,
) -> None:
    wrong = {"verify": {"folder": str(tmp_path / "uot")}}
    compare = {"compare": {"runs": ["s3://bucket/run", str(tmp_path / "run")]}}
    job = write_job(tmp_path, augment(tmp_path), wrong, compare)
    told = run("run", job, code=2).stderr
    assert told == (
        f"pipeline: job: step 2 (verify): folder: {tmp_path}/uot is not there, and no step before "
        "writes it; correct it, or add the step that does; "
        f"step 3 (compare): runs: {tmp_path}/run is not there, and no step before "
        "writes it; correct it, or add the step that does\n"
    )
    assert not (tmp_path / "out").exists()
    (record,) = records(tmp_path)  # so that status shows it
    assert (record["exit_code"], record["steps"]) == (2, [])


@pytest.mark.parametrize(
    "later",
    [
        {"verify": {"folder": "%s/out"}},
        {"verify": {"folder": "%s/link/out"}},
        {"verify": {"folder": "%s/out/latest"}},
        {"augment": {**SHORT, "dataset": "%s/out", "split": "all", "out": "%s/again"}},
        {"augment": {**SHORT, "dataset": "digits", "out": "%s/again"}},
        {"clean": {"folder": "%s/nothing"}},
        {"train": {"limit": 40, "epochs": 1, "model": "textbook", "out": "%s/run"}},
    ],
)
def test_what_is_there_or_will_be_is_no_missing_input(
    tmp_path: Path, later: dict[str, Any]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    text = json.dumps(later).replace("%s", str(tmp_path))
    steps = [augment(tmp_path, publish=True), json.loads(text)]
    run("run", write_job(tmp_path, *steps))


def test_the_nightly_job_of_this_project_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = {step.__name__: command_of(step) for step in STEPS}
    nightly, environ = ROOT / "jobs" / "nightly.yaml", {"PHOTOS": str(tmp_path)}
    job = read_job_file(nightly, [], commands, environ, "2026-01-01")
    assert list(missing_inputs(job.steps)) == []


def test_two_job_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    job = write_job(tmp_path, {"clean": {"folder": str(tmp_path / "nothing")}})
    other = tmp_path / "other" / "job.yaml"
    other.parent.mkdir()
    shutil.copy(job, other)
    assert "last run of this name" not in run("run", job).stderr
    assert f"job: the last run of this name was of {job}, and" in run("run", other).stderr
    other.rename(tmp_path / "moved.yaml")  # which nobody would take for two
    assert "last run" not in run("run", tmp_path / "moved.yaml", "--set", "name=job").stderr
