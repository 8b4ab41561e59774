"""A real S3 server on the loopback interface, whose objects are files of a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

KEY, SECRET = "a-key-of-the-test", "a-secret-of-the-test"


@dataclass(frozen=True)
class Server:
    """Where it listens, and the folder that holds a folder for each bucket."""

    port: int
    root: Path

    @property
    def env(self) -> dict[str, str]:
        """What tells the command where the storage is."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
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
    """Objects are files; conditions of a put are not heeded by it."""
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


def environment(server: Server) -> dict[str, str]:
    return {**os.environ, **server.env}
