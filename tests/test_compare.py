"""`pipeline compare`: the figures and tests are those of the books, joined sample by sample."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import combinations
from math import comb, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from datasets.errors import UserError
from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.preview import LEFT_PX, MARGIN_PX, TILE_PX, TOP_PX
from pipeline.report import Report
from tests.running import run, write_photos
from tests.test_formats import modules_after
from trainers.comparison import holm, mcnemar, wilson
from trainers.evaluate import Evaluation
from trainers.joint_pictures import curves_together
from trainers.predictions import read_predictions, save_predictions

DIGITS = tuple("0123456789")
FILES = ["changed.csv", "changed.png", "compare.json", "curves.png"]
WITHOUT_PICTURE = [name for name in FILES if name != "changed.png"]  # of runs that agree


def write_run(
    folder: Path,
    guesses: list[int],
    sureness: list[float] | None = None,
    *,
    labels: list[int] | None = None,
    ids: list[str] | None = None,
    classes: tuple[str, ...] = DIGITS,
    split: str = "test",
    dataset: str = "digits",
    options: dict[str, Any] | None = None,
) -> Path:
    """A finished run that guessed so, by the product's own writer; without labels all are a 7."""
    n, k = len(guesses), len(classes)
    labels = labels or [7] * n
    ids = ids or [f"{i:05d}" for i in range(n)]
    probabilities = np.empty((n, k), np.float32)
    for row, guess, p in zip(probabilities, guesses, sureness or [0.9] * n, strict=True):
        row[:] = (1 - p) / (k - 1)
        row[guess] = p
    accuracy = float((np.array(labels) == guesses).mean())
    found = Evaluation(np.array(labels), probabilities, accuracy, 0.5, {})
    folder.mkdir(parents=True)
    source: Any = SimpleNamespace(ids=ids)
    save_predictions(folder / "predictions.parquet", source, np.arange(n), found)
    figures = {"split": split, f"{split}_accuracy": accuracy, f"{split}_loss": 0.5, "n": n}
    (folder / "result.json").write_text(json.dumps({**figures, "epochs": 2, "seconds": 3.25}))
    known = {"classes": list(classes), "source": ["a" * 64, "b" * 64], **(options or {})}
    origin = {"dataset": dataset, "data_dir": "unused", "image_size": None}
    (folder / "config.json").write_text(json.dumps({"run": known, "origin": origin}))
    rows = ["epoch,loss,accuracy,val_loss,val_accuracy,seconds", "1,2.1,0.3,2.0,0.4,1"]
    (folder / "history.csv").write_text("\n".join([*rows, "2,1.1,0.6,1.0,0.7,1"]) + "\n")
    return folder


def change(path: Path, **what: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **what}))


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "compare.json").read_text())


