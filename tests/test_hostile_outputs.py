"""Outputs and archives of others: what they say of themselves is checked, and leads nowhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.clean import clean
from datasets.download import extract
from datasets.errors import Damaged, EnvironmentFailed, UserError
from datasets.manifest import MANIFEST, is_output, read_manifest, sha256_text
from datasets.schema import canonical_json
from pipeline import check, contents, preview
from pipeline.report import Report
from pipeline.shard_images import ShardImages
from tests.running import run

NO_DATA = Path("/nowhere")


@pytest.fixture(scope="module", params=["parquet", "tfrecord"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs") / "out"
    options = ("--limit", 24, "--copies", 2, "--workers", 0, "--format", request.param)
    run("augment", *options, "--out", out)
    return out


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Writes the manifest with the change, and the hash that fits it."""
    body = json.loads((folder / MANIFEST).read_text())
    body.pop("sha256", None)
    change(body)
    body["sha256"] = sha256_text(canonical_json(body))
    (folder / MANIFEST).write_text(canonical_json(body))


@pytest.mark.parametrize(
    "name", ["../secret.parquet", "/etc/passwd", "..", ".", "", "a/b", "a\0b", ".x", "a\nb"]
)
def test_a_manifest_that_names_files_outside_is_damaged(
    output: Path, tmp_path: Path, name: str
) -> None:
    for change in (
        lambda m: m["shards"][0].update(name=name),
        lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0"}}),
    ):
        folder = shutil.copytree(output, tmp_path / "out", dirs_exist_ok=True)
        forge(folder, change)
        with pytest.raises(Damaged, match="is not the name of a file in it"):
            read_manifest(folder)


def test_a_manifest_that_names_a_path_as_its_data_set_is_damaged(
    output: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(output, tmp_path / "out")
    forge(folder, lambda m: m["job"].update(dataset="/etc"))
    with pytest.raises(Damaged, match="'/etc' is not the name of a data set"):
        check.check(folder, True, None, NO_DATA, Report(quiet=True))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"job": ' + "9" * 10_000 + "}", "NaN", '"x"', ""])
def test_a_manifest_that_is_none_is_damaged(output: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(output, tmp_path / "out")
    (folder / MANIFEST).write_text(text)
    with pytest.raises(Damaged, match="the manifest is damaged"):
        read_manifest(folder)
    assert not is_output(folder)


def test_a_pipe_in_the_place_of_a_shard_is_never_read(output: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(output, tmp_path / "out")
    shard = folder / read_manifest(folder).shards[0].name
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(Damaged, match="no regular file"):
        read_manifest(folder)


BAD = (None, -1, 10**300, float("nan"), "", "../x", "\0\n\x1b[31m", "x" * 9999, [], {}, [1, 2, 3])
BAD = (*BAD, {"train": {"copies": 10**12, "blocks": 1}}, [10**9, 10**9, 3], "train", True)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(list or mapping, key) of everything inside."""
    keys = range(len(value)) if isinstance(value, list) else value
    inside = [value[k] for k in keys if isinstance(value[k], list | dict)]
    return [*((value, k) for k in keys), *(place for item in inside for place in places(item))]


def test_a_manifest_with_anything_in_any_place_is_read_or_damaged(
    output: Path, tmp_path: Path
) -> None:
    rng, folder = random.Random(0), shutil.copytree(output, tmp_path / "out")
    whole = (folder / MANIFEST).read_text()

    def change(body: dict[str, Any]) -> None:
        owner, key = rng.choice(places(rng.choice([body, body["job"]])))
        if rng.random() < 0.2:
            del owner[key]
        else:
            owner[key] = rng.choice(BAD)

    def inspect() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            contents.print_contents(folder)

    def train() -> None:
        images = ShardImages(folder, "train")
        images.images(np.arange(2), 1)

    readers = (
        lambda: check.check(folder, True, None, NO_DATA, Report(quiet=True)),
        inspect,
        lambda: preview.draw(preview.from_output(folder, "train", 2, 2), tmp_path / "sheet.png"),
        train,
    )
    for _ in range(80):
        (folder / MANIFEST).write_text(whole)
        forge(folder, change)
        for read in readers:
            with contextlib.suppress(UserError):
                read()


def test_cleaning_follows_no_link_and_leaves_the_folder_itself(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    (outside / ".records").mkdir(parents=True)
    (inside / "deep").mkdir(parents=True)
    end = "partial-0123456789abcdef"
    (inside / f".out.{end}").symlink_to(outside)
    left = inside / "deep" / f".x\ny.{end}"
    for path in (inside / f"...{end}", inside / f"....{end}", left):
        path.mkdir()
    assert list(clean(inside)) == [f"removed {left}"]
    assert (outside / ".records").is_dir()
    assert len(list(inside.iterdir())) == 4


def archive(path: Path, *members: tuple[str, bytes, int, str]) -> Path:
    """Members are (name, type, size, where a link leads); of files the bytes are zeros."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, size, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, size, target
            tar.addfile(info, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize(
    "member",
    [
        ("birds/device", tarfile.CHRTYPE, 0, ""),
        ("birds/pipe", tarfile.FIFOTYPE, 0, ""),
        ("birds/hard", tarfile.LNKTYPE, 0, "../../secret"),
        ("birds/hard", tarfile.LNKTYPE, 0, "/etc/passwd"),
    ],
    ids=["device", "pipe", "hard link", "absolute hard link"],
)
def test_an_archive_of_more_than_files_leaves_nothing(
    tmp_path: Path, member: tuple[str, bytes, int, str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret").write_text("secret")
    path = archive(data / "a.tar.gz", ("birds/1", tarfile.REGTYPE, 3, ""), member)
    with pytest.raises(EnvironmentFailed, match="cannot be extracted"):
        extract(path, "birds", data)
    assert [p.name for p in data.iterdir()] == ["a.tar.gz"]


def test_an_archive_that_grows_a_thousandfold_is_never_written(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.tar.gz", ("birds/zeros", tarfile.REGTYPE, 50_000_000, ""))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(EnvironmentFailed, match="its members take more than 10,"):
        extract(bomb, "birds", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.slow
def test_an_archive_of_countless_empty_files_is_stopped(tmp_path: Path) -> None:
    members = [(f"birds/{i}", tarfile.REGTYPE, 0, "") for i in range(25_000)]
    with pytest.raises(EnvironmentFailed, match="its members take more than 1"):
        extract(archive(tmp_path / "a.tar.gz", *members), "birds", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]
