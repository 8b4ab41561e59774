"""Ablation: one part is left out at a time, and nothing else changes."""

from __future__ import annotations

import csv
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from datasets.source import sample_keys
from pipeline.opencv_kernel import augment_batch, prepare
from pipeline.plan import AugmentConfig
from pipeline.policy import parse_policy
from tests.running import Cluster, run, run_killed, write_photos
from trainers.ablate import trials, variants
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig
from trainers.models import ModelConfig, build
from trainers.transfer import TransferConfig

POLICY = "shift()|rotate(degrees=20)|rotate(degrees=5, p=0.5)|flip()|brightness()"
LIBRARY = POLICY + "|albumentations.GaussNoise(p=0.9)|albumentations.CoarseDropout(p=0.9)"


def config_of(tmp_path: Path, **options: Any) -> TrainConfig:
    data = DataConfig(AugmentConfig("digits", tmp_path, policy=options.pop("policy", POLICY)))
    return resolved(TrainConfig(data, ModelConfig("textbook", **options), tmp_path / "out"))


def test_each_op_and_regularizer_is_left_out_once(tmp_path: Path) -> None:
    whole = config_of(tmp_path, weight_decay=1e-4, batch_norm=True, policy=LIBRARY)
    whole = replace(whole, label_smoothing=0.1)
    found = variants(whole)
    ops = ["shift", "rotate", "rotate 2", "flip", "brightness"]
    ops += ["albumentations.GaussNoise", "albumentations.CoarseDropout"]
    regularizers: dict[str, dict[str, Any]] = {
        "dropout": {"dropout": 0.0},
        "weight decay": {"weight_decay": 0.0},
        "batch normalization": {"batch_norm": False},
    }
    assert list(found) == ["nothing", *ops, *regularizers, "label smoothing"]
    assert found["nothing"] == whole
    texts = str(parse_policy(LIBRARY)).split("|")
    for i, name in enumerate(ops):
        text = found[name].data.augment.policy or ""
        kept = text.split("|")
        assert kept.pop(i).endswith("p=0.0)")
        assert kept == texts[:i] + texts[i + 1 :]
        data = replace(whole.data, augment=replace(whole.data.augment, policy=text))
        assert found[name] == replace(whole, data=data)
    for name, options in regularizers.items():
        assert found[name] == replace(whole, model=replace(whole.model, **options))
    assert found["label smoothing"] == replace(whole, label_smoothing=0.0)
    seeds = trials(config_of(tmp_path), 2)
    assert len(seeds) == 2 * len(variants(config_of(tmp_path)))
    assert len({trial.config.out for trial in seeds}) == len(seeds)
    for trial in seeds:
        found_seeds = {trial.config.seed, trial.config.data.augment.seed}
        assert found_seeds | {trial.config.data.order_seed} == {trial.seed}


@pytest.mark.parametrize("i", range(5))
def test_removing_an_op_leaves_the_others_draws_unchanged(i: int) -> None:
    """Those of a second rotate too, which would be the first if its op were taken out."""
    policy, keys = parse_policy(POLICY), sample_keys([str(n) for n in range(50)])
    batch = np.random.default_rng(0).integers(0, 256, (50, 12, 12, 3), np.uint8)

    def params(of: Any) -> dict[str, np.ndarray]:
        return augment_batch(of, batch, prepare(batch, of.fill), keys, 2, 7, None)[1]

    whole, without = params(policy), params(policy.without(i))
    assert whole.keys() == without.keys()
    own = policy.columns[i]
    for name, values in whole.items():
        if name in own:
            neutral = policy.ops[i].neutral[own.index(name)]
            assert_array_equal(without[name], np.full(50, neutral, np.float32))
        else:
            assert_array_equal(values, without[name])


def test_library_ops_are_left_out_by_themselves() -> None:
    from pipeline.library_ops import LibraryStage

    policy, keys = parse_policy(LIBRARY), sample_keys([str(n) for n in range(20)])
    batch = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    done = []
    for of in (policy, policy.without(5)):
        stage = LibraryStage(of.library)
        found = augment_batch(of, batch, prepare(batch, of.fill), keys, 1, 3, stage)[2] or []
        done.append([json.loads(text) for text in found])
    for whole, without in zip(*done, strict=True):
        last = [step for step in whole if "CoarseDropout" in step["op"]]
        assert last == [step for step in without if "CoarseDropout" in step["op"]]
        applied = [step for step in without if step.get("applied", True)]
        assert not any("GaussNoise" in step["op"] for step in applied)


