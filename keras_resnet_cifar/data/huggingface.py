"""The parquet files of uoft-cs/cifar10 and uoft-cs/cifar100 on Hugging Face.

A mirror for when the university's host is slow. Each file is downloaded once;
`HF_ENDPOINT` names another host.
"""

import io
import os
from pathlib import Path

import numpy as np

from keras_resnet_cifar.data.checks import Splits, check_form
from keras_resnet_cifar.data.downloads import download
from keras_resnet_cifar.data.images import opened
from keras_resnet_cifar.errors import explained

# (repository, folder of its files, column of the labels) per dataset
REPOSITORIES = {
    "cifar10": ("uoft-cs/cifar10", "plain_text", "label"),
    "cifar100": ("uoft-cs/cifar100", "cifar100", "fine_label"),
}
_REMEDY = "check the network and HF_ENDPOINT, or point data_dir= at a copy"


def read(family: str, cache: str | os.PathLike) -> Splits:
    """Reads the files, after downloading missing ones to the folder `cache`."""
    with explained("source='huggingface' needs pyarrow", "pip install pyarrow"):
        import pyarrow.parquet
    repository, folder, label_column = REPOSITORIES[family]
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    splits = {}
    for split in ("train", "test"):
        name = f"{folder}/{split}-00000-of-00001.parquet"
        path = Path(cache).absolute() / repository / name
        if not path.exists():
            base = f"{endpoint.rstrip('/')}/datasets/{repository}"
            url = f"{base}/resolve/main/{name}"
            download(url, path, pyarrow.parquet.read_metadata, _REMEDY)
        splits[split] = read_parquet(path, family, label_column)
    return splits


def read_parquet(
    path: Path, family: str, label_column: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split: images uint8 `[N, 32, 32, 3]` and labels uint8 `[N]`.

    The file has a column of labels and a column `img`, a struct whose `bytes`
    is a 32x32 RGB PNG.
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
