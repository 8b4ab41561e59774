"""What a run wrote: records of shards, the manifest, the commit, and the check of it all.

A run works in a hidden sibling of OUT, `.NAME.partial-HASH`:

    train-00000-of-00008.parquet   a finished shard (written under a dotted name, then renamed)
    .records/train-00000-of-...    its record, written after it: the shard counts as done
    .run.json                      job, versions and probe that every resume must share
    manifest.json                  written when all shards are there
    _SUCCESS                       empty, last

Commit is the rename of that folder to OUT.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets.errors import Damaged, EnvironmentFailed, OutputBusy, OutputError
from datasets.schema import canonical_json

MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
RECORDS = ".records"
RUN = ".run.json"
UNFINISHED = re.compile(r"\.(?P<out>.+)\.(partial|replaced)-[0-9a-f]{16}", re.S)


@dataclass(frozen=True)
class Record:
    """One finished shard.

    rows, bytes, sha256: Of the file.
    labels: Rows of copy 0 or, without originals, of the first copy, for each class index.
    quarantined: (sample id, reason) of every input that could not be used.
    copy_ranges: For TFRecord, copy -> (first byte, end byte).
    """

    name: str
    split: str
    rows: int
    bytes: int
    sha256: str
    labels: dict[str, int]
    quarantined: list[tuple[str, str]]
    copy_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """All of a committed output; equal for equal jobs, so it holds no times and no host names."""

    job: dict[str, Any]
    job_sha256: str
    classes: list[str]
    probe: str
    versions: dict[str, str]
    shards: list[Record]
    files: dict[str, dict[str, Any]]  # other files: name -> bytes, sha256

    @property
    def quarantined(self) -> list[tuple[str, str]]:
        return [item for record in self.shards for item in record.quarantined]


def encode_manifest(manifest: Manifest) -> str:
    """Canonical JSON that carries its own hash, so that any changed byte is noticed."""
    body = asdict(manifest)
    return canonical_json({**body, "sha256": sha256_text(canonical_json(body))})


def decode_manifest(text: str, where: Path) -> Manifest:
    """Raises: Damaged if a single byte differs from what `encode_manifest` wrote."""
    try:
        body = json.loads(text)
        found = body.pop("sha256")
        whole = canonical_json({**body, "sha256": found}) == text
        if not whole or found != sha256_text(canonical_json(body)):
            raise ValueError("its own sha256 does not fit")
        records = [
            Record(**{**r, "quarantined": [(i, why) for i, why in r["quarantined"]]})
            for r in body.pop("shards")
        ]
        return Manifest(shards=records, **body)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise Damaged(
            f"{where}: the manifest is damaged ({err}); write the output again with --overwrite"
        ) from err


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> tuple[int, str]:
    """Size in bytes and hex digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none of it: to a dotted name beside it, flushed to disk, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync_folder(path: Path) -> None:
    """Makes renames inside the folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_folder(out: Path, job_sha256: str) -> Path:
    return out.with_name(f".{out.name}.partial-{job_sha256[:16]}")


def replaced_folder(partial: Path) -> Path:
    """Where the output that a finished run replaces waits to be removed."""
    return partial.with_name(partial.name.replace(".partial-", ".replaced-"))


def partial_folders(out: Path) -> list[Path]:
    """Unfinished runs of any job into `out`, and outputs on their way out."""
    if not out.parent.is_dir():
        return []
    found = ((UNFINISHED.fullmatch(path.name), path) for path in out.parent.iterdir())
    return sorted(p for match, p in found if match and match["out"] == out.name and p.is_dir())


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Holds `out` for this process until the block ends or the process dies.

    Raises: OutputBusy if another process holds it; EnvironmentFailed if its parent folder cannot
      be written.
    """
    path = out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before us may have removed the file between open and flock.
                if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                    break
            except BlockingIOError:
                os.close(handle)
                raise OutputBusy(
                    f"{out}: another run is writing it; wait for that one or choose another --out"
                ) from None
            os.close(handle)
    except OSError as err:
        raise EnvironmentFailed(
            f"{out.parent}: cannot be written ({err.strerror}); choose another --out"
        ) from err
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def is_committed(folder: Path) -> bool:
    return (folder / SUCCESS).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed folder.

    Raises: OutputError if the folder is not one of ours or not committed, Damaged if the manifest
      is not as it was written.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; expected the output of `pipeline augment`")
    path = folder / MANIFEST
    if not path.is_file():
        raise OutputError(f"{folder}: no {MANIFEST}, so not an output of `pipeline augment`")
    if not is_committed(folder):
        raise Damaged(f"{folder}: no {SUCCESS}, so it was never committed; write it again")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as err:
        raise Damaged(f"{path}: the manifest is damaged ({err.reason})") from err
    return decode_manifest(text, path)


def read_records(partial: Path) -> dict[str, Record]:
    """The shards that are done, by name: those whose record and whole file are there."""
    done = {}
    for path in sorted((partial / RECORDS).glob("*.json")):
        record = Record(**json.loads(path.read_text()))
        shard = partial / record.name
        if shard.is_file() and shard.stat().st_size == record.bytes:
            done[record.name] = record
    return done


def write_record(partial: Path, record: Record) -> None:
    text = canonical_json(asdict(record))
    write_atomically(partial / RECORDS / f"{record.name}.json", text.encode())


def seal(partial: Path, manifest: Manifest, sidecars: dict[str, bytes]) -> None:
    """Writes the manifest, and the files beside the shards that it names: the data are complete."""
    for name, data in sidecars.items():
        write_atomically(partial / name, data)
    write_atomically(partial / MANIFEST, encode_manifest(manifest).encode())


def is_sealed(partial: Path) -> bool:
    return (partial / MANIFEST).is_file()


def commit(partial: Path, out: Path) -> None:
    """Turns a sealed partial folder into `out`, in one rename; may be repeated after a crash.

    An output of ours that is in the way is moved aside first and removed after.
    """
    if (partial / RECORDS).exists():
        shutil.rmtree(partial / RECORDS)
    for leftover in partial.glob(".*"):
        leftover.unlink()
    write_atomically(partial / SUCCESS, b"")
    sync_folder(partial)
    replaced = replaced_folder(partial)
    if out.exists() and any(out.iterdir()):
        if replaced.exists():  # a crash after an earlier commit: what it holds was replaced
            shutil.rmtree(replaced)
        out.rename(replaced)
    partial.rename(out)
    sync_folder(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def damages(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(file, what is wrong) for every file that is not as the manifest says, and for every file
    that a reader would take for a shard and that the manifest does not name."""
    known: dict[str, tuple[int, str]] = {r.name: (r.bytes, r.sha256) for r in manifest.shards}
    known |= {name: (f["bytes"], f["sha256"]) for name, f in manifest.files.items()}
    for name, (size, sha256) in sorted(known.items()):
        path = folder / name
        if not path.is_file():
            yield name, "missing"
            continue
        found_size = path.stat().st_size
        if found_size != size:
            yield name, f"{found_size:,} bytes, the manifest says {size:,}"
        elif sha256_file(path)[1] != sha256:
            yield name, "its sha256 is not the manifest's"
    if (folder / SUCCESS).stat().st_size:
        yield SUCCESS, "not empty"
    expected = {*known, MANIFEST, SUCCESS}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        looks_read = {".parquet", ".tfrecord", ".json", ".txt", ".arrow"} & {
            part[:9] if part.startswith(".tfrecord") else part for part in path.suffixes
        }
        if name not in expected and looks_read and not path.is_dir():
            yield name, "not in the manifest"
