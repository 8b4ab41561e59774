"""Published versions on disk: each whole, the latest by one link, old ones while they are read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasets.catalog import data_name, open_source
from datasets.index import indexes
from datasets.manifest import MANIFEST, SUCCESS
from datasets.versions import open_version, prune
from tests.running import (
    PIPELINE,
    run,
    run_killed,
    start,
    tree_hash,
    wait_until,
    write_photos,
)

JOB = ("augment", "--limit", 60, "--workers", 0, "--publish")


@contextmanager
def opened(path: Path) -> Iterator[None]:
    """The file is open in another process."""
    script = "import sys; f = open(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        yield
        reader.communicate(b"\n")


def versions(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.is_dir() and not path.is_symlink()}


def test_each_version_is_what_an_output_of_its_own_would_be(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for copies in (1, 2):
        run(*JOB, "--copies", copies, "--out", out)
        alone = tmp_path / f"alone-{copies}"
        run(*JOB[:-1], "--copies", copies, "--out", alone)
        assert tree_hash(out / "latest") == tree_hash(alone)
    assert len(versions(out)) == 2
    assert "every hash fits" in run("verify", out).stdout
    assert "nothing to do" in run(*JOB, "--copies", 2, "--out", out).stderr


def test_data_have_one_name_whether_they_are_there_or_not(tmp_path: Path) -> None:
    write_photos(tmp_path / "My photos", 4)
    (tmp_path / "some.list.CSV").write_text("path,label")
    run(*JOB, "--out", tmp_path / "out")
    names = {"digits": "digits", "My photos": "my_photos", "some.list.CSV": "some_list"}
    names |= dict.fromkeys(
        ("out", "out/latest", f"out/{os.readlink(tmp_path / 'out/latest')}"), "out"
    )
    for path, name in names.items():
        dataset = path if path == "digits" else str(tmp_path / path)
        assert data_name(dataset) == open_source(dataset, tmp_path).name == name


def test_a_whole_version_is_not_replaced_under_its_readers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*JOB, "--out", out)
    latest = (out / "latest").resolve()
    before = {path.name: path.stat().st_ino for path in latest.iterdir()}
    assert "nothing to do" in run(*JOB, "--out", out, "--overwrite").stderr
    assert {path.name: path.stat().st_ino for path in latest.iterdir()} == before


def test_a_job_of_before_becomes_the_latest_again_without_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for copies in (1, 2):
        run(*JOB, "--copies", copies, "--out", out)
    first = next(v for v in versions(out) if v != os.readlink(out / "latest"))
    before = (out / first / "_manifest.json").stat().st_mtime_ns
    said = run(*JOB, "--copies", 1, "--log-format", "json", "--out", out).stderr
    back, done = (json.loads(line) for line in said.splitlines()[-2:])
    assert back["message"] == f"{out / first}: was made before; it becomes the latest"
    assert (done["rows_made"], done["shards_written"]) == (0, 0)
    assert os.readlink(out / "latest") == first
    assert (out / first / "_manifest.json").stat().st_mtime_ns == before
    # And the next night finds what this one knew of the source.
    assert [path.name for _, path in indexes(out)] == [f".{first}.index-{first}.parquet"]


@pytest.mark.parametrize("step", ["commit", "rename latest", "remove version"])
def test_a_run_killed_while_it_publishes_leaves_the_old_or_the_new_version(
    tmp_path: Path, step: str
) -> None:
    out = tmp_path / "out"
    run(*JOB, "--copies", 1, "--out", out)
    old = os.readlink(out / "latest")
    job = (*JOB, "--copies", 2, "--keep", 1, "--out", out)
    run_killed(*job, step=step, victim="group", folder=tmp_path)
    assert "every hash fits" in run("verify", out).stdout
    assert (os.readlink(out / "latest") == old) == (step != "remove version")
    run(*job)
    assert versions(out) == {os.readlink(out / "latest")} != {old}
    left = [p.name for p in out.iterdir() if p.name.startswith(".") and ".index-" not in p.name]
    assert left == []


def test_the_oldest_go_but_not_while_anybody_reads_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for copies in (1, 2, 3):
        run(*JOB, "--copies", copies, "--out", out)
    by_age = sorted(versions(out), key=lambda v: (out / v / SUCCESS).stat().st_mtime_ns)
    ours, foreign, last = by_age
    assert last == os.readlink(out / "latest")
    _, handle = open_version(out / ours)
    with opened(next((out / foreign).glob("*.parquet"))):
        assert dict(prune(out, 1)) == {ours: False, foreign: False}
    assert dict(prune(out, 1)) == {ours: False, foreign: True}
    assert handle is not None
    os.close(handle)
    assert dict(prune(out, 1)) == {ours: True}
    assert versions(out) == {last}


def test_a_version_stays_for_as_long_as_it_is_somebodys_data_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*JOB, "--copies", 1, "--out", out)
    first = os.readlink(out / "latest")
    source = open_source(str(out), tmp_path)
    samples = source.listing().splits["train"]
    nightly = [PIPELINE, *JOB, "--copies", 2, "--keep", 1, "--out", out]
    subprocess.run([*map(str, nightly)], check=True)
    assert versions(out) == {first, os.readlink(out / "latest")} != {first}
    assert len(list(source.read(samples.refs))) == len(samples)
    del source
    assert dict(prune(out, 1)) == {first: True}


def test_a_version_stays_while_a_run_augments_it(tmp_path: Path) -> None:
    out, longer = tmp_path / "out", tmp_path / "longer"
    run(*JOB, "--copies", 1, "--out", out)
    first = os.readlink(out / "latest")
    job = ("--dataset", out, "--split", "all", "--copies", 60_000, "--block-samples", 16)
    with start("augment", *job, "--out", longer, "--workers", 0) as process:
        try:
            wait_until(lambda: list(tmp_path.glob(".longer.partial-*/.*.tmp")), "the work")
            run(*JOB, "--copies", 2, "--keep", 1, "--out", out)
            assert versions(out) == {first, os.readlink(out / "latest")} != {first}
        finally:
            process.kill()
    run(*JOB, "--copies", 2, "--keep", 1, "--out", out)
    assert versions(out) == {os.readlink(out / "latest")}


def test_a_shard_that_is_read_in_the_new_version_does_not_keep_the_old_one(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 40), tmp_path / "out"
    job = ("augment", "--dataset", photos, "--image-size", 24, "--encoding", "png", "--workers", 0)
    run(*job, "--publish", "--out", out)
    old = os.readlink(out / "latest")
    next((photos / "cat").glob("*.png")).unlink()
    run(*job, "--publish", "--out", out)
    shared = [p for p in (out / "latest").glob("*.parquet") if p.stat().st_nlink == 2]
    assert shared
    with opened(out / old / shared[0].name):
        assert dict(prune(out, 1)) == {old: False}
    with opened(shared[0]):
        assert dict(prune(out, 1)) == {old: True}


def test_old_versions_go_on_a_file_system_that_cannot_tell_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS 4 refuses every lease as if the file were open, and locks no file that is only read."""
    out = tmp_path / "out"
    for copies in (1, 2):
        run(*JOB, "--copies", copies, "--out", out)
    (old,) = versions(out) - {os.readlink(out / "latest")}
    control, lock = fcntl.fcntl, fcntl.flock

    def no_lease(handle: int, command: int, value: int) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EAGAIN, "no delegation")
        return control(handle, command, value)

    def only_written(handle: int, how: int) -> None:
        if how & fcntl.LOCK_EX and control(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        lock(handle, how)

    monkeypatch.setattr(fcntl, "fcntl", no_lease)
    monkeypatch.setattr(fcntl, "flock", only_written)
    assert dict(prune(out, 1)) == {old: True}


def test_a_data_set_on_a_disk_without_locks_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write a _SUCCESS too, and some mounts of NFS know no lock."""
    run(*JOB[:-1], "--out", tmp_path / "out")

    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert open_source(str(tmp_path / "out"), tmp_path).listing().splits["train"].ids


def test_who_names_the_pointer_reads_one_version_to_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*JOB, "--copies", 1, "--out", out)
    first = os.readlink(out / "latest")
    found, handle = open_version(out / "latest")
    run(*JOB, "--copies", 2, "--out", out)
    assert os.readlink(out / "latest") != first
    assert found == out / first
    assert dict(prune(out, 1)) == {first: False}
    assert handle is not None
    os.close(handle)


def test_a_pointer_that_was_copied_into_a_folder_is_told_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*JOB, "--copies", 1, "--out", out)
    shutil.copytree(out, tmp_path / "copied")  # which follows links
    said = run(*JOB, "--copies", 2, "--out", tmp_path / "copied", code=2).stderr
    assert "holds 'latest'" in said


def test_a_disk_without_links_is_told_before_any_work(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # The one file system without links that every Linux has: of POSIX message queues.
    mounted = subprocess.run(["mount", "-t", "mqueue", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        broken = write_photos(tmp_path / "photos") / "cat" / "broken.png"
        broken.touch()  # which would be told of first if the photos were read
        job = ("--publish", "--dataset", broken.parents[1], "--out", disk / "out")
        (line,) = run("augment", *job, "--max-bad", 0, code=2).stderr.splitlines()
        assert f"{disk}: no link can be made there (Operation not permitted), as --publ" in line
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_night_with_new_photos_makes_only_these(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 40), tmp_path / "out"
    job = ("augment", "--dataset", photos, "--image-size", 24, "--encoding", "png", "--workers", 0)
    run(*job, "--publish", "--keep", 1, "--out", out)
    write_photos(tmp_path / "more", 44)
    for path in sorted((tmp_path / "more").rglob("*.png"))[-4:]:
        path.rename(photos / path.parent.name / f"new-{path.name}")
    said = run(*job, "--publish", "--keep", 1, "--out", out).stderr
    # Of four new photos in train: the original and four copies. The other shard is that of test.
    assert "(1 shard kept, 185 rows carried over, 20 made)" in said
    run(*job, "--out", tmp_path / "alone")
    assert tree_hash(out / "latest") == tree_hash(tmp_path / "alone")


def test_a_damaged_version_is_mended_by_what_verify_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*JOB, "--out", out)
    before = tree_hash(out / "latest")
    next((out / "latest").glob("*.parquet")).write_bytes(b"damaged")
    said = run("verify", out, code=3).stderr
    assert said.endswith("write the output again with --publish --overwrite\n")
    run(*JOB, "--overwrite", "--out", out)
    assert tree_hash(out / "latest") == before


@pytest.mark.parametrize("options", [(), ("--publish",)])
def test_an_output_without_its_manifest_is_mended_by_what_verify_says(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = (*JOB[:-1], *options, "--out", out)
    run(*job)
    folder = (out / "latest" if options else out).resolve()
    before = tree_hash(folder)
    (folder / MANIFEST).write_bytes(b"")
    said = run("verify", out, code=3).stderr
    assert said.endswith(f"move {folder} away, and write the output again\n")
    assert "move it away" in run(*job, "--overwrite", code=2).stderr  # who knows whose it is
    folder.rename(tmp_path / "away")
    run(*job)
    assert tree_hash(folder) == before


@pytest.mark.parametrize("options", [(), ("--publish",)])
def test_an_output_that_is_not_finished_is_told_from_none(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    job = (*JOB[:-1], *options, "--out", out)
    run_killed(*job, step="rename record", victim="group", folder=tmp_path)
    said = run("verify", out, code=2).stderr
    assert "nothing is finished there: a run has begun and not come to its end" in said


@pytest.mark.parametrize(
    ("prepare", "options", "expected"),
    [
        ((), ("--keep", 2), "--keep 2: is about published versions; give --publish too"),
        (JOB[:-1], ("--publish",), "holds an output that was not published"),
        (JOB, (), "holds published versions; add one with --publish"),
    ],
)
def test_published_and_other_outputs_are_not_mixed(
    tmp_path: Path, prepare: tuple[object, ...], options: tuple[object, ...], expected: str
) -> None:
    out = tmp_path / "out"
    if prepare:
        run(*prepare, "--out", out)
    before = tree_hash(out)
    said = run(*JOB[:-1], "--copies", 2, *options, "--out", out, code=2).stderr
    assert expected in said
    assert tree_hash(out) == before
