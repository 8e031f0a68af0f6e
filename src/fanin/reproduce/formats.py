"""File formats of the standard image archives, read byte by byte: nothing is ever unpickled."""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fanin.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8
    from numpy import ndarray

    Bytes = UInt8[ndarray, "..."]
    Labels = Int64[ndarray, " image"]

IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_RECORD = 1 + 3 * 32 * 32
_DAMAGED = "fetch it again; with a network, --download does"


def idx_path(root: Path, stem: str) -> Path:
    """Where an IDX file lies under `root`: gzipped or plain, with the usual spellings.

    Raises:
        DataError: it is not there.
    """
    for name in (f"{stem}.gz", stem, stem.replace("-idx", ".idx")):
        if (root / name).is_file():
            return root / name
    raise DataError(
        str(root / f"{stem}.gz"),
        expected="this file, gzipped or plain",
        got="nothing there",
        fix="point --root at the folder that has it (Debian: /usr/share/datasets/fashion-mnist, "
        "from the package dataset-fashion-mnist), or add --download",
    )


def idx(path: Path) -> Bytes:
    """Read an IDX file of unsigned bytes.

    *Definition*: two zero bytes, the type (8 = unsigned byte), the number of axes, each axis as a
    big-endian 32-bit integer, then the values in C order.

    Args:
        path: the file, gzipped if its name ends in `.gz`.

    Returns:
        The array, of the shape that the file states.

    Raises:
        DataError: the file is not IDX, or is shorter or longer than it says.
    """
    raw = _read(path)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4:
        raise DataError(
            str(path),
            expected="an IDX file of unsigned bytes",
            got=f"a file that starts with {raw[:4].hex() or 'nothing'}",
            fix=_DAMAGED,
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise _short(path, header, len(raw))
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if len(raw) != header + math.prod(shape):
        raise _short(path, header + math.prod(shape), len(raw))
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def check_pair(path: Path, pixels: Bytes, labels: Bytes) -> None:
    """Refuse images and labels that do not belong together.

    Raises:
        DataError: their numbers differ, or a label is not a class.
    """
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels) or not len(labels):
        raise DataError(
            str(path),
            expected="as many images as labels",
            got=f"shapes {pixels.shape} and {labels.shape}",
            fix=_DAMAGED,
        )
    _check_labels(path, labels)


def cifar10(root: Path) -> tuple[Bytes, Labels, Bytes, Labels]:
    """Read the binary version of CIFAR-10 from a folder or from its archive.

    *Definition*: records of 3,073 bytes: the label, then 32 x 32 pixels of red, green, blue.

    Args:
        root: the folder with `data_batch_1.bin` ... `test_batch.bin`, or one above it, or the
            folder with `cifar-10-binary.tar.gz`.

    Returns:
        Training pixels (image, 3, 32, 32) and labels, test pixels and labels.

    Raises:
        DataError: a file is missing or damaged, or only the pickled version is there.
    """
    for folder in (root, root / _CIFAR_FOLDER):
        if (folder / CIFAR_TRAIN[0]).is_file():
            files = {name: folder / name for name in (*CIFAR_TRAIN, CIFAR_TEST)}
            return _cifar_arrays({name: (path, _read(path)) for name, path in files.items()})
    archive = root / CIFAR_ARCHIVE
    if archive.is_file():
        return _cifar_arrays(_members(archive))
    raise _no_cifar(root)


def _cifar_arrays(
    files: dict[str, tuple[Path, bytes]],
) -> tuple[Bytes, Labels, Bytes, Labels]:
    batches = {name: _cifar_batch(path, raw) for name, (path, raw) in files.items()}
    test = batches.pop(CIFAR_TEST)
    train = np.concatenate(list(batches.values()))
    return _pixels(train), _labels(train), _pixels(test), _labels(test)


def _cifar_batch(path: Path, raw: bytes) -> Bytes:
    """One batch as (record, byte)."""
    if not raw or len(raw) % _CIFAR_RECORD:
        raise DataError(
            str(path),
            expected=f"whole records of {_CIFAR_RECORD} bytes",
            got=f"{len(raw)} bytes",
            fix=_DAMAGED,
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _CIFAR_RECORD)
    _check_labels(path, records[:, 0])
    return records


def _pixels(records: Bytes) -> Bytes:
    return records[:, 1:].reshape(-1, 3, 32, 32)


def _labels(records: Bytes) -> Labels:
    return records[:, 0].astype(np.int64)


def _members(archive: Path) -> dict[str, tuple[Path, bytes]]:
    """The six batches inside the archive, read in memory: nothing is extracted to disk."""
    found: dict[str, tuple[Path, bytes]] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is not None and name in (*CIFAR_TRAIN, CIFAR_TEST):
                    found[name] = (archive / member.name, stream.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            str(archive), expected="a whole .tar.gz archive", got=str(error), fix=_DAMAGED
        ) from error
    missing = [name for name in (*CIFAR_TRAIN, CIFAR_TEST) if name not in found]
    if missing:
        raise DataError(str(archive), expected=f"{missing[0]} inside", got="none", fix=_DAMAGED)
    return {name: found[name] for name in (*CIFAR_TRAIN, CIFAR_TEST)}


def _no_cifar(root: Path) -> DataError:
    """Nothing that can be read; the pickled version is named if it is what is there."""
    names = ("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1")
    pickled = [root / name for name in names if (root / name).exists()]
    if pickled:
        return DataError(
            str(pickled[0]),
            expected=f"the binary version, {CIFAR_ARCHIVE}",
            got="the Python version, whose pickles could run code and are never opened",
            fix=f"put {CIFAR_ARCHIVE} there, or add --download",
        )
    return DataError(
        str(root / CIFAR_ARCHIVE),
        expected=f"this archive, or {CIFAR_TRAIN[0]} and its fellows",
        got="nothing there",
        fix="point --root at the folder that has it, or add --download",
    )


def _read(path: Path) -> bytes:
    """All bytes of a file, unpacked if its name ends in `.gz`."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            str(path), expected="this file", got="nothing there", fix=_DAMAGED
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            str(path), expected="a readable file", got=str(error), fix=_DAMAGED
        ) from error


def _check_labels(path: Path, labels: Bytes) -> None:
    if labels.max() > 9:
        raise DataError(
            str(path), expected="labels 0 to 9", got=f"label {labels.max()}", fix=_DAMAGED
        )


def _short(path: Path, expected: int, got: int) -> DataError:
    return DataError(str(path), expected=f"{expected} bytes", got=f"{got} bytes", fix=_DAMAGED)
