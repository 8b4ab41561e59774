"""`pipeline verify` finds any damage, and passes what is clean."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import Damaged, UserError
from datasets.manifest import encode_manifest, read_manifest, sha256_file
from pipeline.check import RECOMPUTED, check, chosen_rows, recompute
from pipeline.report import Report
from tests.running import run, tree_hash, write_photos

DATA_DIR = Path("unused")


@pytest.fixture(scope="module", params=["parquet", "tfrecord"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "out"
    run(
        *("augment", "--limit", 300, "--copies", 1, "--workers", 0),
        *("--format", request.param, "--out", out),
    )
    return out


def test_a_clean_output_passes_and_nothing_is_written_into_it(output: Path) -> None:
    before = tree_hash(output)
    assert "every hash fits" in run("verify", output).stdout
    result = run("verify", output, "--deep")
    assert "every row decodes" in result.stdout
    assert "made again from the source, all equal" in result.stdout
    assert tree_hash(output) == before


def test_rows_of_all_copies_are_made_again_however_many_shards_there_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("augment", "--limit", 300, "--copies", 3, "--block-samples", 3, "--out", out)
    manifest = read_manifest(out)
    assert len(manifest.shards) > RECOMPUTED
    chosen = chosen_rows(out, manifest)
    assert len(chosen) == RECOMPUTED
    assert {copy for _, copy in chosen} == {0, 1, 2, 3}
    assert f"{RECOMPUTED} rows made again" in run("verify", out, "--deep").stdout


def damage(folder: Path, rng: random.Random) -> str:
    """Does one random harm to the folder and says what it was."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    full = [p for p in files if p.stat().st_size]
    path = rng.choice(full)
    kind = rng.choice(["flip", "truncate", "remove", "swap", "extra", "grow"])
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "remove":
        path = rng.choice(files)  # _SUCCESS too
        path.unlink()
    elif kind == "swap":
        other = rng.choice([p for p in full if p != path and p.read_bytes() != data])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "extra":
        shards = [p for p in full if "00000" in p.name]
        shard = rng.choice(shards)
        target = folder / shard.name.replace("-00000-of", f"-{rng.randrange(10, 99):05d}-of")
        shutil.copy(shard, target)
        path = target
    else:
        path.write_bytes(data + bytes(rng.randrange(1, 9)))
    return f"{kind} {path.name}"


def test_each_of_a_hundred_random_damages_is_found(output: Path, tmp_path: Path) -> None:
    # Once for each format, so 200 in all.
    rng = random.Random(output.parent.name)
    harmed = set()
    for i in range(100):
        copy = shutil.copytree(output, tmp_path / str(i))
        what = damage(copy, rng)
        with pytest.raises((Damaged, UserError)) as caught:
            check(copy, deep=False, dataset=None, data_dir=DATA_DIR, report=Report())
        assert caught.value.exit_code in (2, 3), what
        harmed.add(what.split()[0])
        shutil.rmtree(copy)
    assert harmed == {"flip", "truncate", "remove", "swap", "extra", "grow"}


def test_damage_is_named_and_ends_with_code_3(output: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(output, tmp_path / "copy")
    shard = next(p for p in sorted(copy.iterdir()) if "train" in p.name)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    result = run("verify", copy, code=3)
    assert shard.name in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_source_that_is_gone_is_told_and_an_error_where_it_was_asked_for(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    run("augment", "--dataset", photos, "--out", tmp_path / "out", "--workers", 0)
    again = run("verify", tmp_path / "out", "--deep", "--dataset", photos)
    assert "rows made again from the source, all equal" in again.stdout
    # The log beside the output says where its source lay.
    assert run("verify", tmp_path / "out", "--deep").stdout == again.stdout
    shutil.rmtree(photos)
    assert "NOT compared with the source" in run("verify", tmp_path / "out", "--deep").stdout
    gone = run("verify", tmp_path / "out", "--deep", "--dataset", photos, code=2)
    (line,) = gone.stderr.splitlines()
    assert f"every row decodes, but --dataset cannot be compared: --dataset {photos}: " in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("missing", "it is not what it was when the output was written"),
        ("other content", "it is not what it was when the output was written"),
        ("renamed split", "it has other splits than when the output was written"),
    ],
)
def test_deep_says_that_a_source_has_changed_and_not_that_the_output_is_damaged(
    tmp_path: Path, change: str, expected: str
) -> None:
    photos, table = write_photos(tmp_path / "photos"), tmp_path / "photos" / "l.csv"
    names = [p.relative_to(photos).as_posix() for p in sorted(photos.rglob("*.png"))]
    table.write_text("path,label,split\n" + "".join(f"{name},1,train\n" for name in names))
    run("augment", "--dataset", table, "--out", tmp_path / "out", "--workers", 0)
    if change == "missing":
        (photos / names[0]).unlink()
    elif change == "other content":
        (photos / names[0]).write_bytes((photos / names[1]).read_bytes())
    else:
        table.write_text(table.read_text().replace(",train", ",val"))
    said = run("verify", tmp_path / "out", "--deep", "--dataset", table, code=2).stderr
    assert f"--dataset cannot be compared: {table}: {expected}; give what it was made from" in said


def test_deep_compares_no_groups_of_library_ops_that_were_drawn_otherwise() -> None:
    policy = "albumentations.OneOf([albumentations.Blur(p=1)], p=1)"
    job = SimpleNamespace(network=None, policy=policy, version="0.1.0")
    with pytest.raises(UserError, match="an earlier version wrote it, which drew groups"):
        recompute({}, job, None, "digits", DATA_DIR, Report(quiet=True))


@pytest.mark.parametrize("column", ["image", "label", "angle_deg"])
def test_deep_finds_rows_that_are_not_what_the_source_gives(tmp_path: Path, column: str) -> None:
    # Hashes that fit do not help a shard that was written by something else.
    out = tmp_path / "out"
    run("augment", "--limit", 40, "--copies", 2, "--workers", 0, "--out", out)
    manifest = read_manifest(out)
    record = next(r for r in manifest.shards if r.split == "train")
    table = pq.read_table(out / record.name)
    values = table[column].to_pylist()
    other = pa.array([*values[1:], values[0]], table.schema.field(column).type)
    index = table.schema.get_field_index(column)
    table = table.set_column(index, table.schema.field(column), other)
    pq.write_table(table, out / record.name)
    size, sha256 = sha256_file(out / record.name)
    forged = [replace(r, bytes=size, sha256=sha256) if r == record else r for r in manifest.shards]
    text = encode_manifest(replace(manifest, shards=forged))
    (out / "_manifest.json").write_text(text)
    assert "every hash fits" in run("verify", out).stdout
    assert "differs from what the source gives" in run("verify", out, "--deep", code=3).stderr
