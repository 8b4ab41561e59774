"""`pipeline verify` finds any damage, and passes what is clean."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from datasets.errors import Damaged, UserError
from pipeline.check import check
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
    assert "made again from the source are equal" in result.stdout
    assert tree_hash(output) == before


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
            check(copy, deep=False, dataset=None, data_dir=DATA_DIR)
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


def test_deep_says_loudly_where_the_source_is_gone(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    run("augment", "--dataset", photos, "--out", tmp_path / "out", "--workers", 0)
    again = run("verify", tmp_path / "out", "--deep", "--dataset", photos)
    assert "rows made again from the source are equal" in again.stdout
    shutil.rmtree(photos)
    gone = run("verify", tmp_path / "out", "--deep", "--dataset", photos)
    assert "NOT compared with the source" in gone.stdout


def test_deep_finds_a_source_that_changed(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    run("augment", "--dataset", photos, "--out", tmp_path / "out", "--workers", 0)
    a, b = sorted((photos / "cat").iterdir())[:2]
    a.write_bytes(b.read_bytes())
    result = run("verify", tmp_path / "out", "--deep", "--dataset", photos, code=3)
    assert "differs from what the source gives" in result.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("missing", "'cat/000.png' cannot be used any more: No such file or directory"),
        ("empty", "'cat/000.png' cannot be used any more: empty file"),
        ("renamed split", "has no split 'train' any more"),
    ],
)
def test_deep_says_what_of_a_source_is_gone(tmp_path: Path, change: str, expected: str) -> None:
    photos, table = write_photos(tmp_path / "photos"), tmp_path / "photos" / "l.csv"
    names = [p.relative_to(photos).as_posix() for p in sorted(photos.rglob("*.png"))]
    table.write_text("path,label,split\n" + "".join(f"{name},1,train\n" for name in names))
    run("augment", "--dataset", table, "--out", tmp_path / "out", "--workers", 0)
    if change == "missing":
        (photos / "cat" / "000.png").unlink()
    elif change == "empty":
        (photos / "cat" / "000.png").write_bytes(b"")
    else:
        table.write_text(table.read_text().replace(",train", ",val"))
    result = run("verify", tmp_path / "out", "--deep", "--dataset", table)
    assert f"NOT compared with the source: {table}: {expected}" in result.stdout