def table(out: Path) -> list[list[str]]:
    with (out / "changed.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 7, 2 * (1 + 8) / 256),
        (7, 1, 2 * (1 + 8) / 256),
        (3, 7, 2 * (1 + 10 + 45 + 120) / 1024),
        (0, 6, 2 / 64),
        (5, 5, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_what_a_table_worked_by_hand_gives(
    only_first: int, only_second: int, p: float
) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p, abs=1e-12)


def test_mcnemar_is_twice_the_smaller_tail_of_the_binomial_distribution() -> None:
    for b in range(25):
        for c in range(25):
            tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
            assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(n_right: int, n: int, low: float, high: float) -> None:
    assert wilson(n_right, n) == pytest.approx((low, high), abs=5e-5)
    z, p = 1.959963984540054, n_right / n
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    assert wilson(n_right, n) == pytest.approx(((middle - half) / scale, (middle + half) / scale))


def test_holm_multiplies_by_how_many_are_left_and_never_falls() -> None:
    # By hand: 0.005 * 4; 0.01 * 3; 0.03 * 2; 0.04 * 1 is less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3]) == [0.3]
    assert holm([0.6, 0.5, 0.9]) == [1.0, 1.0, 1.0]


def test_trainings_and_an_ensemble_are_compared(tmp_path: Path, runs: Path) -> None:
    paths = [runs / "one", runs / "two" / "member-1", runs / "two"]
    out = tmp_path / "out"
    said = run("compare", *paths, "--out", out).stdout
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    found = read(out)
    assert (found["split"], found["n"], found["left_out"]) == ("test", 200, None)

    right: list[dict[str, bool]] = []
    for path, row in zip(paths, found["runs"], strict=True):
        rows = pq.read_table(path / "predictions.parquet").to_pylist()
        right.append({r["sample_id"]: r["label"] == r["guess"] for r in rows})
        n_right = sum(right[-1].values())
        assert row["accuracy"] == n_right / 200
        assert row["interval"] == list(wilson(n_right, 200))
        assert row["loss"] == json.loads((path / "result.json").read_text())["test_loss"]
        assert f"{row['name']}  " in said
        assert f"{row['accuracy']:.4f}  {row['interval'][0]:.4f} to " in said
    one, member, two = found["runs"]
    assert (two["parameters"], two["epochs"]) == (2 * member["parameters"], 2)
    members = [runs / "two" / f"member-{i}" / "result.json" for i in range(2)]
    seconds = [json.loads(path.read_text())["seconds"] for path in members]
    assert two["seconds"] == pytest.approx(sum(seconds))
    assert one["epochs"] == 1

    for pair, (i, j) in zip(found["pairs"], combinations(range(3), 2), strict=True):
        counts = [sum(a[k] and not b[k] for k in a) for a, b in
                  ((right[i], right[j]), (right[j], right[i]))]  # fmt: skip
        assert pair["runs"] == [i + 1, j + 1]
        assert pair["only_right"] == counts
        assert pair["p"] == mcnemar(*counts)
    assert [pair["holm"] for pair in found["pairs"]] == holm([p["p"] for p in found["pairs"]])
    assert "p (Holm): corrected for 3 pairs" in said

    assert {"policy", "model.dropout", "seed", "ensemble"} <= found["options"].keys()
    assert found["options"]["model.dropout"] == [0.1, 0.5, 0.5]
    assert found["options"]["ensemble"] == [1, 1, 2]
    assert not {"lr", "model.name", "epochs", "classes", "source"} & found["options"].keys()
    lines = [" ".join(line.split()) for line in said.splitlines()]
    at = lines.index("model.dropout 1 0.1")
    assert lines[at + 1] == "2, 3 0.5"

    head, *rows = table(out)
    assert head == ["sample_id", "truth", "guess of one", "guess of member-1", "guess of two"]
    differing = {name for name in right[0] if len({each[name] for each in right}) == 2}
    assert {row[0] for row in rows} == differing
    for name, truth, *guesses in rows:
        assert [guess == truth for guess in guesses] == [each[name] for each in right]


def test_rows_are_joined_by_sample_in_whatever_order_they_lie(tmp_path: Path, runs: Path) -> None:
    paths = [runs / "one", runs / "two" / "member-0"]
    run("compare", *paths, "--out", tmp_path / "before")
    other = tmp_path / "member-0"
    shutil.copytree(paths[1], other)
    rows = pq.read_table(other / "predictions.parquet")
    order = np.random.default_rng(0).permutation(len(rows))
    pq.write_table(rows.take(order), other / "predictions.parquet", row_group_size=50)
    run("compare", paths[0], other, "--out", tmp_path / "after")
    before, after = read(tmp_path / "before"), read(tmp_path / "after")
    assert after["runs"][1].pop("path") != before["runs"][1].pop("path")
    assert before == after
    for name in ("changed.csv", "changed.png"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_the_sheet_shows_the_images_that_changed_the_surest_first(tmp_path: Path) -> None:
    config = AugmentConfig("digits", Path("unused"), split="test", policy="none")
    digits = open_images(config, "memory", Report(quiet=True))
    ids, truth = list(digits.ids[:5]), digits.labels[:5].tolist()
    wrong = [(label + 1) % 10 for label in truth]
    # 0 and 4: right in both; 1 and 2: in the first alone; 3: in the last alone.
    first = [truth[0], truth[1], truth[2], wrong[3], truth[4]]
    last = [truth[0], wrong[1], wrong[2], truth[3], truth[4]]
    about: dict[str, Any] = {"labels": truth, "ids": ids}
    write_run(tmp_path / "a", first, [0.9, 0.6, 0.8, 0.9, 0.9], **about)
    write_run(tmp_path / "b", last, [0.9, 0.7, 0.7, 0.5, 0.9], **about)
    out = tmp_path / "out"
    said = run("compare", tmp_path / "a", tmp_path / "b", "--out", out).stdout
    columns = [[str(v) for v in column[1:4]] for column in (ids, truth, first, last)]
    assert table(out)[1:] == list(map(list, zip(*columns, strict=True)))
    assert read(out)["pairs"] == [{"runs": [1, 2], "only_right": [2, 1], "p": 1.0, "holm": 1.0}]
    assert "Holm" not in said
    assert "no option differs" in said
    with Image.open(out / "changed.png") as image:
        sheet = np.asarray(image)[..., 0]
    step = TILE_PX + MARGIN_PX
    assert sheet.shape[1] == LEFT_PX + 8 * step  # the title has room, however few there are
    tiles = digits.images(np.arange(5), 0)[..., 0].repeat(16, 1).repeat(16, 2)
    for column, i in enumerate([2, 1]):  # the less sure guess of 2 is the surer one
        x = LEFT_PX + column * step
        assert_array_equal(sheet[TOP_PX : TOP_PX + TILE_PX, x : x + TILE_PX], tiles[i])
    below = sheet[TOP_PX + step :, LEFT_PX : LEFT_PX + TILE_PX]
    tops = range(len(below) - TILE_PX)
    assert any(np.array_equal(below[y : y + TILE_PX], tiles[3]) for y in tops)


def test_runs_that_agree_are_no_mistake(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name, [7, 1, 7])
    out = tmp_path / "out"
    run("compare", tmp_path / "a", tmp_path / "b", "--out", out)
    assert read(out)["pairs"][0]["p"] == 1.0
    assert sorted(p.name for p in out.iterdir()) == WITHOUT_PICTURE
    assert len(table(out)) == 1


def test_without_the_images_the_figures_and_tests_remain(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    config = AugmentConfig(str(photos), Path("unused"), image_size=(16, 16), policy="none")
    source = open_images(config, "none", Report(quiet=True))
    labels, paths = source.labels.tolist(), [tmp_path / "a", tmp_path / "b"]
    about: dict[str, Any] = {"labels": labels, "ids": list(source.ids), "classes": ("cat", "dog")}
    about |= {"dataset": str(photos), "split": "val"}  # which is held out of the split train
    for path, guesses in zip(paths, (labels, [0] * len(labels)), strict=True):
        write_run(path, guesses, **about)
    out = tmp_path / "out"
    said = run("compare", *paths, "--out", out).stdout
    assert f"changed.png is left out: {photos}: its images have different sizes" in said
    for path in paths:
        origin = {"dataset": str(photos), "data_dir": "unused", "image_size": [16, 16]}
        change(path / "config.json", origin=origin)
    run("compare", *paths, "--out", out)
    assert (out / "changed.png").is_file()
    shutil.rmtree(photos)
    *_, wrote, gone = run("compare", *paths, "--out", out).stdout.splitlines()
    assert wrote == f"{out}: compare.json, changed.csv, curves.png"
    assert gone.startswith(
        f"changed.png is left out: {paths[0]}: was trained on {photos}, where no"
    )
    assert not (out / "changed.png").exists()  # that of the comparison before
    assert read(out)["left_out"] == gone
    assert read(out)["pairs"][0]["only_right"] == [sum(labels), 0]


def test_a_run_from_shards_is_compared_with_one_online(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    run("augment", "--limit", 40, "--copies", 1, "--workers", 0, "--quiet", "--out", shards)
    config = AugmentConfig("digits", Path("unused"), split="test", limit=40)
    source = open_images(config, "none", Report(quiet=True))
    ids, labels = list(source.ids), source.labels.tolist()
    for name, guesses, dataset in (("a", labels, str(shards)), ("b", [0] * 40, "digits")):
        write_run(tmp_path / name, guesses, labels=labels, ids=ids, dataset=dataset)
    command = ("compare", tmp_path / "a", tmp_path / "b")
    assert "left out" not in run(*command, "--out", tmp_path / "out").stdout
    assert "lies inside the data set" in run(*command, "--out", shards / "out", code=2).stderr


def test_names_are_the_ends_of_paths_where_these_differ(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, [7, 1]) for name in ("x/a", "y/a", "y/b")]
    run("compare", *paths[1:], "--out", tmp_path / "out")
    assert [row["name"] for row in read(tmp_path / "out")["runs"]] == ["a", "b"]
    run("compare", *paths, "--out", tmp_path / "out")  # its own comparison is written again
    assert [row["name"] for row in read(tmp_path / "out")["runs"]] == list(map(str, paths))


def test_what_a_folder_holds_is_left_alone(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, [7, 1]) for name in "ab"]
    out = tmp_path / "out"
    out.mkdir()
    (out / "curves.png").write_text("years of work")
    message = run("compare", *paths, "--out", out, code=2).stderr
    assert message == (
        f"pipeline: {out}: exists and was not written by `pipeline compare`; choose another --out\n"
    )
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("curves.png", "years of work")]
    assert "choose another --out" in run("compare", *paths, "--out", paths[0], code=2).stderr
    (out / "curves.png").rename(out / ".compare.json.123.tmp")  # of a comparison that was killed
    run("compare", *paths, "--out", out)
    assert sorted(p.name for p in out.iterdir()) == WITHOUT_PICTURE


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("one", "is one run; name two or more"),
        ("twice", "is named twice; name two or more"),
        ("nowhere", "no such folder; name the folder of a finished run"),
        ("empty", "is not a run of `pipeline train`; name the folder of a finished run"),
        ("file", "is not a run of `pipeline train`; name the folder of a finished run"),
        ("no result", "the run is not finished; the same `pipeline train` with --resume"),
        ("no predictions", "has no predictions.parquet: the run is not finished; the same"),
        ("random bytes", "predictions.parquet: cannot be read as predictions: "),
        ("half a file", "predictions.parquet: cannot be read as predictions: "),
        ("rows twice", "its sample ids are not unique strings"),
        ("another result", "predictions.parquet and result.json are not of one evaluation"),
        ("damaged result", "result.json: is missing or damaged; the same command with --resume"),
        ("damaged history", "history.csv: is missing or damaged; leave that run out"),
        ("damaged config", "config.json: is damaged"),
        ("other classes", "has other classes than "),
        ("other images", "was tested on 3 images, 2 of them among the 4 of "),
        ("other labels", "has another class for the image 00002 than "),
        ("other split", "was tested on val, not on test as "),
    ],
)
def test_runs_that_cannot_be_compared_are_told_in_one_line(
    tmp_path: Path, case: str, expected: str
) -> None:
    first = write_run(tmp_path / "first", [7, 7, 1, 2])
    other = tmp_path / "second"
    if case not in ("nowhere", "empty", "file"):
        about: dict[str, dict[str, Any]] = {
            "other classes": {"classes": tuple("abcdefghij")},
            "other images": {"guesses": [7, 7, 1], "ids": ["00001", "00003", "00009"]},
            "other labels": {"labels": [7, 7, 1, 7]},
            "other split": {"split": "val"},
        }
        write_run(other, **{"guesses": [7, 7, 7, 1], **about.get(case, {})})
    predictions = other / "predictions.parquet"
    if case == "empty":
        other.mkdir()
    elif case == "file":
        other.write_text("weights")
    elif case == "random bytes":
        predictions.write_bytes(np.random.default_rng(0).bytes(3000))
    elif case == "half a file":
        predictions.write_bytes(predictions.read_bytes()[:300])
    elif case == "rows twice":
        rows = pq.read_table(predictions)
        pq.write_table(rows.take([0, 1, 2, 2]), predictions)
    elif case == "another result":
        change(other / "result.json", test_accuracy=0.5)
    elif case.startswith("damaged"):
        name = {"result": "result.json", "history": "history.csv", "config": "config.json"}
        (other / name[case.split()[1]]).write_bytes(b"\x00\xff\x17")
    elif case.startswith("no "):
        (other / {"no result": "result.json"}.get(case, "predictions.parquet")).unlink()
    paths = {"one": [first], "twice": [first, other, first]}.get(case, [first, other])
    result = run("compare", *paths, "--out", tmp_path / "out", code=2)
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_no_damage_of_predictions_goes_unseen_or_ends_in_a_traceback(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [7, 1, 2] * 20) / "predictions.parquet"
    whole, want = path.read_bytes(), read_predictions(path, 10)
    rng, n_refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found = read_predictions(path, 10)
        except UserError:
            n_refused += 1
        else:  # of what says nothing of the rows, such as the name of the writer
            assert found.ids == want.ids
            assert_array_equal(found.guesses, want.guesses)
            assert_array_equal(found.labels, want.labels)
    assert n_refused > 200


def test_the_legend_is_below_the_curves_and_whole(tmp_path: Path) -> None:
    epoch = {"epoch": 1, "loss": 1, "accuracy": 0.5, "val_loss": 1, "val_accuracy": 0.4}
    sizes = []
    for names in (["a", "b"], ["x" * 300, *(f"_runs/$cifar_{i}$/standard" for i in range(11))]):
        curves_together(names, [[[epoch]]] * len(names), tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert (pixels[:, -2:] == 255).all()  # nothing runs out of the picture
        sizes.append(pixels.shape)
    assert sizes[1][0] - sizes[0][0] > 11 * 20  # a line a name


def test_comparing_never_imports_tensorflow(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, [7, 1]) for name in "ab"]
    modules = modules_after("compare", *paths, "--out", tmp_path / "out")
    assert "matplotlib" in modules
    assert not {"tensorflow", "keras", "albumentations", "dask"} & modules
