"""The commands around a run: what they print, refuse, leave behind and leave alone."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.catalog import CATALOG
from datasets.manifest import read_manifest
from pipeline.ops import OPS
from pipeline.policy import PRESETS
from pipeline.report import counted
from tests.running import PIPELINE, leftovers, run, tree_hash, wait_until, write_photos

JOB = ("augment", "--limit", 300, "--copies", 2, "--workers", 0)
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("output") / "out"
    run(*JOB, "--out", out)
    return out


def table_of(out: Path, split: str = "") -> pa.Table:
    return pa.concat_tables(pq.read_table(p) for p in sorted(out.glob(f"{split}*.parquet")))


@pytest.mark.parametrize("kind", ["digits", "many copies", "photos"])
def test_a_dry_run_writes_nothing_and_says_what_the_run_writes(tmp_path: Path, kind: str) -> None:
    job = {
        "digits": ("augment",),
        "many copies": ("augment", "--limit", 100, "--copies", 40),
        "photos": ("augment", "--dataset", write_photos(tmp_path / "photos", 40)),
    }[kind]
    before = tree_hash(tmp_path)
    said = run(*job, "--dry-run", "--out", tmp_path / "out").stdout
    assert tree_hash(tmp_path) == before
    run(*job, "--workers", 0, "--out", tmp_path / "out")
    shards = read_manifest(tmp_path / "out").shards
    rows = sum(record.rows for record in shards)
    assert f"would write {tmp_path / 'out'}: {rows:,} images in {len(shards)} shards, " in said
    for split in ("train", "test"):
        found = table_of(tmp_path / "out", split)
        ids, copies = set(found["sample_id"].to_pylist()), set(found["copy"].to_pylist())
        n = sum(record.split == split for record in shards)
        some = counted(len(copies), "copy", "copies")
        assert f"{split:7} {len(ids):,} samples x {some} in {counted(n, 'shard')}" in said
    number, unit = re.search(r"about ([\d.]+) (B|kB|MB)", said).groups()
    estimate = float(number) * UNITS[unit]
    assert estimate == pytest.approx(sum(record.bytes for record in shards), rel=0.3)


def stats(out: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in [out, *out.iterdir()]}


def test_the_same_job_again_does_nothing(output: Path) -> None:
    before = stats(output)
    assert run(*JOB, "--out", output).stderr.endswith("done before; nothing to do\n")
    assert stats(output) == before


def test_an_engine_is_of_the_online_path(tmp_path: Path) -> None:
    job = ("augment", "--engine", "tensorflow", "--out", tmp_path / "out")
    assert "leave it out, or give --online" in run(*job, code=2).stderr


def test_names_that_standard_output_has_no_letters_for_are_escaped(tmp_path: Path) -> None:
    run("augment", "--limit", 20, "--copies", 1, "--out", tmp_path / "ü")
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    said = run("verify", tmp_path / "ü", env=ascii_only).stdout
    assert "\\xfc: " in said


@pytest.mark.parametrize("option", [("--dry-run",), ("--workers", 1), ("--format", "tfrecord")])
def test_options_of_files_are_refused_online(tmp_path: Path, option: tuple[object, ...]) -> None:
    command = ("augment", "--online", *option, "--out", tmp_path / "sheet.png")
    assert f"--online: writes no shards; leave out {option[0]}" in run(*command, code=2).stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--seed", 7), "seed was 0, now 7"),
        (("--policy", "light"), r"policy was shift.*brightness.*, now shift\(x=0.05, y=0.05\)"),
        (("--copies", 3), "splits: train: copies was 2, now 3"),
        (
            ("--encoding", "png", "--compression", "zstd"),
            "compression was none, now zstd; encoding was raw, now png",
        ),
        (("--dataset", "PHOTOS"), "dataset was digits, now photos;.* the source's content differs"),
    ],
)
def test_another_job_into_the_same_folder_is_refused_and_says_what_differs(
    tmp_path: Path, output: Path, options: tuple[str, ...], expected: str
) -> None:
    if "PHOTOS" in options:
        options = ("--dataset", str(write_photos(tmp_path / "photos")))
    before = stats(output)
    message = run(*JOB, *options, "--out", output, code=2).stderr
    assert re.search(rf"holds the output of another job \(.*{expected}", message), message
    assert "with --overwrite" in message
    assert len(message.splitlines()) == 1
    assert stats(output) == before


def test_overwrite_replaces_and_history_has_a_line_a_run(tmp_path: Path, output: Path) -> None:
    out, history = tmp_path / "out", tmp_path / "out.runs.jsonl"
    run(*JOB, "--seed", 7, "--out", out)
    run(*JOB, "--out", out, "--overwrite")
    assert tree_hash(out) == tree_hash(output)
    assert leftovers(out) == []
    first, second = map(json.loads, history.read_text().splitlines())
    assert first["job_sha256"] != second["job_sha256"] == read_manifest(out).job_sha256
    assert second["rows"] == 300 * 3 + 300 == table_of(out).num_rows
    assert "--overwrite" in second["command"]
    assert {"plan", "start_up", "work", "commit"} == set(second["seconds"])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """The folder into which a long run is writing."""
    out = tmp_path / "out"
    command = [PIPELINE, "augment", "--copies", "1000", "--workers", "0", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob(".out.partial-*")), "the run")
    yield out
    assert process.poll() is None  # else it was not running while the test looked
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_a_second_run_into_the_same_folder_is_refused(running: Path) -> None:
    result = run(*JOB, "--out", running, code=4)
    assert result.stderr == (
        f"pipeline: {running}: another run is writing it; wait for that one or choose another "
        "--out\n"
    )


def test_clean_leaves_a_running_run_alone(running: Path) -> None:
    (partial,) = running.parent.glob(".out.partial-*")
    assert "another run is writing it" in run("clean", running.parent, code=4).stderr
    assert partial.is_dir()


def test_two_runs_at_once_into_different_folders_do_not_disturb_each_other(
    tmp_path: Path, output: Path
) -> None:
    processes = [
        subprocess.Popen(
            [PIPELINE, *map(str, JOB), "--workers", "2", "--out", str(tmp_path / name / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for name, process in zip("ab", processes, strict=True):
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert stdout == ""
        (line,) = stderr.splitlines()
        assert line.startswith(f"{tmp_path / name / 'out'}: 1,200 images (test 300, train 900) in")
        assert tree_hash(tmp_path / name / "out") == tree_hash(output)


def test_what_an_unfinished_run_left_is_named_and_cleaned(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "outputs" / "out"
    whole = (photos / "cat" / "000.png").read_bytes()
    (photos / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    job = ("augment", "--dataset", photos, "--workers", 0, "--out", out)
    run(*job, code=3)
    (left,) = out.parent.glob(".out.partial-*")
    result = run(*job, "--seed", 1, "--max-bad", 1)
    assert (
        f"{left}: left by an unfinished run of another job; `pipeline clean {out}` removes"
        in result.stderr
    )
    mine = out.parent / ".out.partial-thoughts"  # hidden and alike in name, but none of ours
    mine.mkdir()
    before = tree_hash(out)
    assert run("clean", out).stdout == f"removed {left}\n{out}: 1 removed or put back\n"
    assert leftovers(out) == [".out.partial-thoughts"]
    assert tree_hash(out) == before
    assert run("clean", tmp_path).stdout == f"{tmp_path}: nothing to remove\n"
    assert run("clean", tmp_path / "aut").stdout == f"{tmp_path / 'aut'}: nothing is there\n"


def test_a_run_is_worth_more_than_its_log(output: Path, tmp_path: Path) -> None:
    command = [PIPELINE, *map(str, JOB), "--log-format", "json", "--out", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        subprocess.run(command, stdout=full, stderr=full, check=True)
    assert tree_hash(tmp_path / "out") == tree_hash(output)


def test_a_result_that_cannot_be_printed_is_a_failure() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([PIPELINE, "schema"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 5
    assert done.stderr.startswith(b"pipeline: what is written or printed: No space left on device;")


BUG = """
import sys
import cli, datasets.clean
def clean(folder):
    return 1 / 0
