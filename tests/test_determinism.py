"""The output depends on the job alone: not on workers, listing order, machines or other samples."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import tfrecord
from tests.running import run, tree_hash, write_photos

JOB = ("augment", "--limit", "500", "--copies", "2", "--block-samples", "64")


@pytest.mark.parametrize("form", ["parquet", pytest.param("tfrecord", marks=pytest.mark.slow)])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, form: str) -> None:
    hashes = []
    for n in (0, 1, 4):
        out = tmp_path / f"{n}" / "out"
        run(*JOB, "--format", form, "--workers", n, "--out", out)
        hashes.append(tree_hash(out))
    assert len(hashes[0]) > 8
    assert hashes[0] == hashes[1] == hashes[2]


def write_list(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("path,label\n" + "".join(f"{p},{label}\n" for p, label in rows))
    return path


def test_a_list_in_another_order_writes_the_same_bytes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 60)
    rows = [(p.relative_to(photos).as_posix(), p.parent.name) for p in photos.rglob("*.png")]
    rows.sort()
    run("augment", "--dataset", write_list(photos / "l.csv", rows), "--out", tmp_path / "a")
    write_list(photos / "l.csv", [*rows[30:], *rows[29::-1]])
    run("augment", "--dataset", photos / "l.csv", "--out", tmp_path / "b")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


def test_a_folder_copied_in_another_order_writes_the_same_bytes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 30)
    paths = sorted(photos.rglob("*.png"), reverse=True)
    for path in paths:
        target = tmp_path / "other" / "photos" / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    run("augment", "--dataset", photos, "--out", tmp_path / "a")
    run("augment", "--dataset", tmp_path / "other" / "photos", "--out", tmp_path / "b")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")


def rows(out: Path) -> dict[tuple[str, int], dict[str, object]]:
    """(sample id, copy) -> the whole row."""
    tables = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    return {(r["sample_id"], r["copy"]): r for r in pa.concat_tables(tables).to_pylist()}


def rows_of_records(out: Path) -> dict[tuple[str, int], dict[str, object]]:
    """The same of TFRecord."""
    found = {}
    for part in (part for path in out.glob("*.tfrecord-*") for part in tfrecord.read(path)):
        for i, name in enumerate(part.ids):
            found[name, part.copy] = {
                "image": part.images[i].tobytes(),
                "label": part.labels[i],
                "sample_id": name,
                "copy": part.copy,
                **{param: values[i] for param, values in part.params.items()},
            }
    return found


def test_adding_an_image_changes_one_shard_and_no_old_row(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 260)
    run("augment", "--dataset", photos, "--copies", 2, "--encoding", "png", "--out", tmp_path / "a")
    cv2.imwrite(str(photos / "cat" / "new.png"), np.full((21, 24, 3), 77, np.uint8))
    run("augment", "--dataset", photos, "--copies", 2, "--encoding", "png", "--out", tmp_path / "b")
    before, after = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert {k: after[k] for k in before} == before
    added = set(after) - set(before)
    assert {sample_id for sample_id, _ in added} == {"cat/new.png"}
    old, new = tree_hash(tmp_path / "a"), tree_hash(tmp_path / "b")
    changed = {name for name in old if old[name] != new[name]}
    assert len(changed - {"_manifest.json"}) == 1
    assert set(old) == set(new)


def test_taking_an_op_out_leaves_the_parameters_of_the_others_alone(tmp_path: Path) -> None:
    whole = "shift(x=0.1, y=0.1)|rotate(degrees=15)|brightness(factor=0.2)"
    run(*JOB, "--policy", whole, "--workers", 0, "--out", tmp_path / "a")
    without = "shift(x=0.1, y=0.1)|brightness(factor=0.2)"
    run(*JOB, "--policy", without, "--workers", 0, "--out", tmp_path / "b")
    a, b = rows(tmp_path / "a"), rows(tmp_path / "b")
    names = ("shift_x_px", "shift_y_px", "brightness")
    assert {k: [r[n] for n in names] for k, r in a.items()} == {
        k: [r[n] for n in names] for k, r in b.items()
    }
    assert any(r["angle_deg"] for r in a.values())


def test_parameters_do_not_depend_on_format_encoding_or_other_copies(tmp_path: Path) -> None:
    run(*JOB, "--workers", 0, "--out", tmp_path / "a")
    run(*JOB, "--workers", 0, "--out", tmp_path / "b", "--encoding", "png", "--no-original")
    run(*JOB, "--workers", 0, "--out", tmp_path / "c", "--format", "tfrecord")
    a, b, c = rows(tmp_path / "a"), rows(tmp_path / "b"), rows_of_records(tmp_path / "c")
    for key in b.keys() & a.keys():
        assert {**b[key], "image": None} == {**a[key], "image": None}
        pixels = cv2.imdecode(
            np.frombuffer(b[key]["image"]["bytes"], np.uint8), cv2.IMREAD_GRAYSCALE
        )
        assert pixels.tobytes() == a[key]["image"]
    assert len(b) >= 2 * 400
    assert a == c
