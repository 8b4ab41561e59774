"""A user's mistake, a bad input or a full disk: one clear line, the right exit code, and nothing
half-visible."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.manifest import read_manifest
from tests.running import (
    PIPELINE,
    fill_up,
    leftovers,
    run,
    tree_hash,
    wait_for_first_shard,
    write_photos,
)


def refused(code: int, *arguments: object) -> str:
    """The one line that the command prints."""
    result = run(*arguments, code=code)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("pipeline: ")
    return lines[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--dataset", "cifar01"), "did you mean 'cifar10'"),
        (("--dataset", "/nowhere/at/all"), "nor a path that exists; look at each part of it"),
        (("--dataset", "/etx"), "nor a path that exists; did you mean 'etc'?"),
        (("--dataset", "cifar"), "nor a path that exists; did you mean 'cifar10'?"),
        (("--policy", "rotat(degrees=3)"), "did you mean 'rotate'"),
        (("--copies", 0, "--no-original"), "nothing to write"),
        (("--copies", 70_000), "expected 0 to 65,535, got 70,000"),
        (("--copies", -1), "expected 0 to 65,535"),
        (("--seed", -1), "expected 0 to 2**64 - 1"),
        (("--split", "validation"), "digits has train, test"),
        (("--image-size", "big"), "expected pixels such as 224"),
        (("--image-size", "12000"), "expected at most 100,000,000 pixels"),
        (("--format", "tfrecord", "--compression", "zstd"), "reads no compressed TFRecord"),
        (("--dataset", ""), "expected a name or a path, got nothing"),
        (
            ("--dataset", "s3://"),
            "s3://: has no bucket; expected something like s3://bucket/photos",
        ),
        (("--quality", 80), "the images are stored as raw"),
        (("--policy", "albumentations.RandomScale(p=0.0005)"), "cannot be part of a policy"),
    ],
)
def test_mistakes_in_options_are_told_in_one_line(
    tmp_path: Path, options: tuple[object, ...], expected: str
) -> None:
    assert expected in refused(2, "augment", "--out", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://", "gs:///out", "az://"])
def test_an_output_without_a_bucket_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("augment", "--out", url), ("verify", url), ("clean", url)):
        assert f"{url}: has no bucket; expected something like" in refused(2, *command)
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_does_not_exist_suggests_the_nearest() -> None:
    line = refused(2, "augment", "--copie", 3)
    assert "--copie (Possible options: --copies" in line
    assert line.endswith("; see `pipeline augment --help`")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "--model", "MobilNetV2"), "VGG16, VGG19, .*; did you mean 'MobileNetV2'\\?$"),
        (("crossval", "--model", "x"), ": --model x: expected one of cnn, .*, ConvNeXtTiny$"),
        (("train", "--alpha", 0), ": --alpha 0: expected greater than or equal to 0.05$"),
        (("augment", "--copies", "many"), ": --copies many: expected a valid integer$"),
        (("verify",), "Missing argument 'PATH.URL'; see `pipeline verify --help`$"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_with_what_was_expected(
    words: tuple[object, ...], expected: str
) -> None:
    assert re.search(expected, refused(2, *words))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(2, "augment", "--dataset", tmp_path / "empty", "--out", tmp_path / "out")
    assert "expected one subfolder for each class" in line


def test_a_folder_with_classes_but_no_images(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("no image")
    line = refused(2, "augment", "--dataset", tmp_path / "photos", "--out", tmp_path / "out")
    assert "no images found" in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("path,kind\na.png,1\n", "no column 'label'; it has path, kind"),
        ("name,label\na.png,1\n", "no column 'path'; it has name, label"),
        ("path;label\na.png;1\n", "it has path;label; columns are separated by commas"),
        ("path,label\na.png,\n", "row 1 lacks a path or a label"),
        ("path,label\n", "has no rows"),
        ("", "has no rows"),
        ("path,label\na.png,1\na.png,2\n", "sample id 'a.png' appears"),
        ("path,label\nmissing.png,1\n", "not one of its 1 files is an image"),
    ],
)
def test_a_list_with_a_mistake(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "l.csv").write_text(content)
    line = refused(2, "augment", "--dataset", tmp_path / "l.csv", "--out", tmp_path / "out")
    assert expected in line


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for option in ("--resume", "--overwrite"):
        assert "it is left alone" in refused(2, "augment", "--out", out, option)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_nor_is_what_another_program_has_committed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "_SUCCESS").touch()  # Spark and Hadoop leave one too
    (out / "part-0.csv").write_text("1")
    assert "it is left alone" in refused(2, "augment", "--out", out, "--overwrite")
    assert (out / "part-0.csv").read_text() == "1"


def test_what_appears_there_while_a_run_goes_on_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = ("augment", "--copies", 200, "--workers", 0, "--out", out, "--quiet")
    process = subprocess.Popen([PIPELINE, *map(str, job)], stderr=subprocess.PIPE, text=True)
    wait_for_first_shard(out)
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "it is left alone" in stderr
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    run(*job)  # what was ready is committed
    assert read_manifest(out).shards


def test_an_output_and_its_data_set_do_not_lie_in_each_other(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "all" / "photos")
    for out, expected in (
        (photos / "augmented", "lies inside the data set"),
        (photos, "lies inside the data set"),
        (tmp_path / "all", "lies inside; choose another place"),
    ):
        job = ("augment", "--dataset", photos, "--out", out, "--overwrite")
        assert expected in refused(2, *job)
    assert len(list(photos.rglob("*.png"))) == 12


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "out"):
        assert f"{tmp_path / 'file'} is a file, and no folder" in refused(
            2, "augment", "--out", out
        )


def test_an_output_behind_a_link_is_written_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    job = ("augment", "--limit", 20, "--workers", 0, "--out", tmp_path / "link")
    run(*job)
    assert read_manifest(tmp_path / "disk").shards
    assert "nothing to do" in run(*job).stderr
    run(*job, "--seed", 1, "--overwrite")
    assert (tmp_path / "link").is_symlink()
    assert read_manifest(tmp_path / "link").job["seed"] == 1


def test_an_image_too_large_for_jpeg_is_one_bad_input(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    cv2.imwrite(str(photos / "cat" / "long.png"), np.zeros((1, 70_000, 3), np.uint8))
    job = ("augment", "--dataset", photos, "--out", out, "--copies", 1, "--workers", 0)
    run(*job, "--max-bad", 0.1)
    ((name, why),) = read_manifest(out).quarantined
    assert name == "cat/long.png"
    assert "a JPEG holds at most 65,500 a side" in why
    run(*job, "--encoding", "png", "--overwrite")
    assert read_manifest(out).quarantined == []


def test_a_history_that_cannot_be_written_does_not_undo_the_commit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "out.runs.jsonl").mkdir()
    result = run("augment", "--limit", 20, "--workers", 0, "--out", out)
    assert "out.runs.jsonl: cannot be written" in result.stderr
    assert read_manifest(out).shards


def with_bad_files(folder: Path) -> Path:
    photos = write_photos(folder / "photos", 40)
    (photos / "cat" / "empty.jpg").write_bytes(b"")
    (photos / "dog" / "text.png").write_text("not an image")
    whole = next((photos / "dog").glob("*.png")).read_bytes()
    (photos / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return photos


def test_too_many_bad_inputs_commit_nothing_and_keep_the_shards(tmp_path: Path) -> None:
    photos, out = with_bad_files(tmp_path), tmp_path / "out"
    command = ("augment", "--dataset", photos, "--out", out, "--workers", 0)
    line = refused(3, *command, "--quiet", "--max-bad", 0.05)
    assert "3 of 43 inputs cannot be used, --max-bad 0.05 allows 2" in line
    assert "cat/empty.jpg: empty file" in line
    assert not out.exists()
    (partial,) = tmp_path.glob(".out.partial-*")
    kept = {p.name: p.stat().st_ino for p in partial.glob("*.parquet")}
    result = run(*command, "--max-bad", 0.1)
    assert {p.name: p.stat().st_ino for p in out.glob("*.parquet")} == kept
    assert "not used: cat/empty.jpg: empty file" in result.stderr
    names = [sample_id for sample_id, _ in read_manifest(out).quarantined]
    assert sorted(names) == ["cat/empty.jpg", "dog/cut.png", "dog/text.png"]


def test_too_many_unreadable_inputs_are_refused_before_any_work(tmp_path: Path) -> None:
    photos, out = with_bad_files(tmp_path), tmp_path / "out"
    command = ("augment", "--dataset", photos, "--out", out, "--workers", 0)
    line = refused(3, *command)
    assert "2 of 43 inputs cannot be used, --max-bad 0.01 allows 0: cat/empty.jpg: empty" in line
    assert "run again with a higher --max-bad" in line
    assert refused(3, *command, "--dry-run") == line
    assert not list(tmp_path.glob(".out.partial-*"))
    run(*command, "--max-bad", 0.1)
    assert "nothing to do" in run(*command).stderr  # what stands was allowed when it was made


@pytest.mark.parametrize("options", [(), ("--online", "--image-size", 20)])
def test_all_bad_inputs_are_in_the_log_of_a_run_that_is_refused(
    tmp_path: Path, options: tuple[object, ...]
) -> None:
    photos = write_photos(tmp_path / "photos" / "train")
    names = [f"train/cat/empty{i}.png" for i in range(7)]
    for name in names:
        (tmp_path / "photos" / name).write_bytes(b"")
    job = ("augment", "--dataset", photos.parent, "--log-format", "json", *options)
    result = run(*job, "--out", tmp_path / "out.png", code=3)
    bad, error = map(json.loads, result.stderr.splitlines())
    assert "; and 2 more; " in error["message"]
    assert bad["event"] == "bad_inputs"
    assert bad["files"] == [{"sample": name, "reason": "empty file"} for name in names]


def test_a_file_that_changes_while_the_run_reads_it_is_noticed(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 12), tmp_path / "out"
    script = f"""
