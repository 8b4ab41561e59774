"""Both formats give back what was put in, for any rows."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from datasets import tfrecord
from datasets.encoded import Encoded, in_one_piece
from datasets.errors import Damaged
from datasets.formats import FORMATS
from datasets.schema import Rows, Schema

IDS = st.text(max_size=12).filter(lambda t: t.isprintable())
FLOATS = st.floats(width=32, allow_nan=False)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Schema, list[Rows]]:
    raw = draw(st.booleans())
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.sampled_from([1, 3])))
    schema = Schema(
        encoding="raw" if raw else draw(st.sampled_from(["png", "jpeg"])),
        shape=shape if raw or draw(st.booleans()) else None,
        classes=tuple(draw(st.lists(IDS, min_size=1, max_size=4, unique=True))),
        params=tuple(draw(st.sampled_from([[], ["angle_deg"], ["angle_deg", "brightness"]]))),
        library=draw(st.booleans()),
    )
    found = []
    for copy in sorted(draw(st.sets(st.integers(0, 65_535), min_size=1, max_size=3))):
        n = draw(st.integers(1, 6))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        pixels = rng.integers(0, 256, (n, *shape), np.uint8)
        found.append(
            Rows(
                images=pixels if raw else draw(st.lists(st.binary(), min_size=n, max_size=n)),
                labels=rng.integers(0, len(schema.classes), n),
                ids=draw(st.lists(IDS, min_size=n, max_size=n)),
                copy=copy,
                params={
                    name: np.array(draw(st.lists(FLOATS, min_size=n, max_size=n)), np.float32)
                    for name in schema.params
                },
                library=draw(st.lists(IDS, min_size=n, max_size=n)) if schema.library else None,
            )
        )
    return schema, found


@given(st.lists(st.lists(st.binary(max_size=4), max_size=9), min_size=1, max_size=4), st.data())
def test_encoded_files_are_picked_and_joined_as_lists_are(
    parts: list[list[bytes]], data: st.DataObject
) -> None:
    as_column = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    given_ = [Encoded.join([p]) if c else p for p, c in zip(parts, as_column, strict=True)]
    whole, joined = [file for part in parts for file in part], Encoded.join(given_)
    assert list(joined) == whole
    assert [joined[i] for i in range(len(joined))] == whole
    start, stop = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))
    assert list(joined[start:stop]) == whole[start:stop]
    chosen = data.draw(st.lists(st.sampled_from(range(len(whole))))) if whole else []
    picked = joined.take(np.array(chosen, np.int64))
    assert list(picked) == [whole[i] for i in chosen]
    assert in_one_piece(picked.column).to_pylist() == list(picked)


def write(folder: Path, format: str, schema: Schema, rows: list[Rows]) -> Path:
    module = FORMATS[format]
    path = folder / module.shard_name("name", "train", 0, 1)
    sink = io.BytesIO()
    writer = module.Writer(sink, schema, "none")
    for batch in rows:
        writer.write(batch)
    writer.close()
    path.write_bytes(sink.getvalue())
    if format == "tfrecord":
        n = sum(map(len, rows))
        for name, data in tfrecord.sidecars(schema, "name", {"train": [n]}).items():
            (folder / name).write_bytes(data)
    return path


@pytest.mark.parametrize("format", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=batches())
def test_rows_come_back_as_they_were_written(tmp_path: Path, format: str, data) -> None:
    schema, rows = data
    path = write(tmp_path, format, schema, rows)
    found = FORMATS[format].read_schema(path)
    assert (found.encoding, found.shape, found.classes) == (
        schema.encoding,
        schema.shape,
        schema.classes,
    )
    back = list(FORMATS[format].read(path))
    assert [b.copy for b in back] == [r.copy for r in rows]
    for got, want in zip(back, rows, strict=True):
        assert_array_equal(got.labels, want.labels)
        assert list(got.ids) == list(want.ids)
        assert list(got.library or []) == list(want.library or [])
        for name in schema.params:
            assert_array_equal(got.params[name], want.params[name])
        if schema.encoding == "raw":
            assert_array_equal(got.images, want.images)
        else:
            assert list(got.images) == list(want.images)
    names = FORMATS[format].read_columns(path, None).column_names
    assert "image" not in names
    assert {"label", "sample_id", "copy", *schema.params} <= set(names)


def rows_of(n: int, copies: int, side: int = 4) -> tuple[Schema, list[Rows]]:
    schema = Schema("raw", (side, side, 1), ("a", "b"), ("angle_deg",), False)
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 1), np.uint8)
    ids, angle = [str(i) for i in range(n)], {"angle_deg": np.zeros(n, np.float32)}
    labels = np.arange(n) % 2
    return schema, [Rows(images, labels, ids, copy, angle, None) for copy in range(copies)]


def test_no_row_group_spans_two_copies_and_copy_has_statistics(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", *rows_of(10, 3))
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 3
    column = file.schema_arrow.get_field_index("copy")
    for group in range(3):
        found = file.metadata.row_group(group).column(column).statistics
        assert (found.min, found.max) == (group, group)
    image = file.metadata.row_group(0).column(0)
    assert not image.has_dictionary_page
    assert not image.is_stats_set
    only = pq.read_table(path, filters=[("copy", "=", 2)])
    assert only["copy"].to_pylist() == [2] * 10


def test_the_record_format_and_crc_are_the_documented_ones() -> None:
    # CRC-32C of "123456789" is the check value of the Castagnoli polynomial, 0xe3069283.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.masked_crc(b"123456789") == masked


def test_a_copys_byte_range_holds_its_records_and_no_others(tmp_path: Path) -> None:
    schema, rows = rows_of(20, 3)
    sink = io.BytesIO()
    writer = tfrecord.Writer(sink, schema, "none")
    for batch in rows:
        writer.write(batch)
    data, part = sink.getvalue(), tmp_path / "part"
    assert [writer.copy_ranges[c][0] for c in (1, 2)] == [writer.copy_ranges[c][1] for c in (0, 1)]
    for copy, (start, end) in writer.copy_ranges.items():
        part.write_bytes(data[start:end])
        records = list(tfrecord.records(part))
        assert [r.one("copy") for r in records] == [copy] * 20


@pytest.mark.parametrize("at", [0, 9, 15, -2])
def test_a_damaged_record_is_noticed(tmp_path: Path, at: int) -> None:
    path = write(tmp_path, "tfrecord", *rows_of(2, 1))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged):
        list(tfrecord.records(path))


SCRIPT = """
import json, sys
from cli import app
from pathlib import Path
from typer.testing import CliRunner
result = CliRunner().invoke(app, {arguments!r})
assert result.exit_code == 0, result.output
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(*arguments: object) -> set[str]:
    """What a fresh Python has imported after the command."""
    script = SCRIPT.format(arguments=[str(a) for a in arguments])
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("format", FORMATS)
def test_writing_shards_never_imports_tensorflow(tmp_path: Path, format: str) -> None:
    modules = modules_after(
        *("augment", "--format", format, "--limit", 20, "--workers", 0),
        *("--out", tmp_path / "out", "--quiet"),
    )
    assert not {"tensorflow", "keras", "torch"} & modules
    assert {"cv2", "pyarrow"} <= modules  # it did the work
    assert "distributed" not in modules  # and without a cluster


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"tensorflow", "keras", "cv2", "dask", "distributed", "albumentations", "pyarrow"}
    heavy |= {"numpy", "PIL", "matplotlib", "scipy", "sklearn"}
    assert not heavy & modules_after("--help")
