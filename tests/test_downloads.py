"""Downloads are made once and checked; what is extracted stays in its folder, whole or absent."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from datasets.download import extract, fetch
from datasets.errors import EnvironmentFailed
from pipeline.report import Report
from tests.running import run

CONTENT = np.random.default_rng(0).bytes(100_000)
QUIET = Report(quiet=True)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves CONTENT under /file, half of it under /cut; counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path not in ("/file", "/cut"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/file" else CONTENT[: len(CONTENT) // 2])

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def test_a_file_is_fetched_once(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for _ in range(2):
        assert fetch(server.url("file"), SHA256, path, QUIET) == path
        assert path.read_bytes() == CONTENT
    assert server.asked == ["/file"]
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_md5_is_checked_too(tmp_path: Path, server: Server) -> None:
    right = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    assert fetch(server.url("file"), right, tmp_path / "file", QUIET).read_bytes() == CONTENT
    with pytest.raises(EnvironmentFailed):
        fetch(server.url("file"), f"md5:{'0' * 32}", tmp_path / "other", QUIET)


def test_a_file_that_is_there_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"put here by hand")
    assert fetch("http://127.0.0.1:1/file", SHA256, tmp_path / "file", QUIET).is_file()


@pytest.mark.parametrize("command", ["augment", "preview"])
def test_a_download_is_told_as_all_else_is(tmp_path: Path, command: str) -> None:
    job = (command, "--dataset", "fashion_mnist", "--data-dir", tmp_path, "--out", tmp_path / "out")
    nowhere = {"https_proxy": "http://127.0.0.1:1"}
    lines = run(*job, "--log-format", "json", code=5, env=nowhere).stderr.splitlines()
    begun, error = map(json.loads, lines)
    assert (begun["event"], error["event"]) == ("download", "error")
    assert begun["message"] == f"downloading {begun['url']} to {tmp_path / 'fashion_mnist'}"
    (line,) = run(*job, "--quiet", code=5, env=nowhere).stderr.splitlines()
    assert line.startswith(f"pipeline: {begun['url']}: could not be downloaded: ")


def failed(url: str, checksum: str, path: Path) -> str:
    """The one line about a download that fails; nothing may be left of it."""
    with pytest.raises(EnvironmentFailed) as caught:
        fetch(url, checksum, path, QUIET)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{url}: could not be downloaded: ")
    assert message.endswith(f"; try again later, or put the file at {path} yourself")
    assert " at 0x" not in message
    assert not list(path.parent.iterdir())
    return message


def test_a_wrong_checksum_leaves_nothing_and_says_so(tmp_path: Path, server: Server) -> None:
    message = failed(server.url("file"), f"sha256:{'0' * 64}", tmp_path / "file")
    assert "hash" in message


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(("path", "expected"), [("cut", ""), ("nothing", "404")])
def test_a_download_that_is_cut_or_absent_leaves_nothing(
    tmp_path: Path, server: Server, path: str, expected: str
) -> None:
    assert expected in failed(server.url(path), SHA256, tmp_path / "file")
    gc.collect()  # pooch leaves such a connection open until then


def test_a_server_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    with Server() as closed:
        url = closed.url("file")
    assert "refused" in failed(url, SHA256, tmp_path / "file")


def archive(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_a_folder_is_taken_out_of_an_archive_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = archive(data / "a.tar.gz", ("birds/x/1.txt", b"one"), ("other/2.txt", b"two"))
    assert extract(path, "birds", data) == data / "birds"
    assert (data / "birds" / "x" / "1.txt").read_bytes() == b"one"
    assert sorted(p.name for p in data.iterdir()) == ["a.tar.gz", "birds"]
    path.unlink()  # not looked at again
    assert extract(path, "birds", data) == data / "birds"


@pytest.mark.parametrize(
    "evil",
    [
        ("../outside.txt", b"evil"),
        ("birds/../../outside.txt", b"evil"),
        link("birds/link", "../../outside.txt"),
        link("birds/link", "/etc/passwd"),
    ],
    ids=["parent", "parent inside", "link", "absolute link"],
)
def test_an_archive_that_reaches_out_of_its_folder_is_refused(
    tmp_path: Path, evil: tarfile.TarInfo | tuple[str, bytes]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = archive(data / "a.tar.gz", ("birds/1.txt", b"one"), evil)
    with pytest.raises(EnvironmentFailed, match=f"{path}: cannot be extracted: .*; remove it and"):
        extract(path, "birds", data)
    assert [p.name for p in data.iterdir()] == ["a.tar.gz"]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_member_with_an_absolute_name_stays_inside(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", ("/birds/1.txt", b"one"))
    assert (extract(path, "birds", tmp_path) / "1.txt").read_bytes() == b"one"


def broken(data: bytes, how: str) -> bytes:
    if how == "cut":
        return data[: len(data) // 2]
    if how == "damaged":  # in the middle of the compressed data
        return data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :]
    if how == "bad block":  # no deflate block begins so, which only zlib itself notices
        return gzip.compress(b"")[:10] + b"\xff" * 64
    return b"" if how == "empty" else b"<html>not found</html>"


@pytest.mark.parametrize("how", ["cut", "damaged", "bad block", "empty", "no archive"])
def test_a_broken_archive_leaves_nothing(tmp_path: Path, how: str) -> None:
    whole = archive(tmp_path / "whole", ("birds/1.bin", CONTENT), ("birds/2.bin", CONTENT))
    data = tmp_path / "data"
    data.mkdir()
    path = data / "a.tar.gz"
    path.write_bytes(broken(whole.read_bytes(), how))
    with pytest.raises(EnvironmentFailed, match=f"{path}: cannot be extracted: "):
        extract(path, "birds", data)
    assert [p.name for p in data.iterdir()] == ["a.tar.gz"]


def test_a_folder_that_cannot_be_written_is_told_and_the_archive_is_not_blamed(
    tmp_path: Path,
) -> None:
    path = archive(tmp_path / "a.tar.gz", ("birds/1.txt", b"one"))
    with pytest.raises(EnvironmentFailed, match=r"cannot be written \(.+\), .*another --data-dir"):
        extract(path, "birds", path)  # a file, so that this holds for root too


def test_an_archive_of_something_else_leaves_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", ("fish/1.txt", b"one"))
    with pytest.raises(EnvironmentFailed, match=r"cannot be extracted: .*birds.*"):
        extract(path, "birds", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_two_that_extract_at_once_share_what_the_first_one_made(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", *((f"birds/{i}.bin", CONTENT[:999]) for i in range(99)))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: extract(path, "birds", tmp_path), range(4)))
    assert made == [tmp_path / "birds"] * 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "birds"]
    assert len(list((tmp_path / "birds").iterdir())) == 99
