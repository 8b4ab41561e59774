"""`pipeline visualize`: pictures of a network: its kernels, its feature maps, and Grad-CAM."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import ImageError, SourceError, UserError, nearest
from datasets.fingerprint import not_read
from datasets.source import read_file
from pipeline.online import open_images
from pipeline.preview import draw
from pipeline.report import Report
from pipeline.shard import decode_one
from trainers.activations import Network, named_layers, shapes_of
from trainers.evaluate import (
    ENSEMBLE,
    EvaluateConfig,
    data_of,
    load_model,
    read_config,
    was_tested_on_train,
)
from trainers.network_sheets import Shown, cam_sheet, kernel_sheet, map_sheet

SPLIT, N_SAMPLES = "test", 4  # where nothing else is asked for


@dataclass(frozen=True)
class VisualizeConfig:
    """The options of `pipeline visualize`.

    path: A run folder, or a .keras or .h5 file. default_data_dir: As for `EvaluateConfig`.
    layers: Names; none for the first convolution and the last layer that gives maps. Grad-CAM is
      at that last one in any case.
    images: Files; none for the first `samples` by hash of the split of a data set, the run's own
      unless another is named.
    split, samples: None for `test` and 4.
    class_name: That Grad-CAM explains; None for the likeliest of each image.
    image_size: For a model that takes any.
    """

    path: Path
    default_data_dir: Path
    layers: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    dataset: str | None = None
    data_dir: Path | None = None
    split: str | None = None
    samples: int | None = None
    class_name: str | None = None
    channels: int = 16
    image_size: tuple[int, int] | None = None
    out: Path | None = None


def visualize(config: VisualizeConfig, report: Report) -> str:
    """Draws every picture that was asked for; a line about each."""
    network, known = open_network(config), read_config(config.path)
    of_kernels, of_maps = choose_layers(config, network)
    shown = choose_images(config, network, known, report)
    chosen = class_index(config, network, shown.classes)
    sheets = {f"kernels-{name}": kernel_sheet(network, name) for name in of_kernels}
    sheets |= {
        f"features-{name}": map_sheet(network, name, shown, config.channels) for name in of_maps
    }
    if network.n_classes and network.with_maps:
        sheets["gradcam"] = cam_sheet(network, network.telling[-1], shown, chosen)
    beside = config.path if config.path.is_dir() else config.path.parent
    lines = []
    for name, sheet in sheets.items():
        # A layer of a model inside has a slash.
        file = re.sub(r"[^\w.-]", "-", name.replace("/", "--"))
        path = (config.out or beside / "pictures") / f"{file}.png"
        draw(sheet, path)
        lines.append(f"{path}: {sheet.title}")
    if not network.n_classes:
        lines.append(f"{config.path}: does not choose among classes, so there is no Grad-CAM")
    return "\n".join(lines)


def list_layers(config: VisualizeConfig) -> str:
    """A line for each layer: its name, its kind, and the shape of what it gives."""
    network = open_network(config)
    width = max(map(len, network.layers), default=0)
    lines = []
    for name, layer in network.layers.items():
        shape = " x ".join(map(str, network.shapes.get(name, ()))) or "-"
        lines.append(f"{name:{width}}  {type(layer).__name__:24}  {shape}")
    return "\n".join(lines)


def open_network(config: VisualizeConfig) -> Network:
    """The model that is to be seen.

    Raises: UserError if there is none, or it takes no images.
    """
    path = config.path
    if (path / ENSEMBLE).is_file():
        raise UserError(f"{path}: is an ensemble; name one of its members, such as {path}/member-0")
    model = load_model(path)
    takes, gives = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not isinstance(takes, tuple) or len(takes) != 4 or takes[3] not in (1, 3):
        raise UserError(
            f"{path}: takes {takes}; expected images in grey or colour, (None, height, width, 1 or "
            "3): name another model"
        )
    sizes = (config.image_size or takes[1:3], takes[1:3])
    if None in sizes[0]:
        raise UserError(f"{path}: takes images of any size; give --image-size")
    if any(own not in (None, asked) for asked, own in zip(*sizes, strict=True)):
        raise UserError(f"{path}: takes images of {takes[2]}x{takes[1]}; leave out --image-size")
    shape = (*sizes[0], takes[3])
    layers = named_layers(model)
    n_classes = gives[1] if isinstance(gives, tuple) and len(gives) == 2 else 0
    shapes = shapes_of(model, layers, shape)
    return Network(model, shape, layers, shapes, n_classes if n_classes > 1 else 0)


def choose_layers(config: VisualizeConfig, network: Network) -> tuple[list[str], list[str]]:
    """Names of the layers whose kernels, and of those whose maps are drawn.

    Raises: UserError for a name that is no layer's, or a layer that has neither.
    """
    kernels, maps = network.with_kernels, network.with_maps
    if not kernels and not maps:
        raise UserError(f"{config.path}: has neither convolutions nor maps; name another model")
    if not config.layers:
        return kernels[:1], network.telling
    names = list(dict.fromkeys(config.layers))
    for name in names:
        if name not in network.layers:
            raise UserError(
                f"--layer {name}: {config.path} has none of that name (--layers lists all); "
                f"{nearest(name, network.layers)}"
            )
        if name not in kernels and name not in maps:
            raise UserError(
                f"--layer {name}: gives {network.shapes.get(name, 'nothing')}; expected kernels or "
                "(height, width, channels): choose one from --layers"
            )
    return [n for n in names if n in kernels], [n for n in names if n in maps]


def choose_images(
    config: VisualizeConfig, network: Network, known: dict[str, Any], report: Report
) -> Shown:
    """The images at the paths, or the first samples by hash of the data set.

    Raises: UserError if one of the paths, or none of the samples, can be used.
    """
    known_classes = tuple(known["run"].get("classes", ()))
    of_data = {"dataset": config.dataset, "split": config.split, "samples": config.samples}
    given = [f"--{name} {value}" for name, value in of_data.items() if value is not None]
    if config.images and given:
        raise UserError(
            f"--image {config.images[0]}: is shown instead of {given[0]}; leave one out"
        )
    if not config.images and not config.dataset and not known["origin"]:
        raise UserError(
            f"{config.path}: does not say what it was trained on; give --dataset or --image"
        )
    if config.images:
        images = [read_image(path, network.shape) for path in config.images]
        shown = Shown(
            np.stack(images),
            [path.name for path in config.images],
            [None] * len(images),
            known_classes,
        )
    else:
        shown = first_samples(config, network, known, report)
        shown = replace(shown, classes=known_classes or shown.classes)
    if len(shown.classes) == network.n_classes:
        return shown
    return replace(shown, classes=tuple(map(str, range(network.n_classes))))


def first_samples(
    config: VisualizeConfig, network: Network, known: dict[str, Any], report: Report
) -> Shown:
    """Those of the data set, as large as the network takes them."""
    is_of_train = config.dataset is None and was_tested_on_train(config.path, known)
    asked = EvaluateConfig(
        paths=(config.path,),
        default_data_dir=config.default_data_dir,
        dataset=config.dataset,
        data_dir=config.data_dir,
        split=config.split or ("train" if is_of_train else SPLIT),
        image_size=network.shape[:2],
        limit=config.samples or N_SAMPLES,
    )
    # They are not augmented, and one that cannot be used is named and left out.
    data = replace(data_of(asked, known), policy="none", max_bad=1.0)
    source = open_images(data, "memory", report)
    usable = source.usable
    return Shown(
        np.stack([as_decoded(image, network.shape[2]) for image in source.images(usable, 0)]),
        [Path(source.ids[i]).name for i in usable],
        [source.classes[label] for label in source.labels[usable]],
        source.classes,
    )


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) uint8 of that shape, decoded as those of a data set are.

    Raises: SourceError if it cannot be.
    """
    try:
        return decode_one(read_file(path), shape[2], None, shape[:2], None)
    except OSError as err:
        reason = not_read(err)
    except ImageError as err:
        reason = str(err)
    raise SourceError(f"--image {path}: {reason}; give another image")


def as_decoded(image: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) uint8 -> in grey (channels=1) or colour (3), as decoding makes it."""
    from PIL import Image

    if image.shape[2] == channels:
        return image
    shown = Image.fromarray(image if channels == 1 else image[..., 0])
    return np.asarray(shown.convert("L" if channels == 1 else "RGB")).reshape(
        *image.shape[:2], channels
    )


def class_index(config: VisualizeConfig, network: Network, classes: tuple[str, ...]) -> int | None:
    """The position of --class. Raises: UserError if there is none of that name."""
    name = config.class_name
    if name is None:
        return None
    if not network.n_classes:
        raise UserError(f"--class {name}: {config.path} is not a classifier; leave --class out")
    if name not in classes:
        raise UserError(
            f"--class {name}: {config.path} knows {len(classes)} classes, none of that name; "
            f"{nearest(name, classes)}"
        )
    return classes.index(name)
