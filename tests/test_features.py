"""Features stand for their images: made once, kept as shards, and as good to learn from."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from datasets.commit import partial_folders
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from tests.forked import SCRIPT, run_forked
from tests.running import PIPELINE, run, run_killed
from tests.small_backbones import NETWORK, SIDE, THREADS, arrays, load, made
from trainers.backbones import FEATURES
from trainers.data import DataConfig, open_data

# Keras' own, with NumPy 2, where it saves in this process.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


THROUGH = """
import sys
from pathlib import Path
import keras, numpy as np
from pipeline.online import open_images
from pipeline.plan import AugmentConfig
from pipeline.report import Report
from pipeline.stream import import_tensorflow
from trainers.config import TrainConfig, resolved
from trainers.data import DataConfig, open_data
from trainers.fit import begin, make_step
from trainers.fit import run_epochs
from trainers.models import ModelConfig, build
from trainers.state import History
from trainers.transfer import TransferConfig

shards, weights, out = map(Path, sys.argv[1:4])
import_tensorflow(2).config.experimental.enable_op_determinism()
data = DataConfig(AugmentConfig("unused", Path()), shards, per_epoch=sys.argv[4])
transfer = TransferConfig(str(weights), 0.25, "freeze")
model = ModelConfig("MobileNet", weight_decay=1e-3, batch_norm=True, transfer=transfer)
config = resolved(TrainConfig(data, model, out, epochs=6))
out.mkdir()
opened = open_data(config.data, Report(quiet=True))
network = build(config.model, opened.shape, 3, 0)
for _ in run_epochs(config, opened, network, History(), None, Report(quiet=True)):
    pass
network.save(out / "model.keras")
"""


@pytest.mark.parametrize(
    "per_epoch", ["one-copy", pytest.param("all-copies", marks=pytest.mark.slow)]
)
def test_training_on_features_is_training_through_the_frozen_backbone(
    per_epoch: str, photos: Path, weights: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "My-Shards"  # not a name as jobs have it
    augment = ("augment", "--dataset", photos, "--image-size", SIDE, "--encoding", "raw")
    run(*augment, "--copies", 2, "--workers", 0, "--out", shards)
    job = ("train", "--offline", shards, "--per-epoch", per_epoch, "--model", "mobilenet", *THREADS)
    job += ("--weights", weights, "--alpha", 0.25, "--mode", "freeze", "--epochs", 6)
    regularized = ("--weight-decay", 1e-3, "--batch-norm")
    run(*job, *regularized, "--features", tmp_path / "features", "--out", tmp_path / "run")
    script = (SCRIPT, THROUGH, shards, weights, tmp_path / "through", per_epoch)
    done = run_forked([*map(str, script)])
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(3).integers(0, 256, (64, SIDE, SIDE, 3), np.uint8)
    found, want = (load(tmp_path / f / "model.keras")(images).numpy() for f in ("run", "through"))
    assert np.abs(found - want).max() / np.abs(want).max() < 1e-4
    untrained = made("MobileNet", (SIDE, SIDE, 3), weights=str(weights), alpha=0.25)(images).numpy()
    assert np.abs(found - untrained).max() / np.abs(want).max() > 0.1


def test_patience_has_the_test_split_of_the_data_though_features_have_none(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = ("train", "--dataset", photos, *NETWORK, "--weights", weights, "--mode", "freeze")
    job += ("--features", tmp_path / "features", "--epochs", 1, "--patience", 1)
    said = run(*job, "--out", tmp_path / "run").stderr
    assert "there is no split test" not in said
    assert "test accuracy" in said


def test_features_are_ordinary_shards_made_once(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = ("train", "--dataset", photos, *NETWORK, "--weights", weights, "--mode", "freeze")
    job += ("--copies", 2, "--epochs", 3)
    run(*job, "--features", tmp_path / "others", "--out", tmp_path / "whole")
    job += ("--features", tmp_path / "features")
    resumed = (*job, "--resume", "--out", tmp_path / "run")
    run_killed(*resumed, step="commit", victim="group", folder=tmp_path)
    run(*resumed)
    found, want = (arrays(load(tmp_path / f / "model.keras")) for f in ("run", "whole"))
    for name, array in found.items():
        assert_array_equal(array, want[name])
    told = [json.loads((tmp_path / f / "result.json").read_text()) for f in ("whole", "run")]
    with (tmp_path / "whole" / "history.csv").open() as history:
        of_epochs = sum(float(epoch["seconds"]) for epoch in csv.DictReader(history))
    assert told[0]["seconds"] > of_epochs  # the features are part of it
    (folder,) = [path for path in (tmp_path / "features").iterdir() if path.is_dir()]
    assert partial_folders(folder) == []
    assert (
        "every hash fits; every row decodes; NOT compared" in run("verify", folder, "--deep").stdout
    )
    assert "FixedSizeList" in str(type(pq.read_table(folder)["features"].chunk(0)))
    message = run(*job, "--lr", 0.01, "--out", tmp_path / "other").stderr
    assert f"{folder}: made before" in message

    # Each row is what the backbone makes of that copy of that sample.
    import keras

    table = pq.read_table(folder).to_pydict()
    model = made("MobileNet", (SIDE, SIDE, 3), weights=str(weights), alpha=0.25)
    body = keras.Model(model.input, model.get_layer(FEATURES).output)
    augment = AugmentConfig(str(photos), tmp_path, image_size=(SIDE, SIDE))
    source, _ = open_data(DataConfig(augment), Report(quiet=True)).validation
    for copy in (0, 1, 2):
        rows = [i for i, number in enumerate(table["copy"]) if number == copy]
        where = np.array([source.ids.index(table["sample_id"][i]) for i in rows])
        want = body(source.images(where, copy)).numpy()
        assert_allclose(np.array([table["features"][i] for i in rows]), want, atol=1e-4)
        assert_array_equal(source.labels[where], [table["label"][i] for i in rows])
    assert len(table["copy"]) == 3 * len(source.usable)
    for wrong, told in (
        (("train", "--offline", folder), "holds features of MobileNet; name the shards"),
        (("preview", folder), "features"),
        (("augment", "--dataset", folder), "image"),
    ):
        assert told in run(*wrong, "--out", tmp_path / "no", code=2).stderr


@pytest.mark.slow
def test_two_trainings_at_once_share_what_one_of_them_makes(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    job = [PIPELINE, "train", "--dataset", photos, *NETWORK, "--weights", weights]
    job += ["--mode", "freeze", "--epochs", 1, "--features", tmp_path / "features"]
    started = [
        subprocess.Popen(
            list(map(str, [*job, "--lr", rate, "--out", tmp_path / f"run-{rate}"])),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rate in (0.1, 0.2)
    ]
    told = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert sum("made before" in text for text in told) == 1
