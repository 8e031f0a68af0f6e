"""Readers of the standard archives, on small files in the real formats."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fanin.errors import DataError
from fanin.reproduce import formats

AGAIN = "fetch it again; with a network, --download does"


def idx_bytes(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def cifar_bytes(labels: list[int], first: int = 0) -> bytes:
    """Records whose pixels are red = first + record, green = 100, blue = 200."""
    records = []
    for i, label in enumerate(labels):
        planes = [np.full(1024, value, np.uint8) for value in (first + i, 100, 200)]
        records.append(bytes([label]) + b"".join(plane.tobytes() for plane in planes))
    return b"".join(records)


def cifar_files() -> dict[str, bytes]:
    names = (*formats.CIFAR_TRAIN, formats.CIFAR_TEST)
    return {name: cifar_bytes([i, 9 - i], first=10 * i) for i, name in enumerate(names)}


def cifar_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"<p>hello", **files}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    np.testing.assert_array_equal(formats.idx(path), array)


@pytest.mark.parametrize("name", ["s-idx1-ubyte.gz", "s-idx1-ubyte", "s.idx1-ubyte"])
def test_idx_is_found_by_its_usual_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert formats.idx_path(tmp_path, "s-idx1-ubyte") == tmp_path / name


def test_idx_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        formats.idx_path(tmp_path, "train-images-idx3-ubyte")
    assert str(caught.value) == (
        f"{tmp_path}/train-images-idx3-ubyte.gz: expected this file, gzipped or plain, got nothing "
        "there; point --root at the folder that has it (Debian: /usr/share/datasets/fashion-mnist, "
        "from the package dataset-fashion-mnist), or add --download"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected an IDX file of unsigned bytes, got a file that starts with nothing"),
        (
            b"\0\0\x0d\1" + b"\0" * 8,
            "expected an IDX file of unsigned bytes, got a file that starts with 00000d01",
        ),
        (b"\0\0\x08\2\0\0\0\1", "expected 12 bytes, got 8 bytes"),
        (idx_bytes(np.zeros(7))[:-1], "expected 15 bytes, got 14 bytes"),
        (idx_bytes(np.zeros(7)) + b"\0", "expected 15 bytes, got 16 bytes"),
    ],
)
def test_damaged_idx_says_what_is_wrong(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        formats.idx(path)
    assert str(caught.value) == f"{path}: {said}; {AGAIN}"


def test_cut_gzip_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.arange(100)))[:-9])
    with pytest.raises(
        DataError, match=r"^.*x\.gz: expected a readable file, got .*; fetch it again"
    ):
        formats.idx(path)


@pytest.mark.parametrize(
    ("pixels", "labels"), [((3, 2, 2), (4,)), ((3, 4), (3,)), ((0, 2, 2), (0,))]
)
def test_images_and_labels_must_belong_together(
    pixels: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        formats.check_pair(Path("f"), np.zeros(pixels, np.uint8), np.zeros(labels, np.uint8))
    assert str(caught.value) == (
        f"f: expected as many images as labels, got shapes {pixels} and {labels}; {AGAIN}"
    )


def test_labels_must_be_classes() -> None:
    with pytest.raises(DataError, match=r"^f: expected labels 0 to 9, got label 10; "):
        formats.check_pair(Path("f"), np.zeros((1, 2, 2), np.uint8), np.array([10], np.uint8))


@pytest.mark.parametrize("form", ["folder", "above", "archive"])
def test_cifar_from_a_folder_or_the_archive(tmp_path: Path, form: str) -> None:
    files = cifar_files()
    if form == "archive":
        cifar_archive(tmp_path / formats.CIFAR_ARCHIVE, files)
    else:
        folder = tmp_path if form == "folder" else tmp_path / "cifar-10-batches-bin"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    train, train_labels, test, test_labels = formats.cifar10(tmp_path)
    assert train.shape == (10, 3, 32, 32)
    assert test.shape == (2, 3, 32, 32)
    assert train_labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert test_labels.tolist() == [5, 4]
    assert train[3, :, 31, 0].tolist() == [11, 100, 200]
    assert test[1, :, 0, 31].tolist() == [51, 100, 200]


def test_cifar_batch_with_half_a_record(tmp_path: Path) -> None:
    for name, content in cifar_files().items():
        (tmp_path / name).write_bytes(content)
    bad = tmp_path / "data_batch_3.bin"
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        formats.cifar10(tmp_path)
    assert (
        str(caught.value) == f"{bad}: expected whole records of 3073 bytes, got 6145 bytes; {AGAIN}"
    )


def test_cifar_batch_that_is_missing(tmp_path: Path) -> None:
    for name, content in cifar_files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(DataError) as caught:
        formats.cifar10(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/test_batch.bin: expected this file, got nothing there; {AGAIN}"
    )


def test_cifar_archive_without_a_batch(tmp_path: Path) -> None:
    files = cifar_files()
    del files["data_batch_5.bin"]
    cifar_archive(tmp_path / formats.CIFAR_ARCHIVE, files)
    with pytest.raises(DataError) as caught:
        formats.cifar10(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/cifar-10-binary.tar.gz: expected data_batch_5.bin inside, got none; {AGAIN}"
    )


def test_cifar_archive_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / formats.CIFAR_ARCHIVE
    cifar_archive(path, cifar_files())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        DataError, match=r"expected a whole \.tar\.gz archive, got .*; fetch it again"
    ):
        formats.cifar10(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "data_batch_1"])
def test_the_pickled_version_is_never_opened(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError) as caught:
        formats.cifar10(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/{name}: expected the binary version, cifar-10-binary.tar.gz, got the Python "
        "version, whose pickles could run code and are never opened; put cifar-10-binary.tar.gz "
        "there, or add --download"
    )
    assert not (tmp_path / "sprung").exists()


def test_no_cifar_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        formats.cifar10(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/cifar-10-binary.tar.gz: expected this archive, or data_batch_1.bin and its "
        "fellows, got nothing there; point --root at the folder that has it, or add --download"
    )
