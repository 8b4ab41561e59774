"""A disk, a mount or a process that fails says nothing about the file that was next: the run ends
with 5, and no good input is left out."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from datasets.catalog import open_source
from datasets.cifar import Cifar10
from datasets.commit import hold, is_held
from datasets.errors import EnvironmentFailed, SourceError, UserError, system_failure
from datasets.fingerprint import scan
from datasets.folder import Folder, not_listed
from datasets.index import stale_indexes
from datasets.source import Listing, Samples, Source
from datasets.storage import is_folder
from pipeline.online import open_images
from pipeline.pixels import load_pixels
from pipeline.plan import AugmentConfig, make_plan
from pipeline.report import Report
from pipeline.shard import read_checked
from pipeline.stream import Stream
from pipeline.task import Task
from tests.running import run, write_photos

QUIET = Report(quiet=True)
NO_HANDLE = "Too many open files on .*; allow more open files .*, and run the same command again"
MOUNT = (errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENETUNREACH)
OF_A_FILE = (errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.EIO)


@contextmanager
def no_handle_left() -> Iterator[None]:
    """Nothing can be opened within it, as where a process has too many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class OnAMount:
    """Four images, of which the third gives an error that only a broken mount has."""

    errno: int
    name = "mounted"
    channels = 3

    def listing(self) -> Listing:
        names = [f"cat/{i}.png" for i in range(4)]
        return Listing(("cat",), {"train": Samples(names, np.zeros(4, np.int64), names)})

    def read(self, refs: Sequence[str]) -> Iterator[np.ndarray]:
        for ref in refs:
            if ref == "cat/2.png":
                raise OSError(self.errno, os.strerror(self.errno))
            yield np.zeros((4, 4, 3), np.uint8)


@dataclass(frozen=True)
class EntryOnAMount:
    """An entry of a folder whose kind cannot be asked for."""

    path: str
    errno: int

    def is_dir(self) -> bool:
        raise OSError(self.errno, os.strerror(self.errno))


def write_source(folder: Path, kind: str) -> Source:
    """Twelve photos in that form."""
    photos = write_photos(folder / "photos")
    if kind == "list":
        rows = [f"{p.relative_to(folder)},{p.parent.name}" for p in photos.rglob("*.png")]
        (folder / "list.csv").write_text("\n".join(["path,label", *rows]))
        return open_source(str(folder / "list.csv"), folder)
    if kind == "folder":
        return open_source(str(photos), folder)
    if kind == "cifar10":
        (folder / Cifar10.folder).mkdir()
        for names in Cifar10.files.values():
            for name in names:
                (folder / Cifar10.folder / name).write_bytes(bytes(2 * (1 + 3 * 32 * 32)))
        (folder / Cifar10.folder / Cifar10.names).write_text("cat")
        return Cifar10(folder)
    job = ("augment", "--dataset", photos, "--format", kind, "--copies", 1, "--workers", 0)
    run(*job, "--image-size", 20, "--out", folder / "shards")
    return open_source(str(folder / "shards"), folder)


KINDS = ("folder", "list", "parquet", "tfrecord", "cifar10")


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_handles_leaves_out_no_input(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path, kind)
    samples = source.listing().splits["train"]
    with no_handle_left(), pytest.raises(EnvironmentFailed, match=NO_HANDLE) as caught:
        scan(source, samples)
    assert caught.value.exit_code == 5
    assert scan(source, samples).errors == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_handles_is_no_broken_data_set(tmp_path: Path, kind: str) -> None:
    source = write_source(tmp_path, kind)
    with no_handle_left(), pytest.raises(EnvironmentFailed, match=NO_HANDLE):
        source.listing()


