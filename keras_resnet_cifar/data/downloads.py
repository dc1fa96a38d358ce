"""Downloads files completely or not at all, with `keras.utils.get_file`."""

import contextlib
import hashlib
import io
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import keras

from keras_resnet_cifar.errors import InputError, explained
from keras_resnet_cifar.files import atomic_write, make_folder

TIMEOUT = 60  # seconds without a byte


def download(
    url: str, path: Path, check: Callable[[Path], object], remedy: str
) -> None:
    """Downloads a file completely or not at all.

    `check` is called with the downloaded file before it is moved to `path`. It
    may rewrite the file, and raises if it is not the expected one.
    """
    make_folder(path.parent)
    # Keras prints its progress bar to standard output, which is for results.
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # get_file sets none
    try:
        with atomic_write(path) as temporary:
            temporary.touch()  # refused here if the folder is not writable
            temporary.unlink()  # `get_file` would take it for the download
            with (
                explained(f"cannot download {url} to {path}", remedy),
                contextlib.redirect_stdout(progress),
            ):
                keras.utils.get_file(
                    temporary.name, url, cache_subdir=temporary.parent
                )
                check(temporary)
    finally:
        socket.setdefaulttimeout(default_timeout)


def file_digest(path: Path, algorithm: str) -> str:
    """Returns the digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_digest(path: Path, digest: str) -> None:
    """Checks a file against a digest such as `"sha256:0a1b2c3d"`.

    The digits may be the first ones only, as in the names of PyTorch's files.
    """
    algorithm, digits = digest.split(":")
    with explained(f"cannot read {path}", "check its permissions"):
        found = file_digest(path, algorithm)
    if not found.startswith(digits):
        raise InputError(
            f"its {algorithm} is {found[: len(digits)]}, not {digits}"
        )
