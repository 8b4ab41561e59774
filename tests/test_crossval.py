"""Cross-validation: every sample is tested once, by a network that has not seen it or a copy."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import cli
from datasets.errors import UserError
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import Images
from tests.running import run, run_killed
from trainers.config import TrainConfig, resolved, run_folder
from trainers.crossval import fold_data, folds_of, table
from trainers.data import DataConfig, open_data, origins_of
from trainers.intervals import in_points, spread
from trainers.models import ModelConfig
from trainers.options import training

SMALL = ("--limit", 150, "--threads", 2, "--epochs", 1, "--quiet", "--folds", 2)
SMALL += ("--model", "textbook")


def images(ids: list[str], labels: list[int], unusable: frozenset[int] = frozenset()) -> Images:
    """What `folds_of` looks at."""
    usable = np.array([i for i in range(len(ids)) if i not in unusable])
    found = SimpleNamespace(ids=ids, labels=np.array(labels), usable=usable)
    return cast(Images, found)


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 3), min_size=20, max_size=60),
    n_copies=st.integers(1, 3),
    n_folds=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)
def test_no_sample_is_on_both_sides_whatever_the_order(
    labels: list[int], n_copies: int, n_folds: int, seed: int, order: Any
) -> None:
    """Copies without an original, as shards read as a data set give them, are of one sample."""
    rows = [  # copies, and copies of copies
        (f"s{i}@{c}" + "@1" * (c % 2), label)
        for i, label in enumerate(labels)
        for c in range(1, n_copies + 1)
    ]
    found = folds_of(images([r[0] for r in rows], [r[1] for r in rows]), n_folds, seed)
    assert set(found) == set(range(n_folds))
    fold_of: dict[str, int] = {}
    for (name, _), fold in zip(rows, found, strict=True):
        assert fold_of.setdefault(name.partition("@")[0], fold) == fold
    for label in set(labels):  # stratified: a class differs by one sample between folds
        samples = [fold_of[f"s{i}"] for i, own in enumerate(labels) if own == label]
        counts = np.bincount(samples, minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    order.shuffle(rows)
    again = folds_of(images([r[0] for r in rows], [r[1] for r in rows]), n_folds, seed)
    assert {r[0]: f for r, f in zip(rows, again, strict=True)} == {
        name: fold_of[name.partition("@")[0]] for name, _ in rows
    }


def test_what_cannot_be_used_is_in_no_fold() -> None:
    source = images([f"s{i}" for i in range(12)], [0, 1] * 6, frozenset({3, 7}))
    found = folds_of(source, 2, 0)
    assert np.flatnonzero(found < 0).tolist() == [3, 7]
    with pytest.raises(UserError, match="--folds 7: no class has more than 6 samples"):
        folds_of(source, 7, 0)


@pytest.mark.parametrize("per_epoch", ["one-copy", "all-copies"])
def test_shards_have_the_folds_of_the_online_path(per_epoch: str, tmp_path: Path) -> None:
    run("augment", "--limit", 200, "--copies", 2, "--workers", 0, "--out", tmp_path / "shards")
    online = DataConfig(AugmentConfig("digits", tmp_path, limit=200))
    shards = DataConfig(AugmentConfig("x", tmp_path), tmp_path / "shards", per_epoch=per_epoch)
    sides = []
    for data in (online, shards):
        config = resolved(TrainConfig(data, ModelConfig("cnn"), tmp_path / "run"))
        opened = open_data(config.data, Report(quiet=True))
        source, _ = opened.validation
        folds, parts = folds_of(source, 4, 9), []
        for fold in range(4):
            found = fold_data(config, opened, folds, fold, 4, Report(quiet=True))
            images, tested = found.test or (source, np.array([]))
            shown = {found.train.source.ids[i] for i in found.train.order(0)}
            parts.append(
                [
                    shown,
                    {source.ids[i] for i in found.validation[1]},
                    {images.ids[i] for i in tested},
                ]
            )
        sides.append(parts)
    assert sides[0] == sides[1]
    everything = set(origins_of(source))
    for shown, kept, tested in sides[0]:
        assert min(len(shown), len(kept), len(tested)) > 0
        assert shown | kept | tested == everything
        assert len(shown) + len(kept) + len(tested) == len(everything)
    assert set().union(*(tested for *_, tested in sides[0])) == everything


@pytest.mark.slow
@pytest.mark.parametrize("where", ["online", "shards"])
def test_killed_and_resumed_it_ends_with_the_same_table(where: str, tmp_path: Path) -> None:
    job: tuple[object, ...] = ("crossval", *SMALL)
    if where == "shards":
        augment = ("augment", "--limit", 150, "--copies", 2, "--workers", 0)
        run(*augment, "--out", tmp_path / "shards")
        job = ("crossval", "--offline", tmp_path / "shards", *SMALL[2:])
    want = run(*job, "--out", tmp_path / "whole").stdout
    out = tmp_path / "out"
    for step in ("rename result", "rename state"):  # of the first fold, and of the second
        run_killed(*job, "--resume", "--out", out, step=step, victim="group", folder=tmp_path)
    found = run(*job, "--resume", "--out", out).stdout
    assert found.replace(str(out), "") == want.replace(str(tmp_path / "whole"), "")

    result = json.loads((out / "result.json").read_text())
    rows = pq.read_table(out / "predictions.parquet").to_pydict()
    with (out / "folds.csv").open() as file:
        fold_of = {row["sample_id"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert sorted(rows["sample_id"]) == sorted(fold_of)
    assert result["n"] == len(fold_of) == 150
    right = np.array(rows["label"]) == np.array(rows["guess"])
    folds = np.array([fold_of[name] for name in rows["sample_id"]])
    each = [right[folds == fold].mean() for fold in (1, 2)]
    assert_allclose(result["accuracy"]["each"], each)
    # Of 150 samples 67.5 are trained on, 7.5 validate and 75 test; t of one degree is 12.706.
    half = 12.706 * np.std(each, ddof=1) * (1 / 2 + 75 / 67.5) ** 0.5
    ends = np.clip([np.mean(each) - half, np.mean(each) + half], 0, 1)
    assert_allclose([result["accuracy"]["low"], result["accuracy"]["high"]], ends, rtol=1e-3)
    for fold in (1, 2):
        tested = pq.read_table(out / f"fold-{fold}" / "predictions.parquet")["sample_id"]
        assert {name for name, own in fold_of.items() if own == fold} == set(tested.to_pylist())
    for picture in ("folds.png", "confusion.png", "mistakes.png", "report.html"):
        assert (out / picture).is_file()
    message = run(*job, "--out", out, code=2).stderr
    assert "go on with --resume" in message
    other = [*job, "--folds", 3]
    assert "is another cross-validation" in run(*other, "--resume", "--out", out, code=2).stderr


def test_intervals_are_those_of_the_books() -> None:
    found = spread([0.9, 0.92, 0.94])
    assert_allclose([found["mean"], found["std"]], [0.92, 0.02])
    # Student's t with two degrees of freedom at 97.5 %: 4.3027.
    assert_allclose(
        [found["low"], found["high"]], 0.92 + np.array([-1, 1]) * 4.3027 * 0.02 / 3**0.5, 1e-4
    )
    # Nadeau and Bengio: 1/3 becomes 1/3 + 1/2 for three folds.
    wide = spread([0.9, 0.92, 0.94], overlap=0.5)
    assert_allclose(wide["high"] - 0.92, 4.3027 * 0.02 * (1 / 3 + 1 / 2) ** 0.5, 1e-4)
    share = spread([0.9, 1.0], is_share=True)
    assert (share["low"], share["high"]) == (pytest.approx(0.315, abs=1e-3), 1)
    assert in_points(spread([-1e-4, 1e-4, 0])).startswith("+0.0 (")
    assert spread([0.9 - 0.8, 0.8 - 0.7])["low"] is None  # equal but for 1e-16
    equal = spread([0.5, 0.5])
    assert (equal["std"], equal["low"], equal["high"]) == (0, None, None)
    assert spread([0.5]) == {"each": [0.5], "mean": 0.5, "std": None, "low": None, "high": None}


def test_the_mean_and_its_interval_are_shares_like_the_figures_of_the_folds() -> None:
    folds = [{"test_accuracy": share, "test_loss": 0.5, "n": 9} for share in (0.9, 0.92, 0.94)]
    accuracy, loss = spread([0.9, 0.92, 0.94]), spread([0.5, 0.5, 0.5])
    said = table(Path("cv"), folds, accuracy, loss).splitlines()
    assert said[-1] == "cv: mean accuracy 0.9200, 95 % interval 0.8703 to 0.9697"
    said = table(Path("cv"), folds[:2], loss, loss).splitlines()
    assert said[-1] == "cv: mean accuracy 0.5000"


def test_a_fold_is_part_of_a_run(tmp_path: Path) -> None:
    run("crossval", *SMALL, "--out", tmp_path / "cv")
    first, second = (
        json.loads((tmp_path / "cv" / f"fold-{i}" / "config.json").read_text())["run"]
        for i in (1, 2)
    )
    assert (first.pop("fold"), second.pop("fold")) == ("1 of 2", "2 of 2")
    assert first == second
    assert_array_equal(first["shape"], [8, 8, 1])
    # It is evaluated on what it was tested on, and on no image that it has learned from.
    first, second = (tmp_path / "cv" / f"fold-{i}" for i in (1, 2))
    found = json.loads((first / "result.json").read_text())
    said = run("evaluate", first).stdout
    assert f"accuracy {found['test_accuracy']:.4f}, loss {found['test_loss']:.4f}" in said
    assert f"on {found['n']} images of fold 1 of 2; " in said
    message = run("evaluate", first, second, code=2).stderr
    assert f"{second}: may have learned from the images that {first} was tested on" in message
    (first / "result.json").write_text("{")  # of a part that is damaged the run makes it again
    run("crossval", *SMALL, "--resume", "--out", tmp_path / "cv")
    assert json.loads((first / "result.json").read_text())["test_loss"] == found["test_loss"]


def test_runs_are_named_after_their_data() -> None:
    for dataset, name in (("labels.csv", "labels"), ("My Photos/", "my_photos"), (None, "digits")):
        assert run_folder(None, None, dataset) == Path("runs").resolve() / name
        assert run_folder(None, None, dataset, "ablate").name == f"{name}-ablate"


@pytest.mark.parametrize(("out", "name"), [(None, "digits-crossval"), ("runs/digits", "digits")])
def test_by_default_it_has_a_folder_of_its_own(out: str | None, name: str) -> None:
    context = typer.Context(typer.main.get_command(cli.app), info_name="crossval")
    context.params["out"] = out and Path(out)
    assert cli.apart(training(out=out and Path(out)), context).out.name == name