def test_a_process_without_handles_is_no_wrong_path(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    with no_handle_left(), pytest.raises(EnvironmentFailed, match=NO_HANDLE):
        open_source(str(photos), tmp_path)


@pytest.mark.parametrize("number", MOUNT)
def test_a_mount_that_goes_away_ends_the_run_in_one_line(number: int) -> None:
    source = OnAMount(number)
    with pytest.raises(EnvironmentFailed) as caught:
        scan(source, source.listing().splits["train"])
    assert str(caught.value) == (
        f"mounted cat/2.png: {os.strerror(number)} on {os.uname().nodename}; look at the disk or "
        "mount that it is on, and run the same command again"
    )


@pytest.mark.parametrize("number", OF_A_FILE)
def test_an_error_of_one_file_is_one_bad_input(number: int) -> None:
    source = OnAMount(number)
    found = scan(source, source.listing().splits["train"])
    assert found.errors == {2: f"cannot be read: {os.strerror(number)}"}


def test_a_class_folder_on_a_mount_that_is_gone_is_not_passed_over() -> None:
    with pytest.raises(EnvironmentFailed, match=r"/photos/cat: .*; look at the disk or mount"):
        is_folder(EntryOnAMount("/photos/cat", errno.ESTALE))  # type: ignore[arg-type]
    assert not is_folder(EntryOnAMount("/photos/cat", errno.ELOOP))  # type: ignore[arg-type]


def test_a_class_folder_that_the_disk_cannot_read_is_no_broken_link() -> None:
    with pytest.raises(EnvironmentFailed, match="/photos/cat: Input/output error"):
        is_folder(EntryOnAMount("/photos/cat", errno.EIO))  # type: ignore[arg-type]


def test_a_process_without_handles_calls_no_index_stale(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("augment", "--dataset", write_photos(tmp_path / "photos"), "--workers", 0, "--out", out)
    assert stale_indexes(out) == []
    with no_handle_left(), pytest.raises(EnvironmentFailed, match=NO_HANDLE):
        stale_indexes(out)


def test_a_process_without_handles_says_of_no_run_that_it_was_killed(tmp_path: Path) -> None:
    with hold(tmp_path / "job"), no_handle_left(), pytest.raises(EnvironmentFailed) as caught:
        is_held(tmp_path / "job")
    assert "cannot be asked whether a run is going (Too many open files)" in str(caught.value)


def test_a_folder_that_the_disk_cannot_read_is_no_users_mistake() -> None:
    told = not_listed("/photos/cat", OSError(errno.EIO, os.strerror(errno.EIO)))
    assert told.exit_code == 5
    assert str(told).startswith("/photos/cat: Input/output error on ")
    assert not_listed("/photos/cat", PermissionError(errno.EACCES, "closed")).exit_code == 2


def test_a_mount_that_fails_elsewhere_is_told_in_one_line_too() -> None:
    told = system_failure(OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/mnt/photos"))
    assert isinstance(told, EnvironmentFailed)
    assert "/mnt/photos: Stale file handle" in str(told)
    assert system_failure(OSError(errno.ETIMEDOUT, "of a connection")) is None


def test_a_training_that_runs_out_of_handles_is_told_so(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    config = AugmentConfig(str(photos), tmp_path, image_size=(20, 20))
    source = open_images(config, "none", QUIET)
    stream = Stream(source, source.usable, 4, order_seed=0)
    with no_handle_left(), pytest.raises(EnvironmentFailed, match=NO_HANDLE):
        stream.batch(0)
    assert isinstance(stream.failure, EnvironmentFailed)


def test_a_file_that_is_gone_in_the_midst_of_a_training_is_worth_a_retry(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    config = AugmentConfig(str(photos), tmp_path, image_size=(20, 20))
    source = open_images(config, "none", QUIET)
    name = source.ids[0]
    (photos / name).unlink()
    with pytest.raises(EnvironmentFailed) as caught:
        Stream(source, np.array([0]), 1, order_seed=None).batch(0)
    assert str(caught.value) == (
        f"{name}: cannot be read: No such file or directory, but could when the run began; run "
        "the same command again (a training with --resume)"
    )


def test_a_file_that_changes_in_the_midst_of_a_training_ends_it(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    config = AugmentConfig(str(photos), tmp_path, image_size=(20, 20))
    source = open_images(config, "none", QUIET)
    name, other = source.ids[:2]
    (photos / other).replace(photos / name)
    with pytest.raises(EnvironmentFailed, match=f"{name}: is not what it was when the run began"):
        Stream(source, np.array([0]), 1, order_seed=None).batch(0)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_a_file_that_changes_between_hash_and_decoding_ends_the_run(
    tmp_path: Path, cache: str
) -> None:
    source = Folder(write_photos(tmp_path))
    samples = source.listing().splits["train"]
    found = scan(source, samples)
    name, other = samples.ids[:2]
    (tmp_path / other).replace(tmp_path / name)
    with pytest.raises(EnvironmentFailed, match=f"{name}: is not what it was when the run began"):
        load_pixels(source, samples, found, (20, 20), (20, 20, 3), cache, 1)


@pytest.mark.parametrize("target", ["nowhere", "dog"])
def test_a_class_whose_link_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    link = write_photos(tmp_path / "photos", classes=("ant", "cat")) / "dog"
    link.symlink_to(target)  # to itself, where that is its own name
    with pytest.raises(SourceError) as caught:
        Folder(tmp_path / "photos").listing()
    assert str(caught.value) == (
        f"{link}: a link to {target}, which cannot be followed; restore what it leads to, or "
        "remove the link if it is no class"
    )


def test_a_split_whose_link_leads_nowhere_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "train")
    (tmp_path / "val").symlink_to("/mnt/gone/val")
    with pytest.raises(SourceError, match=r"/val: a link to /mnt/gone/val, which cannot be"):
        Folder(tmp_path).listing()
    (tmp_path / "val").unlink()
    (tmp_path / "train" / "owl").symlink_to("/mnt/gone/owl")
    with pytest.raises(SourceError, match=r"/train/owl: a link to /mnt/gone/owl, which cannot be"):
        Folder(tmp_path).listing()


def test_a_link_that_is_named_like_an_image_is_no_class(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "loose.png").symlink_to("nowhere")
    (photos / ".hidden").symlink_to("nowhere")
    listing = Folder(photos).listing()
    assert listing.classes == ("cat", "dog")
    assert listing.ignored == ("loose.png (an image in no class folder)",)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    photos = write_photos(tmp_path / "photos")
    plan = make_plan(AugmentConfig(str(photos), tmp_path, tmp_path / "out", workers=0), QUIET)
    return next(iter(plan.tasks()))


def told_of(task: Task) -> str:
    with pytest.raises(UserError) as caught:
        list(read_checked(task))
    assert isinstance(caught.value, EnvironmentFailed)
    return str(caught.value)


def test_a_file_that_cannot_be_read_again_is_not_said_to_have_changed(task: Task) -> None:
    assert isinstance(task.source, Folder)
    path, name = task.source.root / task.samples.refs[0], task.samples.ids[0]
    machine = os.uname().nodename
    path.unlink()
    path.mkdir()
    assert told_of(task) == (
        f"{name}: not a regular file on {machine}, and could be read a moment ago; run the same "
        "command again"
    )
    path.rmdir()
    assert told_of(task) == (
        f"{name}: is gone on {machine}, and could be read a moment ago; run the same command again"
    )
    path.write_bytes(b"another")
    assert told_of(task) == f"{name}: changed while the run read it; run the same command again"
    with no_handle_left():
        assert f"{path}: Too many open files on {machine}; " in told_of(task)