import os, sys
from pathlib import Path
import pipeline.shard
original = pipeline.shard.write_shard
def changed(task):
    path = Path({str(photos)!r}) / task.samples.ids[0]
    path.write_bytes(path.read_bytes() + b"x")
    return original(task)
pipeline.shard.write_shard = changed
sys.argv = ["pipeline", "augment", "--dataset", {str(photos)!r}, "--out", {str(out)!r},
            "--workers", "0", "--quiet"]
import cli
cli.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 5
    assert "changed while the run read it" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


def test_a_disk_that_is_too_small_is_told_before_work_starts(small_disk: Path) -> None:
    line = refused(5, "augment", "--copies", 50, "--out", small_disk / "out", "--quiet")
    assert "8.5 MB are needed and 4.2 MB are free" in line
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_is_read_only_is_told_before_work_starts(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    line = refused(5, "augment", "--out", small_disk / "out", "--quiet")
    assert "cannot be written (Read-only file system); choose another --out" in line


def test_a_disk_that_fills_up_during_the_run_and_is_freed_again(
    tmp_path: Path, small_disk: Path
) -> None:
    job = ("augment", "--copies", 3, "--quiet", "--workers", 2)
    run(*job, "--out", tmp_path / "plenty" / "out")
    out, ballast = small_disk / "out", small_disk / "ballast"
    # Room enough when the run starts; taken by someone else once the first shard is there.
    process = subprocess.Popen(
        [PIPELINE, *map(str, job), "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    wait_for_first_shard(out)
    fill_up(ballast)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 5, stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert "No space left on device; free some space" in stderr
    assert not out.exists()
    ballast.unlink()
    run(*job, "--out", out)
    assert tree_hash(out) == tree_hash(tmp_path / "plenty" / "out")


def test_a_foreign_reader_never_opens_an_unfinished_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[int] = []
    finished = threading.Event()

    def inode() -> int | None:
        return out.stat().st_ino if out.exists() else None

    def poll() -> None:
        while not finished.is_set():
            with contextlib.suppress(FileNotFoundError):
                before, found = inode(), 0
                try:
                    for path in out.glob("*.parquet"):
                        found += pq.read_table(path, columns=["copy"]).num_rows
                except OSError:
                    if inode() == before:
                        raise
                if inode() == before is not None:  # else replaced while it was being read
                    seen.append(found)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        run("augment", "--copies", 3, "--out", out, "--workers", 2)
        run("augment", "--copies", 3, "--seed", 1, "--out", out, "--workers", 2, "--overwrite")
    finally:
        finished.set()
        thread.join()
    rows = sum(record.rows for record in read_manifest(out).shards)
    assert set(seen) == {rows}


KILLER = """
import os, signal
import datasets.images as images
original = images.decode
def decode(data, channels=3):
    if data.endswith(b"kills the decoder"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return original(data, channels)
images.decode = decode
"""


# Of twelve, it is among those that the size of the output is estimated from.
@pytest.mark.parametrize("n", [12, 40])
def test_an_input_that_kills_the_decoder_is_quarantined_and_costs_no_other(
    tmp_path: Path, n: int
) -> None:
    photos, out = write_photos(tmp_path / "photos", n), tmp_path / "out"
    victim = next((photos / "cat").glob("*.png"))
    victim.write_bytes(victim.read_bytes() + b"kills the decoder")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    env = {"PYTHONPATH": str(tmp_path / "site")}
    result = run(
        *("augment", "--dataset", photos, "--out", out, "--workers", 2, "--max-bad", 0.1),
        env=env,
    )
    reason = "kills the decoder (3 times, signal 11)"
    assert read_manifest(out).quarantined == [(f"cat/{victim.name}", reason)]
    assert f"not used: cat/{victim.name}: {reason}" in result.stderr
    ids = {i for p in out.glob("*.parquet") for i in pq.read_table(p)["sample_id"].to_pylist()}
    assert len(ids) == n - 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)],
)
def test_an_interrupted_run_says_so_and_goes_on(tmp_path: Path, sent: int, code: int) -> None:
    job, out = ("augment", "--copies", 200, "--workers", 2), tmp_path / "out"
    process = subprocess.Popen(
        [PIPELINE, *map(str, job), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_first_shard(out)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as from a terminal: to every process of the run
    else:
        process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stderr == "pipeline: stopped; the same command goes on from there\n"
    assert not out.exists()
    assert "shards are done" in run(*job, "--out", out).stderr
    assert leftovers(out) == []
