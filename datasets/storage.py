"""Where data lies: paths of this machine, or objects by URL (s3://, gs://, az://).

A place in object storage is a `upath.UPath`, which does what is asked of a `Path` here: `/`, name,
parent, open, read_bytes, is_file, stat. What cannot be the same for both is in this file. Where the
storage is and who may use it comes from the environment, as its own tools have it
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, ...): nothing of it is ever in a URL, a log or a manifest.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from datasets.errors import UserError, first_line
from datasets.storage_errors import as_folder_error, hide_credentials, translating_errors

URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<whole>/?)(?P<bucket>[^/]*).*", re.S)
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}  # and the package of each


def place(text: str | Path) -> Path:
    """The path, or the place in object storage of that URL: a `UPath`, typed as what it stands for.

    Raises: UserError if the scheme is not known, its package or what it needs in the environment is
      missing, or the URL holds credentials or no bucket.
    """
    match = URL.fullmatch(text) if isinstance(text, str) else None
    if not match:
        return Path(text)
    scheme = match["scheme"]
    if scheme not in SCHEMES or not match["whole"]:
        raise UserError(
            f"{hide_credentials(str(text))}: {scheme}:/{match['whole']} is not known; expected a "
            f"path, or a URL with {', '.join(f'{known}://' for known in SCHEMES)}"
        )
    refuse_credentials(str(text))
    if not match["bucket"]:
        raise UserError(f"{text}: has no bucket; expected something like {scheme}://bucket/photos")
    try:
        import_module(SCHEMES[scheme])
    except ImportError as err:
        raise UserError(
            f"{text}: needs the package {SCHEMES[scheme]}; install augmentation-pipeline[{scheme}]"
        ) from err
    from upath import UPath

    # What goes wrong is raised too, and told in one line.
    logging.getLogger(SCHEMES[scheme]).setLevel(logging.CRITICAL)
    # Listings are never remembered: other processes write there too.
    found: Any = UPath(str(text).rstrip("/"), use_listings_cache=False)
    try:
        found.fs  # noqa: B018  # made now, from the environment: some of them fail without it
    except Exception as err:
        raise UserError(
            f"{text}: {first_line(err)}; give address and credentials by the environment, as the "
            "storage's own tools take them"
        ) from err
    return found


def refuse_credentials(text: str) -> None:
    """Raises: UserError if it is a URL that holds some."""
    if (hidden := hide_credentials(text)) != text:
        raise UserError(
            f"{hidden}: holds credentials, which would end up in logs; leave "
            "them out and give them by the environment, as the storage's own tools take them"
        )


def local_path(text: str | Path) -> Path:
    """The path.

    Raises: UserError if it is a URL, which a plain path would take for a folder of that name.
    """
    if "://" in str(text):
        raise UserError(f"{text}: is object storage; expected a path on a disk")
    return Path(text)


def is_object(path: Path) -> bool:
    """Whether it is a place in object storage."""
    return not isinstance(path, Path)


def file_system(path: Path) -> Any:
    """fsspec's, of a place in object storage."""
    return path.fs  # type: ignore[attr-defined]


def key(path: Path) -> str:
    """Bucket and key, without the scheme."""
    return path.path.rstrip("/")  # type: ignore[attr-defined]


def kind(path: Path) -> str:
    """`file`, `directory`, or "" where there is nothing. UPath's own `is_file` and `is_dir` say no
    where the storage does not answer, as if nothing were there; this raises EnvironmentFailed."""
    if not is_object(path):
        return "file" if path.is_file() else "directory" if path.is_dir() else ""
    with translating_errors(path), suppress(FileNotFoundError):
        return str(file_system(path).info(key(path))["type"])
    return ""


def create(path: Path, data: bytes) -> bool:
    """Creates the object if absent; returns whether it now holds `data`.

    It is the only operation on which two runs can meet, and needs a storage that heeds conditions
    (`If-None-Match`): S3, Google's and Azure's do.
    """
    with translating_errors(path):
        with suppress(FileExistsError):  # perhaps by a first try whose answer was lost
            file_system(path).pipe_file(key(path), data, mode="create")
        return path.read_bytes() == data


def files_below(folder: Path) -> dict[str, int]:
    """Relative name -> bytes of every file below the folder, hidden ones included."""
    if is_object(folder):
        return {name: int(info["size"]) for name, info in objects_below(folder)}
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(walk(folder) if folder.is_dir() else ())
        if path.is_file()
    }


