"""Fashion-MNIST: the four official files, which are gzipped IDX."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from datasets.download import Log, fetch
from datasets.errors import SourceError
from datasets.source import Listing, Samples, read_file

URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
TRAIN, TEST = "train", "t10k"  # how the files of each split begin
SHA256 = {
    f"{TRAIN}-images-idx3": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    f"{TRAIN}-labels-idx1": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    f"{TEST}-images-idx3": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    f"{TEST}-labels-idx1": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@lru_cache(maxsize=4)
def read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file (http://yann.lecun.com/exdb/mnist, end of page).

    Raises: SourceError if it is broken.
    """
    try:
        data = gzip.decompress(read_file(path))
        if data[:4] != bytes([0, 0, 8, n_dimensions]):
            raise ValueError(f"not IDX with unsigned bytes in {n_dimensions} dimensions")
        shape = np.frombuffer(data, ">u4", count=n_dimensions, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape.tolist())
    except (ValueError, EOFError, OSError, zlib.error) as err:
        raise SourceError(f"{path}: broken: {err}; remove it, and it is downloaded again") from err


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST, 28x28 grey, 10 classes, 60,000 + 10,000 images; downloads 31 MB."""

    root: Path
    name = "fashion_mnist"
    channels = 1

    def download(self, log: Log) -> None:
        for stem, sha256 in SHA256.items():
            file = f"{stem}-ubyte.gz"
            fetch(URL + file, f"sha256:{sha256}", self.root / file, log)

    def listing(self) -> Listing:
        splits = {}
        for split, prefix in (("train", TRAIN), ("test", TEST)):
            labels = read_idx(self.root / f"{prefix}-labels-idx1-ubyte.gz", 1).astype(np.int64)
            images = self._images(prefix)
            if len(images) != len(labels):
                raise SourceError(
                    f"{self.root}: its {prefix} files hold {len(images):,} images and "
                    f"{len(labels):,} labels; remove them, and they are downloaded again"
                )
            ids = [f"{split}/{i:05d}" for i in range(len(labels))]
            splits[split] = Samples(ids, labels, [(prefix, i) for i in range(len(labels))])
        return Listing(CLASSES, splits)

    def _images(self, prefix: str) -> np.ndarray:
        return read_idx(self.root / f"{prefix}-images-idx3-ubyte.gz", 3)

    def read(self, refs: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
        for prefix, i in refs:
            yield self._images(prefix)[i]
