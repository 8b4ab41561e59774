"""Decoding in a throw-away process, for inputs that may have killed a worker.

Run as `python -m pipeline.decoder` it is that process: it reads length-prefixed files from
standard input and answers each with an image (NumPy's format, never pickled) or a reason.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import IO

import numpy as np

from datasets import images
from datasets.errors import EnvironmentFailed, ImageError

MAX_DEATHS = 3
# Kind (1 or 3: a file and its channels; r ready, i image, e bad input, f failure), bytes after it.
LENGTH = struct.Struct("<cQ")


class DecoderProcess:
    """Decodes as `images.decode` does, in a child process that an input may kill."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, channels: int) -> np.ndarray:
        """(H, W, channels) uint8.

        Raises: ImageError if the input is bad, or if by itself it kills the child three times;
          EnvironmentFailed if there is no memory or no process to be had.
        """
        for _ in range(MAX_DEATHS):
            child = self.child or self._start()
            try:
                send(child.stdin, b"%d" % channels, data)
                kind, answer = receive(child.stdout)
            except (EOFError, BrokenPipeError):
                child.wait()
                status = child.returncode
                self.close()
                continue
            if kind == b"e":
                raise ImageError(answer.decode())
            if kind == b"f":
                raise EnvironmentFailed(answer.decode())
            return np.load(io.BytesIO(answer), allow_pickle=False)
        raise ImageError(
            f"kills the decoder ({MAX_DEATHS} times, "
            f"{f'signal {-status}' if status < 0 else f'exit code {status}'})"
        )

    def _start(self) -> subprocess.Popen[bytes]:
        self.child = subprocess.Popen(
            # -P: what lies in the current folder must not stand in for this package.
            [sys.executable, "-P", "-m", "pipeline.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            receive(self.child.stdout)  # it is there; from now on a death is an input's doing
        except EOFError:
            self.close()
            raise EnvironmentFailed(
                "the process that decodes images cannot be started; try again, and look at the "
                "memory and the installation of this machine"
            ) from None
        return self.child

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


def send(stream: IO[bytes] | None, kind: bytes, data: bytes) -> None:
    assert stream is not None
    stream.write(LENGTH.pack(kind, len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes] | None) -> tuple[bytes, bytes]:
    """Raises EOFError where the other side is gone."""
    assert stream is not None
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    kind, n = LENGTH.unpack(head)
    data = stream.read(n)
    if len(data) < n:
        raise EOFError
    return kind, data


def serve() -> None:
    """Answers until standard input ends."""
    send(sys.stdout.buffer, b"r", b"")
    while True:
        try:
            kind, data = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = io.BytesIO()
            np.save(answer, images.decode(data, int(kind)), allow_pickle=False)
            send(sys.stdout.buffer, b"i", answer.getvalue())
        except ImageError as err:
            send(sys.stdout.buffer, b"e", str(err).encode())
        except EnvironmentFailed as err:
            send(sys.stdout.buffer, b"f", str(err).encode())


if __name__ == "__main__":
    serve()
