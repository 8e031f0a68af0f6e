"""Fetch the standard archives, each checked against its published checksum."""

from __future__ import annotations

from pathlib import Path

from fanin.errors import DataError, MissingDependencyError

_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"

ARCHIVES: dict[str, dict[str, str]] = {
    "fashion-mnist": {
        f"{_FASHION}/train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        f"{_FASHION}/train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        f"{_FASHION}/t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    "cifar10": {
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": (
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        ),
    },
}
"""Address and checksum of every file of a data set that can be fetched."""


def fetch(name: str, root: Path) -> list[Path]:
    """Fetch what is missing of a data set into a folder; a file that is there and whole is kept.

    Args:
        name: a key of `ARCHIVES`.
        root: the folder, made if it is not there.

    Returns:
        The files.

    Raises:
        MissingDependencyError: pooch is not installed.
        DataError: no network, or what came does not match its checksum.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingDependencyError(
            "--download", expected="the package pooch", fix="pip install 'fanin[experiments]'"
        ) from error
    files = []
    for address, checksum in ARCHIVES[name].items():
        file = address.rsplit("/", 1)[-1]
        try:
            found = pooch.retrieve(address, checksum, fname=file, path=root, progressbar=False)
        except Exception as error:  # pooch lets through whatever its transport raises
            raise DataError(
                str(root / file),
                expected=f"{address} with checksum {checksum}",
                got=_said(error),
                fix="check the network, or put the file there by hand",
            ) from error
        files.append(Path(found))
    return files


def _said(error: Exception) -> str:
    """An error of the transport in a few words."""
    if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "ReadTimeout"):
        return "no connection"
    return str(error).split("\n")[0][:200]
