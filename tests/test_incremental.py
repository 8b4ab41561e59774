"""Runs on a source that has changed: the bytes of a run from nothing, and the work of a change."""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.commit import RECORDS, read_records, unfinished_runs
from datasets.source import file_stamp
from pipeline.carry import make_shard
from pipeline.offline import materialize
from pipeline.plan import AugmentConfig, make_plan
from pipeline.report import Report
from pipeline.summary import Summary
from tests.running import leftovers, run, run_killed, run_script, tree_hash, write_photos

QUIET = Report(quiet=True)
LIBRARY = "standard|albumentations.GaussNoise(p=0.7)"
JOBS: dict[str, dict[str, object]] = {
    "jpeg": {"image_size": (20, 24)},
    "raw": {"image_size": (8, 9), "encoding": "raw"},
    "png of many sizes": {"encoding": "png", "compression": "zstd"},
    "library ops": {"image_size": (20, 24), "encoding": "png", "policy": LIBRARY},
    "tfrecord": {"format": "tfrecord"},
    "raw tfrecord": {"format": "tfrecord", "image_size": (8, 9), "encoding": "raw"},
}
DOUBLES = ("jpeg", "png of many sizes")  # nothing but what the others show together


@dataclass
class Photos:
    """A list of images in a folder, to be edited; nothing is written but by `save` and `draw`."""

    folder: Path
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> label, split
    drawn: int = 0

    def draw(self, name: str, label: str = "cat", split: str = "train") -> None:
        """A new image under a new name, or instead of the one of that name."""
        self.drawn += 1
        rng = np.random.default_rng(self.drawn)
        pixels = rng.integers(0, 256, (20 + self.drawn % 3, 24, 3), np.uint8)
        cv2.imwrite(str(self.folder / name), pixels)
        self.rows[name] = label, split

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()
        del self.rows[name]

    def break_off(self, name: str) -> None:
        """Its header stays whole, so that only decoding shows it."""
        path = self.folder / name
        path.write_bytes(path.read_bytes()[:-400])

    def save(self) -> Path:
        path = self.folder / "list.csv"
        with path.open("w", newline="") as file:
            rows = ((name, *row) for name, row in self.rows.items())
            csv.writer(file).writerows([("path", "label", "split"), *rows])
        return path


def some_photos(folder: Path) -> Photos:
    """40 in train and 8 in test, two of which cannot be decoded and one not even opened."""
    folder.mkdir()
    photos = Photos(folder)
    for i in range(48):
        photos.draw(f"{i:02d}.png", ("cat", "dog")[i % 2], "test" if i % 6 == 5 else "train")
    photos.break_off("02.png")
    photos.break_off("30.png")
    (folder / "20.png").write_bytes(b"no image")
    pixels = np.full((20, 24, 3), 90, np.uint8)  # a BMP, each byte of which is seen
    (folder / "07.png").write_bytes(cv2.imencode(".bmp", pixels)[1].tobytes())
    return photos


def config_of(photos: Photos, out: Path, **options: object) -> AugmentConfig:
    usual = {"copies": 2, "block_samples": 8, "workers": 0, "max_bad": 0.5}
    return AugmentConfig(str(photos.save()), photos.folder, out, **(usual | options))  # type: ignore[arg-type]


def write(photos: Photos, out: Path, report: Report = QUIET, **options: object) -> Summary:
    """One run in this process."""
    return materialize(config_of(photos, out, **options), report)


def check(photos: Photos, out: Path, report: Report = QUIET, **options: object) -> Summary:
    """A run over `out`, which must be what a run from nothing gives."""
    summary = write(photos, out, report, overwrite=True, **options)
    whole = out.with_name("whole")
    write(photos, whole, **options)
    assert tree_hash(out) == tree_hash(whole)
    shutil.rmtree(whole)
    assert leftovers(out) == []
    return summary


def touch(photos: Photos) -> None:
    for name in photos.rows:
        os.utime(photos.folder / name)


