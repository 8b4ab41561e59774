"""`pipeline evaluate`: what a model, or several together, are worth on a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from datasets.blocks import limited
from datasets.catalog import CATALOG
from datasets.errors import UserError, first_line
from datasets.manifest import VERSION
from datasets.storage import is_object, place
from datasets.versions import latest
from pipeline.online import open_images
from pipeline.plan import MAX_BAD, AugmentConfig
from pipeline.report import Report
from pipeline.stream import Images, Stream, import_tensorflow
from trainers.predictions import PREDICTIONS, read_predictions

CONFIG, ENSEMBLE = "config.json", "ensemble.json"
MODEL, MODEL_H5 = "model.keras", "model.h5"
RESULT = "result.json"
BATCH_BYTES, MAX_BATCH = 2**22, 256


@dataclass(frozen=True)
class EvaluateConfig:
    """The options of `pipeline evaluate`. What is None is that of the first run.

    split: None for the images that it was tested on: the split `test`, or where it had none those
      that it held out of train.
    tta: Augmented copies that are averaged with the original.
    default_data_dir: Where known data sets lie if neither this nor the run says so.
    """

    paths: tuple[Path, ...]
    default_data_dir: Path
    dataset: str | None = None
    data_dir: Path | None = None
    split: str | None = None
    policy: str | None = None
    tta: int = 0
    image_size: tuple[int, int] | None = None
    seed: int | None = None
    limit: int | None = None
    max_bad: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What guesses are worth.

    labels: (n,) int64. probabilities: (n, n_classes) float32. loss: Mean negative log likelihood.
    per_class: Share that was right of each class that occurs.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    accuracy: float
    loss: float
    per_class: dict[str, float]

    @property
    def guesses(self) -> np.ndarray:
        return self.probabilities.argmax(1)


def softmax_of(model: Any) -> Any:
    """The layer whose softmax a model ends with, as others' do; None where it ends with logits."""
    last = model
    while getattr(last, "layers", None):  # the last layer may be a model of its own
        last = last.layers[-1]
    ends = type(last).__name__, getattr(getattr(last, "activation", None), "__name__", "")
    return last if "Softmax" in ends or "softmax" in ends else None


def predictor(model: Any, shape: tuple[int, ...], dtype: str = "uint8") -> Any:
    """A graph from (B, *shape) images, or features, to (B, n_classes) float32 probabilities; made
    once a model, since making it takes longer than running it."""
    import tensorflow as tf

    is_done = softmax_of(model) is not None

    def predict(images: Any) -> Any:
        out = tf.cast(model(images), tf.float32)
        return out if is_done else tf.nn.softmax(out)

    return tf.function(predict, input_signature=[tf.TensorSpec((None, *shape), dtype)])


def evaluate(
    predictors: Sequence[Any], source: Images, shown: np.ndarray, n_copies: int = 0
) -> Evaluation:
    """What the models together are worth on the samples at the positions `shown`."""
    each = [guess(predict, source, shown, n_copies) for predict in predictors]
    return evaluation(source, shown, np.mean(each, axis=0))


def guess(predict: Any, source: Images, shown: np.ndarray, n_copies: int = 0) -> np.ndarray:
    """(n, n_classes) float64: a model's probabilities for the samples at the positions `shown`,
    averaged over the originals and copies 1 to `n_copies` (test-time augmentation)."""
    total = np.zeros((len(shown), len(source.classes)))
    for copy in range(n_copies + 1):
        stream = Stream(source, shown, batch_of(source.shape), order_seed=None, copy=copy)
        batches = (stream.batch(step)[0] for step in range(stream.steps_per_epoch))
        total += np.concatenate([predict(images).numpy() for images in batches])
    return total / (n_copies + 1)


def batch_of(shape: tuple[int, ...]) -> int:
    """How many images of that shape are shown to a network at a time: 4 MB of pixels, since what
    it makes of them takes hundreds of times as much. VGG16's first maps of 27 take 350 MB."""
    return max(1, min(MAX_BATCH, BATCH_BYTES // math.prod(shape)))


def evaluation(source: Images, shown: np.ndarray, probabilities: np.ndarray) -> Evaluation:
    """What these probabilities are worth, of the samples at the positions `shown`."""
    labels, probabilities = source.labels[shown], probabilities.astype(np.float32)
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)
    right = probabilities.argmax(1) == labels
    return Evaluation(
        labels=labels,
        probabilities=probabilities,
        accuracy=float(right.mean()),
        loss=float(-np.log(likelihood).mean()),
        per_class={
            name: float(right[labels == i].mean())
            for i, name in enumerate(source.classes)
            if (labels == i).any()
        },
    )


def load_model(path: Path) -> Any:
    """The model of a run folder, or of a .keras or .h5 file; nothing stored in it is executed.

    Raises: UserError if there is none, or it is damaged or something else.
    """
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{file}: no such model; expected a finished run of `pipeline train`, a .keras or an "
            ".h5"
        )
    if file.suffix not in (".keras", ".h5"):
        raise UserError(
            f"{file}: is not a model; expected a finished run of `pipeline train`, a .keras or an "
            ".h5"
        )
    if file.suffix == ".keras" and not is_zipfile(file):  # Keras would say that it is not there
        raise UserError(f"{file}: is not a .keras archive; train it again, or name another")
    import_tensorflow()
    import keras

    try:
        return keras.models.load_model(file, compile=False, safe_mode=True)
    except Exception as err:  # Keras, h5py and zipfile raise nearly every type there is
        reason = first_line(err)
        raise UserError(
            f"{file}: cannot be loaded as a Keras model: {reason}; train it again, or name another"
        ) from err


