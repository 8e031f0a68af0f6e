"""The data sets, and fetching them from a server of our own."""

from __future__ import annotations

import functools
import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fanin.errors import ArgumentError, DataError
from fanin.reproduce import fetch, formats, images
from fanin.reproduce.images import Images

from .test_formats import cifar_archive, cifar_files, idx_bytes


def fashion_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    arrays = (
        rng.integers(0, 256, (20, 28, 28)),
        np.arange(20) % 10,
        rng.integers(0, 256, (10, 28, 28)),
        np.arange(10),
    )
    return {
        f"{stem}.gz": gzip.compress(idx_bytes(array))
        for stem, array in zip(formats.IDX_STEMS, arrays, strict=True)
    }


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which its files are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_mnist_is_bundled_and_balanced() -> None:
    mnist = images.load()
    assert mnist.train.shape == (4000, 1, 28, 28)
    assert mnist.train.dtype == np.uint8
    assert np.bincount(mnist.train_labels).tolist() == [400] * 10
    assert np.bincount(mnist.test_labels).tolist() == [100] * 10
    # Real digits: a 1 has less ink than a 0, and the middle more than the corner.
    ink = [mnist.train[mnist.train_labels == digit].mean() for digit in (0, 1)]
    assert ink[0] > 1.5 * ink[1]
    assert mnist.train[:, 0, 0, 0].max() == 0
    # No test image is a training image.
    seen = {image.tobytes() for image in mnist.train}
    assert sum(image.tobytes() in seen for image in mnist.test) == 0


def test_the_digest_sees_every_pixel_and_label() -> None:
    def made(pixel: int = 0, label: int = 0, test: int = 1) -> Images:
        pixels = np.zeros((2, 1, 2, 2), np.uint8)
        pixels[1, 0, 1, 1] = pixel
        return Images(
            "x", "", pixels, np.array([0, label]), pixels[:test], np.zeros(test, np.int64)
        )

    assert made().digest() == made().digest()
    assert (
        len(
            {made().digest(), made(pixel=1).digest(), made(label=1).digest(), made(test=2).digest()}
        )
        == 4
    )


def test_fashion_mnist_from_files(tmp_path: Path) -> None:
    for name, content in fashion_files().items():
        (tmp_path / name).write_bytes(content)
    loaded = images.load("fashion-mnist", tmp_path)
    assert loaded.train.shape == (20, 1, 28, 28)
    assert loaded.test_labels.tolist() == list(range(10))
    assert loaded.source == "Fashion-MNIST, 20 training and 10 test images"


def test_cifar10_from_its_archive(tmp_path: Path) -> None:
    cifar_archive(tmp_path / formats.CIFAR_ARCHIVE, cifar_files())
    loaded = images.load("cifar10", tmp_path)
    assert loaded.train.shape == (10, 3, 32, 32)
    assert loaded.source == "CIFAR-10, 10 training and 2 test images"


BUNDLED = "expected --data fashion-mnist or cifar10 with it, got --data mnist, which is bundled"


@pytest.mark.parametrize(
    ("name", "root", "download", "said"),
    [
        (
            "imagenet",
            None,
            False,
            "--data: expected mnist or fashion-mnist or cifar10, got 'imagenet'",
        ),
        ("mnist", Path("x"), False, f"--root: {BUNDLED}"),
        ("mnist", None, True, f"--download: {BUNDLED}"),
        (
            "cifar10",
            None,
            False,
            "--data cifar10: expected --root DIR, the folder with its files, got none; give --root "
            "DIR, with --download to fetch them there",
        ),
    ],
)
def test_options_that_make_no_sense(
    name: str, root: Path | None, download: bool, said: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        images.load(name, root, download=download)
    assert str(caught.value) == said


def test_download_fetches_once_and_checks(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    files = fashion_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sums = {f"{address}/{n}": f"sha256:{hashlib.sha256(c).hexdigest()}" for n, c in files.items()}
    monkeypatch.setitem(fetch.ARCHIVES, "fashion-mnist", sums)
    first = images.load("fashion-mnist", tmp_path / "data", download=True)
    for path in folder.iterdir():
        path.unlink()
    again = images.load("fashion-mnist", tmp_path / "data", download=True)
    assert first.digest() == again.digest()


def test_what_does_not_match_its_checksum_is_refused(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    (folder / "a.gz").write_bytes(b"something else")
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", {f"{address}/a.gz": "md5:" + "0" * 32})
    with pytest.raises(DataError) as caught:
        images.load("cifar10", tmp_path / "data", download=True)
    said = str(caught.value)
    assert said.startswith(
        f"{tmp_path}/data/a.gz: expected {address}/a.gz with checksum md5:{'0' * 32}, "
        "got MD5 hash of downloaded file "
    )
    assert said.endswith("; check the network, or put the file there by hand")
    assert not list((tmp_path / "data").glob("*.gz"))


def test_without_a_network_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", {"http://127.0.0.1:9/a.gz": "md5:" + "0" * 32})
    with pytest.raises(DataError, match=r"got no connection; check the network"):
        images.load("cifar10", tmp_path, download=True)


def test_every_published_checksum_is_whole() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for files in fetch.ARCHIVES.values():
        for address, checksum in files.items():
            kind, digits = checksum.split(":")
            assert address.startswith("https://")
            assert len(bytes.fromhex(digits)) * 2 == lengths[kind]
