"""The parquet files of uoft-cs/cifar10 and uoft-cs/cifar100 at Hugging Face.

Downloaded once into a cache and read from there: a mirror for the days when
the university's host is slow. `HF_ENDPOINT` names another host.
"""

import http.client
import io
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from keras_resnet_cifar.data.readers import check
from keras_resnet_cifar.errors import InputError, one_line
from keras_resnet_cifar.files import move_into_place

# (repository, folder of its files, column of the labels) per dataset
REPOSITORIES = {
    "cifar10": ("uoft-cs/cifar10", "plain_text", "label"),
    "cifar100": ("uoft-cs/cifar100", "cifar100", "fine_label"),
}
TIMEOUT = 60  # seconds without a byte
MAGIC = b"PAR1"  # the first and last bytes of a parquet file


def read(family, cache):
    """Downloads what the cache lacks and reads it.

    Args:
        family: `"cifar10"` or `"cifar100"`.
        cache: Folder for the parquet files; made if need be.

    Returns:
        `{"train": (images, labels), "test": (images, labels)}`, images uint8
        [N, 32, 32, 3], labels uint8 [N], fine ones for CIFAR-100.

    Raises:
        InputError: No network, a download that breaks off, a file that is no
            such parquet, or pyarrow or Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--source huggingface needs pyarrow and Pillow "
            f"({one_line(error)}): pip install pyarrow pillow"
        ) from error
    repository, folder, label_column = REPOSITORIES[family]
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    splits = {}
    for split in ("train", "test"):
        name = f"{folder}/{split}-00000-of-00001.parquet"
        path = Path(cache) / repository / name
        if not path.exists():
            base = f"{endpoint.rstrip('/')}/datasets/{repository}"
            download(f"{base}/resolve/main/{name}", path)
        splits[split] = read_parquet(path, family, label_column)
    return splits


def download(url, path):
    """Downloads a parquet file; `path` appears whole or not at all.

    Raises:
        InputError: Names the address, what failed, and the remedy.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file,
        ):
            part = file.name
            _copy(response, file)
        move_into_place(part, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(
            f"cannot download {url} to {path} ({one_line(error)}); check the "
            "network and HF_ENDPOINT, or point --data-dir at a copy"
        ) from error
    finally:
        if part and os.path.exists(part):
            os.remove(part)


def _copy(response, file):
    size = int(response.headers.get("Content-Length") or 0)
    name = response.url.rsplit("/", 1)[-1]
    done, tail = 0, b""
    while chunk := response.read(1 << 20):
        file.write(chunk)
        done += len(chunk)
        tail = (tail + chunk)[-len(MAGIC) :]
        if sys.stderr.isatty():
            total = f" of {size / 1e6:.0f}" if size else ""
            print(
                f"\r{name}: {done / 1e6:.0f}{total} MB",
                end="",
                file=sys.stderr,
            )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if size and done != size:
        raise ValueError(f"broke off after {done} of {size} bytes")
    if tail != MAGIC:
        raise ValueError("what came is no whole parquet file")


def read_parquet(path, family, label_column):
    """Reads one split.

    Args:
        path: A parquet file with columns `img` (a struct whose `bytes` is a
            32x32 RGB PNG) and `label_column`.
        family: `"cifar10"` or `"cifar100"`.
        label_column: Name of the column of the labels.

    Returns:
        Images uint8 [N, 32, 32, 3] and labels uint8 [N].

    Raises:
        InputError: Names the file, and says to delete it.
    """
    import pyarrow.parquet

    images, labels = [], []
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            # By the batch: the whole table as Python objects is large.
            for batch in table.iter_batches(
                batch_size=1000, columns=["img.bytes", label_column]
            ):
                pngs = batch.column("img").field("bytes").to_pylist()
                images.append(np.stack([decode(png) for png in pngs]))
                labels.append(batch.column(label_column).to_numpy())
        images, labels = np.concatenate(images), np.concatenate(labels)
        return images, check(images, labels, family)
    except Exception as error:
        raise InputError(
            f"{path}: not the parquet file of {family} ({one_line(error)}); "
            "delete it and run again"
        ) from error


def decode(png):
    """Returns the pixels of a PNG, uint8 [32, 32, 3].

    Raises:
        ValueError: It is no RGB PNG of 32x32 pixels; told from its header,
            before any pixel is decoded.
    """
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        if image.size != (32, 32) or image.mode != "RGB":
            raise ValueError(f"an image is {image.mode} {image.size}")
        return np.asarray(image)