def check_fits(path: Path, model: Any, run: dict[str, Any], source: Images) -> None:
    """Raises: UserError if the model takes other images, or knows other classes, than there are."""
    takes: Any = getattr(model, "input_shape", None)
    gives: Any = getattr(model, "output_shape", None)
    are_single = isinstance(takes, tuple) and isinstance(gives, tuple)  # not several inputs
    if not are_single or (len(takes), len(gives)) != (4, 2):
        raise UserError(f"{path}: is not an image classifier; it maps {takes} to {gives}")
    shape, n_classes = takes[1:], gives[-1]
    if shape[2] not in (None, source.shape[2]):
        raise UserError(
            f"{path}: takes {shape[2]}-channel images, the data set has {source.shape[2]}-channel "
            "ones (1 is grey, 3 colour); name one that fits"
        )
    height, width = shape[:2]
    if height not in (None, source.shape[0]) or width not in (None, source.shape[1]):
        raise UserError(
            f"{path}: takes images of {shape}, the data set has {source.shape}; give --image-size "
            f"{height}x{width}"
        )
    if n_classes != len(source.classes):
        raise UserError(
            f"{path}: knows {n_classes} classes, the data set has {len(source.classes)}; name the "
            "data set that it was trained on"
        )
    known = tuple(run.get("classes", source.classes))
    if known != source.classes:
        other = next(pair for pair in zip(known, source.classes, strict=True) if len({*pair}) > 1)
        raise UserError(
            f"{path}: knows other classes than the data set ({other[0]!r} where that has "
            f"{other[1]!r}); name the data set that it was trained on"
        )


def refuse_other_sizes(paths: list[Path], models: list[Any]) -> None:
    """Raises: UserError if no image size fits all of the models, which see the same images."""
    sizes = [getattr(model, "input_shape", None) for model in models]
    known = [
        (path, size[1:3])
        for path, size in zip(paths, sizes, strict=True)
        if isinstance(size, tuple) and len(size) == 4 and None not in size[1:3]
    ]
    for path, size in known[1:]:
        if size != known[0][1]:
            raise UserError(
                f"{path}: takes images of {'x'.join(map(str, size))} pixels, {known[0][0]} of "
                f"{'x'.join(map(str, known[0][1]))}; evaluate them one by one, or look at "
                "`pipeline compare`"
            )


def members(path: Path) -> list[Path]:
    """The runs of an ensemble's folder, in their order; any other path is itself."""
    if not (path / ENSEMBLE).is_file():
        return [path]
    try:
        return [path / str(name) for name in json.loads((path / ENSEMBLE).read_text())]
    except (ValueError, TypeError) as err:
        raise UserError(f"{path / ENSEMBLE}: is damaged; name the members instead") from err


def folder_around(path: Path) -> Path:
    """The folder of the run whose model that file is; any other path is itself."""
    return path.parent if path.name in (MODEL, MODEL_H5) and path.is_file() else path


def read_config(path: Path) -> dict[str, Any]:
    """What a run folder, or that around its model, says of the training; nothing of other files.

    Raises: UserError if it is damaged.
    """
    path = folder_around(path)
    if not (path / CONFIG).is_file():
        return {"run": {}, "origin": {}}
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text())
        return {"run": dict(config["run"]), "origin": dict(config["origin"])}
    except (ValueError, LookupError, TypeError) as err:
        raise UserError(f"{path / CONFIG}: is damaged; name the model in it instead") from err


def data_of(config: EvaluateConfig, first: dict[str, Any]) -> AugmentConfig:
    """The data set that was asked for, or that of the first run, and with it policy and seed.

    Raises: UserError if none was asked for, and the run names none or one that is gone.
    """
    run, origin = first["run"], first["origin"]
    if config.dataset is None and not origin:
        raise UserError(f"{config.paths[0]}: does not say what it was trained on; give --dataset")
    if config.dataset is None:
        refuse_gone(config.paths[0], origin["dataset"])
    size = config.image_size or origin.get("image_size")
    limit = config.limit or (origin.get("limit") if config.dataset is None else None)
    return AugmentConfig(
        dataset=config.dataset or origin["dataset"],
        data_dir=config.data_dir or Path(origin.get("data_dir", config.default_data_dir)),
        split=config.split or "test",
        policy=config.policy or run.get("policy"),
        image_size=tuple(size) if size else None,
        seed=run.get("augment_seed", 0) if config.seed is None else config.seed,
        limit=limit,
        max_bad=origin.get("max_bad", MAX_BAD) if config.max_bad is None else config.max_bad,
    )


