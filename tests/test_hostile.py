"""Names, folders, lists, shards, manifests and archives of others: a clear line or a right result,
and nothing is read or written outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import tfrecord
from datasets.clean import clean
from datasets.errors import SourceError, printable
from datasets.fingerprint import read_each, scan
from datasets.folder import Folder
from datasets.listing import ListFile
from datasets.parquet_shards import ParquetShards
from datasets.shard_files import find_shards
from datasets.source import Listing
from datasets.storage import walk
from datasets.tfrecord_shards import TFRecordShards
from tests.running import run, write_photos
from tests.test_folders import PNG, classes_of, write_files

EVIL = "a\n\x1b[31mpipeline: all done\u202e"  # another line, in red, written from right to left


def test_a_name_can_neither_forge_a_line_nor_move_the_cursor(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 12), tmp_path / EVIL
    (photos / "cat" / f"{EVIL}.png").write_bytes(b"no image")
    job = ("augment", "--dataset", photos, "--workers", 0, "--copies", 1, "--max-bad", 0.5)
    printed = [run(*job, "--out", out).stderr, run("inspect", out).stdout]
    printed += [run("verify", out).stdout, run("augment", "--out", out, code=2).stderr]
    (tmp_path / f".{EVIL}.partial-0123456789abcdef").mkdir()
    printed.append(run("clean", tmp_path).stdout)
    for text in printed:
        assert all(line.isprintable() for line in text.splitlines())
        assert not any(
            line.startswith(("\x1b", "pipeline: all done")) for line in text.splitlines()
        )
        assert r"a\n\x1b[31mpipeline: all done\u202e" in text


def test_a_long_line_keeps_its_head_and_its_end() -> None:
    line = printable("head" + "x" * 100_000 + "end")
    assert len(line) < 4_000
    assert line.startswith("head")
    assert line.endswith("end")


def test_an_output_whose_name_is_too_long_is_refused(tmp_path: Path) -> None:
    told = run("augment", "--out", tmp_path / ("x" * 250), code=2).stderr
    assert "File name too long; choose another" in told


@pytest.mark.parametrize(
    "words",
    [
        ("augment", "--out", "~nobody-is-called-so/x"),
        ("augment", "--dataset", "~nobody-is-called-so/x"),
        ("augment", "--out", "loop/x"),
        ("compare", "loop"),
        ("verify", "x" * 300),
        ("run", "x" * 300),
        ("status", "x" * 300),
        ("clean", "x" * 300),
    ],
)
def test_a_path_that_cannot_be_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    assert len(run(*words, code=2).stderr.splitlines()) == 1


def test_links_in_a_class_that_lead_nowhere_or_to_themselves_are_no_folders(
    tmp_path: Path,
) -> None:
    root = write_files(tmp_path, "cat/a.png", "dog/b.png")
    (root / "dog" / "gone").symlink_to("nowhere")
    (root / "cat" / "loop").symlink_to("loop")
    listing = Folder(root).listing()
    assert listing.classes == ("cat", "dog")
    assert listing.ignored == ("cat/loop", "dog/gone")


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """An image under 1,200 folders, which pytest itself could not remove."""
    root, here = write_files(tmp_path / "photos", "cat/a.png"), os.getcwd()
    os.chdir(root / "cat")
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    Path("b.png").write_bytes(PNG)
    os.chdir(here)
    yield root
    subprocess.run(["rm", "-r", root], check=True)


def test_folders_may_be_nested_by_the_thousand(nested: Path) -> None:
    assert set(classes_of(Folder(nested).listing())) == {"cat/a.png", f"cat/{'d/' * 1200}b.png"}
    assert list(clean(nested)) == []


def test_what_is_removed_while_a_folder_is_walked_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "below").mkdir(parents=True)
    found = []
    for path in walk(tmp_path):
        found.append(path.name)
        if len(found) == 3:
            shutil.rmtree(tmp_path / "b")
    assert {"a", "b", "c"} <= set(found)
    assert found.count("below") == 2


def test_names_that_look_alike_stay_apart(tmp_path: Path) -> None:
    names = ["é/1.png", "e\u0301/1.png", "😀/1.png", "\u200bzero/1.png", "-rf/$(id).png"]
    listing = Folder(write_files(tmp_path, *names)).listing()
    assert set(classes_of(listing)) == set(names)
    assert len(listing.classes) == 5


def test_two_names_that_are_written_alike_are_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    for name in (b"\xff.png", rb"\xff.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(photos / "cat"), name))).write_bytes(PNG)
    told = run("augment", "--dataset", photos, "--out", tmp_path / "out", code=2).stderr
    assert "appears in" in told


@pytest.mark.slow
def test_a_hundred_thousand_files_in_one_folder_cost_little_time_and_memory(tmp_path: Path) -> None:
    root, n = write_files(tmp_path, "dog/a.png"), 100_000
    (root / "cat").mkdir()
    for i in range(n):
        (root / "cat" / f"{i}.png").write_bytes(PNG)
    source, process = Folder(root), psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    splits = source.listing().splits
    assert sum(map(len, splits.values())) == n + 1
    assert not any(scan(source, samples).errors for samples in splits.values())
    print(f"{n / (time.monotonic() - started):,.0f} files/s")
    assert process.memory_info().rss - before < 1_500 * n  # ids, paths and hashes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\na.png,cat, big\n", "row 1 has more cells than there are columns"),
        ("path,label,label\na.png,cat,dog\n", "2 columns are named 'label'"),
        (f'path,label\n"{"x" * 200_000}",a\n', "field larger than field limit"),
        ('path,label\n"a.png,cat\n', "unexpected end of data"),
        ("path,label\na.png,cat\n".encode("utf-16"), "'utf-8' codec can't decode"),
    ],
)
def test_a_csv_list_that_may_mean_something_else_is_refused(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match=expected):
        ListFile(path).listing()


def repeated(n: int, value: bytes | str) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))


def test_a_small_parquet_list_of_a_billion_bytes_is_refused(tmp_path: Path) -> None:
    column = repeated(600_000, "x" * 1000)
    table = pa.table({"path": column, "label": column})
    pq.write_table(table, tmp_path / "l.parquet", store_schema=False)
    assert (tmp_path / "l.parquet").stat().st_size < 1_000_000
    with pytest.raises(SourceError, match="more than 1,073,741,824 bytes of text; split the list"):
        ListFile(tmp_path / "l.parquet").listing()


def test_many_bad_rows_are_not_asked_for_again_and_again() -> None:
    asked: list[int] = []

    class Gone:
        name, channels = "gone", 3

        def read(self, refs: Sequence[int]) -> Iterator[bytes]:
            asked.append(len(refs))
            raise OSError

        def listing(self) -> Listing:
            raise NotImplementedError

    n = 20_000
    assert all(isinstance(data, OSError) for data in read_each(Gone(), range(n)))
    assert len(asked) == n
    assert sum(asked) <= n * 1001  # the rest each time would be ten times as many


def shards(folder: Path, table: pa.Table, **options: Any) -> ParquetShards:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "train-00000-of-00001.parquet", **options)
    return ParquetShards(folder, find_shards(folder))


@pytest.mark.slow
def test_small_shards_of_many_billion_bytes_are_refused(tmp_path: Path) -> None:
    labels = pa.array(np.zeros(500, np.int8))
    table = pa.table({"image": repeated(500, b"\0" * 5_000_000), "label": labels})
    source = shards(tmp_path, table, compression="zstd", store_schema=False)
    assert source.first.stat().st_size < 10_000
    with pytest.raises(SourceError, match="a row group holds more than 2,147,483,648 bytes"):
        list(read_each(source, source.listing().splits["train"].refs))


@pytest.mark.parametrize("shape", ["[-1, 4, 3]", "{", "3", "[2, 6]", "[1, 3, 4]", "[" * 100_000])
def test_pixels_of_an_impossible_shape_are_refused(tmp_path: Path, shape: str) -> None:
    meta = {"encoding": "raw", "shape": shape}
    kinds = [pa.field("image", pa.binary(12), metadata=meta), pa.field("label", pa.int64())]
    source = shards(tmp_path, pa.table([[b"x" * 12], [0]], schema=pa.schema(kinds)))
    with pytest.raises(SourceError, match="its shape or `huggingface` metadata cannot be read"):
        source.listing()


def test_columns_of_others_are_not_taken_for_ours(tmp_path: Path) -> None:
    table = pa.table({"image": [PNG], "label": [0], "sample_id": [7], "copy": [0]})
    assert list(shards(tmp_path / "a", table).listing().splits["train"].ids) == ["train/000000"]
    doubled = pa.table([[PNG], [PNG], [0]], names=["image", "image", "label"])
    with pytest.raises(SourceError, match="its columns are image, image, label"):
        shards(tmp_path / "b", doubled).listing()


@pytest.mark.parametrize("length", [2**33, 2**63, 2**64 - 1])
def test_a_record_longer_than_its_file_is_never_read(tmp_path: Path, length: int) -> None:
    head = tfrecord.HEAD.pack(length, tfrecord.masked_crc(length.to_bytes(8, "little")))
    (tmp_path / "b-train.tfrecord-00000-of-00001").write_bytes(head + b"x" * 100)
    with pytest.raises(SourceError, match="ends inside the record at byte 12"):
        TFRecordShards(tmp_path, find_shards(tmp_path)).listing()


def test_what_is_no_regular_file_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-00000-of-00001.parquet")
    assert find_shards(tmp_path) == {}