datasets.clean.clean = clean
sys.argv[0] = "pipeline"
cli.main()
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_bug_ends_with_1_and_its_traceback(tmp_path: Path, log_format: str) -> None:
    command = [sys.executable, "-c", BUG, "clean", str(tmp_path), "--log-format", log_format]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    told = done.stderr
    if log_format == "json":
        event = json.loads(told)
        assert (event["event"], event["exit_code"]) == ("error", 1)
        assert "ZeroDivisionError" in event["message"]
        told = event["traceback"]
    assert told.lstrip().startswith("Traceback (most recent call last):\n")
    assert ", in clean\n" in told
    assert told.rstrip().endswith("ZeroDivisionError: division by zero")


def cells(text: str) -> dict[str, list[str]]:
    """First cell of each line of the tables -> the others."""
    lines = [line.strip("│┃").split("│") for line in text.splitlines() if "│" in line]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_inspect_shows_the_job_and_counts_and_ranges_of_the_rows(output: Path) -> None:
    said = cells(run("inspect", output).stdout)
    manifest = read_manifest(output)
    assert said["policy"][0].startswith("shift(x=0.1,")
    assert (said["seed"], said["limit"], said["format"]) == (["0"], ["300"], ["parquet"])
    assert said["job hash"] == [manifest.job_sha256[:16]]
    assert "quality" not in said  # of raw pixels
    test, train = table_of(output, "test"), table_of(output, "train")
    copies = [train.filter(pa.compute.equal(train["copy"], i)) for i in range(3)]
    assert all(copy["label"].value_counts() == copies[0]["label"].value_counts() for copy in copies)
    for label, name in enumerate(manifest.classes):
        counts = [Counter(t["label"].to_pylist())[label] for t in (test, copies[0])]
        assert said[name] == [str(n) for n in counts]
    assert said["all"] == ["300", "300"]
    augmented = pa.concat_tables(copies[1:])
    for name in ("shift_x_px", "shift_y_px", "angle_deg", "brightness"):
        values = augmented[name].to_numpy().astype(np.float64)
        want = [f"{v:.3f}" for v in (values.min(), values.mean(), values.max())]
        assert said[name] == want


