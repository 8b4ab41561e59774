"""Fetches files with a checksum and a progress bar, once."""

from __future__ import annotations

import logging
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any, Protocol

from datasets.errors import EnvironmentFailed, first_line

MOST_GROWTH, LEAST_LIMIT = 10, 10_000_000  # of an extracted archive; bytes that always may be


class Log(Protocol):
    """Where a download is told of; `pipeline.report.Report` is one."""

    @property
    def has_bars(self) -> bool: ...

    def say(self, text: str, **fields: Any) -> None: ...


def fetch(url: str, checksum: str, path: Path, log: Log) -> Path:
    """`path`, which holds the file at `url`; downloaded unless it is there already.

    Args:
      checksum: `sha256:...` or `md5:...`; a file with another one is never left under `path`.
    Raises: EnvironmentFailed if the download or its check fails; the same command may work later.
    """
    if path.is_file():
        return path
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.ERROR)
    log.say(f"downloading {url} to {path.parent}", event="download", url=url, path=str(path))
    try:
        downloader = pooch.HTTPDownloader(progressbar=Bar() if log.has_bars else False)
        pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=downloader)
    except (requests.RequestException, OSError, ValueError) as err:
        reason = first_line(err)
        raise EnvironmentFailed(
            f"{url}: could not be downloaded: {reason}; try again later, or put the file at {path} "
            "yourself"
        ) from err
    return path


class Bar:
    """The part of a tqdm bar that pooch wants, drawn with rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.progress.start()
        self.task = self.progress.add_task("", total=None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "total":
            self.progress.update(self.task, total=value)
        super().__setattr__(name, value)

    def update(self, n_bytes: int) -> None:
        self.progress.advance(self.task, n_bytes)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        self.progress.stop()


class Filter:
    """`tarfile`'s own filter against what leads out of a folder, and against bombs: all members
    together may take ten times the archive's bytes, and each at least the 512 of its header."""

    def __init__(self, archive_bytes: int) -> None:
        self.n_bytes, self.most = 0, MOST_GROWTH * archive_bytes + LEAST_LIMIT

    def __call__(self, member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        """Raises: TarError if the member is not to be extracted."""
        self.n_bytes += 512 + member.size
        if self.n_bytes > self.most:
            raise tarfile.TarError(f"its members take more than {self.most:,} bytes")
        return tarfile.data_filter(member, path)


def extract(archive: Path, inside: str, folder: Path) -> Path:
    """`folder/inside`, taken whole out of the .tar.gz archive unless it is there already.

    Nothing is written outside of the folder, and nothing half-done is left under that name.
    Raises: EnvironmentFailed if the archive is broken, unsafe, or the folder cannot be written.
    """
    target = folder / inside
    if target.is_dir():
        return target
    try:
        place = tempfile.TemporaryDirectory(dir=folder, prefix=".extract-")
    except OSError as err:
        raise EnvironmentFailed(
            f"{folder}: cannot be written ({err.strerror}), which extracting {archive.name} needs; "
            "choose another --data-dir, or extract it there yourself"
        ) from err
    try:
        with place as scratch:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter=Filter(archive.stat().st_size))
            try:
                (Path(scratch) / inside).rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
    except (tarfile.TarError, OSError, EOFError, zlib.error) as err:
        raise EnvironmentFailed(
            f"{archive}: cannot be extracted: {err}; remove it and run the same command again"
        ) from err
    return target
