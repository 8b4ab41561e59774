"""Input and output on a real S3 server: the same bytes as on disk, whatever happens."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.lease import is_gone, this_process
from datasets.manifest import encode_manifest, read_manifest
from datasets.versions import POINTERS
from tests.object_storage import KEY, SECRET, Faulty, Server, moto, rclone
from tests.running import PIPELINE, run, start, tree_hash, write_photos
from tests.small_backbones import SIDE
from tests.test_sources import write_cub200

JOB = ("augment", "--copies", 2, "--image-size", 24, "--encoding", "png")
JOB += ("--block-samples", 16, "--max-bad", 0.1)
VERSION = "0123456789abcdef"
LISTED = ("augment", "--copies", 1, "--image-size", 24, "--block-samples", 16, "--workers", 0)
SLOW = pytest.mark.slow
ENV_OF_NOBODY = {"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With 80 photos, of which one is broken, below `photos/` in the bucket `data`."""
    root = tmp_path_factory.mktemp("s3")
    photos = write_photos(root / "data" / "photos", 80)
    cut = photos / "cat" / "000.png"  # which is not noticed before it is decoded
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (photos / "cat" / "002.png").rename(photos / "cat" / "a [1]*?#é.png")
    with rclone(root) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The output of the same photos on disk."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(*JOB, "--dataset", server.root / "data" / "photos", "--workers", 0, "--out", out)
    return tree_hash(out)


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A key of its own for the output of a test."""
    return f"{tmp_path.parent.name}-{tmp_path.name}"


def command(out: str, *more: object) -> tuple[object, ...]:
    return (*JOB, "--dataset", "s3://data/photos", "--out", out, *more)


def latest(folder: Path) -> Path | None:
    """The version that the last pointer names; as a foreign reader would find it."""
    pointers = sorted((folder / POINTERS).glob("*.json"))
    return folder / json.loads(pointers[-1].read_text())["version"] if pointers else None


def is_tidy(folder: Path) -> bool:
    """Whether an output has nothing beside its pointers and its versions."""
    hidden = [name for name in tree_hash(folder) if re.search(r"(^|/)\.(?!\w+\.index-)", name)]
    return not hidden


@pytest.mark.parametrize("workers", [pytest.param(0, marks=SLOW), 2])
def test_an_output_in_object_storage_has_the_bytes_of_one_on_disk(
    server: Server, place: str, undisturbed: dict[str, str], workers: int
) -> None:
    out = server.root / "data" / place / "out"
    job = command(f"s3://data/{place}/out", "--workers", workers)
    assert "not used: cat/000.png" in run(*job, env=server.env).stderr
    assert tree_hash(latest(out)) == undisturbed
    assert is_tidy(out)
    assert "nothing to do" in run(*job, env=server.env).stderr
    said = run("verify", f"s3://data/{place}/out", "--deep", "--dataset", "s3://data/photos",
               env=server.env).stdout  # fmt: skip
    assert "rows made again from the source, all equal" in said


@pytest.fixture(scope="module")
def sources(server: Server) -> None:
    """The photos once more: as a list, and as shards of both formats."""
    photos = server.root / "data" / "photos"
    names = [p.relative_to(photos.parent).as_posix() for p in sorted(photos.rglob("*.png"))[1:]]
    text = "path,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names)
    server.files().pipe_file("data/photos.csv", text.encode())
    for kind in ("parquet", "tfrecord"):
        there = ("--dataset", "s3://data/photos.csv", "--out", f"s3://data/{kind}")
        run(*LISTED, "--format", kind, *there, env=server.env)


def test_shards_and_lists_in_object_storage_are_sources_too(
    server: Server, place: str, sources: None, tmp_path: Path
) -> None:
    data = server.root / "data"
    for kind in ("parquet", "tfrecord"):
        job = (*LISTED, "--format", kind)
        run(*job, "--dataset", data / "photos.csv", "--out", tmp_path / kind)
        assert tree_hash(latest(data / kind)) == tree_hash(tmp_path / kind)
        again = ("--dataset", f"s3://data/{kind}", "--out", f"s3://data/{place}/again-{kind}")
        run(*job, *again, env=server.env)
        assert latest(data / place / f"again-{kind}") is not None
    sheet = tmp_path / "sheet.png"
    run("preview", "s3://data/parquet", "--out", sheet, env=server.env)
    assert sheet.stat().st_size
    assert "shift_x_px" in run("inspect", "s3://data/tfrecord", env=server.env).stdout


def test_the_official_folder_of_cub200_is_read_from_object_storage(
    server: Server, place: str, tmp_path: Path
) -> None:
    folder, out = write_cub200(tmp_path / "birds"), tmp_path / "out"
    server.files().put(str(folder), f"data/{place}/birds", recursive=True)
    job = ("augment", "--copies", 1, "--image-size", 24, "--workers", 0)
    run(*job, "--dataset", folder, "--out", out)
    there = ("--dataset", f"s3://data/{place}/birds", "--out", f"s3://data/{place}/out")
    run(*job, *there, env=server.env)
    assert tree_hash(latest(server.root / "data" / place / "out")) == tree_hash(out)


@pytest.mark.slow
def test_a_training_reads_its_shards_from_object_storage(
    server: Server, place: str, tmp_path: Path
) -> None:
    job = ("augment", "--limit", 60, "--copies", 1, "--workers", 0)
    run(*job, "--out", f"s3://data/{place}/digits", env=server.env)
    run(*job, "--out", tmp_path / "digits")
    options = ("--model", "textbook", "--epochs", 1, "--batch-size", 16, "--quiet")
    for name, shards in (("a", f"s3://data/{place}/digits"), ("b", tmp_path / "digits")):
        out = tmp_path / name
        run("train", "--offline", shards, *options, "--out", out, env=server.env)
    assert (tmp_path / "a" / "history.csv").read_text().splitlines()[1].split(",")[:3] == (
        (tmp_path / "b" / "history.csv").read_text().splitlines()[1].split(",")[:3]
    )


@pytest.mark.slow
def test_features_are_made_from_shards_in_object_storage(
    server: Server, place: str, photos: Path, tmp_path: Path
) -> None:
    shards = f"s3://data/{place}/colours"
    job = ("augment", "--dataset", photos, "--image-size", SIDE, "--copies", 1, "--workers", 0)
    run(*job, "--out", shards, env=server.env)
    network = ("--model", "MobileNet", "--alpha", 0.25, "--weights", "none", "--mode", "freeze")
    where = ("--features", tmp_path / "features", "--out", tmp_path / "run")
    run("train", "--offline", shards, *network, "--epochs", 2, *where, env=server.env)
    assert len([*(tmp_path / "features").glob("colours-MobileNet-*/_SUCCESS")]) == 1
    assert "accuracy" in run("evaluate", tmp_path / "run", env=server.env).stdout


def test_damage_in_object_storage_is_found(server: Server, place: str) -> None:
    run("augment", "--limit", 60, "--copies", 1, "--out", f"s3://data/{place}/out", env=server.env)
    shard = next(latest(server.root / "data" / place / "out").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    server.files().pipe_file(f"data/{shard.relative_to(server.root / 'data')}", bytes(data))
    said = run("verify", f"s3://data/{place}/out", code=3, env=server.env).stderr
    assert f"{shard.name}: its sha256 is not the manifest's" in said


@pytest.mark.slow
def test_old_versions_stay_for_a_day_after_they_were_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    folder = tmp_path / "data" / "out"
    job = ("augment", "--limit", 40, "--workers", 0, "--out", "s3://data/out", "--keep", 1)
    with rclone(tmp_path) as server:
        run(*job, "--copies", 1, env=server.env)
        first = latest(folder)
        said = run(*job, "--copies", 2, env=server.env).stderr
        assert "kept while somebody may read it" in said
        assert tree_hash(first)
    shutil.copytree(first, folder / VERSION)  # as if its run had been killed before the pointer
    for path in (*(folder / POINTERS).iterdir(), folder / VERSION / "_SUCCESS"):
        os.utime(path, (path.stat().st_mtime - 2 * 86400,) * 2)
    with rclone(tmp_path) as server:
        said = run(*job, "--copies", 3, env=server.env).stderr
        assert f"{first.name}: removed, an old version" in said
        assert not first.exists()
        assert not (folder / VERSION).exists()
        run("verify", "s3://data/out", env=server.env)


# (method, path of the request): before the first of them (of records the second, so that one shard
# is done), everything before it has happened, and it has not.
STEPS = {
    "attempt": ("PUT", r"/\.records/train[^/]+\.attempt"),
    "shard": ("PUT", r"/train[^/]+\.parquet"),
    "record": ("PUT", r"/\.records/train[^/]+\.json"),
    "manifest": ("PUT", r"/_manifest\.json"),
    "success": ("PUT", r"/_SUCCESS"),
    "records": ("(POST|DELETE)", r"(delete|/\.records)"),
    "pointer": ("PUT", r"/_versions/"),
    "lease": ("PUT", r"/\.lease/0"),
}


@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("record", "before"),
        pytest.param("pointer", "after", marks=SLOW),
        *(pytest.param(s, "before", marks=SLOW) for s in STEPS if s != "record"),
        *(pytest.param(s, "after", marks=SLOW) for s in ("shard", "success")),
    ],
)
def test_a_group_killed_at_any_request_and_resumed_gives_the_same_bytes(
    server: Server, place: str, undisturbed: dict[str, str], step: str, when: str
) -> None:
    out, folder = f"s3://data/{place}/out", server.root / "data" / place / "out"
    method, pattern = STEPS[step]
    started: list[subprocess.Popen[bytes]] = []
    ready, killed, seen = threading.Event(), threading.Event(), threading.Event()
    matched: list[str] = []

    def fault(asked: str, path: str) -> str | None:
        if when == "after" and seen.is_set():  # the request after it
            kill()
        elif re.fullmatch(method, asked) and re.search(pattern, path):
            matched.append(path)
            if step == "record" and len(matched) == 1:
                return None
            seen.set()
            if when == "before":
                kill()
                return "drop"
        return None

    def kill() -> None:
        if not killed.is_set():
            killed.set()
            ready.wait()
            os.killpg(started[0].pid, signal.SIGKILL)
            started[0].wait()

    with Faulty(server, fault) as proxy:
        started.append(
            subprocess.Popen(
                [PIPELINE, *map(str, command(out, "--workers", 0))],
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **proxy.front.env},
            )
        )
        ready.set()
        started[0].wait(timeout=120)
    assert killed.is_set()
    if found := latest(folder):
        assert tree_hash(found) == undisturbed
    elif folder.exists():
        said = run("verify", out, code=2, env=server.env).stderr
        assert "nothing is finished there: a run has begun and not come to its end" in said
    said = run(*command(out, "--workers", 0), env=server.env).stderr
    if step == "record":
        assert "resuming: 1 of 9 shards are done" in said
    assert tree_hash(latest(folder)) == undisturbed
    assert is_tidy(folder)


def test_a_storage_that_fails_and_is_slow_costs_time_and_nothing_else(
    server: Server, place: str, undisturbed: dict[str, str]
) -> None:
    chance = random.Random(5)
    faults: list[str] = []

    def fault(_method: str, _path: str) -> str | None:
        told = chance.choices([None, "error", "drop", "late"], [90, 6, 3, 1])[0]
        faults.extend([told] if told else [])
        return told

    with Faulty(server, fault) as proxy:
        run(*command(f"s3://data/{place}/out", "--workers", 0), env=proxy.front.env)
    assert {"error", "drop", "late"} == set(faults)
    assert tree_hash(latest(server.root / "data" / place / "out")) == undisturbed


@pytest.mark.parametrize(
    "reached",
    [
        r"/photos/",
        *(pytest.param(p, marks=SLOW) for p in (r"/train[^/]+\.parquet", r"/_versions/0")),
    ],
)
def test_a_storage_that_goes_away_ends_the_run_and_quarantines_nothing(
    server: Server, place: str, undisturbed: dict[str, str], reached: str
) -> None:
    out, is_down = f"s3://data/{place}/out", threading.Event()

    def fault(_method: str, path: str) -> str | None:
        if re.search(reached, path):
            is_down.set()
        return "error" if is_down.is_set() else None

    with Faulty(server, fault) as proxy:
        env = {**proxy.front.env, "AWS_MAX_ATTEMPTS": "2"}  # not to wait for what cannot come
        said = run(*command(out, "--workers", 0), code=5, env=env).stderr
    assert "the storage fails" in said
    assert latest(server.root / "data" / place / "out") is None
    run(*command(out, "--workers", 0), env=server.env)
    assert tree_hash(latest(server.root / "data" / place / "out")) == undisturbed


@pytest.mark.parametrize(
    ("words", "asked", "nth", "told"),
    [
        (("augment", "--dataset", "s3://data/photos"), r"prefix=photos%2F&delim.*&e", 13, "error"),
        (("augment", "--dataset", "s3://data/photos"), r"GET .*/dog/.*\.png", 1, "expired"),
        (("augment", "--dataset", "s3://data/photos.csv"), r"GET .*/photos\.csv", 1, "error"),
        (("augment", "--dataset", "s3://data/parquet"), r"GET .*/parquet/.*-00003-of", 1, "error"),
        (("augment", "--dataset", "s3://data/tfrecord"), r"GET .*/tfrecord/.*-00003", 5, "expired"),
        (("verify", "s3://data/parquet", "--deep"), r"GET .*/parquet/.*-00003-of", 3, "error"),
        (("verify", "s3://data/tfrecord", "--deep"), r"GET .*/tfrecord/.*features", 2, "error"),
    ],
)
def test_a_storage_that_fails_is_nobodys_mistake(
    server: Server,
    place: str,
    sources: None,
    words: tuple[str, ...],
    asked: str,
    nth: int,
    told: str,
) -> None:
    """Neither of the user, who would be told to fix the folder, nor of the file, which would be
    called damaged or left out. It fails from the nth such request on."""
    matched = 0

    def fault(method: str, path: str) -> str | None:
        nonlocal matched
        matched += re.search(asked, f"{method} {path}") is not None
        return told if matched >= nth else None

    out = ("--out", f"s3://data/{place}/out", "--workers", 0) if words[0] == "augment" else ()
    with Faulty(server, fault) as proxy:
        env = {**proxy.front.env, "AWS_MAX_ATTEMPTS": "1"}
        said = run(*words, *out, code=5, env=env).stderr
    assert matched >= nth
    assert "the storage fails" in said


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=SLOW)])
def test_a_stop_does_not_wait_for_a_storage_that_is_gone(
    server: Server, place: str, undisturbed: dict[str, str], workers: int
) -> None:
    out, is_gone = f"s3://data/{place}/out", threading.Event()

    def fault(_method: str, path: str) -> str | None:
        if re.search(r"/train[^/]+\.parquet", path):
            is_gone.set()
        return "drop" if is_gone.is_set() else None

    with Faulty(server, fault) as proxy:
        first = start(*command(out, "--workers", workers), env=proxy.front.env)
        assert is_gone.wait(timeout=60)
        first.terminate()
        _, said = first.communicate(timeout=30)  # a request is repeated for a minute by default
    assert first.returncode == 143
    assert said.splitlines()[-1].startswith("pipeline: stopped")
    run(*command(out, "--workers", workers), env=server.env)
    assert tree_hash(latest(server.root / "data" / place / "out")) == undisturbed
    assert is_tidy(server.root / "data" / place / "out")


def test_a_second_run_is_told_that_another_one_is_going(server: Server, place: str) -> None:
    out = f"s3://data/{place}/out"
    reached, go_on = threading.Event(), threading.Event()

    def fault(_method: str, path: str) -> None:
        if re.search(r"/train[^/]+\.parquet", path):
            reached.set()
            go_on.wait()

    with Faulty(server, fault) as proxy:
        first = subprocess.Popen(
            [PIPELINE, *map(str, command(out, "--workers", 0))],
            stderr=subprocess.PIPE,
            env={**os.environ, **proxy.front.env},
        )
        assert reached.wait(timeout=60)
        said = run(*command(out, "--workers", 0), code=4, env=server.env).stderr
        go_on.set()
        assert first.wait(timeout=60) == 0
        first.communicate()
    assert "another run is writing it" in said


def test_two_runs_that_both_believe_to_be_alone_do_not_both_publish(tmp_path: Path) -> None:
    """On a storage that heeds conditions: what the lease should prevent is prevented again."""
    job = ("augment", "--limit", 40, "--copies", 1, "--workers", 0, "--out", "s3://bucket/out")
    with moto(tmp_path) as server:
        files = server.files()
        files.mkdir("bucket")
        run(*job, env=server.env)

        def fault(method: str, path: str) -> None:
            if method == "PUT" and path.endswith("/_versions/00000002.json"):
                body = b'{"run": "another", "version": "0123456789abcdef"}'
                if not files.exists("bucket/out/_versions/00000002.json"):
                    files.pipe_file("bucket/out/_versions/00000002.json", body)

        with Faulty(server, fault) as proxy:
            said = run(*job, "--seed", 1, code=4, env=proxy.front.env).stderr
    assert "another run has published there meanwhile" in said


@pytest.mark.parametrize(
    ("url", "env", "code", "expected"),
    [
        ("s3://nowhere/photos", {}, 2, "nothing is there"),
        ("s3://data/photos", {"AWS_SECRET_ACCESS_KEY": "wrong"}, 2, "the storage refuses it"),
        ("s3://data/photos", {"AWS_ACCESS_KEY_ID": "nobody"}, 2, "the storage refuses it"),
        ("s3://data/photos", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 5, "the storage fails"),
        ("ftp://data/photos", {}, 2, "ftp:// is not known"),
        ("s3://me:password-of-mine@data/photos", {}, 2, "holds credentials"),
    ],
)
def test_what_is_wrong_with_a_place_is_told_in_one_line(
    server: Server, tmp_path: Path, url: str, env: dict[str, str], code: int, expected: str
) -> None:
    job = (*JOB, "--dataset", url, "--out", tmp_path / "out")
    said = run(*job, code=code, env={**server.env, "AWS_MAX_ATTEMPTS": "1", **env}).stderr
    assert expected in said
    assert len(said.splitlines()) == 1
    assert "password-of-mine" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_does_not_exist_is_no_place_for_an_output(server: Server) -> None:
    job = ("augment", "--limit", 40, "--workers", 0, "--out", "s3://nowhere/out")
    (line,) = run(*job, code=2, env=server.env).stderr.splitlines()
    assert line.startswith("pipeline: s3://nowhere/out/.lease: the storage refuses it: ")
    assert "bucket does not exist" in line


def test_a_holder_is_gone_where_its_process_would_be_seen(tmp_path: Path) -> None:
    holder = this_process()
    assert not is_gone(holder)
    ended = {**holder, "started": "1"}
    assert is_gone(ended)
    assert not is_gone({**ended, "space": "of another machine, or container, with the same name"})


def test_credentials_are_in_no_file_and_no_log(server: Server, place: str) -> None:
    folder = server.root / "data" / place
    job = command(f"s3://data/{place}/out", "--log-format", "json", "--workers", 2)
    result = run(*job, env={**server.env, **ENV_OF_NOBODY})
    found = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for word in (KEY, SECRET):
        assert word not in result.stderr + result.stdout
        assert word.encode() not in found


def test_clean_leaves_nothing_of_a_run_that_was_not_committed(server: Server, place: str) -> None:
    out = f"s3://data/{place}/out"
    run(*command(out, "--workers", 0, "--max-bad", 0), code=3, env=server.env)
    (version,) = (server.root / "data" / place / "out").glob("[!.]*")
    said = run("augment", "--dataset", f"{out}/{version.name}", code=2, env=server.env).stderr
    assert "a run has begun to write there and has not come to its end" in said
    assert "give that path" not in run("augment", "--dataset", out, code=2, env=server.env).stderr
    assert tree_hash(server.root / "data" / place / "out")
    run("clean", out, env=server.env)
    assert not tree_hash(server.root / "data" / place / "out")


def test_clean_leaves_what_is_named_like_a_version_and_is_none(server: Server, place: str) -> None:
    run(*command(f"s3://data/{place}/out", "--workers", 0, "--max-bad", 0), code=3, env=server.env)
    photos = write_photos(server.root / "data" / place / "people" / "0123456789abcdef", 3)
    assert "people" not in run("clean", f"s3://data/{place}", env=server.env).stdout
    assert len(tree_hash(photos)) == 3
    assert not tree_hash(server.root / "data" / place / "out")


def test_a_clean_that_was_stopped_midway_is_finished_by_the_next(
    server: Server, place: str
) -> None:
    out, folder = f"s3://data/{place}/out", server.root / "data" / place / "out"
    run(*command(out, "--workers", 0, "--max-bad", 0), code=3, env=server.env)
    n_removed = 0

    def fault(method: str, path: str) -> str | None:
        nonlocal n_removed
        if method == "DELETE" or (method, path.partition("?")[2][:6]) == ("POST", "delete"):
            n_removed += 1
            return "error" if n_removed > 1 else None
        return None

    with Faulty(server, fault) as proxy:
        env = {**proxy.front.env, "AWS_MAX_ATTEMPTS": "1"}
        run("clean", out, code=5, env=env)
    assert n_removed > 1
    assert tree_hash(folder)
    assert "removed" in run("clean", out, env=server.env).stdout
    assert not tree_hash(folder)


def test_overwrite_mends_a_damaged_version(
    server: Server, place: str, undisturbed: dict[str, str]
) -> None:
    out, folder = f"s3://data/{place}/out", server.root / "data" / place / "out"
    run(*command(out, "--workers", 0), env=server.env)
    gone, other, *_ = sorted(latest(folder).glob("*.parquet"))
    server.files().rm_file(str(gone.relative_to(server.root)))
    other.write_bytes(bytes(other.stat().st_size))
    assert "--overwrite" in run("verify", out, code=3, env=server.env).stderr
    run(*command(out, "--workers", 0, "--overwrite"), env=server.env)
    assert tree_hash(latest(folder)) == undisturbed
    assert is_tidy(folder)
    # Where it may become other bytes it is left alone, since it is read meanwhile.
    manifest = read_manifest(latest(folder))
    older = replace(manifest, versions={**manifest.versions, "pillow": "1.0"})
    path = f"data/{latest(folder).relative_to(server.root / 'data')}/_manifest.json"
    server.files().pipe_file(path, encode_manifest(older).encode())
    said = run(*command(out, "--workers", 0, "--overwrite"), code=2, env=server.env).stderr
    assert "was made with other libraries (versions: pillow was 1.0" in said
    assert "every hash fits" in run("verify", out, env=server.env).stdout


def test_parts_of_uploads_that_a_killed_run_left_are_ended(server: Server, place: str) -> None:
    files = server.files()
    files.call_s3(
        "create_multipart_upload", Bucket="data", Key=f"{place}/out/{VERSION}/train.parquet"
    )
    files.call_s3("create_multipart_upload", Bucket="data", Key=f"{place}/out/others.tar")
    said = run("clean", f"s3://data/{place}/out", env=server.env).stdout
    assert "ended 1 unfinished uploads" in said
    (left,) = files.call_s3("list_multipart_uploads", Bucket="data")["Uploads"]
    assert left["Key"] == f"{place}/out/others.tar"
    files.call_s3("abort_multipart_upload", Bucket="data", Key=left["Key"],
                  UploadId=left["UploadId"])  # fmt: skip
    said = run("clean", f"s3://data/{place}/out", env=server.env).stdout
    assert said.startswith(f"s3://data/{place}/out: nothing ")


@pytest.fixture(scope="module")
def committed(server: Server) -> str:
    """An output that stays as it is."""
    run(*command("s3://data/committed", "--workers", 0), env=server.env)
    return "s3://data/committed"


@pytest.mark.parametrize("order", ["clean", "verify", "augment"])
def test_a_storage_that_does_not_answer_is_not_taken_for_an_empty_one(
    server: Server, committed: str, undisturbed: dict[str, str], order: str
) -> None:
    out, folder = committed, server.root / "data" / "committed"

    def fault(method: str, path: str) -> str | None:
        is_asked = method == "HEAD" and path.endswith(("/_SUCCESS", "/_manifest.json"))
        return "error" if is_asked else None

    with Faulty(server, fault) as proxy:
        env = {**proxy.front.env, "AWS_MAX_ATTEMPTS": "1"}
        again = command(out, "--workers", 0) if order == "augment" else (order, out)
        said = run(*again, code=5, env=env).stderr
    assert "the storage fails" in said
    assert tree_hash(latest(folder)) == undisturbed
    assert is_tidy(folder)
