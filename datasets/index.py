"""What an output was made of, sample by sample: a file beside it, for the run that comes next.

`.NAME.index-HASH.parquet` belongs to the output NAME of the job HASH. It is an aid: where it is
missing, damaged or of something else, everything is read and made again, to the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets import storage
from datasets.errors import Damaged, OutputError
from datasets.fingerprint import Scan
from datasets.manifest import read_manifest
from datasets.source import Samples

# With one more dot in front, and `.0.tmp` behind, where it was never finished.
INDEX = re.compile(
    r"(?P<unfinished>\.(?=.*\.tmp\Z))?\.(?P<out>.+)\.index-(?P<job>[0-9a-f]{16})\.parquet"
    r"(?(unfinished)\.\d+\.tmp)",
    re.S,
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("digest", pa.binary()),
        pa.field("box", pa.list_(pa.int32())),
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("error", pa.string()),
        pa.field("stamp", pa.string()),
    ]
)
JOB, READERS = b"job_sha256", b"readers"


class Entry(NamedTuple):
    """One sample as it was; the fields are those of `Samples` and `Scan`."""

    split: str
    label: int
    digest: bytes
    box: list[int] | None
    shape: list[int]
    error: str | None
    stamp: str | None


def index_path(out: Path, job_sha256: str) -> Path:
    return out.with_name(f".{out.name}.index-{job_sha256[:16]}.parquet")


def readers() -> str:
    """What sizes and errors of headers depend on, beside the files."""
    return " ".join(f"{name} {version(name)}" for name in ("augmentation-pipeline", "pillow"))


def write_index(
    out: Path, job_sha256: str, samples: Mapping[str, Samples], scans: Mapping[str, Scan]
) -> None:
    """Writes the index of the output of that job, whole or not at all. Who holds `out` may.

    Raises: OSError if it cannot be written.
    """
    tables = [to_table(split, part, scans[split]) for split, part in samples.items()]
    named = {JOB: job_sha256.encode(), READERS: readers().encode()}
    table = pa.concat_tables(tables).replace_schema_metadata(named)
    with storage.new_file(index_path(out, job_sha256)) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def to_table(split: str, samples: Samples, scan: Scan) -> pa.Table:
    n = len(samples)
    boxes = [None] * n if samples.boxes is None else samples.boxes.tolist()
    columns = [
        samples.ids,
        [split] * n,
        samples.labels,
        scan.digests,
        boxes,
        scan.shapes.tolist(),
        [scan.errors.get(i) for i in range(n)],
        scan.stamps,
    ]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def read_index(out: Path, job_sha256: str) -> dict[str, Entry]:
    """Sample id -> how it was when the output of that job was made; {} where there is no whole
    index of just that. Raises: EnvironmentFailed if the storage fails."""
    try:
        path = index_path(out, job_sha256)
        with (
            storage.for_arrow(path) as data,
            pq.ParquetFile(data, page_checksum_verification=True) as file,
        ):
            table = file.read()
        found = table.schema.metadata or {}
        if (found[JOB], found[READERS]) != (job_sha256.encode(), readers().encode()):
            return {}
        ids, *columns = (table[name].to_pylist() for name in SCHEMA.names)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}
    return dict(zip(ids, map(Entry, *columns), strict=True))


def stale_indexes(out: Path) -> list[Path]:
    """Indexes beside `out` of other outputs than the one that stands there, and unfinished ones.

    Raises: EnvironmentFailed where that cannot be told, since its disk or mount fails.
    """
    try:
        kept = index_path(out, read_manifest(out).job_sha256)
    except (OutputError, Damaged):
        kept = None
    return [path for name, path in indexes(out.parent) if name == out.name and path != kept]


def indexes(folder: Path) -> list[tuple[str, Path]]:
    """(name of the output, path) of every index in the folder, whole or not."""
    names = (
        [name for name, _ in storage.entries(folder)] if storage.kind(folder) == "directory" else []
    )
    matches = ((INDEX.fullmatch(name), folder / name) for name in sorted(names))
    return [(match["out"], path) for match, path in matches if match]
