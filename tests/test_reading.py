"""A source that is read by workers: what they find is what one process finds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from numpy.testing import assert_array_equal

from datasets import fingerprint
from datasets.catalog import open_source
from datasets.errors import EnvironmentFailed
from datasets.fingerprint import Scan, scan
from datasets.folder import Folder
from datasets.images import encode
from datasets.index import read_index, write_index
from datasets.source import Listing, Samples, Source
from pipeline.reading import read_all
from pipeline.workers import connect
from tests.running import Cluster

N = 60
ALL = frozenset(f"{'ab'[i % 2]}/{i:03d}.png" for i in range(N))


def no_word(text: str, **fields: object) -> None:
    raise AssertionError(text)


def no_one(n: int) -> None:
    pass


def given(coming: Future[Client]) -> Callable[[int], Future[Client]]:
    return lambda n_changed: coming


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "PART", 8)


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


def test_workers_find_what_one_process_finds(photos: Path) -> None:
    source = Folder(photos)
    samples = splits_of(source)
    (photos / "a" / "004.png").unlink()
    expected = {split: scan(source, some) for split, some in samples.items()}
    done: list[int] = []
    with connected() as coming:
        found = read_all(source, samples, {}, done.append, 2, None, given(coming), no_word)
    assert_same(found, expected)
    assert sum(done) == N
    assert len(done) > 5  # it is told as it goes
    assert sum(len(one.errors) for one in found.values()) == 4


@dataclass(frozen=True)
class Elsewhere:
    """A source that ends the process it is first read in, and cannot be read where it was made."""

    root: Path
    home: int
    name = "elsewhere"
    channels = 1

    def listing(self) -> Listing:
        raise NotImplementedError

    def read(self, refs: Sequence[int]) -> Iterator[np.ndarray]:
        assert os.getpid() != self.home
        try:
            (self.root / "met").mkdir()
        except FileExistsError:
            yield from (np.full((2, 3), ref, np.uint8) for ref in refs)
            return
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_worker_was_reading_when_it_was_killed_is_read_by_another(tmp_path: Path) -> None:
    source = Elsewhere(tmp_path, os.getpid())
    samples = Samples([str(i) for i in range(N)], np.zeros(N, np.int64), range(N))
    with connected() as coming:
        found = read_all(source, {"a": samples}, {}, no_one, 2, None, given(coming), no_word)
    assert (tmp_path / "met").exists()
    expected = [fingerprint.digest_of(np.full((2, 3), i, np.uint8)) for i in range(N)]
    assert found["a"].digests == expected
    assert found["a"].shapes.tolist() == [[2, 3, 1]] * N


@dataclass(frozen=True)
class Watched:
    """A folder of which only these files have changed, and may be read."""

    folder: Folder
    changed: frozenset[str]
    name = "watched"
    channels = 3

    def listing(self) -> Listing:
        return self.folder.listing()

    def stamps(self, refs: Sequence[str]) -> list[str | None]:
        return ["new" if ref in self.changed else "old" for ref in refs]

    def read(self, refs: Sequence[str]) -> Iterator[bytes]:
        assert set(refs) <= self.changed
        return self.folder.read(refs)


def test_what_still_has_its_stamp_is_not_read(photos: Path, tmp_path: Path) -> None:
    source, out = Folder(photos), tmp_path / "out"
    samples = splits_of(source)
    before = {split: scan(Watched(source, ALL), some) for split, some in samples.items()}
    for one in before.values():
        one.stamps[:] = ["old"] * len(one.stamps)
    write_index(out, "0" * 64, samples, before)
    changed = {"a/008.png", "b/005.png", "b/011.png"}
    (photos / "b" / "011.png").write_bytes((photos / "a" / "000.png").read_bytes())
    expected = {split: scan(Watched(source, ALL), some) for split, some in samples.items()}
    for split, one in expected.items():
        one.stamps[:] = ["new" if ref in changed else "old" for ref in samples[split].refs]
    watched, known = Watched(source, frozenset(changed)), read_index(out, "0" * 64)
    done: list[int] = []
    changes: list[int] = []
    found = read_all(watched, samples, known, done.append, 0, None, changes.append, no_word)
    assert_same(found, expected)
    assert sum(done) == N
    assert changes == [3]


def test_a_row_group_of_parquet_is_read_once(tmp_path: Path) -> None:
    image = encode(np.zeros((2, 2, 3), np.uint8), "png", 95)
    for file, n_rows in enumerate((20, 3, 11)):
        table = pa.table({"image": [image] * n_rows, "label": [0] * n_rows})
        path = tmp_path / f"train-0000{file}-of-00003.parquet"
        pq.write_table(table, path, row_group_size=7)
    source = open_source(str(tmp_path), tmp_path)
    train = source.listing().splits["train"]
    found = [
        sorted({(Path(path).name[:11], group) for path, group, _ in train.take(part).refs})
        for part in fingerprint.parts(source, train, np.arange(len(train)))
    ]
    # Eight rows make a part, and what is left of their last group.
    a, b, c = (f"train-0000{file}" for file in range(3))
    assert found == [[(a, 0), (a, 1)], [(a, 2), (b, 0)], [(c, 0), (c, 1)]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_worker_that_does_not_see_the_data_set_is_told_before_work_starts(
    photos: Path, tmp_path: Path
) -> None:
    source = Folder(photos)
    elsewhere = f'mount -t tmpfs tmpfs {photos} && exec "$@"'
    with Cluster(tmp_path) as dask:
        dask.scheduler()
        dask.worker(before=("unshare", "--mount", "sh", "-c", elsewhere, "sh"))
        with (
            connected(dask.address) as coming,
            pytest.raises(EnvironmentFailed, match=r"a worker cannot read [ab]/\d+\.png, which"),
        ):
            read_all(
                *(source, splits_of(source), {}, no_one, 2, dask.address, given(coming)),
                lambda text, **fields: None,
            )
