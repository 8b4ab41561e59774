"""What a run wrote: the record of each shard, the manifest of them all, and the check of both."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

import google_crc32c

from datasets import storage
from datasets.errors import Damaged, OutputError, first_line
from datasets.schema import canonical_json
from datasets.source import read_file

READ_BYTES = 2**18
MANIFEST = "_manifest.json"  # readers of whole folders pass over what begins so
SUCCESS = "_SUCCESS"
NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,254}")  # of a file of an output
VERSION = re.compile(r"[0-9a-f]{16}")  # of a folder of a published output
LATEST = "latest"  # the link to one of those
# Of a folder beside an output: a run that has not come to its end, or what it replaces.
UNFINISHED = re.compile(r"\.(?P<out>.+)\.(partial|replaced)-(?P<job>[0-9a-f]{16})", re.S)


@dataclass(frozen=True)
class Record:
    """One finished shard.

    rows, bytes, sha256: Of the file.
    crc32c: Of the file; it finds what time does to a disk in a quarter of sha256's time.
    labels: Rows of copy 0 or, without originals, of the first copy, for each class index.
    quarantined: (sample id, reason) of every input that could not be used.
    copy_ranges: For TFRecord, copy -> (first byte, end byte).
    """

    name: str
    split: str
    rows: int
    bytes: int
    sha256: str
    crc32c: int
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
    from pydantic import TypeAdapter

    try:
        body = json.loads(text)
        found = body.pop("sha256")
        whole = canonical_json({**body, "sha256": found}) == text
        if not whole or found != sha256_text(canonical_json(body)):
            raise ValueError("its own sha256 does not fit")
        manifest: Manifest = TypeAdapter(Manifest).validate_python(body)
        names = [*(record.name for record in manifest.shards), *manifest.files]
        for name in names:
            if not NAME.fullmatch(name):  # it may lead out of the folder
                raise ValueError(f"{name!r} is not the name of a file in it")
        for record in manifest.shards:
            for start, end in record.copy_ranges.values():
                if not 0 <= start <= end <= record.bytes:
                    raise ValueError(f"{record.name} has no bytes {start} to {end}")
        for entry in manifest.files.values():
            kinds = {key: type(value) for key, value in entry.items()}
            if kinds != {"bytes": int, "sha256": str}:
                raise ValueError(f"a file is described by {entry!r}")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise Damaged(
            f"{where}: the manifest is damaged ({first_line(err)}); {repair_advice(where.parent)}"
        ) from err


def read_record(body: dict[str, Any]) -> Record:
    """The record as it was before it became JSON, which knows no tuples."""
    pairs = [(sample_id, reason) for sample_id, reason in body["quarantined"]]
    return Record(**{**body, "quarantined": pairs})


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> tuple[int, str]:
    """Size in bytes and hex digest."""
    with storage.open_file(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def crc32c_file(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32C (Castagnoli, 1993)."""
    n_bytes = crc32c = 0
    with storage.open_file(path) as file:
        while data := file.read(READ_BYTES):
            n_bytes, crc32c = n_bytes + len(data), google_crc32c.extend(crc32c, data)
    return n_bytes, crc32c


def is_output(folder: Path) -> bool:
    """Whether `pipeline augment` wrote the folder: its manifest says so. Others write a `_SUCCESS`
    too, and what they wrote is never to be replaced."""
    try:
        found = json.loads(read_file(folder / MANIFEST))
        return isinstance(found, dict) and {"job_sha256", "shards", "probe"} <= set(found)
    except (OSError, ValueError, RecursionError):
        return False


def repair_advice(folder: Path) -> str:
    """What is to be done about a damaged output."""
    if not is_output(folder):  # by what is left of its manifest: then no run replaces it
        return f"move {folder} away, and write the output again"
    is_version = VERSION.fullmatch(folder.name) and (folder.parent / LATEST).is_symlink()
    return f"write the output again with {'--publish ' if is_version else ''}--overwrite"


