"""Data sets by name or path."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets import storage
from datasets.commit import is_unfinished
from datasets.errors import SourceError, nearest, similar
from datasets.source import Source
from datasets.storage_errors import translating_errors
from datasets.versions import open_version, output_of

CATALOG = {
    "digits": "digits:Digits",
    "fashion_mnist": "fashion_mnist:FashionMnist",
    "cifar10": "cifar:Cifar10",
    "cifar100": "cifar:Cifar100",
    "cub200": "cub200:Cub200",
    "cub200_cropped": "cub200:Cub200Cropped",
}
# Where the data of a name lies under --data-dir, if not under the name itself.
FOLDERS = {"cub200_cropped": "cub200"}
LISTS = (".csv", ".parquet")


def known(name: str) -> Any:
    """The class of a data set in the catalogue; its module is imported only now."""
    module, _, attribute = CATALOG[name].partition(":")
    return getattr(import_module(f"datasets.{module}"), attribute)


def describe(name: str) -> str:
    """One line about a data set of the catalogue."""
    return (known(name).__doc__ or "").splitlines()[0]


def open_source(dataset: str, data_dir: Path) -> Source:
    """The source of that name, or at that path: an image folder, the official folder of
    CUB-200-2011, a folder of shards, or a CSV or Parquet list.

    Raises: SourceError that suggests the nearest name, or says why the path cannot be read.
    """
    if dataset in CATALOG:
        source: Source = known(dataset)(
            data_dir.expanduser().absolute() / FOLDERS.get(dataset, dataset)
        )
        return source
    path = storage.place(dataset)
    if storage.is_object(path):
        return open_objects(path)
    path = path.expanduser().absolute()
    try:
        with translating_errors(path):
            if path.is_dir():
                return open_folder(path)
            is_file = path.is_file()
    except OSError as err:
        raise SourceError(
            f"--dataset {dataset}: {err.strerror}; expected a folder or a list that can be read"
        ) from err
    if is_file:
        if path.suffix.lower() not in LISTS:
            raise SourceError(f"{path}: expected a folder, or a list that ends in .csv or .parquet")
        from datasets.listing import ListFile

        return ListFile(path)
    beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    if not (hint := similar(path.name, [*CATALOG, *beside])):
        is_path = os.sep in dataset  # whose writer has not mistaken the name of a data set
        hint = "look at each part of it" if is_path else nearest(dataset, CATALOG)
    raise SourceError(f"--dataset {dataset}: neither a known name nor a path that exists; {hint}")


def data_name(dataset: str) -> str:
    """The name that `open_source` would give it, without opening it: the data may be made later.
    Links are followed, and a version is named by its output. It is another one only for an official
    folder of CUB-200-2011 that is given by its path.
    """
    from datasets.folder import source_name

    if dataset in CATALOG:
        return dataset
    path = Path(dataset).expanduser()
    if path.suffix.lower() in LISTS:
        return source_name(path.with_suffix(""))
    return source_name(output_of(path))


def whereabouts(dataset: str) -> str:
    """What finds the data set from any other folder: known names and URLs as they are, paths made
    absolute."""
    if dataset in CATALOG or storage.is_object(storage.place(dataset)):
        return dataset
    return str(Path(dataset).expanduser().resolve())


def open_objects(place: Path) -> Source:
    """What lies at a URL: a list, published shards, shards, or class folders.

    Raises: SourceError if there is nothing; EnvironmentFailed if the storage fails.
    """
    with translating_errors(place):
        if place.suffix.lower() in LISTS:
            from datasets.listing import ListFile

            return ListFile(place)
        if storage.kind(place) != "directory":
            raise SourceError(
                f"{place}: nothing is there; expected a folder of images or of shards"
            )
        return open_folder(place)


def open_folder(path: Path) -> Source:
    """What lies in a folder; where outputs are published, the latest of them, which stays in its
    place for as long as this source lives."""
    from datasets.cub200 import Cub200

    official = ("train_test_split.txt", "images.txt")
    if all(storage.kind(path / name) == "file" for name in official):
        return Cub200(path)
    found, handle = open_version(path)
    with ExitStack() as stack:
        if handle is not None:
            stack.callback(os.close, handle)
        source = open_shards(found)
        # The copies that workers get need none: this process, which waits for them, has its own.
        weakref.finalize(source, stack.pop_all().close)
    return source


def open_shards(path: Path) -> Source:
    """The shards of a folder, or the images where there are none."""
    from datasets.folder import Folder
    from datasets.parquet_shards import ParquetShards
    from datasets.shard_files import find_shards
    from datasets.tfrecord_shards import TFRecordShards

    if is_unfinished(path):
        raise SourceError(
            f"{path}: a run has begun to write there and has not come to its end; run its command "
            "again, or name another data set"
        )
    shards = find_shards(path)
    if not shards:
        return Folder(path)
    first = next(iter(shards.values()))[0]
    return (ParquetShards if first.suffix == ".parquet" else TFRecordShards)(path, shards)
