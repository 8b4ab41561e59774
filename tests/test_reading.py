"""A source that is read by workers: what they find is what one process finds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from distributed import Client
from numpy.testing import assert_array_equal

from datasets import source as source_module
from datasets.blocks import SMALL
from datasets.errors import EnvironmentFailed
from datasets.fingerprint import Scan, scan
from datasets.folder import Folder
from datasets.index import read_index, write_index
from datasets.source import TICK_NS, Listing, Samples, Source
from pipeline import reading
from pipeline.reading import scan_all
from pipeline.workers import connect
from tests.running import Cluster, run, tree_hash, wait_until

N = 60


def no_word(text: str, **fields: object) -> None:
    raise AssertionError(text)


def no_one(n: int) -> None:
    pass


def given(coming: Future[Client]) -> Callable[[int], Future[Client]]:
    return lambda n_new: coming


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART", 8)
    monkeypatch.setattr(source_module, "TICK_NS", 0)  # else what is new has no stamp


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of several sizes in two classes; three are broken."""
    rng = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (8 + i % 5, 9, 3), np.uint8))
        os.utime(path, (1, 1))
        if i in (5, 17, 58):
            path.write_bytes(path.read_bytes()[: i // 2])
    return tmp_path / "photos"


@contextmanager
def connected(scheduler: str | None = None) -> Iterator[Future[Client]]:
    """What `start` gives when the workers are there."""
    coming: Future[Client] = Future()
    with ExitStack() as stack:
        coming.set_result(connect(2, scheduler, stack))
        yield coming


def splits_of(source: Source) -> dict[str, Samples]:
    return source.listing().splits


def assert_same(found: dict[str, Scan], expected: dict[str, Scan]) -> None:
    assert found.keys() == expected.keys()
    for split, mine in found.items():
        assert_array_equal(mine.shapes, expected[split].shapes)
        assert mine.digests == expected[split].digests
        assert mine.errors == expected[split].errors
        assert mine.stamps == expected[split].stamps


@pytest.mark.parametrize("n_here", [1, 4])
def test_workers_find_what_one_process_finds(photos: Path, n_here: int) -> None:
    source = Folder(photos)
    samples = splits_of(source)
    (photos / "a" / "004.png").unlink()
    expected = {split: scan(source, some) for split, some in samples.items()}
    done: list[int] = []
    coming: Future[Client] = Future()

    def advance(n: int) -> None:
        done.append(n)
        if len([m for m in done if m]) == n_here:  # workers come when so much is read
            coming.set_result(connect(2, None, stack))

    with ExitStack() as stack:
        found = scan_all(source, samples, {}, advance, 2, None, given(coming), no_word)
    assert coming.done()
    assert_same(found, expected)
    assert sum(done) == N
    assert sum(len(one.errors) for one in found.values()) == 4


@dataclass(frozen=True)
class Guarded:
    """A folder that may not always be read."""

    folder: Folder
    name = "guarded"
    channels = 3

    @property
    def image_folder(self) -> Path:
        return self.folder.root

    def listing(self) -> Listing:
        return self.folder.listing()

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        return self.folder.read(refs)


@dataclass(frozen=True)
class Deadly(Guarded):
    """A folder that kills the first worker that reads it."""

    marker: Path
    home: int

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        if os.getpid() != self.home and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(refs)


def test_what_a_worker_was_reading_when_it_was_killed_is_read_by_another(
    photos: Path, tmp_path: Path
) -> None:
    source = Deadly(Folder(photos), tmp_path / "marker", os.getpid())
    samples = splits_of(source)
    with connected() as coming:
        found = scan_all(source, samples, {}, no_one, 2, None, given(coming), no_word)
    assert source.marker.exists()
    assert_same(found, {split: scan(source, some) for split, some in samples.items()})


@dataclass(frozen=True)
class Watched(Guarded):
    """A folder of which only these files may be read."""

    changed: frozenset[str]

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        assert set(refs) <= self.changed
        return super().read(refs)


def test_what_still_has_its_stamp_is_not_read(photos: Path, tmp_path: Path) -> None:
    source, out = Folder(photos), tmp_path / "out"
    samples = splits_of(source)
    before = {split: scan(source, some) for split, some in samples.items()}
    write_index(out, "0" * 64, samples, before)
    known = read_index(out, "0" * 64)
    del known["b/011.png"]  # as if it were new
    (photos / "a" / "008.png").write_bytes((photos / "a" / "000.png").read_bytes())
    watched = Watched(source, frozenset({"a/008.png", "b/011.png"}))
    done: list[int] = []
    new: list[int] = []
    found = scan_all(watched, samples, known, done.append, 0, None, new.append, no_word)
    assert_same(found, {split: scan(source, some) for split, some in samples.items()})
    assert sum(done) == N
    assert new == [1]


def hidden(path: Path) -> tuple[str, ...]:
    """Starts what follows where the folder is empty."""
    return ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {path} && exec "$@"', "sh")


def replaced(path: Path, by: Path) -> tuple[str, ...]:
    """Starts what follows where the one file is the other."""
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {by} {path} && exec "$@"', "sh")


def read_on(cluster: Cluster, source: Source) -> dict[str, Scan]:
    """With two parts read here, and the others by workers."""
    with connected(cluster.address) as coming:

        def advance(n: int) -> None:  # behind all that the workers were asked for before
            coming.result().submit(int, pure=False).result()

        return scan_all(
            *(source, splits_of(source), {}, advance, 2, cluster.address),
            *(given(coming), lambda text, **fields: None),
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_worker_that_does_not_see_the_data_set_is_named(photos: Path, tmp_path: Path) -> None:
    with Cluster(tmp_path) as dask:
        dask.scheduler(), dask.worker(before=hidden(photos))
        with pytest.raises(EnvironmentFailed, match=r"worker .* does not see .*\d+.png as it is"):
            read_on(dask, Folder(photos))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_file_that_is_another_one_on_a_worker_is_read_here(photos: Path, tmp_path: Path) -> None:
    source, other = Folder(photos), tmp_path / "other.png"
    expected = {split: scan(source, some) for split, some in splits_of(source).items()}
    first = next(iter(splits_of(source).values())).refs[0]  # this process begins at the end
    cv2.imwrite(str(other), np.zeros((3, 3, 3), np.uint8))
    # Until the worker, too, can tell the others by their stamps.
    wait_until(lambda: time.time_ns() - other.stat().st_ctime_ns > TICK_NS, "a later time")
    with Cluster(tmp_path) as dask:
        dask.scheduler(), dask.worker(before=replaced(photos / first, other))
        assert_same(read_on(dask, source), expected)


def test_many_new_photos_make_the_version_of_a_run_from_nothing(tmp_path: Path) -> None:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    job = ("augment", "--dataset", folder, "--copies", 1, "--publish", "--quiet")
    for i in range(SMALL + 44):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (8, 9, 3), np.uint8))
        if i == 20:
            run(*job, "--out", tmp_path / "grown")
    run(*job, "--out", tmp_path / "grown", "--workers", 2)
    run(*job, "--out", tmp_path / "new")
    grown, new = tmp_path / "grown" / "latest", tmp_path / "new" / "latest"
    assert tree_hash(grown.resolve()) == tree_hash(new.resolve())
