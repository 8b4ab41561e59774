"""The data sets known by name: what their official files hold, or in one line what is wrong."""

from __future__ import annotations

import gzip
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from datasets.catalog import open_source
from datasets.cifar import Cifar10, Cifar100
from datasets.cub200 import Cub200, Cub200Cropped
from datasets.digits import Digits
from datasets.errors import SourceError
from datasets.fashion_mnist import CLASSES, SHA256, FashionMnist
from datasets.fingerprint import scan
from datasets.images import encode
from datasets.source import Listing, Source, check_listing, is_held_out
from tests.running import run

RNG = np.random.default_rng(3)


def ids_of(listing: Listing) -> dict[str, list[str]]:
    return {split: list(samples.ids) for split, samples in listing.splits.items()}


def pixels_of(source: Source, split: str) -> list[np.ndarray | bytes]:
    return list(source.read(source.listing().splits[split].refs))


def png(value: int = 0, height: int = 6, width: int = 9) -> bytes:
    return encode(np.full((height, width, 3), value, np.uint8), "png", 95)


def test_digits_are_the_bundled_1797_split_by_hash() -> None:
    listing = Digits(Path("unused")).listing()
    every = [*listing.splits["train"].ids, *listing.splits["test"].ids]
    assert sorted(every) == [f"{i:05d}" for i in range(1797)]
    assert (len(listing.splits["train"]), len(listing.splits["test"])) == (1462, 335)
    assert is_held_out(listing.splits["test"].ids, 0.2).all()
    assert not is_held_out(listing.splits["train"].ids, 0.2).any()


def test_digits_show_what_their_labels_say() -> None:
    from sklearn.datasets import load_digits

    source, known = Digits(Path("unused")), load_digits()
    for samples in source.listing().splits.values():
        numbers = [int(i) for i in samples.ids]
        assert_array_equal(samples.labels, known.target[numbers])
        # 0..16 stretched to 0..255.
        want = np.rint(known.images[numbers] * 255 / 16)
        assert_array_equal(np.stack(list(source.read(samples.refs))), want)


@pytest.mark.parametrize("mode", [0o700, 0o711])
def test_a_folder_that_may_not_be_read_is_told_in_one_line(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        os.chmod(name, 0o755)
        photos = Path(name) / "photos"
        photos.mkdir(mode)
        photos.chmod(mode if os.geteuid() == 0 else mode & 0o11)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)  # root may read anything
        try:
            with pytest.raises(SourceError, match=f"--dataset {photos}: Permission denied; expect"):
                open_source(str(photos), Path("unused"))
        finally:
            os.seteuid(user)


def test_a_name_that_is_too_long_for_a_path_is_told_in_one_line() -> None:
    with pytest.raises(SourceError, match="File name too long; expected a folder or a list"):
        open_source("a" * 300, Path("unused"))