def test_inspect_fits_a_terminal_with_any_number_of_copies_and_any_names(tmp_path: Path) -> None:
    names = ["[bold]cat", ":dog:", "[/]"]  # styles and signs to the library that draws tables
    photos = sorted(write_photos(tmp_path / "photos").rglob("*.png"))
    lines = [f"{path},{names[i % 3]}\n" for i, path in enumerate([*photos, "[b].png"])]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(lines))
    run(
        *("augment", "--dataset", tmp_path / "list.csv", "--copies", 30, "--max-bad", 1),
        *("--policy", "strong|albumentations.GaussianBlur(p=0.25)"),
        *("--workers", 0, "--out", tmp_path / "out"),
    )
    result = run("inspect", tmp_path / "out").stdout
    assert "train 0 to 30" in result
    assert set(names) <= set(cells(result))
    assert "not used: [b].png: cannot be read: No such file or directory" in result
    assert "albumentations.GaussianBlur(p=0.25)" in re.sub(r"[\s│]+", "", result)
    assert max(map(len, result.splitlines())) <= 80


def test_every_data_set_op_and_preset_is_listed() -> None:
    names = [line.split()[0] for line in run("datasets").stdout.splitlines()]
    assert names[: len(CATALOG)] == list(CATALOG)
    policies = run("policies").stdout
    for name, text in PRESETS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", policies, re.M)
    for name in OPS:
        assert re.search(rf"^  {name}\(.*\)$", policies, re.M)


def test_json_lines_are_whole_objects_and_end_with_what_was_done(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "out"
    (photos / "cat" / "notes.txt").write_text("no image")
    (photos / "cat" / "empty.png").write_bytes(b"")
    result = run(
        *("augment", "--dataset", photos, "--max-bad", 1, "--log-format", "json"),
        *("--workers", 0, "--out", out),
    )
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert all({"time", "message", "event"} <= set(event) for event in events)
    shards, done = read_manifest(out).shards, events[-2]
    kinds = ["ignored", "sizes", *["shard"] * len(shards), "done", "quarantined"]
    assert [event["event"] for event in events] == kinds
    assert (done["out"], done["shards"]) == (str(out), len(shards))
    assert done["rows"] == table_of(out).num_rows
    assert done["bytes"] == sum(record.bytes for record in shards)
    assert (events[-1]["sample"], events[-1]["reason"]) == ("cat/empty.png", "empty file")


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    result = run("augment", "--limit", 20, "--workers", 0, "--quiet", "--out", tmp_path / "out")
    assert (result.stdout, result.stderr) == ("", "")


ALL, ORIGINAL = [0, 1, 2], [0]


@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        (("--split", "test"), ORIGINAL, ALL),
        (("--split", "all"), ALL, ALL),
        (("--no-eval-splits",), ALL, None),
        (("--no-original",), [1, 2], ORIGINAL),
        (("--split", "all", "--no-original"), [1, 2], [1, 2]),
    ],
)
def test_options_choose_splits_and_copies(
    tmp_path: Path, options: tuple[str, ...], train: list[int], test: list[int] | None
) -> None:
    out = tmp_path / "out"
    run("augment", "--limit", 20, "--copies", 2, "--workers", 0, *options, "--out", out)
    for split, copies in (("train", train), ("test", test)):
        if copies is None:
            assert not list(out.glob(f"{split}*"))
        else:
            found = Counter(table_of(out, split)["copy"].to_pylist())
            assert found == dict.fromkeys(copies, 20)


def test_an_image_size_is_height_by_width(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    run(
        *("augment", "--dataset", photos, "--image-size", "10x12", "--workers", 0),
        *("--out", tmp_path / "out"),
    )
    field = table_of(tmp_path / "out").schema.field("image")
    assert json.loads(field.metadata[b"shape"]) == [10, 12, 3]
    assert field.type.byte_width == 10 * 12 * 3
