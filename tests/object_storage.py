"""A real S3 server on the loopback interface, whose objects are files of a folder."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

KEY, SECRET = "a-key-of-the-test", "a-secret-of-the-test"


@dataclass(frozen=True)
class Server:
    """Where it listens, and the folder that holds a folder for each bucket."""

    port: int
    root: Path

    def files(self) -> Any:
        """The storage as fsspec has it, for what a test does there itself."""
        import s3fs

        return s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    @property
    def env(self) -> dict[str, str]:
        """What tells the command where the storage is."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # rclone mixes them up
        }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it answers, with whatever."""
    for _ in range(600):
        assert process.poll() is None, "the server has ended"
        try:
            urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
        except HTTPError:
            return
        except OSError:
            time.sleep(0.05)  # between two looks, not for a while that must be long enough
        else:
            return
    raise AssertionError("the server does not answer")


@contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def rclone(root: Path) -> Iterator[Server]:
    """Objects are files, to be looked at but not changed: it remembers what lies where. It does not
    heed the conditions of a put."""
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    program = Path(sys.executable).with_name("rclone")
    options = ("--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", "--config", "")
    with serving([str(program), "serve", "s3", *options, str(root)], port):
        yield Server(port, root)


@contextmanager
def moto(root: Path) -> Iterator[Server]:
    """Heeds conditions of a put, as S3 does; objects are in its memory."""
    port = free_port()
    program = Path(sys.executable).with_name("moto_server")
    with serving([str(program), "-H", "127.0.0.1", "-p", str(port)], port):
        yield Server(port, root)


class Faulty(ThreadingHTTPServer):
    """Stands before a server and hands requests on; what `fault` says of one is done to it.

    fault: (method, path) -> None, `error` (answered with 503), `expired` (with 400, as where a
      token has), `drop` (the connection is closed) or `late` (answered after a second); called in
      the threads of the requests. It may also do something itself, such as killing the client:
      then the request is handed on all the same.
    """

    daemon_threads = True

    def __init__(self, server: Server, fault: Callable[[str, str], str | None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.fault = server, fault

    @property
    def front(self) -> Server:
        return Server(self.server_address[1], self.behind.root)

    def __enter__(self) -> Faulty:
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = self.server.fault(self.command, self.path)
        if told == "drop":
            self.close_connection = True
            return
        if told == "error":
            self.answer(503, {}, b"")
            return
        if told == "expired":
            self.answer(
                400, {}, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
            )
            return
        if told == "late":
            time.sleep(1)
        behind = HTTPConnection("127.0.0.1", self.server.behind.port, timeout=60)
        try:
            # The signature is of the host that the client has named.
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders(body)
            found = behind.getresponse()
            self.answer(found.status, dict(found.getheaders()), found.read())
        finally:
            behind.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name not in ("Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)