def write_fashion_mnist(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four files with 6 + 4 images; split -> (images, labels)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for split, prefix, n in (("train", "train", 6), ("test", "t10k", 4)):
        images = RNG.integers(0, 256, (n, 28, 28), np.uint8)
        labels = RNG.integers(0, 10, n, np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
        made[split] = images, labels
    return made


def test_fashion_mnist_gives_the_images_and_labels_of_its_idx_files(tmp_path: Path) -> None:
    made, source = write_fashion_mnist(tmp_path), FashionMnist(tmp_path)
    listing = source.listing()
    assert ids_of(listing) == {
        "train": [f"train/{i:05d}" for i in range(6)],
        "test": [f"test/{i:05d}" for i in range(4)],
    }
    assert listing.classes == CLASSES
    for split, (images, labels) in made.items():
        assert_array_equal(listing.splits[split].labels, labels)
        assert_array_equal(np.stack(pixels_of(source, split)), images)


def flip_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "damaged": lambda data: flip_byte(data, 10),
    "damaged later": lambda data: flip_byte(data, 30),
    "no gzip": lambda data: b"<html>not found</html>",
    "no IDX": lambda data: gzip.compress(b"text, not IDX"),
    "empty": lambda data: b"",
    "one short": lambda data: gzip.compress(gzip.decompress(data)[:-1]),
    "two dimensions": lambda data: gzip.compress(b"\0\0\x08\x02" + bytes(8)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [f"{stem}-ubyte.gz" for stem in SHA256])
def test_a_damaged_file_of_fashion_mnist_is_named(tmp_path: Path, file: str, damage: str) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    source = FashionMnist(tmp_path)
    with pytest.raises(SourceError, match=f"{file}: broken: .+; remove it, and it is downloaded"):
        [pixels_of(source, split) for split in ("train", "test")]


def test_fashion_mnist_with_a_label_too_few_is_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    labels = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes(3))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(SourceError, match="its t10k files hold 4 images and 3 labels; remove them"):
        FashionMnist(tmp_path).listing()


def write_cifar(kind: type[Cifar10 | Cifar100], root: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """The official files with 3 images each; split -> (H, W, C images, labels)."""
    folder = root / kind.folder
    folder.mkdir(parents=True)
    n_classes = 10 if kind is Cifar10 else 100
    (folder / kind.names).write_text("".join(f"class{i}\n" for i in range(n_classes)) + "\n")
    made = {}
    for split, files in kind.files.items():
        images = RNG.integers(0, 256, (3 * len(files), 32, 32, 3), np.uint8)
        labels = RNG.integers(0, n_classes, len(images), np.uint8)
        coarse = [np.uint8(label // 5) for label in labels] if kind.n_labels == 2 else None
        for f, file in enumerate(files):
            with (folder / file).open("wb") as out:
                for i in range(3 * f, 3 * f + 3):
                    if coarse is not None:
                        out.write(coarse[i].tobytes())
                    out.write(labels[i].tobytes())
                    # All red pixels, then all green ones, then all blue ones.
                    for channel in range(3):
                        out.write(images[i, :, :, channel].tobytes())
        made[split] = images, labels
    return made


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_gives_colour_images_and_fine_labels(
    tmp_path: Path, kind: type[Cifar10 | Cifar100]
) -> None:
    made, source = write_cifar(kind, tmp_path), kind(tmp_path)
    listing = source.listing()
    for split, (images, labels) in made.items():
        assert listing.splits[split].ids == [f"{split}/{i:05d}" for i in range(len(images))]
        assert_array_equal(listing.splits[split].labels, labels)
        assert_array_equal(np.stack(pixels_of(source, split)), images)
    assert listing.classes[:2] == ("class0", "class1")
    assert len(listing.classes) == (10 if kind is Cifar10 else 100)
    last_first = listing.splits["train"].refs[::-1]
    assert_array_equal(np.stack(list(source.read(last_first))), made["train"][0][::-1])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_a_known_data_set_is_written_as_it_is(tmp_path: Path, name: str) -> None:
    folder, kinds = tmp_path / name, {"cifar10": Cifar10, "cifar100": Cifar100}
    made = write_cifar(kinds[name], folder) if name in kinds else write_fashion_mnist(folder)
    run(
        "augment",
        "--dataset",
        name,
        "--data-dir",
        tmp_path,
        "--copies",
        0,
        "--out",
        tmp_path / "out",
    )
    source = open_source(str(tmp_path / "out"), tmp_path)
    for split, (images, labels) in made.items():
        samples = source.listing().splits[split]
        images = images.reshape(len(images), *images.shape[1:3], -1)
        order = np.argsort(samples.ids)
        assert_array_equal(samples.labels[order], labels)
        assert_array_equal(np.stack(list(source.read(samples.refs)))[order], images)


@pytest.mark.parametrize("n_bytes", [0, 3072, 3074])
def test_a_cifar_file_of_an_odd_size_is_named_with_what_to_do(tmp_path: Path, n_bytes: int) -> None:
    write_cifar(Cifar10, tmp_path)
    path = tmp_path / Cifar10.folder / "data_batch_3.bin"
    path.write_bytes(bytes(n_bytes))
    expected = f"{path}: {n_bytes:,} bytes, expected a multiple of 3073; remove {path.parent}"
    with pytest.raises(SourceError, match=expected):
        Cifar10(tmp_path).listing()


def test_a_cifar_file_with_fewer_images_than_the_first_is_named(tmp_path: Path) -> None:
    write_cifar(Cifar10, tmp_path)
    path = tmp_path / Cifar10.folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:3073])
    with pytest.raises(SourceError, match=f"{path}: 1 images, but data_batch_1.bin has 3; remove"):
        Cifar10(tmp_path).listing()


@pytest.mark.parametrize("file", ["data_batch_2.bin", "batches.meta.txt"])
def test_a_missing_cifar_file_is_named_with_what_to_do(tmp_path: Path, file: str) -> None:
    write_cifar(Cifar10, tmp_path)
    path = tmp_path / Cifar10.folder / file
    path.unlink()
    with pytest.raises(SourceError, match=f"{path}: No such file.*; remove {path.parent}"):
        Cifar10(tmp_path).listing()


def test_a_label_that_has_no_class_is_refused(tmp_path: Path) -> None:
    write_cifar(Cifar10, tmp_path)
    path = tmp_path / Cifar10.folder / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(SourceError, match="'test/00000' has the label 10, but there are 10 class"):
        check_listing("cifar10", Cifar10(tmp_path).listing())


CUB = {
    "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
    "images.txt": "1 001.Black_footed_Albatross/a b.png\n2 001.Black_footed_Albatross/b.png\n"
    "3 002.Laysan_Albatross/c.png\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n",
    "bounding_boxes.txt": "1 2.6 1.2 4.0 3.1\n2 0.0 0.0 9.0 6.0\n3 8.0 5.0 40.0 40.0\n",
}


def write_cub200(folder: Path) -> Path:
    """The official folder with three photos of 9x6 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in CUB.items():
        (folder / name).write_text(text)
    for value, line in enumerate(CUB["images.txt"].splitlines()):
        path = folder / "images" / line.partition(" ")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return folder


def test_cub200_has_its_official_split_and_names(tmp_path: Path) -> None:
    write_cub200(tmp_path / "CUB_200_2011")
    source = Cub200(tmp_path)
    listing = source.listing()
    assert listing.classes == ("Black_footed_Albatross", "Laysan_Albatross")
    assert ids_of(listing) == {
        "train": ["001.Black_footed_Albatross/a b.png", "002.Laysan_Albatross/c.png"],
        "test": ["001.Black_footed_Albatross/b.png"],
    }
    assert listing.splits["train"].labels.tolist() == [0, 1]
    assert listing.splits["test"].labels.tolist() == [0]
    assert pixels_of(source, "train") == [png(0), png(2)]
    assert all(samples.boxes is None for samples in listing.splits.values())


def test_the_official_folder_of_cub200_is_known_by_its_files(tmp_path: Path) -> None:
    assert ids_of(open_source(str(write_cub200(tmp_path / "birds")), tmp_path).listing()) == ids_of(
        Cub200(tmp_path / "birds").listing()
    )


def test_a_cropped_bird_is_the_whole_pixels_around_its_box(tmp_path: Path) -> None:
    source = Cub200Cropped(write_cub200(tmp_path))
    train = source.listing().splits["train"]
    # x 2.6 to 6.6 and y 1.2 to 4.3 are the columns 2..6 and the rows 1..4.
    assert train.boxes is not None
    assert train.boxes.tolist() == [[2, 1, 5, 4], [8, 5, 40, 40]]
    # The second box reaches over the border of the photo: what lies inside is left.
    assert scan(source, train).shapes.tolist() == [[4, 5, 3], [1, 1, 3]]


@pytest.mark.parametrize("box", ["1e10 2.0 3.0 4.0", "inf 2.0 3.0 4.0", "nan 2.0 3.0 4.0", "1 2 3"])
def test_a_box_that_is_none_is_told_in_one_line(tmp_path: Path, box: str) -> None:
    (write_cub200(tmp_path) / "bounding_boxes.txt").write_text(f"1 {box}\n2 {box}\n3 {box}\n")
    with pytest.raises(SourceError, match=f"bounding_boxes.txt: '{box}', expected lines such as"):
        Cub200Cropped(tmp_path).listing()


@pytest.mark.parametrize("file", CUB)
@pytest.mark.parametrize("content", [None, b"1\n2\n3\n", b"9 1\n", b"1 1 \xff\n2 x\n3 nan\n"])
def test_a_missing_or_wrong_file_of_cub200_is_told_in_one_line(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    path = write_cub200(tmp_path / "CUB_200_2011") / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        check_listing("birds", Cub200Cropped(tmp_path).listing())
    message = str(caught.value)
    assert str(tmp_path) in message
    assert len(message.splitlines()) == 1
    assert "unpack" in message or "expected the official folder" in message