def objects_below(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Relative name and what the storage says of every object below."""
    start = key(folder) + "/"
    with translating_errors(folder):
        found = file_system(folder).find(start, detail=True)
    # And not what stands for the folder itself, which some tools and servers put there.
    return [(n.removeprefix(start), info) for n, info in found.items() if n.startswith(start)]


def walk(folder: Path) -> Iterator[Path]:
    """Everything below the folder that can be looked at. Links are not followed, and folders may
    be nested deeper than `Path.rglob` can recurse."""
    waiting = [os.fspath(folder)]
    # Closed, or gone since another run commits or removes it meanwhile.
    passed_over = (PermissionError, FileNotFoundError, NotADirectoryError)
    while waiting:
        with suppress(*passed_over), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def tags_below(folder: Path) -> dict[str, str]:
    """Relative name -> size and ETag of every object below; not of those that have no ETag."""
    tags = (
        (n, info["size"], info.get("ETag") or info.get("etag")) for n, info in objects_below(folder)
    )
    return {name: f"{size} {tag}" for name, size, tag in tags if tag}


def copy(path: Path, to: Path) -> None:
    """Copies an object within its storage, to another name."""
    with translating_errors(to):
        file_system(path).cp_file(key(path), key(to))


def entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of what lies in it, links followed."""
    if is_object(folder):
        found: list[dict[str, Any]] = []
        # Where there is no object, there is no folder.
        with suppress(FileNotFoundError), translating_errors(folder):
            found = file_system(folder).ls(key(folder), detail=True)
        for info in found:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if name and info["name"].rstrip("/") != key(folder):
                yield name, info["type"] == "directory"
    else:
        with translating_errors(folder):
            for entry in os.scandir(folder):
                yield entry.name, is_folder(entry)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link that leads nowhere, or to itself, is none.

    Raises: EnvironmentFailed if its disk or mount does not answer, or a sector cannot be read: what
      is in it must not be passed over.
    """
    try:
        return entry.is_dir()
    except OSError as err:
        if told := as_folder_error(entry.path, err):
            raise told from err
        return False


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """The file, open for reading; what the block meets of its storage is raised as by
    `translating_errors`, so that nobody takes it for something about the file."""
    with translating_errors(path), path.open("rb") as file:
        yield file


@contextmanager
def for_arrow(path: Path) -> Iterator[Any]:
    """What pyarrow reads from: the path, or an object that is open; with errors as `open_file`."""
    if not is_object(path):
        with translating_errors(path):
            yield path
        return
    with open_file(path) as file:
        yield file


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that stands whole under `path` once the block has ended well, and else not at all.

    Locally under a dotted name beside it that is unique to the attempt, flushed to disk and
    renamed; an object comes from a temporary file, so that a failed request can be repeated.
    """
    if is_object(path):
        with tempfile.TemporaryFile() as staged:
            yield staged
            put(staged, path)
        return
    temporary, file = open_attempt(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def attempt_file(path: Path, number: int) -> Path:
    """The file that one is written to at first. Those of attempts that died stay."""
    return path.with_name(f".{path.name}.{number}.tmp")


def open_attempt(path: Path) -> tuple[Path, BinaryIO]:
    """A file that no other attempt has, found without listing the folder."""
    for number in count():
        temporary = attempt_file(path, number)
        with suppress(FileExistsError):
            return temporary, temporary.open("xb")
    raise AssertionError


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none of it."""
    if is_object(path):
        with translating_errors(path):
            path.write_bytes(data)
        return
    with new_file(path) as file:
        file.write(data)


def put(file: BinaryIO, path: Path) -> None:
    """Uploads the whole of an open file, in parts where it is large."""
    with translating_errors(path):
        # By the number of its handle, since it has no name that could be left behind.
        file.flush()
        file_system(path).put_file(f"/proc/self/fd/{file.fileno()}", key(path))


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there. In object storage what
    tells whose the others are, named by `.` or `_`, goes last: a kill leaves nobody's files."""
    if is_object(path):
        files = file_system(path)
        with suppress(FileNotFoundError), translating_errors(path):
            names = sorted(files_below(path))
            shards = [f"{key(path)}/{name}" for name in names if name[:1] not in "._"]
            if shards:
                files.rm(shards)
            files.rm(key(path), recursive=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def abort_uploads(folder: Path, ours: re.Pattern[str]) -> int:
    """Ends uploads in parts that a killed process has left, into folders of these names below the
    folder; how many there were. Nobody sees them, but S3 keeps and charges for their parts."""
    files = file_system(folder)
    if "s3" not in files.protocol:
        return 0  # the others let them expire by themselves
    bucket, prefix, _ = files.split_path(key(folder))
    try:
        told = files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
    except OSError as err:
        if "NoSuchUpload" in str(err):  # some servers say so of none
            return 0
        raise
    uploads = [
        upload
        for upload in told.get("Uploads", ())
        if any(map(ours.fullmatch, upload["Key"].removeprefix(prefix).split("/")[:-1]))
    ]
    for upload in uploads:
        with suppress(FileNotFoundError):
            files.call_s3(
                "abort_multipart_upload",
                Bucket=bucket,
                Key=upload["Key"],
                UploadId=upload["UploadId"],
            )
    return len(uploads)