def swap(photos: Photos) -> None:
    """Other content of the same size at the same time, for whoever believes in times."""
    path = photos.folder / "07.png"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def move(photos: Photos) -> None:
    photos.rows["00.png"] = "cat", "test"
    photos.rows["05.png"] = "dog", "train"


def relabel(photos: Photos) -> None:
    photos.rows["00.png"] = "dog", "train"


def grow(photos: Photos) -> None:
    for i in range(60):
        photos.draw(f"new-{i}.png")


def shrink(photos: Photos) -> None:
    for name in list(photos.rows)[::2]:
        photos.remove(name)


# What is done to the photos, and what of the 40 x 3 + 8 rows then has to be made again at most.
EDITS: dict[str, tuple[Callable[[Photos], object], int]] = {
    "nothing": (lambda photos: None, 0),
    "one more": (lambda photos: photos.draw("new.png"), 3),
    "one changed": (lambda photos: photos.draw("00.png"), 3),
    "one removed": (lambda photos: photos.remove("00.png"), 0),
    "another label": (relabel, 0),
    "two moved between splits": (move, 4),
    "all touched": (touch, 0),
    "as large and as old": (swap, 3),
    "more blocks": (grow, 180),
    "fewer blocks": (shrink, 0),
    "a new class": (lambda photos: photos.draw("new.png", label="bird"), 3),
    "a new split": (lambda photos: photos.draw("new.png", split="val"), 1),
    "a good one broken": (lambda photos: photos.break_off("00.png"), 0),
    "a broken one fixed": (lambda photos: photos.draw("02.png"), 3),
    "a broken one removed": (lambda photos: photos.remove("30.png"), 0),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write(some_photos(folder / "photos"), folder / "out")
    return folder


@pytest.fixture
def edited(tmp_path: Path, base: Path) -> Photos:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    known = some_photos(tmp_path / "again")
    shutil.rmtree(known.folder)
    return Photos(tmp_path / "photos", known.rows, known.drawn)


@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit_the_bytes_are_those_of_a_run_from_nothing(edited: Photos, edit: str) -> None:
    change, n_new = EDITS[edit]
    change(edited)
    summary = check(edited, edited.folder.parent / "out")
    assert summary.n_written == n_new
    assert summary.n_kept or edit in ("a new class", "more blocks", "fewer blocks")


@pytest.mark.parametrize(
    "job", [pytest.param(job, marks=pytest.mark.slow if job in DOUBLES else ()) for job in JOBS]
)
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(EDITS)), min_size=1, max_size=4, unique=True))
def test_any_edits_in_turn_give_the_bytes_of_a_run_from_nothing(
    tmp_path_factory: pytest.TempPathFactory, job: str, edits: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    photos = some_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:  # to try ops out takes a second a run
        patch.setattr("pipeline.plan.try_out", lambda ops, shapes: None)
        write(photos, folder / "out", **JOBS[job])
        for edit in edits:
            try:
                EDITS[edit][0](photos)
            except (KeyError, OSError):  # an earlier one has removed what it edits
                continue
            check(photos, folder / "out", **JOBS[job])


def test_row_groups_are_those_of_a_run_from_nothing(tmp_path: Path) -> None:
    """The rows of one copy take more than one group of 16 MB."""
    (tmp_path / "photos").mkdir()
    photos = Photos(tmp_path / "photos")
    rng = np.random.default_rng(0)
    for i in range(24):
        noise = rng.integers(0, 256, (520, 520, 3), np.uint8)
        cv2.imwrite(str(photos.folder / f"{i}.png"), noise)
        photos.rows[f"{i}.png"] = "cat", "train"
    options = {"encoding": "png", "copies": 0, "block_samples": 64}
    write(photos, tmp_path / "out", **options)
    photos.remove("3.png")
    shutil.copy(photos.folder / "5.png", photos.folder / "4.png")
    assert check(photos, tmp_path / "out", **options).n_carried == 22


def test_another_job_takes_nothing_over(edited: Photos) -> None:
    edited.draw("new.png")
    summary = check(edited, edited.folder.parent / "out", seed=1)
    assert (summary.n_kept, summary.n_carried) == (0, 0)


def test_an_earlier_shard_that_is_damaged_or_gone_is_made_anew_and_told_once(
    edited: Photos,
) -> None:
    out = edited.folder.parent / "out"
    shards = sorted(out.glob("train-*"))
    damaged = bytearray(shards[0].read_bytes())
    damaged[len(damaged) // 3] ^= 1
    shards[0].write_bytes(damaged)
    shards[1].unlink()
    job = ("augment", "--dataset", edited.save(), "--copies", 2, "--block-samples", 8)
    job += ("--workers", 0, "--max-bad", 0.5)
    lines = run(*job, "--out", out, "--overwrite").stderr.splitlines()
    assert [line.split(": ")[0] for line in lines if "made again, like others" in line] == [
        str(shards[0])
    ]
    assert run("verify", out).returncode == 0
    write(edited, out.with_name("whole"))
    assert tree_hash(out) == tree_hash(out.with_name("whole"))


def test_a_shard_is_copied_where_it_cannot_be_linked(edited: Photos) -> None:
    plan = make_plan(config_of(edited, edited.folder.parent / "out", overwrite=True), QUIET)
    task = next(
        task for task in plan.tasks(base=plan.base) if task.carried and task.carried.is_whole
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if Path(folder).stat().st_dev == plan.out.stat().st_dev:
            pytest.skip("no other file system")
        (Path(folder) / RECORDS).mkdir()
        made = make_shard(replace(task, folder=Path(folder)))
        assert made.is_kept
        assert (Path(folder) / task.name).read_bytes() == (plan.out / task.name).read_bytes()
        assert read_records(Path(folder)) == {task.name: made.record}


@pytest.mark.parametrize("how", ["missing", "damaged", "cut", "of another output"])
def test_without_a_whole_index_all_is_made_anew_and_told(
    edited: Photos, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = edited.folder.parent / "out"
    (index,) = out.parent.glob(".out.index-*")
    data = bytearray(index.read_bytes())
    if how == "missing":
        index.unlink()
    elif how == "damaged":
        data[len(data) // 5] ^= 1
        index.write_bytes(data)
    elif how == "cut":
        index.write_bytes(data[:-9])
    else:
        write(edited, out.with_name("other"), seed=1)
        next(out.parent.glob(".other.index-*")).replace(index)
    edited.draw("new.png")
    assert check(edited, out, Report()).n_carried == 0
    assert capsys.readouterr().err.count("all of it is made again, since its index") == 1
    edited.draw("one more.png")
    assert check(edited, out).n_carried  # the index is whole again


OPENED = """
import os, sys
folder, *arguments = sys.argv[1:]
opened = set()

def watch(event, values):
    if event == "open" and isinstance(values[0], str | os.PathLike):
        path = os.fspath(values[0])
        if isinstance(path, str) and path.startswith(folder) and path.endswith(".png"):
            opened.add(os.path.relpath(path, folder))

sys.addaudithook(watch)
sys.argv = ["pipeline", *arguments]
import cli
try:
    cli.main()
finally:
    open(folder + ".opened", "w").write(" ".join(sorted(opened)))
"""


def opened(photos: Path, *arguments: object) -> list[str]:
    """The images that a command opens, all of whose work is in its own process."""
    run_script(OPENED, photos, *arguments)
    return Path(f"{photos}.opened").read_text().split()


def test_files_that_are_what_they_were_are_not_opened(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 300)
    while file_stamp(str(photos / "dog" / "299.png")) is None:
        time.sleep(0.05)  # whatever has just been written is read again
    job = ("augment", "--dataset", photos, "--copies", 1, "--workers", 0, "--out", tmp_path / "out")
    assert len(opened(photos, *job)) == 300
    assert opened(photos, *job) == []
    (photos / "cat" / "000.png").write_bytes((photos / "cat" / "002.png").read_bytes())
    (photos / "cat" / "new.png").write_bytes((photos / "cat" / "004.png").read_bytes())
    (photos / "dog" / "001.png").unlink()
    os.utime(photos / "dog" / "003.png")
    assert opened(photos, *job, "--overwrite") == [
        *("cat/000.png", "cat/new.png"),
        "dog/003.png",
    ]


def test_the_refusal_says_what_overwrite_costs(edited: Photos) -> None:
    out = edited.folder.parent / "out"
    edited.draw("new.png")
    job = ("augment", "--dataset", edited.save(), "--block-samples", 8, "--max-bad", 0.5)
    job += ("--out", out)
    message = run(*job, "--copies", 2, code=2).stderr
    assert "replace it with --overwrite, which makes only what changed" in message
    assert "which makes" not in run(*job, "--copies", 3, code=2).stderr
    plan = run(*job, "--copies", 2, "--overwrite", "--dry-run").stdout
    assert "kept" in plan
    assert "shards as they are and" in plan


STEPS = ("link shard", "commit", "remove index")
MORE_STEPS = (
    "rename record",
    "rename shard",
    "rename index",
    "rename manifest",
    "move old aside",
    "remove old",
)


@pytest.mark.parametrize(
    "step", [*STEPS, *(pytest.param(step, marks=pytest.mark.slow) for step in MORE_STEPS)]
)
def test_killed_at_any_step_and_resumed_gives_the_bytes_of_a_run_from_nothing(
    edited: Photos, step: str
) -> None:
    out = edited.folder.parent / "out"
    old = tree_hash(out)
    edited.draw("new.png")
    write(edited, out.with_name("whole"))
    new = tree_hash(out.with_name("whole"))
    job = ("augment", "--dataset", edited.save(), "--copies", 2, "--block-samples", 8)
    job += ("--max-bad", 0.5, "--workers", 0, "--out", out, "--overwrite")
    run_killed(*job, step=step, victim="group", folder=out.parent)
    assert not out.exists() or tree_hash(out) in (old, new)
    run(*job)
    assert tree_hash(out) == new
    assert leftovers(out) == []
    assert "carried over" in run(*job).stderr  # its index is whole


def test_a_finished_output_without_one_of_its_shards_is_not_done(edited: Photos) -> None:
    out = edited.folder.parent / "out"
    job = ("augment", "--dataset", edited.save(), "--copies", 2, "--block-samples", 8)
    job += ("--max-bad", 0.5, "--workers", 0, "--out", out)
    assert "nothing to do" in run(*job).stderr
    shard = min(out.glob("train-*"))
    shard.unlink()
    assert f"{shard}: missing; write the output again" in run(*job, code=3).stderr
    run(*job, "--overwrite")
    assert "nothing to do" in run(*job).stderr


PUBLISHED = ("--publish", "--keep", 1)


@pytest.mark.parametrize("options", [(), PUBLISHED], ids=["beside", "published"])
def test_what_a_run_that_came_to_no_end_has_made_is_taken_over(
    edited: Photos, options: tuple[object, ...]
) -> None:
    out = edited.folder.parent / "new" / "out"
    job = ("augment", "--dataset", edited.save(), "--copies", 2, "--block-samples", 8)
    job += ("--max-bad", 0.5, "--workers", 0, "--out", out, *options)
    run_killed(*job, step="rename fifth record", victim="group", folder=edited.folder)
    edited.draw("new.png")
    edited.remove("00.png")
    edited.save()
    assert "3 shards as they are" in run(*job, "--dry-run").stdout
    found = re.search(r"(\d) shards? kept, (\d+) rows carried over", run(*job).stderr)
    assert found
    assert int(found[1]) == 3
    assert int(found[2]) > 0
    write(edited, out.with_name("whole"))
    assert tree_hash(out / "latest" if options else out) == tree_hash(out.with_name("whole"))
    assert unfinished_runs(out, bool(options)) == []


def test_a_dry_run_tells_what_a_run_that_came_to_no_end_has_made(edited: Photos) -> None:
    out = edited.folder.parent / "new"
    job = ("augment", "--dataset", edited.save(), "--copies", 2, "--block-samples", 8)
    job += ("--max-bad", 0.5, "--workers", 0, "--out", out)
    run_killed(*job, step="rename fifth record", victim="group", folder=edited.folder)
    said = run(*job, "--dry-run").stdout
    found = re.search(r"in (\d+) shards, about", said)
    assert found
    (left,) = unfinished_runs(out, is_published=False)
    n_done = len(read_records(left))
    assert 0 < n_done < int(found[1])
    assert f"\ndone    {n_done} of {found[1]} shards, by a run that came to no end; only" in said
    assert f"resuming: {n_done} of {found[1]} shards are done" in run(*job).stderr


@pytest.mark.parametrize("has_index", [True, False])
def test_an_output_of_a_source_that_has_changed_since_is_no_other_job(
    edited: Photos, has_index: bool
) -> None:
    out = edited.folder.parent / "new"
    job = ("augment", "--dataset", edited.save(), "--max-bad", 0.5, "--workers", 0, "--out", out)
    run(*job)
    edited.draw("new.png")
    edited.draw("newer.png")
    edited.draw("01.png")
    for name in ("00.png", "02.png", "03.png"):
        edited.remove(name)
    edited.save()
    if not has_index:
        for index in out.parent.glob(".new.index-*"):
            index.unlink()
    (line,) = run(*job, code=2).stderr.splitlines()[-1:]
    what = " (2 new, 1 changed, 3 gone)" if has_index else ""
    cost = ", which makes only what changed" if has_index else ""
    assert line == (
        f"pipeline: {out}: the source has changed since this was written{what}; choose another "
        f"--out, or replace it with --overwrite{cost}"
    )
    assert "another job (seed was 0, now 1; the source" in run(*job, "--seed", 1, code=2).stderr


def test_a_class_without_images_is_a_change_of_the_source(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    job = ("augment", "--dataset", photos, "--workers", 0, "--out", tmp_path / "out")
    run(*job)
    (photos / "zebra").mkdir()
    assert "has changed since this was written (it has other classes);" in run(*job, code=2).stderr


def test_a_dry_run_of_what_is_ready_says_that_it_would_be_committed(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 40), tmp_path / "out"
    broken = next((photos / "cat").glob("*.png"))
    broken.write_bytes(b"")
    job = ("augment", "--dataset", photos, "--workers", 0, "--out", out)
    run_killed(*job, "--max-bad", 0.5, step="commit", victim="group", folder=tmp_path)
    said = run(*job, "--dry-run").stdout
    assert said == f"{out}: all of it was made by a run that came to no end; would commit it\n"
    run(*job)
    assert out.is_dir()


def test_a_run_of_another_job_that_came_to_no_end_goes_with_the_old_versions(
    edited: Photos,
) -> None:
    out = edited.folder.parent / "new"
    job = ("augment", "--dataset", edited.save(), "--max-bad", 0.5, "--workers", 0, "--out", out)
    run_killed(*job, "--publish", step="rename record", victim="group", folder=edited.folder)
    (left,) = unfinished_runs(out, is_published=True)
    theirs = write_photos(out.parent / "theirs")
    link = out / f".{'0' * 16}.partial-{'0' * 16}"
    link.symlink_to(theirs)
    other = (*job, "--copies", 1, "--publish")
    assert f"{left}: left by an unfinished run of another job" in run(*other).stderr
    assert f"{left}: removed, left by" in run(*other, "--keep", 2).stderr
    assert not left.exists()
    assert tree_hash(link) == tree_hash(theirs) != {}


def test_clean_removes_the_index_of_an_output_that_is_gone(edited: Photos) -> None:
    out = edited.folder.parent / "out"
    (index,) = out.parent.glob(".out.index-*")
    assert run("clean", out).stdout == f"{out}: nothing to remove\n"
    shutil.rmtree(out)
    assert f"removed {index}" in run("clean", out.parent).stdout
    assert not index.exists()