def is_begun(folder: Path) -> bool:
    """Whether a run into the folder, or into a version in it, has begun and not come to its end;
    of a folder that is no whole output itself."""
    if storage.is_object(folder):
        names = [folder.name, *(name for name, _ in storage.entries(folder))]
        return any(map(VERSION.fullmatch, names))
    inside, beside = (
        [match["out"] for path in place.glob(".*") if (match := UNFINISHED.fullmatch(path.name))]
        for place in (folder, folder.parent)
    )
    return any(map(VERSION.fullmatch, inside)) or folder.name in beside


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed folder.

    Raises: OutputError if the folder is not one of ours or not committed, Damaged if the manifest
      is not as it was written.
    """
    path = folder / MANIFEST
    if storage.kind(path) != "file":
        if is_begun(folder):
            raise OutputError(
                f"{folder}: nothing is finished there: a run has begun and not come to its end; "
                "the same `pipeline augment` again goes on from there"
            )
        if storage.kind(folder) != "directory":
            raise OutputError(
                f"{folder}: no such folder; expected the output of `pipeline augment`"
            )
        raise OutputError(f"{folder}: no {MANIFEST}, so not an output of `pipeline augment`")
    if storage.kind(folder / SUCCESS) != "file":
        raise Damaged(f"{folder}: no {SUCCESS}; {repair_advice(folder)}")
    try:
        with storage.open_file(path) as file:
            text = file.read().decode()
    except UnicodeDecodeError as err:
        raise Damaged(
            f"{path}: the manifest is damaged ({err.reason}); {repair_advice(folder)}"
        ) from err
    manifest = decode_manifest(text, path)
    names = [*(record.name for record in manifest.shards), *manifest.files]
    for name in () if storage.is_object(folder) else names:
        if (folder / name).exists() and not (folder / name).is_file():  # a pipe would never end
            raise Damaged(f"{folder / name}: no regular file; {repair_advice(folder)}")
    return manifest


def named_files(manifest: Manifest) -> dict[str, tuple[int, str]]:
    """Every file that the manifest names, in order -> its size in bytes and its sha256."""
    known = {r.name: (r.bytes, r.sha256) for r in manifest.shards}
    known |= {name: (f["bytes"], f["sha256"]) for name, f in manifest.files.items()}
    return dict(sorted(known.items()))


def missing_or_cut(found: Mapping[str, int], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(file, what is wrong) for every file that is not there, or not as long as the manifest says.

    found: The files that are there -> their sizes.
    """
    for name, (size, _) in named_files(manifest).items():
        if name not in found:
            yield name, "missing"
        elif found[name] != size:
            yield name, f"{found[name]:,} bytes, the manifest says {size:,}"


def refuse_missing_or_cut(folder: Path, manifest: Manifest) -> None:
    """Raises: Damaged if a file of the output is not there, or not as long as it was."""
    for name, wrong in missing_or_cut(storage.files_below(folder), manifest):
        raise Damaged(f"{folder / name}: {wrong}; {repair_advice(folder)}")


def damages(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(file, what is wrong) for every file that is not as the manifest says, and for every file
    that a reader would take for a shard and that the manifest does not name."""
    known, found = named_files(manifest), storage.files_below(folder)
    absent = dict(missing_or_cut(found, manifest))
    for name, (_, sha256) in known.items():
        if name in absent:
            yield name, absent[name]
        elif sha256_file(folder / name)[1] != sha256:
            yield name, "its sha256 is not the manifest's"
    if found.get(SUCCESS):
        yield SUCCESS, "not empty"
    expected = {*known, MANIFEST, SUCCESS}
    for name in sorted(found):
        looks_read = {".parquet", ".tfrecord", ".json", ".txt", ".arrow"} & {
            part[:9] if part.startswith(".tfrecord") else part for part in PurePath(name).suffixes
        }
        if name not in expected and looks_read and name[0] != ".":
            yield name, "not in the manifest"