@pytest.mark.parametrize(
    "name", [pytest.param("cnn", marks=pytest.mark.slow), "textbook", "MobileNet"]
)
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    """Not on dropout or batch normalization, nor on what else draws in this process."""
    found = []
    for seed, options in (
        (3, {"dropout": 0.5, "batch_norm": True}),
        (3, {"dropout": 0.0, "batch_norm": True}),
        (3, {"dropout": 0.5, "batch_norm": False}),
        (4, {"dropout": 0.5, "batch_norm": True}),
    ):
        random.seed(len(found))
        transfer = TransferConfig(weights="none", alpha=0.25)
        model = build(ModelConfig(name, **options, transfer=transfer), (32, 32, 3), 10, seed)
        found.append([layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")])
    for others in found[1:3]:
        for mine, theirs in zip(found[0], others, strict=True):
            assert_array_equal(mine, theirs)
    assert not any(np.array_equal(*pair) for pair in zip(found[0], found[3], strict=True))


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_table_as_on_workers(tmp_path: Path) -> None:
    job = ("ablate", "--limit", 120, "--epochs", 1, "--seeds", 2, "--policy", "shift()")
    job += ("--model", "textbook", "--dropout", 0)
    whole, job = tmp_path / "whole", (*job, "--threads", 1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # one training at a time, in the command's own process
    try:
        want = run(*job, "--out", whole).stdout.replace(str(whole), "")
    finally:
        os.sched_setaffinity(0, cores)
    out = tmp_path / "out"
    for step, victim in (("rename state", "group"), ("rename result", "process")):
        # With two cores two workers; of one that dies alone the training goes on in another.
        run_killed(*job, "--resume", "--out", out, step=step, victim=victim, folder=tmp_path)
    assert run(*job, "--resume", "--out", out).stdout.replace(str(out), "") == want
    with (out / "ablation.csv").open() as file:
        rows = {row["without"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"nothing", "shift"}
    for name, row in rows.items():
        each = [
            json.loads((folder / "result.json").read_text())["test_accuracy"]
            for folder in sorted((out / f"without-{name.replace(' ', '-')}").iterdir())
            if folder.is_dir()
        ]
        assert_allclose(float(row["mean"]), np.mean(each))
        learned = [
            float((folder / "history.csv").read_text().splitlines()[-1].split(",")[2])
            for folder in sorted((out / f"without-{name.replace(' ', '-')}").glob("seed-?"))
        ]
        assert len(learned) == 2
        assert_allclose(float(row["training_mean"]), np.mean(learned))
        assert f"{100 * np.mean(learned):9.1f} %" in want
    message = run(*job, "--out", out, code=2).stderr
    assert "go on with --resume" in message
    there = tmp_path / "there"
    with Cluster(tmp_path) as dask:
        dask.scheduler()
        dask.worker()
        found = run(*job, "--scheduler", dask.address, "--out", there).stdout
    assert found.replace(str(there), "") == want
    run(*job, "--scheduler", dask.address, "--out", tmp_path / "gone", code=5)


@pytest.mark.slow
def test_a_training_that_diverges_is_told_and_ends_nothing(tmp_path: Path) -> None:
    job = ("ablate", "--limit", 120, "--epochs", 3, "--seeds", 1, "--policy", "none", "--lr", 20)
    job += ("--label-smoothing", 0, "--weight-decay", 0, "--threads", 64)
    found = run(*job, "--out", tmp_path / "out")
    assert "batch normalization left out, seed 0: diverged" in found.stderr
    assert "diverged with 1 of 1 seeds" in found.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["without"] == [
        {
            "part": "batch normalization",
            "accuracy": None,
            "training_accuracy": None,
            "cost": None,
            "diverged": [0],
        }
    ]
    assert (tmp_path / "out" / "ablation.png").is_file()


def test_where_nothing_is_left_out_a_training_that_diverges_ends_it(tmp_path: Path) -> None:
    job = ("ablate", "--limit", 120, "--epochs", 3, "--seeds", 2, "--policy", "none", "--lr", 1e30)
    found = run(*job, "--model", "textbook", "--threads", 64, "--out", tmp_path / "out", code=2)
    why = "seed-0: the training with nothing left out diverged; give a lower --lr than 1e+30, "
    assert why in found.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").glob("without-*")] == ["without-nothing"]


def test_what_trainings_say_of_their_data_is_said_once(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 40)
    (photos / "cat" / "000.png").write_bytes(b"no image")
    (photos / "notes.txt").write_text("of the photos")
    job = ("ablate", "--dataset", photos, "--image-size", 16, "--max-bad", 0.1, "--threads", 64)
    job += ("--epochs", 1, "--seeds", 1, "--policy", "flip()", "--model", "textbook")
    lines = run(*job, "--dropout", 0, "--out", tmp_path / "out").stderr.splitlines()
    assert [line for line in lines if "cat/000.png" in line] == [
        "not used: cat/000.png: not a JPEG, PNG, WebP, BMP, TIFF or GIF image"
    ]
    assert [line for line in lines if "notes.txt" in line] == ["passed over: notes.txt"]
    assert sum(line.startswith("few steps (1 in all)") for line in lines) == 1
    assert lines[-2].startswith("1 of 2: nothing left out, seed 0: accuracy ")


def test_nothing_to_leave_out_is_told(tmp_path: Path) -> None:
    job = ("ablate", "--policy", "none", "--model", "textbook", "--dropout", 0)
    message = run(*job, "--out", tmp_path / "out", code=2).stderr
    assert "nothing to leave out" in message
    message = run("ablate", "--seed", 2**32 - 1, "--out", tmp_path / "out", code=2).stderr
    assert f"--seed {2**32 - 1}: expected at most {2**32 - 3}" in message


def test_shards_have_one_policy(tmp_path: Path) -> None:
    where = ("--offline", tmp_path / "shards", "--out", tmp_path / "out")
    message = run("ablate", *where, code=2).stderr
    assert "shards have one policy; give the --dataset" in message
