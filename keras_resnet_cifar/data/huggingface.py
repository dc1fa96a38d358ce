"""The parquet files of uoft-cs/cifar10 and uoft-cs/cifar100 at Hugging Face.

A mirror for the days when the university's host is slow. Each file is
downloaded once; `HF_ENDPOINT` names another host.
"""

import contextlib
import io
import os
import socket
import sys
from pathlib import Path

import keras
import numpy as np

from keras_resnet_cifar.data.checks import Splits, check_form, explained
from keras_resnet_cifar.data.images import opened
from keras_resnet_cifar.files import atomic_write, make_folder

# (repository, folder of its files, column of the labels) per dataset
REPOSITORIES = {
    "cifar10": ("uoft-cs/cifar10", "plain_text", "label"),
    "cifar100": ("uoft-cs/cifar100", "cifar100", "fine_label"),
}
TIMEOUT = 60  # seconds without a byte


def read(family: str, cache: str | os.PathLike) -> Splits:
    """Downloads what the folder `cache` lacks, and reads it.

    Raises:
        InputError: A download fails, a file is not the expected one, or pyarrow
            is not installed.
    """
    with explained("source='huggingface' needs pyarrow", "pip install pyarrow"):
        import pyarrow.parquet  # noqa: F401
    repository, folder, label_column = REPOSITORIES[family]
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    splits = {}
    for split in ("train", "test"):
        name = f"{folder}/{split}-00000-of-00001.parquet"
        path = Path(cache).absolute() / repository / name
        if not path.exists():
            base = f"{endpoint.rstrip('/')}/datasets/{repository}"
            _download(f"{base}/resolve/main/{name}", path)
        splits[split] = read_parquet(path, family, label_column)
    return splits


def _download(url, path):
    """Downloads a parquet file; `path` appears whole or not at all."""
    from pyarrow.parquet import read_metadata

    make_folder(path.parent)
    # Keras draws its progress bar on standard output, which is for results.
    progress = sys.stderr if sys.stderr.isatty() else io.StringIO()
    remedy = "check the network and HF_ENDPOINT, or point data_dir= at a copy"
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # get_file sets none
    try:
        with (
            atomic_write(path) as temporary,
            explained(f"cannot download {url} to {path}", remedy),
            contextlib.redirect_stdout(progress),
        ):
            keras.utils.get_file(
                temporary.name, url, cache_subdir=temporary.parent
            )
            read_metadata(temporary)
    finally:
        socket.setdefaulttimeout(default_timeout)


def read_parquet(
    path: Path, family: str, label_column: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split: images uint8 `[N, 32, 32, 3]` and labels uint8 `[N]`.

    The file has a column of labels and a column `img`, a struct whose `bytes`
    is a 32x32 RGB PNG.

    Raises:
        InputError: It is not such a file.
    """
    from pyarrow.parquet import ParquetFile

    columns = ["img.bytes", label_column]
    images, labels = [], []
    with explained(
        f"{path}: not the parquet file of {family}", "delete it and run again"
    ):
        with ParquetFile(path) as table:
            # In batches: the whole table as Python objects is large.
            for batch in table.iter_batches(batch_size=1000, columns=columns):
                pngs = batch.column("img").field("bytes").to_pylist()
                images.append(np.stack([_decode(png) for png in pngs]))
                labels.append(batch.column(label_column).to_numpy())
        return check_form(
            np.concatenate(images), np.concatenate(labels), family
        )


def _decode(png):
    with opened(io.BytesIO(png), formats=("PNG",)) as image:
        if image.size != (32, 32) or image.mode != "RGB":
            raise ValueError(f"an image is {image.mode} {image.size}")
        return np.asarray(image)