def refuse_gone(path: Path, dataset: str) -> None:
    """Raises: UserError if what a run was trained on is no longer in its place on this machine."""
    at = place(dataset)
    try:
        if dataset in CATALOG or is_object(at) or at.exists():
            return
    except OSError:
        return  # whoever opens it tells of that
    if VERSION.fullmatch(at.name) and latest(at.parent) is not None:
        raise UserError(
            f"{path}: was trained on the version {at.name} of {at.parent}, which was removed "
            f"(--keep); give `evaluate` or `visualize` --dataset {at.parent} for the latest"
        )
    raise UserError(
        f"{path}: was trained on {dataset}, where nothing is now; give `evaluate` or `visualize` "
        "--dataset with its new place"
    )


def evaluate_runs(config: EvaluateConfig, report: Report) -> str:
    """A few lines about the models at the paths, each by itself and, if several, together.

    Raises: UserError for a model or a data set that cannot be used, or options without effect.
    """
    if not config.tta and (config.policy is not None or config.seed is not None):
        option = "--seed" if config.policy is None else "--policy"
        raise UserError(f"{option}: originals are not augmented; give --tta too, or leave it out")
    groups = [members(path) for path in config.paths]
    paths = [member for group in groups for member in group]
    models = [load_model(path) for path in paths]
    refuse_other_sizes(paths, models)
    known = [read_config(path) for path in paths]
    source, shown, what = images_of(config, paths, known, report)
    for path, model, config_of in zip(paths, models, known, strict=True):
        check_fits(path, model, config_of["run"], source)
    guesses = {
        path: guess(predictor(model, source.shape), source, shown, config.tta)
        for path, model in zip(paths, models, strict=True)
    }

    def line(name: str, some: list[Path]) -> str:
        found = evaluation(source, shown, np.mean([guesses[path] for path in some], axis=0))
        worst = min(found.per_class, key=lambda c: found.per_class[c])
        return (
            f"{name}: accuracy {found.accuracy:.4f}, loss {found.loss:.4f} on "
            f"{len(found.labels):,} images of {what}; worst class {worst} "
            f"({found.per_class[worst]:.4f})"
        )

    lines = []
    for path, group in zip(config.paths, groups, strict=True):
        lines += [line(str(member), [member]) for member in group]
        if len(group) > 1 and len(groups) > 1:
            lines.append(line(f"{path}: its {len(group)} members averaged", group))
    if len(paths) > 1:
        lines.append(line(f"all {len(paths)} models averaged", paths))
    return "\n".join(lines)


def images_of(
    config: EvaluateConfig, paths: list[Path], known: list[dict[str, Any]], report: Report
) -> tuple[Images, np.ndarray, str]:
    """What models are evaluated on: images, (n,) positions of them, and what to call those.

    Raises: UserError if a run may have learned from some of them that the first one was tested on.
    """
    own = None
    if config.split is None and config.dataset is None:
        own = held_out(paths[0], known[0])
    if own is None:
        source = open_images(data_of(config, known[0]), "memory", report)
        if config.split == "train" and config.dataset is None:
            report.say("--split train: the networks have learned from these images", event="known")
        return source, source.usable, config.split or "test"
    for path, config_of in zip(paths, known, strict=True):
        if config_of["origin"] and held_out(path, config_of) != own:
            raise UserError(
                f"{path}: may have learned from the images that {paths[0]} was tested on; evaluate "
                "them one by one, or give --dataset"
            )
    asked = replace(config, split="train", limit=None)
    data = data_of(asked, known[0])
    source = open_images(data, "memory", report)
    ids = [own[i] for i in limited(own, config.limit)]
    fold = known[0]["run"].get("fold")
    what = f"fold {fold}" if fold else "train, held out to validate"
    return source, positions_of(ids, source, data.dataset), what


def positions_of(ids: Sequence[str], source: Images, dataset: str) -> np.ndarray:
    """(n,) positions of n samples.

    Raises: UserError if the data set no longer has one of them, or it cannot be used.
    """
    known = {source.ids[i]: i for i in source.usable.tolist()}
    gone = next((name for name in ids if name not in known), None)
    if gone is not None:
        raise UserError(f"{dataset}: no longer has the image {gone}")
    return np.array([known[name] for name in ids])


def is_part_of_train(split: str, known: dict[str, Any]) -> bool:
    """Whether what a run was tested on, of which its result says that split, is part of the data
    set's train: validation where there is no test, and folds."""
    return split == "val" or bool(known["run"].get("fold"))


def was_tested_on_train(path: Path, known: dict[str, Any]) -> bool:
    """Whether a finished run was tested on a part of train; False of what is no such run."""
    try:
        split = json.loads((folder_around(path) / RESULT).read_text())["split"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return is_part_of_train(split, known)


def held_out(path: Path, known: dict[str, Any]) -> list[str] | None:
    """The samples of train that a run was tested on; None of other runs, and of other files.

    Raises: UserError if its predictions cannot be read.
    """
    path = folder_around(path)
    if not was_tested_on_train(path, known):
        return None
    return read_predictions(path / PREDICTIONS, len(known["run"].get("classes", ()))).ids
