"""Runs killed with SIGKILL, at every step of the commit protocol and at random moments."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from datasets.commit import unstoppable
from tests.running import leftovers, run, run_killed, run_killed_after, tree_hash, write_photos

JOB = ("augment", "--limit", "400", "--copies", "3", "--block-samples", "64")
TASK_STEPS = ("open shard", "write shard", "rename shard", "write record", "rename record")
COMMIT_STEPS = ("rename manifest", "remove records", "rename success", "commit", "remove lock")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(*JOB, "--out", out, "--workers", 0)
    return tree_hash(out)


def resume(out: Path, *more: object) -> int:
    """Runs the same command again; shards that were finished must be the same files after it. How
    many these were."""
    kept = {
        record.name.removesuffix(".json"): (folder / record.name.removesuffix(".json")).stat()
        for folder in out.parent.glob(".out.partial-*")
        for record in folder.glob(".records/*.json")
        if not record.name.startswith(".")
    }
    run(*JOB, "--out", out, *more)
    for name, before in kept.items():
        after = (out / name).stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert leftovers(out) == []
    return len(kept)


@pytest.mark.parametrize(
    ("step", "n_workers", "n_resuming"),
    [
        *((step, 2, 0) for step in TASK_STEPS[:-1]),
        (TASK_STEPS[-1], 2, 2),
        ("rename fifth record", 0, 0),
        *((step, 0, 0) for step in COMMIT_STEPS),
    ],
)
def test_a_group_killed_at_any_step_and_resumed_gives_the_same_bytes(
    tmp_path: Path, step: str, n_workers: int, n_resuming: int, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    job = (*JOB, "--out", out, "--workers", n_workers)
    run_killed(*job, step=step, victim="group", folder=tmp_path)
    assert not out.exists() or tree_hash(out) == undisturbed
    n_kept = resume(out, "--workers", n_resuming)
    assert n_kept == 4 or step != "rename fifth record"
    assert tree_hash(out) == undisturbed


@pytest.mark.parametrize(
    "step",
    [
        "write shard",
        "write record",
        *(pytest.param(step, marks=pytest.mark.slow) for step in TASK_STEPS[::2]),
    ],
)
def test_a_worker_killed_at_any_step_does_not_end_the_run(
    tmp_path: Path, step: str, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    job = (*JOB, "--out", out, "--workers", 2)
    done = run_killed(*job, step=step, victim="process", folder=tmp_path)
    assert done.returncode == 0
    assert tree_hash(out) == undisturbed


@pytest.mark.parametrize("step", [*COMMIT_STEPS, "move old aside", "remove old"])
def test_an_output_being_replaced_is_the_old_one_or_the_new_one(
    tmp_path: Path, step: str, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    run("augment", "--limit", 300, "--seed", 5, "--out", out, "--workers", 0)
    old = tree_hash(out)
    run_killed(
        *JOB,
        *("--out", out, "--workers", 0, "--overwrite"),
        step=step,
        victim="group",
        folder=tmp_path,
    )
    # Between the two renames, which no file system joins, there is none; never half of one.
    assert not out.exists() or tree_hash(out) in (old, undisturbed)
    resume(out, "--workers", 0, "--overwrite")
    assert tree_hash(out) == undisturbed


def test_another_job_after_a_kill_between_the_renames_has_an_output_to_start_from(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    photos = write_photos(tmp_path / "photos", 40)
    job = ("augment", "--dataset", photos, "--workers", 0, "--out", out, "--overwrite")
    run(*job)
    write_photos(photos, 44)
    run_killed(*job, step="commit", victim="group", folder=tmp_path)
    assert not out.exists()
    write_photos(photos, 48)
    assert "carried over" in run(*job).stderr
    run(*job[:-3], "--out", tmp_path / "whole")
    assert tree_hash(out) == tree_hash(tmp_path / "whole")
    assert leftovers(out) == []


def test_signals_wait_until_the_renames_are_done() -> None:
    done = []

    def stop(*_: object) -> None:
        done.append("stopped")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with unstoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("renamed")
        assert done == ["renamed", "stopped"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("step", "expected"), [("commit", "finished"), ("remove old", "removed")])
def test_clean_after_a_kill_loses_no_output(
    tmp_path: Path, step: str, expected: str, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    run("augment", "--limit", 300, "--seed", 5, "--out", out, "--workers", 0)
    job = (*JOB, "--out", out, "--workers", 0, "--overwrite")
    run_killed(*job, step=step, victim="group", folder=tmp_path)
    assert expected in run("clean", out).stdout
    assert tree_hash(out) == undisturbed
    assert leftovers(out) == []


def test_a_resume_knows_the_inputs_that_could_not_be_used(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 300)
    for i in (0, 2, 4):
        (photos / "cat" / f"{i:03d}.png").write_bytes(b"")
    job = ("augment", "--dataset", photos, "--copies", 1, "--max-bad", 0.1, "--workers", 0)
    run(*job, "--out", tmp_path / "whole" / "out")
    out = tmp_path / "out"
    run_killed(*job, "--out", out, step="rename manifest", victim="group", folder=tmp_path)
    records = sorted(tmp_path.glob(".out.partial-*/.records/*.json"))
    for record in records[::2]:
        record.unlink()
    assert "not used: cat/000.png: empty file" in run(*job, "--out", out).stderr
    assert tree_hash(out) == tree_hash(tmp_path / "whole" / "out")


@pytest.mark.slow
def test_a_group_killed_at_twenty_random_moments_gives_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    started = time.monotonic()
    run(*JOB, "--out", tmp_path / "whole", "--workers", 2)
    usual = time.monotonic() - started
    moments = random.Random(7)
    n_killed = 0
    for i in range(20):
        out = tmp_path / str(i) / "out"
        while run_killed_after(moments.uniform(0, usual), *JOB, "--out", out, "--workers", 2):
            n_killed += 1
            assert not out.exists() or tree_hash(out) == undisturbed
            if n_killed > i:
                break
        resume(out, "--workers", 2)
        assert tree_hash(out) == undisturbed
    assert n_killed >= 10
